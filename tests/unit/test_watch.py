"""The watch: soon, whatever the layout, and never dead."""

from __future__ import annotations

import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmd.sources.watch import Watch, follow


class Ear:
    """Counts the calls of a watch."""

    def __init__(self, root: Path) -> None:
        self.heard = threading.Event()
        self.calls = 0
        self.watch = Watch(str(root), self)

    def __call__(self) -> None:
        self.calls += 1
        self.heard.set()

    def quiet(self) -> None:
        """Wait until nothing has been heard for a while."""
        before = -1
        while before != self.calls:
            before = self.calls
            time.sleep(0.12)
        self.heard.clear()

    def after(self, act: Callable[[], object], timeout: float = 5.0) -> float:
        """Do something and return the seconds until it is heard of."""
        self.quiet()
        begun = time.monotonic()
        act()
        assert self.heard.wait(timeout), "nothing was heard"
        return time.monotonic() - begun


@pytest.fixture
def listen() -> Iterator[Callable[[Path], Ear]]:
    ears: list[Ear] = []

    def begin(root: Path) -> Ear:
        ear = Ear(root)
        ears.append(ear)
        ear.watch.start()
        assert ear.watch.ready.wait(5)
        return ear

    yield begin
    for ear in ears:
        ear.watch.stop()
        ear.watch.join(5)
        assert not ear.watch.is_alive()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    found = tmp_path / "specs"
    found.mkdir()
    return found


def test_a_save_is_heard_soon(listen: Callable[[Path], Ear], root: Path) -> None:
    ear = listen(root)
    (root / "deep").mkdir()
    times = []
    for number in range(3):
        for path in (root / f"{number}.yaml", root / "deep" / f"{number}.yaml"):
            times.append(ear.after(lambda path=path: path.write_text("x")))
    assert statistics.median(times) < 0.05


def test_an_atomic_replace_a_removal_and_a_chmod_are_heard(listen: Callable[[Path], Ear], root: Path) -> None:
    path = root / "a.yaml"
    path.write_text("x")
    ear = listen(root)
    (root / ".new").write_text("y")
    ear.after(lambda: (root / ".new").rename(path))
    ear.after(lambda: path.chmod(0o600))
    ear.after(path.unlink)


def test_reading_and_noise_are_not_heard(listen: Callable[[Path], Ear], root: Path, tmp_path: Path) -> None:
    (root / "a.yaml").write_text("x")
    ear = listen(root)
    ear.quiet()
    before = ear.calls
    (root / "a.yaml").read_text()
    os.listdir(root)
    (tmp_path / "noise").write_text("x")
    time.sleep(0.3)
    assert ear.calls == before


def test_a_root_that_goes_and_comes(listen: Callable[[Path], Ear], root: Path, tmp_path: Path) -> None:
    ear = listen(root)
    ear.after(lambda: shutil.rmtree(root))
    ear.after(root.mkdir)
    ear.after(lambda: (root / "a.yaml").write_text("x"))
    ear.after(lambda: root.rename(tmp_path / "elsewhere"))
    ear.after(lambda: (tmp_path / "elsewhere").rename(root))
    ear.after(lambda: (root / "a.yaml").write_text("y"))


def test_a_root_that_is_not_there_yet(listen: Callable[[Path], Ear], tmp_path: Path) -> None:
    root = tmp_path / "one" / "two" / "specs"
    ear = listen(root)
    ear.after(lambda: (tmp_path / "one").mkdir())
    ear.after(lambda: root.mkdir(parents=True))
    ear.after(lambda: (root / "a.yaml").write_text("x"))


def test_symlink_swaps(listen: Callable[[Path], Ear], tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"rev{number}" / "specs").mkdir(parents=True)
    (tmp_path / "current").symlink_to("rev1")
    (tmp_path / "etc").mkdir()
    root = tmp_path / "etc" / "specs"
    root.symlink_to(tmp_path / "current" / "specs")

    def swap() -> None:
        (tmp_path / "new").symlink_to("rev2")
        (tmp_path / "new").rename(tmp_path / "current")

    ear = listen(root)
    assert ear.after(swap) < 0.5
    ear.after(lambda: (tmp_path / "rev2" / "specs" / "a.yaml").write_text("x"))


def test_a_configmap_swap(listen: Callable[[Path], Ear], root: Path) -> None:
    (root / "..1").mkdir()
    (root / "..1" / "a.yaml").write_text("x")
    (root / "..data").symlink_to("..1")
    (root / "a.yaml").symlink_to("..data/a.yaml")

    def swap() -> None:
        (root / "..2").mkdir()
        (root / "..2" / "a.yaml").write_text("y")
        (root / "..data_tmp").symlink_to("..2")
        (root / "..data_tmp").rename(root / "..data")

    listen(root).after(swap)


def test_links_are_not_followed_out_of_the_tree(listen: Callable[[Path], Ear], root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "loop").symlink_to(".")
    ear = listen(root)
    ear.quiet()
    before = ear.calls
    (tmp_path / "outside" / "a.yaml").write_text("x")
    time.sleep(0.2)
    assert ear.calls == before


def test_a_failing_callback_does_not_end_it(root: Path) -> None:
    calls = []

    def fail() -> None:
        calls.append(1)
        raise RuntimeError("no")

    watch = Watch(str(root), fail)
    watch.start()
    assert watch.ready.wait(5)
    for number in range(3):
        before = len(calls)
        (root / f"{number}.yaml").write_text("x")
        deadline = time.monotonic() + 5
        while len(calls) == before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(calls) > before
    assert "failed: no" in watch.error
    watch.stop()
    watch.join(5)
    assert not watch.is_alive()


def test_at_rest_it_costs_little(listen: Callable[[Path], Ear], root: Path) -> None:
    for number in range(50):
        (root / f"{number}").mkdir()
    listen(root).quiet()
    before = time.process_time()
    time.sleep(1)
    assert time.process_time() - before < 0.05


def test_follow(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to(f"{tmp_path}/./x/../real")
    (tmp_path / "x").mkdir()
    trail = follow(str(tmp_path / "a"))
    assert (trail.path, trail.exists, trail.link) == (str(tmp_path / "real"), True, "real")
    assert set(trail.names) == {str(tmp_path / "a"), str(tmp_path / "b")}
    (tmp_path / "loop").symlink_to("loop")
    assert not follow(str(tmp_path / "loop")).exists
    missing = follow(str(tmp_path / "none" / "deeper"))
    assert (missing.exists, missing.path) == (False, str(tmp_path / "none" / "deeper"))
    assert str(tmp_path / "none") in missing.names
    assert follow("/").path == "/"
