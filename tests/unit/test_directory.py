"""The directory as a whole: what settles, what is held, what absence means; every fault with real files."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import Field

from kvmd.api.resource import Ref, SpecModel
from kvmd.settings import Source
from kvmd.sources.directory import Directory
from kvmd.sources.snapshot import Snapshot
from kvmd.sources.store import Store


class Tap(SpecModel):
    bridge: str | None = None
    memory: int = Field(1, ge=1)
    disks: tuple[str, ...] = ()


SPECS: dict[str, type[SpecModel]] = {"Tap": Tap}
SETTLE = 0.3
LONG_AGO = 1000.0  # far enough from the real file times for everything to have settled


def spec(name: str, bridge: str = "br0", more: str = "") -> str:
    text = f"apiVersion: kvmd.dev/v1alpha1\nkind: Tap\nmetadata: {{name: {name}}}\nspec:\n  bridge: {bridge}\n"
    return text + (f"  {more}\n" if more else "")


def ref(name: str) -> Ref:
    return Ref("Tap", name)


class Place:
    """A directory of specs with a clock that the test moves."""

    def __init__(self, root: Path, store: Store | None = None, **limits: int) -> None:
        self.root = root
        self.source = Source(settle=SETTLE, **limits)
        self.now = 100.0
        self.reopen(store)

    def reopen(self, store: Store | None = None) -> None:
        """Start anew, as after a restart of the process."""
        self.directory = Directory(str(self.root), self.source, SPECS, store)

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def scan(self, later: float = 10.0, age: float = LONG_AGO) -> Snapshot:
        """Look *later* seconds after the last look, with all files *age* seconds old or older."""
        self.now += later
        return self.directory.scan(self.now, time.time() + age)

    def fresh(self, later: float = 0.0) -> Snapshot:
        """Look at files that were written just now; only the look itself can tell when they settle."""
        return self.scan(later, age=-LONG_AGO)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    root = tmp_path / "specs"
    root.mkdir()
    return Place(root)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store" / "specs.jsonl"))


def keep(snapshot: Snapshot, store: Store) -> None:
    for resource in snapshot.resources.values():
        store.save(resource, 1)


def bridge(snapshot: Snapshot, name: str) -> str | None:
    found = snapshot.resources[ref(name)].spec
    assert isinstance(found, Tap)
    return found.bridge


def rules(snapshot: Snapshot) -> list[str]:
    return [problem.rule for problem in snapshot.problems]


# What is read


def test_a_tree(place: Place) -> None:
    place.write("a.yaml", spec("a") + "---\n" + spec("b"))
    place.write("deep/er/c.yml", spec("c"))
    place.write("d.json", '{"apiVersion":"kvmd.dev/v1alpha1","kind":"Tap","metadata":{"name":"d"},"spec":{}}')
    place.write("comment.yaml", "# nothing here\n")
    for ignored in (".hidden.yaml", "x.yaml~", ".x.yaml.swp", "#x.yaml#", "x.yaml.tmp", "README.md", ".git/x.yaml"):
        place.write(ignored, spec("ignored"))
    place.write("..2024_x/e.yaml", spec("ignored"))
    os.mkfifo(place.root / "fifo.yaml")
    (place.root / "dir.yaml").mkdir()
    snapshot = place.scan()
    assert {str(found) for found in snapshot.resources} == {"Tap/a", "Tap/b", "Tap/c", "Tap/d"}
    assert snapshot.complete
    assert not snapshot.empty
    assert snapshot.problems == ()
    assert snapshot.files == 4
    assert snapshot.wake_at is None
    assert str(snapshot.resources[ref("b")].position) == f"{place.root}/a.yaml:7:1"


def test_nothing_changed_is_the_same_snapshot(place: Place) -> None:
    place.write("a.yaml", spec("a"))
    place.write("b.yaml", "kind: [\n")
    place.write("c.yaml", spec("c"))
    place.write("d.yaml", spec("c"))
    first = place.scan()
    assert place.scan() is first
    os.utime(place.root / "a.yaml")
    assert place.scan() is first


def test_only_what_changed_is_another_object(place: Place) -> None:
    place.write("a.yaml", spec("a"))
    path = place.write("b.yaml", spec("b") + "---\n" + spec("c"))
    first = place.scan()
    path.write_text("# above\n" + spec("b", bridge="br1") + "---\n" + spec("c"))
    second = place.scan()
    assert second is not first
    assert bridge(second, "b") == "br1"
    assert second.resources[ref("a")] is first.resources[ref("a")]
    assert second.resources[ref("c")] is first.resources[ref("c")]
    assert second.positions[ref("c")].line == 8
    assert second.digest != first.digest
    path.write_text(spec("b") + "---\n" + spec("c"))
    assert place.scan().digest == first.digest


def test_layout_is_not_content(place: Place) -> None:
    path = place.write("a.yaml", spec("a"))
    first = place.scan()
    path.write_text("# a comment\n---\n" + spec("a"))
    second = place.scan()
    assert second.resources[ref("a")] is first.resources[ref("a")]
    assert second.digest == first.digest


def test_true_is_not_one(place: Place) -> None:
    path = place.write("a.yaml", spec("a", more="memory: 1"))
    place.scan()
    path.write_text(spec("a", more="memory: true"))
    assert place.scan().resources[ref("a")].written["memory"] is True


# What settles


def test_a_new_file_is_used_when_two_looks_agree(place: Place) -> None:
    place.write("a.yaml", spec("a"))
    first = place.fresh()
    assert not first.resources
    assert first.pending == (f"{place.root}/a.yaml",)
    assert first.wake_at == pytest.approx(place.now + SETTLE)
    assert not first.empty
    assert place.fresh(0.2) is first
    second = place.fresh(0.11)
    assert set(second.resources) == {ref("a")}
    assert second.wake_at is None


def test_an_old_file_is_used_at_once(place: Place) -> None:
    place.write("a.yaml", spec("a"))
    assert set(place.scan(age=1.0).resources) == {ref("a")}


def test_the_age_of_a_file_counts(place: Place) -> None:
    place.write("a.yaml", spec("a"))
    first = place.scan(age=0.2)
    assert first.wake_at is not None
    assert 0 < first.wake_at - place.now <= 0.1
    assert set(place.scan(0.1, age=0.3).resources) == {ref("a")}


def test_a_file_that_goes_on_changing_waits(place: Place) -> None:
    path = place.write("a.yaml", spec("a", "br0"))
    before = place.scan()
    for number in range(5):
        path.write_text(spec("a", f"br1{number}"))
        snapshot = place.fresh(0.25)
        assert snapshot.resources[ref("a")] is before.resources[ref("a")]
        assert snapshot.pending
        assert snapshot.complete
    assert bridge(place.fresh(0.3), "a") == "br14"


def test_no_final_newline_waits_longer(place: Place) -> None:
    place.write("a.yaml", spec("a").rstrip("\n"))
    assert not place.fresh().resources
    half = place.fresh(0.31)
    assert not half.resources
    assert half.wake_at == pytest.approx(place.now - 0.31 + 5 * SETTLE)
    assert not place.fresh(1.0).resources
    assert place.fresh(0.2).resources


def test_every_truncation_is_harmless(tmp_path: Path, store: Store) -> None:
    """A file that is being written never shows as another valid object, and its last good objects stay."""
    root = tmp_path / "specs"
    root.mkdir()
    place = Place(root, store)
    whole = spec("a", more="memory: 16384") + "  disks: [root, data]\n---\n" + spec("b")
    path = place.write("ab.yaml", whole)
    good = place.scan()
    keep(good, store)
    for length in range(len(whole)):
        path.write_text(whole[:length])
        snapshot = place.fresh(0.01)
        assert snapshot.resources == good.resources
        assert snapshot.resources[ref("a")] is good.resources[ref("a")]
        settled = place.fresh(SETTLE + 0.01)
        if length and whole[length - 1] == "\n":
            assert settled.resources.keys() == good.resources.keys() or settled.invalid_files == ()
        else:
            assert settled.resources[ref("a")] is good.resources[ref("a")]
        path.write_text(whole)
        assert place.scan().resources == good.resources
        good = place.scan()
    for length in range(0, len(whole), 7):  # a restart in the middle of a save
        path.write_text(whole[:length])
        place.reopen(store)
        snapshot = place.fresh()
        assert {found: resource.spec_hash for found, resource in snapshot.resources.items()} == {
            found: resource.spec_hash for found, resource in good.resources.items()
        }


def test_an_emptied_file_is_a_fault_not_a_removal(place: Place) -> None:
    path = place.write("a.yaml", spec("a"))
    place.scan()
    path.write_text("")
    snapshot = place.scan()
    assert rules(snapshot) == ["empty-file"]
    assert snapshot.resources[ref("a")].held
    assert not snapshot.empty


# What goes


def test_a_removed_file(place: Place) -> None:
    place.write("a.yaml", spec("a"))
    path = place.write("b.yaml", spec("b"))
    place.scan()
    path.unlink()
    first = place.fresh(1.0)
    assert set(first.resources) == {ref("a"), ref("b")}
    assert first.wake_at == pytest.approx(place.now + SETTLE)
    second = place.fresh(0.31)
    assert set(second.resources) == {ref("a")}
    assert second.complete
    assert second.wake_at is None


def test_the_last_file_removed_is_empty_and_says_so(place: Place) -> None:
    place.write("a.yaml", spec("a")).unlink()
    snapshot = place.scan()
    assert snapshot.complete
    assert snapshot.empty


def test_a_renamed_file_is_never_absent(place: Place) -> None:
    path = place.write("a.yaml", spec("a"))
    first = place.scan()
    path.rename(place.root / "b.yaml")
    for later in (0.0, 0.1, 0.1, 0.15, 0.2):
        snapshot = place.fresh(later)
        assert bridge(snapshot, "a") == "br0"
        assert not snapshot.problems
        assert not snapshot.duplicates
    assert snapshot.resources[ref("a")].position.file == f"{place.root}/b.yaml"
    assert snapshot.digest == first.digest
    assert snapshot.wake_at is None


def test_a_replaced_file_is_never_absent(place: Place) -> None:
    path = place.write("a.yaml", spec("a"))
    first = place.scan()
    path.unlink()
    assert place.fresh().resources[ref("a")] is first.resources[ref("a")]
    path.write_text(spec("a"))
    assert place.fresh(0.1).resources[ref("a")] is first.resources[ref("a")]
    assert place.fresh(0.31).resources[ref("a")] is first.resources[ref("a")]


def test_a_gone_file_waits_for_others_but_not_for_ever(place: Place) -> None:
    place.write("a.yaml", spec("a")).rename(place.root / "x.yaml")
    place.scan()
    (place.root / "x.yaml").unlink()
    busy = place.root / "busy.yaml"
    for number in range(8):
        busy.write_text(spec("busy", f"br{number}"))
        snapshot = place.fresh(0.2)
        assert (ref("a") in snapshot.resources) == (number * 0.2 < 5 * SETTLE)


# What is held


def test_an_invalid_file_holds_its_last_good_version(place: Place) -> None:
    path = place.write("a.yaml", spec("a") + "---\n" + spec("b"))
    place.write("c.yaml", spec("c"))
    good = place.scan()
    path.write_text(spec("a", "br1") + "---\n" + spec("b", more="memroy: 4"))
    snapshot = place.scan()
    assert snapshot.invalid_files == (str(path),)
    assert "did you mean 'memory'" in str(snapshot.problems[0])
    assert snapshot.complete
    for name in "ab":
        held = snapshot.resources[ref(name)]
        assert held.held
        assert held.spec_hash == good.resources[ref(name)].spec_hash
    assert snapshot.resources[ref("c")] is good.resources[ref("c")]
    path.write_text("also: broken\n")
    again = place.scan()
    assert again.resources[ref("a")] is snapshot.resources[ref("a")]
    path.write_text(spec("a") + "---\n" + spec("b"))
    assert place.scan().resources[ref("a")] is good.resources[ref("a")]


def test_held_across_a_restart(tmp_path: Path, store: Store) -> None:
    (tmp_path / "specs").mkdir()
    place = Place(tmp_path / "specs", store)
    path = place.write("a.yaml", spec("a") + "---\n" + spec("b"))
    place.write("c.yaml", spec("c"))
    good = place.scan()
    keep(good, store)
    path.write_text("broken: [\n")
    place.reopen(Store(store.path))
    snapshot = place.scan()
    assert set(snapshot.resources) == set(good.resources)
    assert snapshot.resources[ref("a")].held
    assert snapshot.resources[ref("a")].written == good.resources[ref("a")].written
    assert not snapshot.resources[ref("c")].held
    assert snapshot.invalid_files == (str(path),)
    assert snapshot.digest == good.digest
    assert place.scan() is snapshot


def test_a_broken_file_that_is_replaced_after_a_restart_still_stands(tmp_path: Path, store: Store) -> None:
    """Editors unlink and create; what the store has stands in meanwhile, and is let go by the rule for all files."""
    (tmp_path / "specs").mkdir()
    place = Place(tmp_path / "specs", store)
    path = place.write("a.yaml", spec("a"))
    place.write("c.yaml", spec("c"))
    keep(place.scan(), store)
    path.write_text("broken: [\n")
    place.reopen(store)
    place.scan()
    path.unlink()
    assert set(place.fresh(0.1).resources) == {ref("a"), ref("c")}
    path.write_text("still broken: [\n")
    assert set(place.fresh(0.1).resources) == {ref("a"), ref("c")}
    held = place.scan()
    assert set(held.resources) == {ref("a"), ref("c")} and held.invalid_files == (str(path),)
    path.unlink()
    assert set(place.scan().resources) == {ref("c")}


def test_a_file_that_went_and_comes_back_asks_for_nothing_until_it_is_read(tmp_path: Path, store: Store) -> None:
    """The store forgets an object only when it has left the host: it must not be made again from there just then."""
    (tmp_path / "specs").mkdir()
    place = Place(tmp_path / "specs", store)
    path = place.write("a.yaml", spec("a"))
    place.write("c.yaml", spec("c"))
    keep(place.scan(), store)
    path.unlink()
    assert set(place.scan().resources) == {ref("c")}
    place.write("a.yaml", spec("a", "br1"))
    waiting = place.fresh()
    assert set(waiting.resources) == {ref("c")} and waiting.pending == (str(path),)
    assert bridge(place.fresh(SETTLE), "a") == "br1"
    path.unlink()
    assert set(place.scan().resources) == {ref("c")}
    place.write("a.yaml", "broken: [\n")
    broken = place.scan()
    assert set(broken.resources) == {ref("c")} and broken.invalid_files == (str(path),)


def test_a_file_that_went_does_not_come_back_as_a_duplicate(tmp_path: Path, store: Store) -> None:
    (tmp_path / "specs").mkdir()
    place = Place(tmp_path / "specs", store)
    path = place.write("a.yaml", spec("a"))
    place.write("c.yaml", spec("c"))
    keep(place.scan(), store)
    path.unlink()
    assert set(place.scan().resources) == {ref("c")}
    for name in ("a.yaml", "b.yaml"):
        place.write(name, spec("a", "br1"))
    twice = place.scan()
    assert set(twice.resources) == {ref("c")} and len(twice.duplicates[ref("a")]) == 2


def test_a_stored_version_that_no_longer_validates_is_named(tmp_path: Path, store: Store) -> None:
    (tmp_path / "specs").mkdir()
    place = Place(tmp_path / "specs", store)
    path = place.write("a.yaml", spec("a"))
    keep(place.scan(), store)
    path.write_text("broken: [\n")
    stored = Path(store.path)
    stored.write_text(stored.read_text().replace('"bridge"', '"brigde"'))
    place.reopen(Store(store.path))
    snapshot = place.scan()
    assert not snapshot.resources
    assert "stored-object" in rules(snapshot)


def test_never_good_is_only_a_problem(place: Place) -> None:
    place.write("a.yaml", "a: b\n")
    snapshot = place.scan()
    assert not snapshot.resources
    assert snapshot.invalid_files
    assert not snapshot.empty


def test_an_invalid_file_that_goes_takes_its_objects_along(place: Place) -> None:
    path = place.write("a.yaml", spec("a"))
    place.write("b.yaml", spec("b"))
    place.scan()
    path.write_text("broken\n")
    assert place.scan().invalid_files
    path.unlink()
    snapshot = place.scan()
    assert set(snapshot.resources) == {ref("b")}
    assert not snapshot.invalid_files


@contextlib.contextmanager
def as_nobody() -> Iterator[Place]:
    """A place read by somebody whom the modes of files hold back, even where the tests run as root."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    root = os.geteuid() == 0
    try:
        (folder / "specs" / "deep").mkdir(parents=True)
        if root:
            os.seteuid(65534)
        yield Place(folder / "specs")
    finally:
        if root:
            os.seteuid(0)
        for path in (folder / "specs", folder / "specs" / "deep"):
            path.chmod(0o755)
        shutil.rmtree(folder)


@contextlib.contextmanager
def as_owner() -> Iterator[None]:
    before = os.geteuid()
    os.seteuid(os.getuid())
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.parametrize("closed", ["a.yaml", "deep", "deep/b.yaml", ""])
def test_what_cannot_be_read_is_held(closed: str) -> None:
    with as_nobody() as place:
        path = place.root / closed
        with as_owner():
            place.write("a.yaml", spec("a"))
            place.write("deep/b.yaml", spec("b"))
        good = place.scan()
        assert good.complete
        mode = path.stat().st_mode
        with as_owner():
            path.chmod(0)
        snapshot = place.scan()
        assert set(snapshot.resources) == {ref("a"), ref("b")}
        assert not snapshot.complete
        assert "Permission denied" in snapshot.reason
        assert snapshot.problems[0].hint
        assert place.scan() is snapshot
        for found, resource in snapshot.resources.items():
            assert resource.written == good.resources[found].written
        with as_owner():
            path.chmod(mode)
        back = place.scan()
        assert back.complete
        assert all(back.resources[found] is resource for found, resource in good.resources.items())


def test_an_oversize_file(tmp_path: Path) -> None:
    (tmp_path / "specs").mkdir()
    place = Place(tmp_path / "specs", max_file_bytes=200)
    path = place.write("a.yaml", spec("a"))
    place.scan()
    path.write_text(spec("a", "br1") + "#" * 200 + "\n")
    snapshot = place.scan()
    assert rules(snapshot) == ["too-large"]
    assert bridge(snapshot, "a") == "br0"


def test_too_many_files_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "specs").mkdir()
    place = Place(tmp_path / "specs", max_files=3)
    for name in "abc":
        place.write(f"{name}.yaml", spec(name))
    good = place.scan()
    assert good.complete
    place.write("0.yaml", spec("a", "br9"))
    snapshot = place.scan()
    assert not snapshot.complete
    assert "more than 3 files" in snapshot.reason
    assert dict(snapshot.resources) == dict(good.resources)


def test_a_deep_or_huge_file_costs_little(place: Place) -> None:
    place.write("a.yaml", spec("a"))
    place.write("b.yaml", "a: " + "[" * 100_000 + "\n")
    place.write("c.yaml", "{a: " * 200_000 + "\n")
    begun = time.monotonic()
    snapshot = place.scan()
    assert time.monotonic() - begun < 2
    assert rules(snapshot) == ["too-deep", "too-deep"]
    assert set(snapshot.resources) == {ref("a")}


# Two places, one object


def test_duplicates_hold_the_last_good_version(place: Place) -> None:
    place.write("a.yaml", spec("a", "br0"))
    other = place.write("other.yaml", spec("b"))
    good = place.scan()
    other.write_text(spec("b") + "---\n" + spec("a", "br1"))
    snapshot = place.scan()
    held = snapshot.resources[ref("a")]
    assert held.held
    assert held.written == {"bridge": "br0"}
    assert snapshot.resources[ref("b")] is good.resources[ref("b")]
    places = (f"{place.root}/a.yaml:1:1", f"{place.root}/other.yaml:7:1")
    assert snapshot.duplicates == {ref("a"): places}
    assert [(p.rule, str(p.position)) for p in snapshot.problems] == [("duplicate-object", at) for at in places]
    assert all(at in snapshot.problems[1 - number].message for number, at in enumerate(places))
    assert place.scan() is snapshot
    (place.root / "a.yaml").write_text(spec("a", "br2"))  # an edit of one does not win either
    assert place.scan().resources[ref("a")] is held
    (place.root / "a.yaml").unlink()
    after = place.scan()
    assert bridge(after, "a") == "br1"
    assert not after.duplicates


def test_duplicates_in_one_file(place: Place) -> None:
    path = place.write("a.yaml", spec("a"))
    place.scan()
    path.write_text(spec("a", "br1") + "---\n" + spec("a", "br2"))
    snapshot = place.scan()
    assert bridge(snapshot, "a") == "br0"
    assert len(snapshot.duplicates[ref("a")]) == 2


def test_duplicates_from_the_start(tmp_path: Path, store: Store) -> None:
    (tmp_path / "specs").mkdir()
    place = Place(tmp_path / "specs")
    place.write("a.yaml", spec("a"))
    keep(place.scan(), store)
    place.write("b.yaml", spec("a", "br1"))
    place.reopen()
    assert not place.scan().resources
    place.reopen(Store(store.path))
    snapshot = place.scan()
    assert bridge(snapshot, "a") == "br0"
    assert snapshot.resources[ref("a")].held


def test_a_broken_file_still_claims_what_it_had(place: Place) -> None:
    path = place.write("a.yaml", spec("a"))
    place.scan()
    path.write_text("broken\n")
    place.write("b.yaml", spec("a", "br1"))
    snapshot = place.scan()
    assert bridge(snapshot, "a") == "br0"
    assert "its last good version" in str(snapshot.problems)


def test_an_object_that_moves_between_files_never_flickers(place: Place) -> None:
    one = place.write("one.yaml", spec("a") + "---\n" + spec("b"))
    two = place.write("two.yaml", spec("c"))
    good = place.scan()
    two.write_text(spec("c") + "---\n" + spec("b"))
    place.fresh(0.1)
    one.write_text(spec("a"))
    snapshot = place.fresh(0.31)  # two has settled, one has not
    assert snapshot.pending == (str(one),)
    assert not snapshot.problems
    assert snapshot.resources[ref("b")] is good.resources[ref("b")]
    moved = place.fresh(0.31)
    assert moved.resources[ref("b")].position.file == str(two)
    assert not moved.problems


# The root


@pytest.mark.parametrize("away", ["rmtree", "file", "dangling"])
def test_a_root_that_is_gone_changes_nothing(place: Place, away: str, tmp_path: Path) -> None:
    place.write("a.yaml", spec("a"))
    good = place.scan()
    place.root.rename(tmp_path / "away")
    if away == "file":
        place.root.write_text("x")
    elif away == "dangling":
        place.root.symlink_to(tmp_path / "nowhere")
    snapshot = place.scan()
    assert not snapshot.complete
    assert snapshot.reason
    assert snapshot.resources[ref("a")] is good.resources[ref("a")]
    assert rules(snapshot) == ["source-unavailable"]
    assert place.scan() is snapshot
    if away != "rmtree":
        place.root.unlink()
    (tmp_path / "away").rename(place.root)
    back = place.scan()
    assert back.complete
    assert back.resources[ref("a")] is good.resources[ref("a")]


def test_a_missing_root_at_the_start_holds_what_is_stored(tmp_path: Path, store: Store) -> None:
    (tmp_path / "specs").mkdir()
    place = Place(tmp_path / "specs")
    place.write("a.yaml", spec("a"))
    keep(place.scan(), store)
    shutil.rmtree(place.root)
    place.reopen(Store(store.path))
    snapshot = place.scan()
    assert not snapshot.complete
    assert snapshot.empty
    assert snapshot.resources[ref("a")].held


def test_an_empty_root_is_complete_and_empty(place: Place) -> None:
    snapshot = place.scan()
    assert snapshot.complete
    assert snapshot.empty
    assert not snapshot.resources


def test_an_empty_mount_point_is_not_an_empty_directory(place: Place) -> None:
    if (
        not os.path.isdir("/dev/shm")
        or os.stat("/dev/shm").st_dev == os.stat("/dev").st_dev
        or os.listdir("/dev/shm")
    ):
        pytest.skip("no empty mount point at hand")
    place.root = Path("/dev/shm")
    place.reopen()
    snapshot = place.scan()
    assert not snapshot.complete
    assert "a fresh mount point" in snapshot.reason


def test_another_device_is_noticed(place: Place, tmp_path: Path) -> None:
    """An unmounted root shows the empty directory below it, on another device."""
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("no second file system at hand")
    other = Path("/dev/shm") / f"kvmd-test-{os.getpid()}"
    other.mkdir()
    try:
        (other / "a.yaml").write_text(spec("a"))
        place.root.rmdir()
        place.root.symlink_to(other)
        good = place.scan()
        assert good.complete
        empty = tmp_path / "empty"
        empty.mkdir()
        place.root.unlink()
        place.root.symlink_to(empty)
        for _ in range(3):
            snapshot = place.scan()
            assert not snapshot.complete
            assert snapshot.resources[ref("a")] is good.resources[ref("a")]
        (empty / "a.yaml").write_text(spec("a"))
        assert not place.scan().complete
        assert place.scan().complete
    finally:
        shutil.rmtree(other)


# Links


def test_a_symlink_swap(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"rev{number}").mkdir()
        (tmp_path / f"rev{number}" / "a.yaml").write_text(spec("a", f"br{number}"))
    (tmp_path / "rev1" / "b.yaml").write_text(spec("b"))
    root = tmp_path / "current"
    root.symlink_to("rev1")
    place = Place(root)
    first = place.scan()
    assert first.revision == "rev1"
    assert str(first.resources[ref("a")].position.file) == f"{root}/a.yaml"
    (tmp_path / "new").symlink_to("rev2")
    (tmp_path / "new").rename(root)
    second = place.scan()
    assert second.revision == "rev2"
    assert bridge(second, "a") == "br2"
    assert set(second.resources) == {ref("a")}


def test_a_configmap(place: Place) -> None:
    def publish(stamp: str, files: dict[str, str]) -> None:
        for name, text in files.items():
            path = place.root / stamp / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (place.root / "..data_tmp").symlink_to(stamp)
        (place.root / "..data_tmp").rename(place.root / "..data")

    publish("..2024_1", {"a.yaml": spec("a", "br1"), "sub/b.yaml": spec("b", "br1")})
    (place.root / "a.yaml").symlink_to("..data/a.yaml")
    (place.root / "sub").symlink_to("..data/sub")
    first = place.scan()
    assert set(first.resources) == {ref("a"), ref("b")}
    assert not first.problems
    assert first.complete
    assert first.resources[ref("b")].position.file == f"{place.root}/sub/b.yaml"
    publish("..2024_2", {"a.yaml": spec("a", "br2"), "sub/b.yaml": spec("b", "br1")})
    shutil.rmtree(place.root / "..2024_1")
    second = place.scan()
    assert bridge(second, "a") == "br2"
    assert second.resources[ref("b")] is first.resources[ref("b")]


def test_links_out_of_the_tree_are_refused(place: Place, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x.yaml").write_text(spec("x"))
    place.write("a.yaml", spec("a"))
    (place.root / "x.yaml").symlink_to(tmp_path / "outside" / "x.yaml")
    (place.root / "dir").symlink_to(tmp_path / "outside")
    (place.root / "none.yaml").symlink_to("nowhere")
    (place.root / "loop").symlink_to(".")
    (place.root / "self.yaml").symlink_to("self.yaml")
    snapshot = place.scan()
    assert set(snapshot.resources) == {ref("a")}
    names = {os.path.basename(path) for path in snapshot.invalid_files}
    assert names == {"x.yaml", "dir", "none.yaml", "self.yaml"}
    assert "outside of the directory" in str(snapshot.problems)


def test_names_that_cannot_be_printed(place: Place) -> None:
    place.write("a\nb.yaml", spec("a"))
    (place.root / os.fsdecode(b"\xff.yaml")).write_text(spec("b"))
    place.write("c\x07.txt", "x")
    snapshot = place.scan()
    assert not snapshot.resources
    assert len(snapshot.invalid_files) == 2
    str(snapshot.problems).encode()


# The revision


def test_the_revision_of_a_git_checkout(place: Place) -> None:
    commit, packed = "a" * 40, "b" * 40
    git = place.root / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "refs" / "heads" / "main").write_text(commit + "\n")
    place.write("a.yaml", spec("a"))
    first = place.scan()
    assert first.revision == commit
    (git / "refs" / "heads" / "main").unlink()
    (git / "packed-refs").write_text(f"# pack-refs with: peeled\n{commit} refs/heads/x\n{packed} refs/heads/main\n")
    second = place.scan()
    assert second.revision == packed
    assert second.resources[ref("a")] is first.resources[ref("a")]
    (git / "HEAD").write_text(commit)
    assert place.scan().revision == commit
    (git / "HEAD").write_text("garbage\n")
    assert place.scan().revision == ""


def test_the_revision_of_a_worktree_below_its_top(tmp_path: Path) -> None:
    private = tmp_path / "repo.git" / "worktrees" / "w"
    private.mkdir(parents=True)
    (private / "HEAD").write_text("c" * 40)
    (private / "commondir").write_text("../..\n")
    (tmp_path / "w" / "specs").mkdir(parents=True)
    (tmp_path / "w" / ".git").write_text(f"gitdir: {private}\n")
    place = Place(tmp_path / "w" / "specs")
    assert place.scan().revision == "c" * 40
    (private / "HEAD").write_text("ref: refs/heads/x\n")
    (tmp_path / "repo.git" / "refs" / "heads").mkdir(parents=True)
    (tmp_path / "repo.git" / "refs" / "heads" / "x").write_text("d" * 40)
    assert place.scan().revision == "d" * 40


# Under fire


def test_a_tree_that_changes_all_the_time(place: Place) -> None:
    """Whatever another process does meanwhile, no scan fails and none invents an object."""
    chance = random.Random(7)
    names = [f"f{number}.yaml" for number in range(12)]
    stop = threading.Event()

    def act(path: Path) -> None:
        match chance.randrange(5):
            case 0:
                path.write_text(spec(path.stem))
            case 1:
                path.write_text(spec(path.stem)[: chance.randrange(80)])
            case 2:
                path.unlink(missing_ok=True)
            case 3:
                path.rename(place.root / f"{path.stem}x.yaml")
            case 4:
                path.symlink_to(place.root.parent / "outside.yaml")

    def disturb() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                act(place.root / chance.choice(names))

    worker = threading.Thread(target=disturb)
    worker.start()
    try:
        for _ in range(100):  # as if everything had settled: half a file is believed, but nothing fails
            place.scan(0.1)
        place.source = Source(settle=0.1)
        place.reopen()
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            snapshot = place.directory.scan(time.monotonic(), time.time())
            wrong = [found for found in snapshot.resources.values() if found.written != {"bridge": "br0"}]
            assert not wrong
    finally:
        stop.set()
        worker.join()


def test_a_thousand_files_at_rest(place: Place) -> None:
    for number in range(1000):
        place.write(f"{number % 10}/{number}.yaml", spec(f"t{number}"))
    first = place.scan()
    assert len(first.resources) == 1000
    times = []
    for _ in range(10):
        begun = time.thread_time()  # other work on the machine is not ours
        assert place.scan() is first
        times.append(time.thread_time() - begun)
    assert min(times) < 0.02
