"""What the source asks for at one moment."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property

from kvmd.api.problem import Position, Problem
from kvmd.api.resource import Ref, Resource, hash_of
from kvmd.identity import changed


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

    def says_the_same(self, other: Snapshot) -> bool:
        """True where nobody could tell the two apart: the resources are the very same objects."""
        names = (item.name for item in fields(Snapshot) if item.name != "resources")
        return all(getattr(self, name) == getattr(other, name) for name in names) and not changed(
            self.resources, other.resources
        )


def _fingerprint(resource: Resource) -> str:
    return f"{resource.ref} {resource.spec_hash} {hash_of(resource.metadata.model_dump())}"
