"""What came and went leaves nothing behind: the daemon runs for years on a host whose machines live for minutes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from generators import decoded, document

from kvmd import ops
from kvmd.api.resource import Ref, Resource
from kvmd.engine.executor import Outcome
from kvmd.engine.memory import Remembering
from kvmd.host import ledger
from kvmd.kinds import CONTROLLERS
from kvmd.observed import HOST, Host, Ledger, Observed
from kvmd.plan.model import Cause, Desired, Memory, Plan, Rules, Step
from kvmd.plan.planner import Planner
from kvmd.settings import Backoff, Source
from kvmd.sources.directory import Directory
from kvmd.sources.store import Store

GONE = "passing"
SPECS = {kind: controller.Spec for kind, controller in CONTROLLERS.items()}


def tables_with(thing: object) -> list[str]:
    """The tables of something that still name what is gone."""
    return [name for name, value in vars(thing).items() if GONE in repr(value)]


def passing() -> dict[Ref, Resource]:
    disks = [{"name": "root", "volume": f"{GONE}-root"}]
    nics = [{"name": "net0", "network": f"{GONE}-net", "mac": "52:54:00:00:00:07"}]
    web = {"memory": {"guest": "1Gi"}, "disks": disks, "interfaces": nics}
    return decoded([document("VirtualMachine", GONE, web), document("Tap", f"{GONE}-tap", {"bridge": GONE})])


def test_the_planner_forgets_who_named_and_claimed_what() -> None:
    planner, observed = Planner(CONTROLLERS, Rules()), Observed({HOST: Host(machine_id="0" * 32)})
    planner.plan(Desired(passing()), observed, Memory(), 0.0)
    assert tables_with(planner._index)
    planner.plan(Desired({}), observed, Memory(), 1.0)
    assert not tables_with(planner._index) and not tables_with(planner._recall)


def test_the_engine_forgets_what_was_removed() -> None:
    memory, ref = Remembering(Backoff()), Ref("VirtualMachine", GONE)
    step = Step(ref, (ops.DomainUndefine(GONE, "u"),), Cause.PRUNE, "its spec is gone")
    memory.start(step)
    memory.end(Outcome(step, step.operations, None, 0.1), 0.0)
    memory.take_plan(Plan({}), 1.0)
    assert tables_with(memory)
    memory.forget(ref)
    assert not tables_with(memory)


def test_the_merger_forgets_versions_that_nobody_asks_for(tmp_path: Path) -> None:
    (tmp_path / "specs").mkdir()
    file = tmp_path / "specs" / "a.yaml"
    file.write_text(f"apiVersion: kvmd.dev/v1alpha1\nkind: Tap\nmetadata: {{name: {GONE}}}\nspec: {{}}\n")
    store, later = Store(str(tmp_path / "store")), time.time() + 1000.0
    directory = Directory(str(tmp_path / "specs"), Source(), SPECS, store)
    store.save_all([(resource, 1) for resource in directory.scan(0.0, later).resources.values()])
    file.write_text("broken: [\n")
    directory.scan(10.0, later)
    assert {"_good", "_held"} <= set(tables_with(directory._merger))
    directory = Directory(str(tmp_path / "specs"), Source(), SPECS, store)
    directory.scan(20.0, later)
    assert "_revived" in tables_with(directory._merger)
    file.unlink()
    directory.scan(30.0, later)
    store.remove(Ref("Tap", GONE))
    directory.scan(40.0, later)
    assert set(tables_with(directory._merger)) <= {"_store"}


def test_the_ledger_forgets_removals_that_the_brake_does_not_count_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "COMPACT_LINES", 5)
    book = ledger.LedgerFile(str(tmp_path))
    book.write(ops.LedgerWrite(f"VirtualMachine/{GONE}", "removed", str(time.time() - ledger.HOUR_SECONDS)))
    for number in range(30):
        book.write(ops.LedgerWrite("VirtualMachine/web", "last_stop", str(number)))
    assert not tables_with(book) and GONE not in (tmp_path / "ledger").read_text()


def test_a_ledger_that_cannot_be_written_anew_is_only_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []

    def full(name: str, *_more: Any) -> None:
        tries.append(name)
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(ledger, "COMPACT_LINES", 5)
    monkeypatch.setattr(os, "replace", full)
    book = ledger.LedgerFile(str(tmp_path))
    for number in range(30):
        book.write(ops.LedgerWrite("VirtualMachine/web", "last_stop", str(number)))
    (fact,) = ledger.LedgerFile(str(tmp_path)).facts.values()
    assert fact == Ledger(Ref("VirtualMachine", "web"), last_stop="29") and 1 <= len(tries) <= 4
