"""A look at what a watch has told of, instead of a walk through the whole tree: its cost does not grow with the tree.

Only a walk decides what is missing and what is new. A glance is made where everything speaks for nothing but the
content of a few files having changed; in every other case, and every ``source.rescan`` in any, the tree is walked. So
an event that was lost costs time and never correctness.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from typing import NamedTuple

from kvmd.sources.heard import Heard
from kvmd.sources.watch import Trail, Tree, is_ignored, stamp_of


class Seen(NamedTuple):
    """The tree as it is now, and the files in it that may be others than when it was looked at last."""

    tree: Tree
    paths: list[str]


class Glance:
    """Remembers the last walk and brings it up to date."""

    def __init__(self, heard: Heard | None, rescan: float) -> None:
        self._heard, self._rescan = heard, rescan
        self._trail: Trail | None = None
        self._tree = Tree()
        self._walked_at = 0.0

    def remember(self, tree: Tree, trail: Trail, now: float) -> None:
        """A walk has ended and nothing has changed meanwhile."""
        plain = not tree.faults and not tree.linked
        self._trail, self._tree, self._walked_at = trail if plain else None, tree, now

    def forget(self) -> None:
        """Walk next time."""
        self._trail = None

    def look(self, trail: Trail, restless: Iterable[str], now: float) -> Seen | None:
        """None where only a walk can tell; *restless* are files that are looked at whatever anybody told."""
        told = self._heard.take() if self._heard is not None else None
        known, self._trail = self._trail, None
        if told is None or known != trail or now - self._walked_at >= self._rescan:
            return None
        tree, names = self._tree, {real: shown for shown, (real, _) in self._tree.folders.items()}
        paths, moved = set(restless), set[str]()
        for path in told:
            folder, name = os.path.split(path)
            if folder not in names:
                return None  # a way that leads here, or what is hidden
            moved.add(names[folder])
            if not is_ignored(name):
                paths.add(f"{names[folder]}/{name}")
        try:
            if not all(_is_known(shown, tree, shown in moved) for shown in tree.names) or not all(
                _look_again(path, tree) for path in paths
            ):
                return None
        except OSError:
            return None
        self._trail = known
        return Seen(tree, sorted(paths))


def _is_known(shown: str, tree: Tree, moved: bool) -> bool:
    """True where it is the same folder and holds what it held, but for names that count for nothing.

    Of a folder in which something *moved* the watch has told the names: they are looked at one by one, so it need
    not be listed, which would cost more the more it holds.
    """
    real, mtime = tree.folders[shown]
    entries, status = tree.names[shown], os.stat(real)
    if (status.st_dev, status.st_ino) != entries.folder:
        return False
    if status.st_mtime_ns != mtime:
        if not moved and not all(map(is_ignored, entries.names.symmetric_difference(os.listdir(real)))):
            return False
        tree.folders[shown] = (real, status.st_mtime_ns)
    return True


def _look_again(path: str, tree: Tree) -> bool:
    """Take in the stamp that a file has now; False where it is no file that the walk found."""
    if path not in tree.files:
        return False
    real, _ = tree.files[path]
    status = os.stat(real, follow_symlinks=False)
    tree.files[path] = (real, stamp_of(status))
    return stat.S_ISREG(status.st_mode)
