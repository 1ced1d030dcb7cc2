"""The last good version of every object, whole and on disk, so that a restart forgets none of them."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ValidationError

from kvmd.api.problem import Position, Problem
from kvmd.api.resource import DNS_LABEL, Metadata, Ref, Resource, SpecModel
from kvmd.errors import Retry

_FORMAT = 1
_KIND = re.compile(r"[A-Z][A-Za-z0-9]{0,62}")
_LONGEST = 8 * 2**20  # JSON of a file of the largest size allowed; anything longer was not written by us


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
    """``<root>/<Kind>/<name>.json``, each replaced whole; *problems* lists what the last load could not read."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.problems: tuple[Problem, ...] = ()
        self._objects: dict[Ref, StoredObject] | None = None

    def load(self) -> dict[Ref, StoredObject]:
        """Read everything from disk; entries that cannot be read are reported and left where they are."""
        objects: dict[Ref, StoredObject] = {}
        problems: list[Problem] = []
        for kind in _names(self.root, problems):
            folder = os.path.join(self.root, kind)
            if not _KIND.fullmatch(kind):
                continue
            for entry in _names(folder, problems):
                if entry.startswith(".") or not entry.endswith(".json"):
                    continue
                path = os.path.join(folder, entry)
                try:
                    found = _parse(path, Ref(kind, entry.removesuffix(".json")))
                except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                    problems.append(_broken(path, error))
                else:
                    objects[found.ref] = found
        self.problems = tuple(problems)
        self._objects = objects
        return dict(objects)

    def objects(self) -> Mapping[Ref, StoredObject]:
        """What is stored, read from disk once and kept up to date by save and remove."""
        if self._objects is None:
            self.load()
        return self._objects or {}

    def save(self, resource: Resource, generation: int) -> bool:
        """Keep a resource durably; return False where the same was there already. Raises Retry."""
        entry = StoredObject.of(resource, generation)
        path = self._path(entry.ref)
        try:
            present = _parse(path, entry.ref)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            present = None
        changed = present is None or not present.says_the_same_as(entry)
        if changed:
            try:
                self._write(path, entry)
            except OSError as error:
                message = f"the last good version of {entry.ref} cannot be kept in {path}: {error.strerror}"
                raise Retry(message, hint="make room there, or mend its permissions") from error
        if self._objects is not None and (changed or entry.ref not in self._objects):
            self._objects[entry.ref] = entry
        return changed

    def save_all(self, resources: Iterable[tuple[Resource, int]]) -> None:
        """Keep several resources. Raises Retry."""
        for resource, generation in resources:
            self.save(resource, generation)

    def remove(self, ref: Ref) -> None:
        """Forget an object. Raises Retry."""
        path = self._path(ref)
        try:
            os.unlink(path)
            _sync(os.path.dirname(path))
        except FileNotFoundError:
            pass
        except OSError as error:
            message = f"the last good version of {ref} cannot be removed from {path}: {error.strerror}"
            raise Retry(message, hint="mend its permissions") from error
        if self._objects is not None:
            self._objects.pop(ref, None)

    def _path(self, ref: Ref) -> str:
        if not _KIND.fullmatch(ref.kind) or not DNS_LABEL.fullmatch(ref.name):
            raise ValueError(f"{ref} cannot be the name of a file")
        return os.path.join(self.root, ref.kind, f"{ref.name}.json")

    def _write(self, path: str, entry: StoredObject) -> None:
        folder = os.path.dirname(path)
        for directory in (self.root, folder):
            if not os.path.isdir(directory):
                os.makedirs(directory, mode=0o700, exist_ok=True)
                _sync(os.path.dirname(directory))
        details = asdict(entry) | {"ref": str(entry.ref), "format": _FORMAT}
        temporary = os.path.join(folder, f".{entry.ref.name}.tmp")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(temporary, flags, 0o600), "w", encoding="utf-8") as stream:
                os.fchmod(stream.fileno(), 0o600)
                json.dump(details, stream, ensure_ascii=False, indent=1)
                stream.write("\n")
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _sync(folder)


def _names(folder: str, problems: list[Problem]) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        problems.append(_broken(folder, error))
        return []


def _parse(path: str, ref: Ref) -> StoredObject:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
        details = json.loads(stream.read(_LONGEST))
    found = StoredObject(
        ref=Ref.parse(details["ref"]),
        metadata=dict(details["metadata"]),
        written=dict(details["written"]),
        file=str(details["file"]),
        line=int(details["line"]),
        spec_hash=str(details["spec_hash"]),
        generation=int(details["generation"]),
    )
    if details["format"] != _FORMAT:
        raise ValueError(f"its format is {details['format']}, not {_FORMAT}")
    if found.ref != ref:
        raise ValueError(f"it describes {found.ref}")
    return found


def _broken(path: str, error: Exception) -> Problem:
    reason = getattr(error, "strerror", None) or str(error)
    message = f"this last good version cannot be used: {reason}"
    hint = "it is written again when its object is next applied; until then it cannot stand in for a broken file"
    return Problem(Position(path), "stored-object", message, hint, severity="warning")


def _sync(folder: str) -> None:
    descriptor = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
