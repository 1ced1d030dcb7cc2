"""The store: durable, private, silent where nothing changed, and never in the way."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from kvmd.api.problem import Position
from kvmd.api.resource import Metadata, Ref, Resource, SpecModel
from kvmd.errors import Retry
from kvmd.sources.store import Store


class Tap(SpecModel):
    bridge: str | None = None
    mtu: int = 1500


SPECS: dict[str, type[SpecModel]] = {"Tap": Tap}


def tap(name: str = "tap1", line: int = 3, file: str = "/specs/a.yaml", **written: object) -> Resource:
    metadata = Metadata(name=name, labels={"app": "ü"})
    return Resource(Ref("Tap", name), metadata, Tap.model_validate(written), written, Position(file, line))


def test_round_trip(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "state" / "specs"))
    resource = tap(bridge="br0")
    assert store.save(resource, 7)
    entry = Store(store.root).load()[resource.ref]
    assert (entry.file, entry.line, entry.generation) == ("/specs/a.yaml", 3, 7)
    assert entry.spec_hash == resource.spec_hash
    held = entry.as_resource(SPECS)
    assert held is not None
    assert held.held
    assert (held.ref, held.metadata, held.spec, held.written) == (
        resource.ref,
        resource.metadata,
        resource.spec,
        resource.written,
    )
    assert held.spec_hash == resource.spec_hash


def test_modes_and_no_leftovers(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "specs"))
    old = os.umask(0)
    try:
        store.save(tap(), 1)
    finally:
        os.umask(old)
    path = tmp_path / "specs" / "Tap" / "tap1.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == stat.S_IMODE((tmp_path / "specs").stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["tap1.json"]


def test_the_same_is_not_written_again(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    path = tmp_path / "Tap" / "tap1.json"
    assert store.save(tap(bridge="br0"), 1)
    before = path.stat()
    assert not store.save(tap(bridge="br0"), 1)
    assert not store.save(tap(bridge="br0", line=9), 1)
    assert not Store(str(tmp_path)).save(tap(bridge="br0"), 1)
    assert path.stat() == before
    assert store.save(tap(bridge="br0"), 2)
    assert store.save(tap(bridge="br1"), 2)
    assert store.save(tap(bridge="br1", file="/specs/b.yaml"), 2)
    assert store.save(tap(file="/specs/b.yaml"), 2)
    assert store.objects()[Ref("Tap", "tap1")].written == {}


def test_remove(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.save(tap(), 1)
    store.save(tap("tap2"), 1)
    store.remove(Ref("Tap", "tap1"))
    store.remove(Ref("Tap", "tap1"))
    assert set(store.objects()) == set(Store(str(tmp_path)).load()) == {Ref("Tap", "tap2")}


def test_what_no_longer_validates_is_none(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.save(tap(bridge="br0"), 1)
    entry = store.load()[Ref("Tap", "tap1")]

    class Narrow(SpecModel):
        mtu: int = 1

    assert entry.as_resource({"Tap": Narrow}) is None
    assert entry.as_resource({}) is None


def test_broken_entries_are_reported_and_left(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for number in range(8):
        store.save(tap(f"tap{number}"), 1)
    folder = tmp_path / "Tap"
    whole = (folder / "tap0.json").read_text()
    (folder / "tap0.json").write_text(whole[:40])
    (folder / "tap1.json").write_bytes(b"\xff\x00")
    (folder / "tap2.json").write_text("[]")
    (folder / "tap3.json").write_text(whole)  # of another name
    (folder / "tap4.json").write_text("[" * 100_000)
    (folder / "tap5.json").unlink()
    (folder / "tap5.json").mkdir()
    (folder / "tap6.json").write_text(json.dumps(json.loads(whole) | {"ref": "Tap/tap6", "format": 9}))
    (folder / ".tap9.tmp").write_text("half")
    (tmp_path / "Stray").write_text("x")
    os.mkfifo(folder / "fifo.json")
    found = store.load()
    assert set(found) == {Ref("Tap", "tap7")}
    names = {os.path.basename(problem.position.file) for problem in store.problems}
    assert names == {f"tap{number}.json" for number in range(7)} | {"Stray", "fifo.json"}
    assert all(problem.severity == "warning" and problem.hint for problem in store.problems)
    assert store.save(tap("tap0"), 1)
    assert Ref("Tap", "tap0") in store.load()


def test_every_truncation_of_an_entry_is_survived(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.save(tap(bridge="br0"), 1)
    path = tmp_path / "Tap" / "tap1.json"
    whole = path.read_bytes()
    for length in range(len(whole) - 2):
        path.write_bytes(whole[:length])
        assert store.load() == {}
        assert len(store.problems) == 1


def test_an_absent_root_is_empty(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "none"))
    assert store.load() == {}
    assert store.problems == ()


def test_names_cannot_leave_the_root(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "root"))
    for ref in (Ref("..", "x"), Ref("Tap", "../x"), Ref("Tap", ".."), Ref("", "x"), Ref("Tap", "x\n")):
        with pytest.raises(ValueError, match="cannot be the name"):
            store.remove(ref)


def test_a_disk_that_refuses_is_a_retry(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("a file where the directory should be")
    with pytest.raises(Retry, match="cannot be kept"):
        Store(str(tmp_path / "root")).save(tap(), 1)


def test_a_symlink_is_replaced_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "root" / "Tap").mkdir(parents=True)
    (tmp_path / "root" / "Tap" / "tap1.json").symlink_to(victim)
    store = Store(str(tmp_path / "root"))
    assert store.load() == {}
    assert store.save(tap(), 1)
    assert victim.read_text() == "mine"
    assert not (tmp_path / "root" / "Tap" / "tap1.json").is_symlink()
