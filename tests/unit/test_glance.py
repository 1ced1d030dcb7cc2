"""A scan that looks only at what the watch told of says what a walk would say."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from kvmd.api.resource import Ref, SpecModel
from kvmd.settings import Source
from kvmd.sources import directory as directory_module
from kvmd.sources.directory import Directory
from kvmd.sources.heard import MOST_PATHS, Heard
from kvmd.sources.snapshot import Snapshot
from kvmd.sources.watch import Tree, Watch, walk


class Tap(SpecModel):
    bridge: str | None = None


SPECS: dict[str, type[SpecModel]] = {"Tap": Tap}
SOURCE = Source(settle=0.3, rescan=20.0)


def spec(name: str, bridge: str) -> str:
    return f"apiVersion: kvmd.dev/v1alpha1\nkind: Tap\nmetadata: {{name: {name}}}\nspec: {{bridge: {bridge}}}\n"


class Place:
    """A directory of specs, a clock that the test moves, and a watch that the test plays."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.now, self.walks = root, 100.0, 0
        self.heard = Heard()
        self.heard.stand(True)
        self.directory = Directory(str(root), SOURCE, SPECS, None, self.heard)

        def counted(*arguments: object) -> Tree:
            self.walks += 1
            return walk(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(directory_module, "walk", counted)
        (root / "sub").mkdir(parents=True)
        for name in ("a", "b", "sub/c"):
            self.write(name, "br0")
        self.told: list[str] = []
        self.bridges()

    def write(self, name: str, bridge: str) -> Path:
        path = self.root / f"{name}.yaml"
        path.write_text(spec(path.stem, bridge))
        return path

    def tell(self, *paths: Path) -> None:
        self.heard.tell(map(str, paths))

    def scan(self, later: float = 0.001) -> Snapshot:
        self.now += later
        return self.directory.scan(self.now, time.time() + 1000)

    def bridges(self, later: float = 0.001) -> dict[str, str]:
        return {ref.name: getattr(item.spec, "bridge", "") for ref, item in self.scan(later).resources.items()}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path / "specs", monkeypatch)


def test_a_changed_file_is_found_without_a_walk(place: Place) -> None:
    """Written in place, and replaced as editors do."""
    assert place.walks == 1
    place.tell(place.write("a", "br1"))
    assert place.bridges() == {"a": "br1", "b": "br0", "c": "br0"}
    new = place.root / "sub" / ".c.yaml.new"
    new.write_text(spec("c", "br2"))
    new.rename(place.root / "sub" / "c.yaml")
    place.tell(new, place.root / "sub" / "c.yaml")
    assert place.bridges() == {"a": "br1", "b": "br0", "c": "br2"}
    assert place.walks == 1


def test_what_nobody_told_of_is_found_by_the_rescan(place: Place) -> None:
    place.write("a", "br1")
    assert place.bridges()["a"] == "br0"
    assert place.bridges(SOURCE.rescan)["a"] == "br1"


def test_a_file_that_is_being_written_is_looked_at_until_it_rests(place: Place) -> None:
    """Its second write is found although nobody tells of it."""
    path = place.write("a", "br1")
    place.tell(path)
    first = place.directory.scan(place.now, time.time())
    assert first.pending == (str(path),) and first.wake_at is not None
    place.write("a", "br2")
    second = place.directory.scan(first.wake_at, time.time())
    assert second.pending == (str(path),) and place.walks == 1
    assert place.bridges(10)["a"] == "br2"


Change = Callable[[Path], object]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda root: (root / "d.yaml").write_text(spec("d", "br9")), {"a", "b", "c", "d"}),
        (lambda root: (root / "a.yaml").rename(root / "z.yaml"), {"a", "b", "c"}),
        (lambda root: shutil.copytree(root / "sub", root / "more"), {"a", "b", "c"}),
        (lambda root: (root / "l.yaml").symlink_to("a.yaml"), {"a", "b", "c"}),
        (lambda root: (root / "sub").rename(root / "bus"), {"a", "b", "c"}),
        (lambda root: root.rename(root.with_name("gone")), {"a", "b", "c"}),
    ],
)
@pytest.mark.parametrize("told", [True, False])
def test_what_comes_or_goes_is_walked_for(place: Place, change: Change, expected: set[str], told: bool) -> None:
    """The times of folders say so, whether anybody told of it or not."""
    change(place.root)
    if told:
        place.tell(place.root / "sub", place.root)
    assert set(place.bridges()) == expected
    assert place.walks == 2 or not place.root.exists()


def test_another_directory_under_the_same_name_is_walked(place: Place) -> None:
    """Same names, same times: only the inode tells."""
    old, new = place.root / "sub", place.root.with_name("new")
    shutil.copytree(old, new)
    (new / "c.yaml").write_text(spec("c", "br7"))
    times = os.stat(old)
    shutil.rmtree(old)
    new.rename(old)
    os.utime(old, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert place.bridges()["c"] == "br7"


def test_links_are_always_walked(place: Place) -> None:
    (place.root / "l.yaml").symlink_to("sub/c.yaml")
    place.scan()
    walks = place.walks
    place.scan()
    assert place.walks == walks + 1


def test_without_a_watch_that_stands_every_scan_walks(place: Place) -> None:
    place.heard.stand(False)
    for walks in (2, 3):
        place.scan()
        assert place.walks == walks
    place.heard.stand(True)
    place.scan()
    place.scan()
    assert place.walks == 4


@pytest.mark.parametrize("doubt", [Heard.doubt, lambda heard: heard.tell(map(str, range(MOST_PATHS + 1)))])
def test_doubt_is_good_for_one_walk(place: Place, doubt: Callable[[Heard], None]) -> None:
    doubt(place.heard)
    place.write("a", "br1")
    assert place.bridges()["a"] == "br1"
    place.scan()
    assert place.walks == 2


def _other(root: Path, chance: random.Random, turn: int) -> Iterable[Path]:
    """Do one thing to the tree; the paths that inotify would name."""
    name = chance.choice(["a", "b", "sub/c", "sub/d"])
    path = root / f"{name}.yaml"
    text = spec(path.stem, f"br{turn}")
    act = chance.randrange(5)
    if act == 0:
        path.unlink(missing_ok=True)
    elif act == 1:
        path.write_text(text[: chance.randrange(len(text))])
    elif act == 2:
        new = path.with_name(f".{path.name}.new")
        new.write_text(text)
        new.rename(path)
        return (new, path)
    else:
        path.write_text(text)
    return (path,)


def test_whatever_happens_it_says_what_walks_say(place: Place) -> None:
    """Two readers of one tree, of which one walks each time."""
    chance = random.Random(7)
    walking = Directory(str(place.root), SOURCE, SPECS, None)
    walking.scan(place.now, time.time() + 1000)
    walks, scans = place.walks, 0
    for turn in range(150):
        for _ in range(chance.randrange(3)):
            place.tell(*_other(place.root, chance, turn))
        place.now += chance.choice([0.01, 0.1, 1.0])
        wall = time.time() + chance.choice([0.0, 5.0])
        found, expected = place.directory.scan(place.now, wall), walking.scan(place.now, wall)
        scans += 1
        assert {ref: item.spec for ref, item in found.resources.items()} == {
            ref: item.spec for ref, item in expected.resources.items()
        }
        assert found.pending == expected.pending and found.invalid_files == expected.invalid_files
    assert scans < place.walks - walks < 2 * scans - 10, "each reader walked, one of them not always"


def test_a_real_watch_tells_of_what_was_saved(place: Place) -> None:
    watch = Watch(str(place.root), lambda: None, place.heard)
    place.heard.stand(False)
    watch.start()
    try:
        assert watch.ready.wait(10)
        place.scan()
        walks = place.walks
        place.write("sub/c", "br5")
        deadline = time.monotonic() + 10
        while place.bridges()["c"] != "br5":
            assert time.monotonic() < deadline, "the watch told of nothing"
            time.sleep(0.01)
        assert place.walks == walks and Ref("Tap", "c") in place.scan().resources
    finally:
        watch.stop()
        watch.join(10)
