"""The tree of files: where it really lies, what is in it, and a thread that says when it moves."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from kvmd.sources.heard import Heard

MAX_LINKS = 40  # as the kernel counts them (path_resolution(7))
MAX_DIRECTORIES = 10_000
SUFFIXES = (".yaml", ".yml", ".json")
_PAUSE = 1.0  # seconds between two tries to watch
_STEP = 15  # ms: watchfiles looks for events this often, and reports once a step brought none
_DEBOUNCE = 30  # ms: the longest that a stream of events may hold back the report
_LOOK_AGAIN = 5_000  # ms: what inotify cannot tell (an unmount, say) is found this late at most


@dataclass(frozen=True, slots=True)
class Trail:
    """The way to a directory: *path* is where it ends, *names* each entry on it that may be swapped."""

    path: str
    exists: bool
    names: tuple[str, ...]
    link: str = ""  # the name of the last symlink's target: git-sync puts the revision there


def follow(root: str) -> Trail:
    """Resolve a path by hand, noting each symlink on it (which may be swapped) and where it breaks off."""
    parts = [part for part in os.path.abspath(root).split("/") if part]
    here, names, link, hops = "/", [os.path.abspath(root)], "", 0
    while parts:
        part = parts.pop(0)
        if part in (".", ".."):
            here = os.path.dirname(here) if part == ".." else here
            continue
        path = os.path.join(here, part)
        try:
            is_link = stat.S_ISLNK(os.lstat(path).st_mode)
            target = os.readlink(path) if is_link else ""
        except OSError:
            return Trail(os.path.join(path, *parts), False, (*names, path), link)
        if not is_link:
            here = path
            continue
        names.append(path)
        hops += 1
        if hops > MAX_LINKS:
            return Trail(path, False, tuple(names), link)
        link = os.path.basename(target.rstrip("/"))
        here = "/" if target.startswith("/") else here
        parts = [piece for piece in target.split("/") if piece] + parts
    return Trail(here, True, tuple(names), link)


def revision(trail: Trail) -> str:
    """The git commit that is checked out around a directory, else the name of git-sync's link, else nothing."""
    folder = trail.path
    while True:
        with contextlib.suppress(OSError, ValueError):
            return _commit(os.path.join(folder, ".git")) or trail.link
        if folder == "/":
            return trail.link
        folder = os.path.dirname(folder)


def _commit(git: str) -> str:
    """Read HEAD as git does: https://git-scm.com/docs/gitrepository-layout."""
    if not os.path.isdir(git):
        pointer = _read(git)  # a worktree: a file that says where its directory is
        git = os.path.join(os.path.dirname(git), pointer.removeprefix("gitdir:").strip())
    head = _read(os.path.join(git, "HEAD"))
    if not head.startswith("ref:"):
        return head if all(digit in "0123456789abcdef" for digit in head) else ""
    name = head.removeprefix("ref:").strip()
    common = git
    with contextlib.suppress(OSError):
        common = os.path.join(git, _read(os.path.join(git, "commondir")))
    for place in (git, common):
        with contextlib.suppress(OSError):
            return _read(os.path.join(place, name))
    for line in _read(os.path.join(common, "packed-refs")).splitlines():
        if line.endswith(f" {name}"):
            return line.split(" ")[0]
    return ""


def _read(path: str) -> str:
    with open(path, encoding="ascii") as stream:
        return stream.read(2**22).strip()


Stamp = tuple[int, int, int, int]  # inode, size, mtime and ctime in ns: another stamp, another content


class Entries(NamedTuple):
    """Which folder it was (device and inode), and every name in it."""

    folder: tuple[int, int]
    names: frozenset[str]


@dataclass(slots=True)
class Tree:
    """What a walk found, by the name under the root as it is written in the settings."""

    files: dict[str, tuple[str, Stamp]] = field(default_factory=dict)  # where it really lies
    folders: dict[str, tuple[str, int]] = field(default_factory=dict)  # and its mtime in ns
    faults: dict[str, str] = field(default_factory=dict)  # files and folders that cannot be used, and why
    names: dict[str, Entries] = field(default_factory=dict)  # in each folder
    changed: bool = False  # entries came or went meanwhile
    linked: bool = False  # it holds symbolic links
    too_many: bool = False


def walk(root: str, path: str, limit: int) -> Tree:
    """Find every spec file under *path*, which *root* leads to; links count if they stay inside."""
    tree = Tree()
    pending, links = [(path, root)], list[tuple[str, str]]()
    while pending or links:
        if not pending:
            tree.linked = True
            _follow_links(links, path, tree, pending)
            links.clear()
            continue
        real, name = pending.pop()
        try:
            status = os.stat(real)
            tree.folders[name] = (real, status.st_mtime_ns)
            names: set[str] = set()
            with os.scandir(real) as entries:
                for entry in entries:
                    names.add(entry.name)
                    if is_ignored(entry.name):
                        continue
                    _sort_in(entry, name, tree, pending, links)
                    if len(tree.files) + len(tree.faults) > limit or len(tree.folders) > MAX_DIRECTORIES:
                        tree.too_many = True
                        return tree
            tree.names[name] = Entries((status.st_dev, status.st_ino), frozenset(names))
        except FileNotFoundError:
            tree.changed = True
        except OSError as error:
            tree.faults[name] = f"the directory cannot be read: {error.strerror}"
    return tree


def is_ignored(name: str) -> bool:
    """True for what editors, git, ConfigMaps and half-done downloads leave beside specs."""
    return name.startswith((".", "#")) or name.endswith(("~", "#", ".swp", ".tmp"))


def unchanged(tree: Tree) -> bool:
    """True where no directory changed since the walk."""
    with contextlib.suppress(OSError):
        return not tree.changed and all(os.stat(real).st_mtime_ns == mtime for real, mtime in tree.folders.values())
    return False


def _sort_in(
    entry: os.DirEntry[str],
    folder: str,
    tree: Tree,
    pending: list[tuple[str, str]],
    links: list[tuple[str, str]],
) -> None:
    name = entry.name
    shown = f"{folder}/{name}"
    if not name.isprintable() and (name.endswith(SUFFIXES) or entry.is_dir()):
        tree.faults[ascii(shown)[1:-1]] = "the name holds characters that cannot be printed"
        return
    try:
        if entry.is_symlink():
            links.append((entry.path, shown))
        elif entry.is_dir(follow_symlinks=False):
            pending.append((entry.path, shown))
        elif name.endswith(SUFFIXES) and entry.is_file(follow_symlinks=False):
            tree.files[shown] = (entry.path, stamp_of(entry.stat(follow_symlinks=False)))
    except FileNotFoundError:
        tree.changed = True
    except OSError as error:
        tree.faults[shown] = f"it cannot be looked at: {error.strerror}"


def _follow_links(links: list[tuple[str, str]], root: str, tree: Tree, pending: list[tuple[str, str]]) -> None:
    """Take in what links lead to, after all that is there itself: nothing is found twice by way of a folder."""
    known = {real for real, _ in tree.folders.values()}
    folders: dict[str, str] = {}  # a ConfigMap has a thousand links into one folder
    for link, shown in sorted(links):
        try:
            folder, name = os.path.split(os.path.join(os.path.dirname(link), os.readlink(link)))
            if folder not in folders:
                folders[folder] = os.path.realpath(folder, strict=True)
            real = os.path.join(folders[folder], name)
            status = os.lstat(real)
            if not stat.S_ISREG(status.st_mode):
                real = os.path.realpath(link, strict=True)
                status = os.stat(real)
        except OSError as error:
            if shown.endswith(SUFFIXES):
                tree.faults[shown] = f"the symlink leads nowhere: {error.strerror}"
            continue
        is_folder = stat.S_ISDIR(status.st_mode)
        if not is_folder and not (shown.endswith(SUFFIXES) and stat.S_ISREG(status.st_mode)):
            continue
        if not f"{real}/".startswith(root.rstrip("/") + "/"):
            tree.faults[shown] = f"the symlink leads to {real}, outside of the directory of specs"
        elif not is_folder:
            tree.files[shown] = (real, stamp_of(status))
        elif real not in known:
            known.add(real)
            pending.append((real, shown))


def stamp_of(status: os.stat_result) -> Stamp:
    """What tells one content of a file from the next."""
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class Watch(threading.Thread):
    """Calls *callback* when anything under *root* changes, or when *root* itself is swapped or appears.

    It is a hint and no more: the rescan of the daemon finds whatever no event told of.
    """

    def __init__(self, root: str, callback: Callable[[], None], heard: Heard | None = None) -> None:
        super().__init__(name="kvmd-watch", daemon=True)
        self.root = root
        self.error = ""  # why nothing is watched at the moment
        self.ready = threading.Event()  # set while something is watched
        self._callback = callback
        self._heard = heard
        self._stop_asked = threading.Event()

    def stop(self) -> None:
        """End the thread; it is gone a moment later."""
        self._stop_asked.set()

    def run(self) -> None:
        """Watch for ever; an error costs a second, never the thread."""
        while not self._stop_asked.is_set():
            try:
                self._watch()
                self._stand(False)
            except Exception as error:  # a watch limit, a file system without inotify: the rescan still works
                self.error = f"{self.root} is not watched: {error}"
                self.ready.clear()
                self._stand(False)
                self._stop_asked.wait(_PAUSE)

    def _tell(self) -> None:
        try:
            self._callback()
        except Exception as error:  # a callback's fault must not make kvmd deaf
            self.error = f"the answer to a change of {self.root} failed: {error}"

    def _stand(self, standing: bool) -> None:
        if self._heard is not None:
            self._heard.stand(standing)

    def _watch(self) -> None:
        """Watch what is there now; return when other directories have to be watched."""
        from watchfiles._rust_notify import RustNotify  # watch() cannot say when it has begun

        trail = follow(self.root)
        directories = _directories(trail)
        inside = trail.path.rstrip("/") + "/"
        # Not recursive: watchfiles would follow symlinks out of the tree, to / if somebody made one.
        with RustNotify(list(directories), False, False, 0, False, False) as notify:
            self.error = ""
            self._stand(True)
            self.ready.set()
            self._tell()  # what changed before the watch stood
            while not self._stop_asked.is_set():
                if _directories(follow(self.root)) != directories:
                    return
                events = notify.watch(_DEBOUNCE, _STEP, _LOOK_AGAIN, self._stop_asked)
                if isinstance(events, str):  # stop, timeout or signal
                    continue
                paths = [path for _, path in events if path.startswith(inside) or path in trail.names]
                if paths:
                    if self._heard is not None:
                        self._heard.tell(paths)
                    self._tell()


def _directories(trail: Trail) -> dict[str, tuple[int, int]]:
    """Each directory to watch, and which one it is: the tree's, and those whose entries lead to it."""
    found: dict[str, tuple[int, int]] = {}
    for name in trail.names:
        _note(os.path.dirname(name), found)
    pending = [trail.path] if trail.exists else []
    while pending and len(found) < MAX_DIRECTORIES:
        folder = pending.pop()
        if not _note(folder, found):
            continue
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            pending.extend(
                entry.path for entry in entries if entry.is_dir(follow_symlinks=False) and entry.name != ".git"
            )
    return found


def _note(folder: str, found: dict[str, tuple[int, int]]) -> bool:
    try:
        status = os.stat(folder)
    except OSError:
        return False
    if stat.S_ISDIR(status.st_mode):
        found[folder] = (status.st_dev, status.st_ino)
    return folder in found
