"""One file of specs: what is in use of it, and what it might become once it has been quiet for long enough."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from kvmd.api.problem import Position, Problem
from kvmd.api.resource import Resource, SpecModel
from kvmd.settings import Source
from kvmd.sources.decode import decode_file
from kvmd.sources.store import Store
from kvmd.sources.watch import Stamp, stamp_of

UNENDED_FACTOR = 5  # a file without a final newline may be half of one


class Rank(IntEnum):
    """How much a file's word counts."""

    CURRENT = 0  # settled and valid
    HELD = 1  # the last good version of a file that is invalid now
    PENDING = 2  # the last good version of a file that is being written
    GONE = 3  # its file is missing, for too short a time to believe it


@dataclass(frozen=True, slots=True)
class Reading:
    """How files are read: limits and times, and the types of the kinds."""

    source: Source
    specs: Mapping[str, type[SpecModel]]
    store: Store | None = None


@dataclass(slots=True)
class SpecFile:
    """The file at *path*."""

    path: str
    used: Stamp | None = None
    content: bytes = b""  # the hash of what was read last
    good: tuple[Resource, ...] | None = None  # None: no good version since this process began
    places: tuple[Position, ...] = ()
    documents: int = 0
    problems: tuple[Problem, ...] = ()  # of the content in use: any makes it invalid
    fault: Problem | None = None  # why it could not be read in this scan
    candidate: Stamp | None = None  # what is there and waits to settle
    quiet_since: float = 0.0
    factor: int = 1
    gone: bool = False

    @property
    def rank(self) -> Rank:
        """How much its word counts now."""
        if self.fault is not None or self.problems:
            return Rank.HELD
        if self.gone:
            return Rank.GONE
        return Rank.CURRENT if self.candidate is None else Rank.PENDING

    def settles_at(self, settle: float) -> float | None:
        """When it will have been quiet for long enough (monotonic); None where nothing is awaited."""
        if self.fault is not None or (self.candidate is None and not self.gone):
            return None
        return self.quiet_since + self.factor * settle

    def look(self, real: str, stamp: Stamp, now: float, wall: float, reading: Reading) -> None:
        """Use the content if it has settled; *real* is where the file lies, *wall* what its times compare with."""
        self.gone, self.fault = False, None
        if stamp == self.used:
            self.candidate = None
            return
        if stamp != self.candidate:
            self.candidate, self.factor = stamp, 1
            self.quiet_since = now - max(0.0, wall - max(stamp[2], stamp[3]) / 1e9)
        if not self._settled(now, reading):
            return
        try:
            text, after = _read(real, reading.source.max_file_bytes)
        except OSError as error:
            message = f"the file cannot be read: {error.strerror}"
            hint = "mend its permissions or its disk; until then its objects stay as they are"
            self.fault = Problem(Position(self.path), "unreadable", message, hint)
            return
        if after != stamp:
            self.candidate, self.factor, self.quiet_since = after, 1, now
            return
        if not text.endswith(b"\n"):
            self.factor = UNENDED_FACTOR
            if not self._settled(now, reading):
                return
        self.used, self.candidate = stamp, None
        content = hashlib.sha256(text).digest()
        if content != self.content:
            self.content = content
            self._decode(text, reading)

    def _settled(self, now: float, reading: Reading) -> bool:
        return now >= self.quiet_since + self.factor * reading.source.settle

    def _decode(self, text: bytes, reading: Reading) -> None:
        decoded = decode_file(text, self.path, reading.source, reading.specs)
        self.problems = decoded.problems
        if decoded.problems:
            return
        before = {resource.ref: resource for resource in self.good or ()}
        found = decoded.resources
        if reading.store is not None and self.good is None:
            found = tuple(map(reading.store.as_stored, found))
        self.good = tuple(_same_or_new(before.get(resource.ref), resource) for resource in found)
        self.places = tuple(resource.position for resource in decoded.resources)
        self.documents = decoded.documents


def _same_or_new(before: Resource | None, found: Resource) -> Resource:
    same = (
        before is not None
        and before.metadata == found.metadata
        and before.spec_hash == found.spec_hash
        and before.position.file == found.position.file
    )
    return before if before is not None and same else found


def _read(path: str, limit: int) -> tuple[bytes, Stamp]:
    """Read one byte more than allowed at most, and say which file that was."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO put there now must not block
    with open(os.open(path, flags), "rb") as stream:
        text = stream.read(limit + 1)
        return text, stamp_of(os.fstat(stream.fileno()))
