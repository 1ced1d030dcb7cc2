"""The store: durable, private, silent where nothing changed, and never in the way."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from kvmd.api.problem import Position
from kvmd.api.resource import Metadata, Ref, Resource, SpecModel
from kvmd.errors import Retry
from kvmd.sources import store as module
from kvmd.sources.store import Store


class Tap(SpecModel):
    bridge: str | None = None
    mtu: int = 1500


SPECS: dict[str, type[SpecModel]] = {"Tap": Tap}


def tap(name: str = "tap1", line: int = 3, file: str = "/specs/a.yaml", **written: object) -> Resource:
    metadata = Metadata(name=name, labels={"app": "ü"})
    return Resource(Ref("Tap", name), metadata, Tap.model_validate(written), written, Position(file, line))


def at(folder: Path) -> Store:
    return Store(str(folder / "specs.jsonl"))


def test_round_trip(tmp_path: Path) -> None:
    store = at(tmp_path / "state")
    resource = tap(bridge="br0")
    assert store.save(resource, 7)
    entry = Store(store.path).load()[resource.ref]
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
    old = os.umask(0)
    try:
        at(tmp_path / "state").save(tap(), 1)
    finally:
        os.umask(old)
    path = tmp_path / "state" / "specs.jsonl"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["specs.jsonl"]


def test_the_same_is_not_written_again(tmp_path: Path) -> None:
    store = at(tmp_path)
    path = Path(store.path)
    assert store.save(tap(bridge="br0"), 1)
    before = path.stat()
    assert not store.save(tap(bridge="br0"), 1)
    assert not store.save(tap(bridge="br0", line=9), 1)
    assert not at(tmp_path).save(tap(bridge="br0"), 1)
    assert path.stat() == before
    assert store.save(tap(bridge="br0"), 2)
    assert store.save(tap(bridge="br1"), 2)
    assert store.save(tap(bridge="br1", file="/specs/b.yaml"), 2)
    assert store.save(tap(file="/specs/b.yaml"), 2)
    assert store.objects()[Ref("Tap", "tap1")].written == {}
    assert at(tmp_path).load()[Ref("Tap", "tap1")].written == {}


def test_remove(tmp_path: Path) -> None:
    store = at(tmp_path)
    assert store.save_all([(tap(), 1), (tap("tap2"), 1)]) == 2
    store.remove(Ref("Tap", "tap1"))
    store.remove(Ref("Tap", "tap1"))
    assert set(store.objects()) == set(at(tmp_path).load()) == {Ref("Tap", "tap2")}


def test_what_no_longer_validates_is_none(tmp_path: Path) -> None:
    store = at(tmp_path)
    store.save(tap(bridge="br0"), 1)
    entry = store.load()[Ref("Tap", "tap1")]

    class Narrow(SpecModel):
        mtu: int = 1

    assert entry.as_resource({"Tap": Narrow}) is None
    assert entry.as_resource({}) is None


def test_broken_lines_are_reported_and_passed_over(tmp_path: Path) -> None:
    store = at(tmp_path)
    store.save(tap("tap0"), 1)
    path = Path(store.path)
    whole = path.read_bytes()
    broken = (
        whole[:40] + b"\n",
        b"\xff\x00\n",
        b"[]\n",
        b"[" * 100_000 + b"\n",
        whole.replace(b'"format":1', b'"format":9'),
    )
    path.write_bytes(b"".join(broken) + whole)
    assert set(store.load()) == {Ref("Tap", "tap0")}
    assert [problem.position.line for problem in store.problems] == [1, 2, 3, 4, 5]
    assert all(problem.severity == "warning" and problem.hint for problem in store.problems)


def test_every_truncation_is_survived_and_the_next_line_counts(tmp_path: Path) -> None:
    store = at(tmp_path)
    store.save(tap(bridge="br0"), 1)
    path = Path(store.path)
    whole = path.read_bytes()
    for length in range(len(whole) - 2):
        path.write_bytes(whole[:length])
        again = at(tmp_path)
        assert again.load() == {}
        assert again.problems == ()
        again.save(tap("tap2"), 1)
        assert set(at(tmp_path).load()) == {Ref("Tap", "tap2")}


def test_it_does_not_grow_for_ever(tmp_path: Path) -> None:
    store = at(tmp_path)
    for generation in range(0, 6000, 100):
        store.save_all([(tap(), generation + number) for number in range(100)])
    assert len(Path(store.path).read_bytes().splitlines()) < 4200
    assert at(tmp_path).load()[Ref("Tap", "tap1")].generation == 5999


@pytest.fixture
def _soon_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_DEAD_LINES", 5)


@pytest.mark.usefixtures("_soon_shortened")
def test_what_was_just_saved_or_removed_is_so_in_the_file_that_was_written_anew(tmp_path: Path) -> None:
    store = at(tmp_path)
    for number in range(20):
        store.save_all([(tap(bridge=f"br{number}"), 0), (tap("other", mtu=number), 0)])
        loaded = at(tmp_path).load()
        assert loaded[Ref("Tap", "tap1")].written == {"bridge": f"br{number}"}
        store.remove(Ref("Tap", "other"))
        assert set(at(tmp_path).load()) == {Ref("Tap", "tap1")}
    assert len(Path(store.path).read_bytes().splitlines()) < 20


@pytest.mark.usefixtures("_soon_shortened")
def test_a_file_that_cannot_be_written_anew_is_only_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []

    def full(name: str, *_more: object) -> None:
        tries.append(name)
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "replace", full)
    store = at(tmp_path)
    for generation in range(20):
        assert store.save(tap(), generation)
    assert at(tmp_path).load()[Ref("Tap", "tap1")].generation == 19
    assert 1 <= len(tries) <= 3 and os.listdir(tmp_path) == ["specs.jsonl"]


def test_an_absent_file_is_empty(tmp_path: Path) -> None:
    store = at(tmp_path / "none")
    assert store.load() == {}
    assert store.problems == ()


def test_a_disk_that_refuses_is_a_retry(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("a file where the directory should be")
    with pytest.raises(Retry, match="cannot be kept"):
        at(tmp_path / "root").save(tap(), 1)


def test_a_symlink_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "specs.jsonl").symlink_to(victim)
    store = at(tmp_path)
    assert store.load() == {}
    with pytest.raises(Retry):
        store.save(tap(), 1)
    assert victim.read_text() == "mine"
