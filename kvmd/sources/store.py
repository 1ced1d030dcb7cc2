"""The last good version of every object, whole and on disk, so that a restart forgets none of them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from kvmd.api.problem import Position, Problem
from kvmd.api.resource import Metadata, Ref, Resource, SpecModel, with_shared_keys
from kvmd.errors import Retry
from kvmd.journal import Journal

_FORMAT = 1
# The file is rewritten with only what counts once more than that many lines are out of date.
_MOST_DEAD_LINES = 4096


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object as it was last good; *written* is its spec as the user wrote it, *file* its source."""

    ref: Ref
    metadata: Mapping[str, Any]
    written: Mapping[str, Any]
    file: str
    line: int
    spec_hash: str
    generation: int

    @classmethod
    def of(cls, resource: Resource, generation: int) -> StoredObject:
        """What is kept of a resource."""
        return cls(
            ref=resource.ref,
            metadata=resource.metadata.model_dump(),
            written=resource.written,
            file=resource.position.file,
            line=resource.position.line,
            spec_hash=resource.spec_hash,
            generation=generation,
        )

    def as_resource(self, specs: Mapping[str, type[SpecModel]]) -> Resource | None:
        """The held resource, or None where this version of kvmd no longer takes it."""
        model = specs.get(self.ref.kind)
        if model is None:
            return None
        try:
            metadata, spec = Metadata.model_validate(self.metadata), model.model_validate(self.written)
        except (ValidationError, TypeError, AttributeError, LookupError):  # a kind may trip over what is old
            return None
        position = Position(self.file, self.line)
        return Resource(self.ref, metadata, spec, self.written, position, held=True)

    def says_the_same_as(self, other: StoredObject) -> bool:
        """True where only the line differs: a comment above an object costs no write."""
        return (self.ref, self.metadata, self.written, self.file, self.generation) == (
            other.ref,
            other.metadata,
            other.written,
            other.file,
            other.generation,
        )


class Store:
    """One journal of objects; the last line of an object counts. *problems* lists what could not be read."""

    def __init__(self, path: str) -> None:
        self.problems: tuple[Problem, ...] = ()
        self.path = path
        self._journal = Journal(path)
        self._objects: dict[Ref, StoredObject] | None = None
        self._lines = 0

    def load(self) -> dict[Ref, StoredObject]:
        """Read everything from disk; lines that cannot be read are reported and passed over."""
        objects: dict[Ref, StoredObject] = {}
        problems: list[Problem] = []
        self._lines = 0
        try:
            for line in self._journal.lines():
                self._lines += 1
                try:
                    _take(line, objects)
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                    if not line.strip() or not line.endswith("\n"):
                        continue  # the machine died while this line was written: it never counted
                    problems.append(_broken(Position(self._journal.path, self._lines), error))
        except OSError as error:
            problems.append(_broken(Position(self._journal.path), error))
        self.problems = tuple(problems)
        self._objects = objects
        return dict(objects)

    def objects(self) -> Mapping[Ref, StoredObject]:
        """What is stored, read from disk once and kept up to date by save and remove."""
        if self._objects is None:
            self.load()
        return self._objects or {}

    def share(self, other: Store) -> None:
        """Take the values of another store where both say the same, so that they are in memory once."""
        mine, theirs = self._objects or {}, other.objects()
        for ref, entry in mine.items():
            twin = theirs.get(ref)
            if twin is not None and twin.spec_hash == entry.spec_hash and twin.written == entry.written:
                mine[ref] = replace(entry, written=twin.written)

    def as_stored(self, resource: Resource) -> Resource:
        """The same resource, with the values of the store where it has just these: they are in memory once."""
        entry = self.objects().get(resource.ref)
        if entry is None or entry.spec_hash != resource.spec_hash or entry.written != resource.written:
            return resource
        return replace(resource, written=entry.written)

    def save(self, resource: Resource, generation: int) -> bool:
        """Keep one resource; return False where the same was there already. Raises Retry."""
        return self.save_all([(resource, generation)]) > 0

    def save_all(self, resources: Iterable[tuple[Resource, int]]) -> int:
        """Keep resources durably, with one fsync for all; return how many were news. Raises Retry."""
        known = self.objects()
        entries = []
        for resource, generation in resources:
            entry = StoredObject.of(resource, generation)
            present = known.get(entry.ref)
            if present is None or not present.says_the_same_as(entry):
                entries.append(entry)
        self._append([_line(entry) for entry in entries])
        if self._objects is not None:
            self._objects.update((entry.ref, entry) for entry in entries)
        self._shorten()
        return len(entries)

    def remove(self, ref: Ref) -> None:
        """Forget an object. Raises Retry."""
        if ref not in self.objects():
            return
        self._append([json.dumps({"ref": str(ref), "removed": True})])
        if self._objects is not None:
            del self._objects[ref]
        self._shorten()

    def _append(self, lines: list[str]) -> None:
        try:
            self._journal.append(lines)
            self._lines += len(lines)
        except OSError as error:
            message = f"what must survive cannot be kept in {self._journal.path}: {error.strerror}"
            raise Retry(message, hint="make room there, or mend its permissions") from error

    def _shorten(self) -> None:
        """Write the file anew once most of it is out of date; where that fails, the long one says the same."""
        objects = self.objects()
        if self._lines <= 2 * len(objects) + _MOST_DEAD_LINES:
            return
        with contextlib.suppress(OSError):
            self._journal.rewrite(_line(entry) for entry in objects.values())
        self._lines = len(objects)  # after a failure, too: it is not tried at each line


def _line(entry: StoredObject) -> str:
    details = {name: getattr(entry, name) for name in StoredObject.__slots__}
    details |= {"ref": str(entry.ref), "format": _FORMAT}
    return json.dumps(details, ensure_ascii=False, separators=(",", ":"))


def _take(line: str, objects: dict[Ref, StoredObject]) -> None:
    details = json.loads(line, object_pairs_hook=with_shared_keys)
    ref = Ref.parse(details["ref"])
    if details.get("removed"):
        objects.pop(ref, None)
        return
    if details["format"] != _FORMAT:
        raise ValueError(f"its format is {details['format']}, not {_FORMAT}")
    objects[ref] = StoredObject(
        ref=ref,
        metadata=dict(details["metadata"]),
        written=dict(details["written"]),
        file=str(details["file"]),
        line=int(details["line"]),
        spec_hash=str(details["spec_hash"]),
        generation=int(details["generation"]),
    )


def _broken(position: Position, error: Exception) -> Problem:
    reason = getattr(error, "strerror", None) or str(error)
    message = f"this last good version cannot be used: {reason}"
    hint = "it is written again when its object is next applied; until then it cannot stand in for a broken file"
    return Problem(position, "stored-object", message, hint, severity="warning")
