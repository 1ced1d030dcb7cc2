"""One bad thing stays one bad thing: what others write, and a full disk, end nobody's work."""

from __future__ import annotations

import io
import json
import logging
import os
from pathlib import Path
from typing import Any, Literal

import pytest
from generators import decoded, document

from kvmd import ops
from kvmd.api.mark import Mark
from kvmd.api.resource import Ref, Resource
from kvmd.host.libvirtd.leases import LeaseFiles
from kvmd.kinds import CONTROLLERS
from kvmd.observed import HOST, Domain, Host, Key, Lease, Observed
from kvmd.plan import planner
from kvmd.plan.model import Desired, Memory, Plan, Rules
from kvmd.settings import Log
from kvmd.telemetry import log

REF = Ref("VirtualMachine", "web")
HOST_FACT = Host(machine_id="0" * 32, memory_bytes=2**34)


def planned(resources: dict[Ref, Resource], *facts: Domain) -> Plan:
    marks = {REF: tuple(Key("domain", fact.name) for fact in facts if fact.mark is not None)}
    observed = Observed({HOST: HOST_FACT} | {Key("domain", fact.name): fact for fact in facts}, marks)
    return planner.make_plan(Desired(resources), observed, Memory(), Rules(), 0.0, CONTROLLERS)


@pytest.fixture
def web() -> dict[Ref, Resource]:
    return decoded([document("VirtualMachine", "web", {"memory": {"guest": "64Mi"}, "accelerator": "tcg"})])


def domain(web: dict[Ref, Resource], **details: Any) -> Domain:
    """A machine as we made it, with a mark in which somebody wrote those details."""
    step = planned(web).objects[REF].step
    assert step is not None and isinstance(step.operations[0], ops.DomainDefine)
    define = step.operations[0]
    element = Mark.of(web[REF], "kvmd", define.uuid).as_element()
    element.text = json.dumps(json.loads(element.text or "") | details)
    return Domain("web", define.uuid, "shutoff", "", define.xml, None, mark=Mark.from_element(element))


@pytest.mark.parametrize("name", ["written", "annotations", "resolved"])
@pytest.mark.parametrize("value", ["x", ["x"], None, 5])
def test_a_mark_whose_parts_are_no_tables_is_no_mark(web: dict[Ref, Resource], name: str, value: Any) -> None:
    found = domain(web, **{name: value})
    assert found.mark is None
    assert planned(web, found).objects[REF].condition("Conflict") is None, "its UUID is the one that we derive"
    planned({}, found)


@pytest.mark.parametrize(
    "written",
    [
        {"cloudInit": "x", "disks": {}, "nameOnHost": 3},
        {"interfaces": [None], "disks": [1, "x"], "memory": 5, "cpu": []},
        {"memory": {"guest": {"a": 1}}},
    ],
)
def test_a_mark_with_an_odd_spec_ends_no_cycle(web: dict[Ref, Resource], written: dict[str, Any]) -> None:
    found = domain(web, written=written)
    assert found.mark is not None
    assert planned(web, found).objects.keys() == planned({}, found).objects.keys() == {REF}


def test_whose_an_object_is_may_be_a_question_without_an_answer(
    web: dict[Ref, Resource], monkeypatch: pytest.MonkeyPatch
) -> None:
    def trip(*_arguments: Any) -> None:
        raise AttributeError("odd")

    monkeypatch.setattr(planner, "refusal", trip)
    stalled = planned(web).objects[REF].condition("Stalled")
    assert stalled is not None and stalled.reason == "InternalError"


@pytest.mark.parametrize("odd", [b"null", b"5", b'{"expiry-time": "soon"}', b'{"expiry-time": null}'])
def test_what_is_no_lease_is_passed_over(tmp_path: Path, odd: bytes) -> None:
    good = b'{"ip-address": "10.0.0.5", "mac-address": "52:54:00:00:00:07", "hostname": "caf\xe9"}'
    (tmp_path / "virbr0.status").write_bytes(b"[%s, %s]" % (odd, good))
    (tmp_path / "virbr1.status").write_bytes(b"[" * 100_000)
    leases = LeaseFiles(str(tmp_path)).look()
    assert leases[Key("leases", "virbr0")].leases == (Lease("10.0.0.5", "52:54:00:00:00:07", "caf\ufffd"),)
    assert leases[Key("leases", "virbr1")].leases == ()


class Full(io.StringIO):
    """A file on a full disk."""

    def write(self, _text: str) -> int:
        raise OSError(28, os.strerror(28))

    def flush(self) -> None:
        raise OSError(28, os.strerror(28))


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_full_disk_below_the_log_ends_nothing(form: Literal["json", "console"]) -> None:
    log.configure(Log(format=form), Full())
    log.get("daemon").warning("a line")
    logging.getLogger("uvicorn").error("a line")
