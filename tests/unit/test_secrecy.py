"""What is sensitive in a spec reaches nobody who has not the file: neither over HTTP nor by libvirt's metadata."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from casework import resources_of
from generators import machine_for
from simulator import Loop

from kvmd import ops
from kvmd.api import secrecy
from kvmd.api.mark import Mark
from kvmd.api.resource import Ref, Resource, hash_of, leaf_paths
from kvmd.daemon.agent import as_data
from kvmd.host.digest_key import NAME, digest_key
from kvmd.kinds import CONTROLLERS
from kvmd.observed import File, Key
from kvmd.plan.model import Cause
from kvmd.render.diff import diff_text

WEB = Ref("VirtualMachine", "web")
SPEC = """
apiVersion: kvmd.dev/v1alpha1
kind: VirtualMachine
metadata: {name: web}
spec:
  memory: {guest: 256Mi}
  cloudInit:
    userData: "#cloud-config\\npassword: hunter2\\n"
    metaData: {public-keys: meta-word}
    networkConfig:
      {version: 2, renderers: [{name: a, x: 1}, {name: b}], ns: [1, 2],
       wifis: {w0: {access-points: {home: {password: wifi-word}}}}}
"""
WORDS = ("hunter2", "meta-word", "wifi-word")


@pytest.fixture(autouse=True)
def key() -> Iterator[None]:
    secrecy.use_key(lambda: b"one key")
    yield
    secrecy.use_key(bytes)


@pytest.fixture
def resources() -> Mapping[Ref, Resource]:
    return resources_of(SPEC, "specs.yaml")


def told_by(text: str) -> list[str]:
    return [word for word in WORDS if word in text]


def test_neither_what_is_served_nor_what_libvirt_keeps_tells_a_word(resources: Mapping[Ref, Resource]) -> None:
    loop = Loop(machine_for(resources))
    loop.resources = resources
    plan = loop.plan()
    assert plan.objects[WEB].step is not None
    assert told_by(json.dumps(plan.as_data())) == []
    assert told_by(diff_text(plan)) == []
    loop.converge(resources)
    domain = loop.machine.domain("web")
    assert told_by(f"{domain.config}{domain.live}") == []
    data = as_data(loop.fresh_plan().objects[WEB])
    assert told_by(json.dumps(data)) == []
    assert data["spec"]["cloudInit"] == {
        "userData": "(hidden)",
        "metaData": {"public-keys": "(hidden)"},
        "networkConfig": {
            "version": "(hidden)",
            "renderers": [{"name": "a", "x": "(hidden)"}, {"name": "b"}],
            "ns": "(hidden)",
            "wifis": {"w0": {"access-points": {"home": {"password": "(hidden)"}}}},
        },
    }
    loop.resources = {}
    departing = loop.fresh_plan().objects[WEB]
    assert told_by(json.dumps(as_data(departing))) == []


def test_a_spec_in_digests_is_still_a_spec_and_changes_with_what_it_stands_for(
    resources: Mapping[Ref, Resource],
) -> None:
    web = resources[WEB]
    assert told_by(json.dumps(web.readable)) == []
    assert CONTROLLERS["VirtualMachine"].Spec.model_validate(web.readable)
    assert set(leaf_paths(web.readable)) == web.owned, "what is taken out is found by the paths of leaves"
    other = resources_of(SPEC.replace("wifi-word", "wifi-wort"), "specs.yaml")[WEB]
    assert other.spec_hash != web.spec_hash
    secrecy.use_key(lambda: b"another key")
    again = resources_of(SPEC, "specs.yaml")[WEB]
    assert again.spec_hash != web.spec_hash, "who has not the key cannot try words"
    assert again.former_hash == web.former_hash
    plain = resources_of(SPEC.partition("  cloudInit")[0], "specs.yaml")[WEB]
    assert plain.readable is plain.written
    assert plain.spec_hash == plain.former_hash == hash_of(plain.written)


def former_mark(mark: Mark, web: Resource) -> Mark:
    """As it was written before digests had a key."""
    user_data = f"(sha256:{hash_of(web.written['cloudInit']['userData'])[:16]})"
    cloud_init = {**web.written["cloudInit"], "userData": user_data}
    return replace(mark, spec_hash=web.former_hash, written={**web.written, "cloudInit": cloud_init})


def test_an_upgrade_writes_the_mark_anew_and_nothing_else(resources: Mapping[Ref, Resource]) -> None:
    web = resources[WEB]
    loop = Loop(machine_for(resources))
    loop.converge(resources)
    facts, domain = loop.machine.facts, loop.machine.domain("web")
    (seed,) = [key for key in facts if key.type == "seed"]
    former = former_seed(web, domain.uuid)
    facts[Key("seed", former)] = File(f"/var/lib/kvmd/seeds/{former}", "regular")
    del facts[seed]
    assert domain.mark is not None
    was = former_mark(domain.mark, web)
    texts = [text and text.replace(seed.name, former) for text in (domain.config, domain.live)]
    facts[Key("domain", "web")] = replace(domain, config=texts[0], live=texts[1], mark=was, boot_mark=was)
    plan = loop.fresh_plan()
    item = plan.objects[WEB]
    assert item.step is not None
    assert [type(operation) for operation in item.step.operations] == [ops.DomainDefine]
    assert (item.step.cause, item.step.changes, item.pending) == (Cause.SPEC, (), ())
    assert (item.generation, item.observed_generation) == (was.generation, was.generation)
    plans = [*loop.converge(resources)]
    after = loop.machine.domain("web").mark
    assert after is not None
    assert (after.spec_hash, after.generation) == (web.spec_hash, was.generation)
    assert told_by(str(after.written)) == []
    assert plans[-1].empty
    assert plans[-1].objects[WEB].ready


def former_seed(web: Resource, uuid: str) -> str:
    said: Mapping[str, Any] = web.written["cloudInit"]
    meta = {"instance-id": uuid, "local-hostname": "web", **said["metaData"]}
    return f"web-{hash_of([hash_of(said['userData']), said['metaData'], said['networkConfig'], meta])[:16]}.iso"


def test_the_key_is_made_once_and_read_by_its_owner_alone(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    first = digest_key(state)
    assert len(first) == 32
    assert digest_key(state) == first
    file = tmp_path / "state" / NAME
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == [NAME]
    file.write_bytes(b"half")
    assert digest_key(state) != b"half", "what is no whole key is none"
    blocked = tmp_path / "file"
    blocked.touch()
    assert digest_key(str(blocked)) != digest_key(str(blocked)), "without a place for one, each process has its own"
