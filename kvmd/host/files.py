"""Facts about files that specs name: there or not, what they are, and where their links lead."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping

from kvmd.observed import Fact, File, Key


class Files:
    """One stat a file and look; a link is only followed anew where the file behind it is another."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[int, int], File]] = {}
        self.facts: Mapping[Key, Fact] = {}

    def look(self, paths: Iterable[str]) -> Mapping[Key, Fact]:
        """Facts about exactly these paths; the same mapping as before where nothing changed."""
        found: dict[Key, Fact] = {}
        known: dict[str, tuple[tuple[int, int], File]] = {}
        for path in paths:
            known[path] = self._one(path)
            found[Key("file", path)] = known[path][1]
        self._known = known
        if found.keys() != self.facts.keys() or any(found[key] is not self.facts[key] for key in found):
            self.facts = found
        return self.facts

    def _one(self, path: str) -> tuple[tuple[int, int], File]:
        before = self._known.get(path)
        try:
            status = os.stat(path)
        except PermissionError:
            return _same(before, (0, 0), File(path, "denied", real=os.path.realpath(path)))
        except OSError:
            # Whoever makes it will follow the links that lead there.
            return _same(before, (0, 0), File(path, "missing", real=os.path.realpath(path)))
        identity = (status.st_dev, status.st_ino)
        if before is not None and before[0] == identity:
            return before
        return identity, File(path, _kind(status.st_mode), status.st_ino, os.path.realpath(path), status.st_dev)


def _same(
    before: tuple[tuple[int, int], File] | None, identity: tuple[int, int], fact: File
) -> tuple[tuple[int, int], File]:
    return before if before is not None and before[1] == fact else (identity, fact)


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "regular"
    if stat.S_ISBLK(mode):
        return "block"
    return "directory" if stat.S_ISDIR(mode) else "other"
