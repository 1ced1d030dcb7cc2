"""Facts about files that specs name: there or not, what they are, and where their links lead."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping

from kvmd.host.plain_files import open_plain
from kvmd.observed import Fact, File, Key

Identity = tuple[int, ...]  # device, inode, and whether there is something in it
_HEAD_BYTES = 4096
_TEXT = bytes({*range(0x20, 0x100), *b"\a\b\t\n\f\r\x1b"} - {0x7F})


class Files:
    """One stat a file and look; a link is only followed anew where the file behind it is another."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Identity, File]] = {}
        self.facts: Mapping[Key, Fact] = {}

    def look(self, paths: Iterable[str]) -> Mapping[Key, Fact]:
        """Facts about exactly these paths; the same mapping as before where nothing changed."""
        found: dict[Key, Fact] = {}
        known: dict[str, tuple[Identity, File]] = {}
        for path in paths:
            known[path] = self._one(path)
            found[Key("file", path)] = known[path][1]
        self._known = known
        if found.keys() != self.facts.keys() or any(found[key] is not self.facts[key] for key in found):
            self.facts = found
        return self.facts

    def _one(self, path: str) -> tuple[Identity, File]:
        before = self._known.get(path)
        try:
            status = os.stat(path)
        except PermissionError:
            return _same(before, (), File(path, "denied", real=os.path.realpath(path)))
        except OSError:
            # Whoever makes it will follow the links that lead there.
            return _same(before, (), File(path, "missing", real=os.path.realpath(path)))
        identity = (status.st_dev, status.st_ino, int(status.st_size > 0))
        if before is not None and before[0] == identity:
            return before
        kind, real = _kind(status.st_mode), os.path.realpath(path)
        binary = kind == "regular" and status.st_size > 0 and _is_binary(path)
        return identity, File(path, kind, status.st_ino, real, status.st_dev, binary)


def _is_binary(path: str) -> bool:
    """True where it begins with more control characters than what a guest prints has."""
    try:
        with open_plain(path) as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return False
    return len(head.translate(None, _TEXT)) > 8 + len(head) // 100


def _same(before: tuple[Identity, File] | None, identity: Identity, fact: File) -> tuple[Identity, File]:
    return before if before is not None and before[1] == fact else (identity, fact)


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "regular"
    if stat.S_ISBLK(mode):
        return "block"
    return "directory" if stat.S_ISDIR(mode) else "other"
