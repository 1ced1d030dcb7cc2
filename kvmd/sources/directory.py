"""The directory of specs as a whole: one snapshot a scan, with the last good version of whatever is broken.

A file counts once it has been quiet for the settle time; until then, and while it is invalid, its previous
version stays. What is gone counts as gone by the same rule, so a file that is replaced or renamed never is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

from kvmd.api.problem import Position, Problem
from kvmd.api.resource import Ref, Resource, SpecModel, hash_of
from kvmd.settings import Source
from kvmd.sources.decode import decode_file
from kvmd.sources.store import Store, StoredObject
from kvmd.sources.watch import Stamp, Trail, Tree, follow, revision, stamp_of, unchanged, walk

UNENDED_FACTOR = 5  # a file without a final newline may be half of one


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What the source asks for now; an object that did not change is the same object as before.

    *complete* says whether the absence of an object means anything, *reason* why not. *pending* files are
    waiting to settle, at *wake_at* (monotonic) they will have. *positions* are current where a resource, kept
    for its identity, still has those of an earlier reading.
    """

    resources: Mapping[Ref, Resource]
    positions: Mapping[Ref, Position]
    problems: tuple[Problem, ...]
    invalid_files: tuple[str, ...]
    pending: tuple[str, ...]
    duplicates: Mapping[Ref, tuple[str, ...]]
    complete: bool
    reason: str
    empty: bool
    files: int
    wake_at: float | None
    revision: str

    @cached_property
    def digest(self) -> str:
        """A digest of what is asked for, whatever the files are called; made only when somebody asks for it."""
        lines = sorted(_fingerprint(resource) for resource in self.resources.values())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class _Rank(IntEnum):
    CURRENT = 0  # settled and valid
    HELD = 1  # the last good version of a file that is invalid now
    PENDING = 2  # the last good version of a file that is being written
    GONE = 3  # its file is missing, for too short a time to believe it


@dataclass(slots=True)
class _File:
    """One file: what is in use of it, and what it might become."""

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
    def rank(self) -> _Rank:
        if self.fault is not None or self.problems:
            return _Rank.HELD
        if self.gone:
            return _Rank.GONE
        return _Rank.CURRENT if self.candidate is None else _Rank.PENDING


class _Claim(NamedTuple):
    """One place that asks for an object."""

    resource: Resource
    position: Position
    rank: _Rank


@dataclass(slots=True)
class _Merged:
    """What becomes of all claims."""

    resources: dict[Ref, Resource] = field(default_factory=dict)
    positions: dict[Ref, Position] = field(default_factory=dict)
    duplicates: dict[Ref, tuple[str, ...]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


class Directory:
    """Reads a directory of specs; call ``scan`` from one thread, after an event or when ``wake_at`` is reached."""

    def __init__(self, root: str, source: Source, specs: Mapping[str, type[SpecModel]], store: Store | None) -> None:
        self.root = os.path.abspath(root)
        self._source = source
        self._specs = specs
        self._store = store
        self._files: dict[str, _File] = {}
        self._good: dict[Ref, Resource] = {}  # the last version of each object that one place alone asked for
        self._held: dict[Ref, tuple[Resource, Resource]] = {}
        self._revived: dict[Ref, tuple[StoredObject, Resource | None]] = {}
        self._device: int | None = None
        self._last: Snapshot | None = None
        self._stored()  # read now, so that what is broken in it is reported from the first scan on

    def scan(self, now: float, wall: float) -> Snapshot:
        """Look at the whole tree; *now* is monotonic, *wall* the time of day that file times are compared with."""
        trail = follow(self.root)
        tree, reason = self._survey(trail)
        if tree is None:
            return self._keep(self._without_source(reason, trail))
        calm = self._take_in(tree, now, wall) and not reason
        if not unchanged(tree) or follow(self.root) != trail:
            calm, reason = False, reason or "the directory changed during the scan"
        last = self._last
        found = revision(trail)
        if calm and last is not None and last.complete and last.wake_at is None and last.revision == found:
            return last
        return self._keep(self._combine(tree, reason, found, now))

    def _survey(self, trail: Trail) -> tuple[Tree | None, str]:
        """Walk the tree; without a tree the reason says why absence means nothing at all."""
        try:
            if not trail.exists:
                return None, f"{self.root} does not exist"
            if not os.path.isdir(trail.path):
                return None, f"{self.root} is not a directory"
            device = os.stat(trail.path).st_dev
            mounted = device != os.stat(os.path.dirname(trail.path)).st_dev
        except OSError as error:
            return None, f"{self.root} cannot be looked at: {error.strerror}"
        tree = walk(self.root, trail.path, self._source.max_files)
        if tree.too_many:
            return None, f"{self.root} holds more than {self._source.max_files} files (source.maxFiles)"
        if self.root in tree.faults:
            return None, f"{self.root}: {tree.faults[self.root]}"
        moved = self._device is not None and device != self._device
        if not tree.files and not tree.faults and (mounted or moved):
            what = "a fresh mount point" if mounted else "on another file system than before"
            return None, f"{self.root} is empty and {what}"
        self._device = device
        return tree, f"{self.root} is on another file system than before" if moved else ""

    def _without_source(self, reason: str, trail: Trail) -> Snapshot:
        """Hold everything: what was there before, else everything that is stored."""
        before = self._last
        if before is None:
            resources = {ref: found for ref in self._stored() if (found := self._revive(ref)) is not None}
            positions = {ref: resource.position for ref, resource in resources.items()}
        else:
            resources, positions = dict(before.resources), dict(before.positions)
        hint = "put the directory back; until then every object stays as it is and nothing is removed"
        return Snapshot(
            resources=MappingProxyType(resources),
            positions=MappingProxyType(positions),
            problems=(Problem(Position(self.root), "source-unavailable", reason, hint), *self._store_problems()),
            invalid_files=before.invalid_files if before else (),
            pending=(),
            duplicates=before.duplicates if before else MappingProxyType({}),
            complete=False,
            reason=reason,
            empty=True,
            files=0,
            wake_at=None,
            revision=revision(trail),
        )

    def _take_in(self, tree: Tree, now: float, wall: float) -> bool:
        """Bring every file up to date; return True where nothing changed and nothing is under way."""
        calm, files = True, self._files
        for path, (real, stamp) in tree.files.items():
            file = files.get(path)
            if file is None:
                file = files[path] = _File(path)
            if stamp != file.used or file.candidate is not None or file.gone or file.fault is not None:
                calm = False
                file.gone, file.fault = False, None
                self._look(file, real, stamp, now, wall)
        if len(files) == len(tree.files) and not tree.faults:
            return calm
        pending = any(file.candidate is not None and not file.gone for file in files.values())
        for path, text in tree.faults.items():
            hint = "mend it or remove it; until then its objects stay as they are"
            fault = Problem(Position(path), "unreadable", text, hint)
            files.setdefault(path, _File(path)).fault = fault
            for file in files.values():
                if file.path.startswith(f"{path}/"):
                    file.fault = fault
        for path in [path for path in files if path not in tree.files and path not in tree.faults]:
            self._miss(files[path], tree, pending, now, wall)
        return False

    def _miss(self, file: _File, tree: Tree, pending: bool, now: float, wall: float) -> None:
        """Let a missing file go once its directory is quiet, and later while another file is being written."""
        if file.fault is not None and file.fault.position.file in tree.faults:
            return  # it is in a directory that cannot be read
        if file.good is None:
            del self._files[file.path]
            return
        if not file.gone:
            folder = os.path.dirname(file.path)
            while folder not in tree.folders and folder != self.root:
                folder = os.path.dirname(folder)
            changed = tree.folders[folder][1] if folder in tree.folders else 0
            file.gone, file.fault = True, None
            file.quiet_since, file.factor = now - max(0.0, wall - changed / 1e9), 1
        factor = UNENDED_FACTOR if pending else 1
        if now >= file.quiet_since + factor * self._source.settle:
            del self._files[file.path]

    def _look(self, file: _File, real: str, stamp: Stamp, now: float, wall: float) -> None:
        """Use a file's content if it has settled."""
        if stamp == file.used:
            file.candidate = None
            return
        if stamp != file.candidate:
            file.candidate, file.factor = stamp, 1
            file.quiet_since = now - max(0.0, wall - max(stamp[2], stamp[3]) / 1e9)
        if now < file.quiet_since + file.factor * self._source.settle:
            return
        try:
            text, after = _read(real, self._source.max_file_bytes)
        except OSError as error:
            message = f"the file cannot be read: {error.strerror}"
            hint = "mend its permissions or its disk; until then its objects stay as they are"
            file.fault = Problem(Position(file.path), "unreadable", message, hint)
            return
        if after != stamp:
            file.candidate, file.factor, file.quiet_since = after, 1, now
            return
        if not text.endswith(b"\n"):
            file.factor = UNENDED_FACTOR
            if now < file.quiet_since + file.factor * self._source.settle:
                return
        file.used, file.candidate = stamp, None
        content = hashlib.sha256(text).digest()
        if content != file.content:
            file.content = content
            self._decode(file, text)

    def _decode(self, file: _File, text: bytes) -> None:
        decoded = decode_file(text, file.path, self._source, self._specs)
        file.problems = decoded.problems
        if decoded.problems:
            return
        before = {resource.ref: resource for resource in file.good or ()}
        file.good = tuple(_same_or_new(before.get(found.ref), found) for found in decoded.resources)
        file.places = tuple(resource.position for resource in decoded.resources)
        file.documents = decoded.documents

    def _combine(self, tree: Tree, reason: str, found: str, now: float) -> Snapshot:
        """Make a snapshot of what each file asks for."""
        settle = self._source.settle
        files = sorted(self._files.values(), key=lambda file: file.path)
        merged = self._merge(files)
        invalid = [file for file in files if file.rank is _Rank.HELD]
        pending = [file for file in files if file.candidate is not None and not file.gone]
        faults = {file.fault: file.path for file in files if file.fault is not None}
        wakes = [
            max(now + settle / 10, file.quiet_since + file.factor * settle)
            for file in files
            if file.fault is None and (file.candidate is not None or file.gone)
        ]
        if not reason and faults:
            reason = next(f"{fault.position.file}: {fault.message}" for fault in faults)
        if tree.changed or reason.endswith("during the scan"):
            wakes.append(now + settle)
        problems = [*faults, *(problem for file in files for problem in file.problems), *merged.problems]
        return Snapshot(
            resources=MappingProxyType(merged.resources),
            positions=MappingProxyType(merged.positions),
            problems=(*sorted(problems), *self._store_problems()),
            invalid_files=tuple(file.path for file in invalid),
            pending=tuple(file.path for file in pending),
            duplicates=MappingProxyType(merged.duplicates),
            complete=not reason,
            reason=reason,
            empty=not any(file.documents for file in files) and not invalid and not pending,
            files=len(tree.files),
            wake_at=min(wakes, default=None),
            revision=found,
        )

    def _merge(self, files: Sequence[_File]) -> _Merged:
        """Give each object to the one place that asks for it; where two do, hold what was there."""
        merged = _Merged()
        claims: dict[Ref, list[_Claim]] = {}
        by_file: dict[str, list[Ref]] = {}
        if any(file.good is None for file in files):
            for ref, entry in self._stored().items():
                by_file.setdefault(entry.file, []).append(ref)
        for file in files:
            rank = file.rank
            if file.good is None:
                revived = self._stored_for(file, by_file, merged)
                pairs = [(resource, resource.position) for resource in revived]
            else:
                pairs = list(zip(file.good, file.places, strict=True))
            for resource, position in pairs:
                claims.setdefault(resource.ref, []).append(_Claim(resource, position, rank))
        for ref in self._good.keys() - claims.keys():
            del self._good[ref]
        for ref, asked in claims.items():
            firm = [claim for claim in asked if claim.rank <= _Rank.HELD] if len(asked) > 1 else asked
            if len(firm) > 1:
                self._hold_duplicate(ref, firm, merged)
            else:
                self._give(ref, asked, merged)
        return merged

    def _give(self, ref: Ref, asked: list[_Claim], merged: _Merged) -> None:
        """Take the only claim; between files that are still moving, the version that was there already."""
        chosen = asked[0]
        if len(asked) > 1:
            present = [claim for claim in asked if claim.rank is not _Rank.GONE] or asked
            before = self._last.resources.get(ref) if self._last is not None else None
            chosen = min(present, key=lambda claim: (claim.resource is not before, claim.rank))
        resource = chosen.resource
        if not resource.held:
            self._good[ref] = resource
        merged.resources[ref] = self._as_held(resource) if chosen.rank is _Rank.HELD else resource
        merged.positions[ref] = chosen.position

    def _hold_duplicate(self, ref: Ref, firm: list[_Claim], merged: _Merged) -> None:
        good = self._good.get(ref)
        kept = self._as_held(good) if good is not None else self._revive(ref)
        if kept is not None:
            merged.resources[ref], merged.positions[ref] = kept, kept.position
        merged.duplicates[ref] = tuple(str(claim.position) for claim in firm)
        state = "stays at its last good version" if kept is not None else "is left out"
        for claim in firm:
            others = ", ".join(
                f"{other.position}{' (its last good version)' if other.rank is _Rank.HELD else ''}"
                for other in firm
                if other is not claim
            )
            message = f"{ref} is also declared at {others}; until one of them is gone it {state}"
            hint = "remove or rename one of them"
            merged.problems.append(Problem(claim.position, "duplicate-object", message, hint))

    def _as_held(self, resource: Resource) -> Resource:
        """The same resource, marked as held; the same copy each time."""
        if resource.held:
            return resource
        kept = self._held.get(resource.ref)
        if kept is None or kept[0] is not resource:
            kept = self._held[resource.ref] = (resource, replace(resource, held=True))
        return kept[1]

    def _stored(self) -> Mapping[Ref, StoredObject]:
        return self._store.objects() if self._store is not None else {}

    def _store_problems(self) -> tuple[Problem, ...]:
        return self._store.problems if self._store is not None else ()

    def _revive(self, ref: Ref) -> Resource | None:
        """What the store has of an object; the same resource each time."""
        entry = self._stored().get(ref)
        if entry is None:
            return None
        kept = self._revived.get(ref)
        if kept is None or kept[0] is not entry:
            kept = self._revived[ref] = (entry, entry.as_resource(self._specs))
        return kept[1]

    def _stored_for(self, file: _File, by_file: Mapping[str, list[Ref]], merged: _Merged) -> list[Resource]:
        """What the store has of a file, or of a directory that cannot be read."""
        refs = by_file.get(file.path, [])
        if file.fault is not None:
            inside = (path for path in by_file if path.startswith(f"{file.path}/") and path not in self._files)
            refs = [*refs, *(ref for path in inside for ref in by_file[path])]
        found: list[Resource] = []
        for ref in refs:
            resource = self._revive(ref)
            if resource is not None:
                found.append(resource)
                continue
            message = f"the last good version of {ref} is no longer valid for this kvmd, so nothing stands in for it"
            hint = "mend the file"
            merged.problems.append(Problem(Position(file.path), "stored-object", message, hint, "warning"))
        return found

    def _keep(self, snapshot: Snapshot) -> Snapshot:
        """Return the snapshot before this one if both say the same."""
        last = self._last
        if last is None or not _equal(last, snapshot):
            self._last = last = snapshot
        return last


def _equal(one: Snapshot, other: Snapshot) -> bool:
    return all(
        getattr(one, item.name) == getattr(other, item.name) for item in fields(Snapshot) if item.name != "resources"
    ) and (
        one.resources.keys() == other.resources.keys()
        and all(one.resources[ref] is resource for ref, resource in other.resources.items())
    )


def _same_or_new(before: Resource | None, found: Resource) -> Resource:
    same = (
        before is not None
        and before.metadata == found.metadata
        and before.spec_hash == found.spec_hash
        and before.position.file == found.position.file
    )
    return before if before is not None and same else found


def _fingerprint(resource: Resource) -> str:
    return f"{resource.ref} {resource.spec_hash} {hash_of(resource.metadata.model_dump())}"


def _read(path: str, limit: int) -> tuple[bytes, Stamp]:
    """Read one byte more than allowed at most, and say which file that was."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO put there now must not block
    with open(os.open(path, flags), "rb") as stream:
        text = stream.read(limit + 1)
        return text, stamp_of(os.fstat(stream.fileno()))
