"""Which file's word counts for each object, and what stands in for a file that has no good version.

Only the objects of files that changed are judged again, so that one changed file among thousands costs little.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from kvmd.api.problem import Position, Problem
from kvmd.api.resource import Ref, Resource, SpecModel
from kvmd.sources.file import Rank, SpecFile
from kvmd.sources.store import Store, StoredObject

Offer = tuple[Resource, Position]


class Claim(NamedTuple):
    """One place that asks for an object."""

    resource: Resource
    position: Position
    rank: Rank


@dataclass(frozen=True, slots=True)
class Merged:
    """What becomes of all claims."""

    resources: dict[Ref, Resource] = field(default_factory=dict)
    positions: dict[Ref, Position] = field(default_factory=dict)
    duplicates: dict[Ref, tuple[str, ...]] = field(default_factory=dict)
    problems: dict[Ref, tuple[Problem, ...]] = field(default_factory=dict)
    lost: tuple[Problem, ...] = ()  # what the store has and nobody can use

    def copy(self, lost: tuple[Problem, ...]) -> Merged:
        """Another one that says the same of all objects, to be changed."""
        return Merged(
            self.resources.copy(), self.positions.copy(), self.duplicates.copy(), self.problems.copy(), lost
        )

    def drop(self, ref: Ref) -> None:
        """Nobody asks for that object any more, or nobody can say which one is meant.

        One that is still asked for is not dropped first: it keeps its place, which makes tables quick to compare.
        """
        self.resources.pop(ref, None)
        self.positions.pop(ref, None)

    def excuse(self, ref: Ref) -> None:
        """Nothing was said against that object yet."""
        self.duplicates.pop(ref, None)
        self.problems.pop(ref, None)


class Merger:
    """Remembers which file asks for what, and the last good version of each object."""

    def __init__(self, specs: Mapping[str, type[SpecModel]], store: Store | None) -> None:
        self._specs = specs
        self._store = store
        self._merged = Merged()
        self._offers: dict[str, tuple[Ref, ...]] = {}  # what each file asks for
        self._places: dict[Ref, set[str]] = {}  # which files ask for each object
        self._good: dict[Ref, Resource] = {}  # the last version of each object that one place alone asked for
        self._held: dict[Ref, tuple[Resource, Resource]] = {}
        self._revived: dict[Ref, tuple[StoredObject, Resource | None]] = {}
        self._unread: set[str] = set()  # files of which the store has to tell
        self._let_go: set[str] = set()  # files that were gone: what the store still has of them stands in for nothing
        self.stored()  # read now, so that what is broken in it is reported from the first scan on

    @property
    def store_problems(self) -> tuple[Problem, ...]:
        """What is broken in the store."""
        return self._store.problems if self._store is not None else ()

    def stored(self) -> Mapping[Ref, StoredObject]:
        """Everything that the store has."""
        return self._store.objects() if self._store is not None else {}

    def revive(self, ref: Ref) -> Resource | None:
        """What the store has of an object; the same resource each time."""
        entry = self.stored().get(ref)
        if entry is None:
            return None
        kept = self._revived.get(ref)
        if kept is None or kept[0] is not entry:
            kept = self._revived[ref] = (entry, entry.as_resource(self._specs))
        return kept[1]

    def stands_in_for(self, path: str) -> bool:
        """True where the store speaks for that file, which was never good since this process began."""
        return path in self._unread and path in self._offers

    def let_go(self, path: str) -> None:
        """That file is gone: a new one of its name, too, has nothing until it is read.

        The store forgets an object once it has left the host; a file that comes back just then would make it again.
        """
        self._let_go.add(path)

    def merge(
        self, files: Mapping[str, SpecFile], touched: Collection[str], before: Mapping[Ref, Resource]
    ) -> Merged:
        """Give each object to the one place that asks for it; where two do, hold what was there *before*."""
        revived, lost = self._revive_files(files, {*touched, *self._unread})
        stale: dict[Ref, None] = {}
        for path in sorted({*touched, *self._unread, *revived}):
            stale |= dict.fromkeys(self._offers.get(path, ()))
            offered = tuple(dict.fromkeys(item.ref for item, _ in _offers(path, files, revived)))
            stale |= dict.fromkeys(offered)
            self._note_offers(path, offered)
        self._unread = set(revived)
        merged = self._merged = self._merged.copy(lost)
        for ref in stale:
            merged.excuse(ref)
            asked = [
                Claim(resource, position, files[path].rank)
                for path in sorted(self._places.get(ref, ()))
                for resource, position in _offers(path, files, revived)
                if resource.ref == ref
            ]
            self._judge(ref, asked, before.get(ref), merged)
        return merged

    def _note_offers(self, path: str, offered: tuple[Ref, ...]) -> None:
        for ref in self._offers.pop(path, ()):
            places = self._places[ref]
            places.discard(path)
            if not places:
                del self._places[ref]
        for ref in offered:
            self._places.setdefault(ref, set()).add(path)
        if offered:
            self._offers[path] = offered

    def _judge(self, ref: Ref, asked: list[Claim], before: Resource | None, merged: Merged) -> None:
        firm = [claim for claim in asked if claim.rank <= Rank.HELD] if len(asked) > 1 else asked
        if not asked:
            merged.drop(ref)
            for kept in (self._good, self._held, self._revived):
                kept.pop(ref, None)
        elif len(firm) > 1:
            self._hold_duplicate(ref, firm, merged)
        else:
            self._give(ref, asked, before, merged)

    def _give(self, ref: Ref, asked: list[Claim], before: Resource | None, merged: Merged) -> None:
        """Take the only claim; between files that are still moving, the version that was there already."""
        chosen = asked[0]
        if len(asked) > 1:
            present = [claim for claim in asked if claim.rank is not Rank.GONE] or asked
            chosen = min(present, key=lambda claim: (claim.resource is not before, claim.rank))
        resource = chosen.resource
        if not resource.held:
            self._good[ref] = resource
        merged.resources[ref] = self._as_held(resource) if chosen.rank is Rank.HELD else resource
        merged.positions[ref] = chosen.position

    def _hold_duplicate(self, ref: Ref, firm: list[Claim], merged: Merged) -> None:
        good = self._good.get(ref)
        kept = self._as_held(good) if good is not None else self._stored_version(ref)
        if kept is None:
            merged.drop(ref)
        else:
            merged.resources[ref], merged.positions[ref] = kept, kept.position
        merged.duplicates[ref] = tuple(str(claim.position) for claim in firm)
        state = "stays at its last good version" if kept is not None else "is left out"
        problems = []
        for claim in firm:
            others = ", ".join(
                f"{other.position}{' (its last good version)' if other.rank is Rank.HELD else ''}"
                for other in firm
                if other is not claim
            )
            message = f"{ref} is also declared at {others}; until one of them is gone it {state}"
            hint = "remove or rename one of them"
            problems.append(Problem(claim.position, "duplicate-object", message, hint))
        merged.problems[ref] = tuple(problems)

    def _stored_version(self, ref: Ref) -> Resource | None:
        entry = self.stored().get(ref)
        return self.revive(ref) if entry is not None and entry.file not in self._let_go else None

    def _as_held(self, resource: Resource) -> Resource:
        """The same resource, marked as held; the same copy each time."""
        if resource.held:
            return resource
        kept = self._held.get(resource.ref)
        if kept is None or kept[0] is not resource:
            kept = self._held[resource.ref] = (resource, replace(resource, held=True))
        return kept[1]

    def _revive_files(
        self, files: Mapping[str, SpecFile], candidates: Iterable[str]
    ) -> tuple[dict[str, list[Offer]], tuple[Problem, ...]]:
        """What the store has of each file without a good version, and what it has but cannot be used any more."""
        unread = [files[path] for path in sorted(candidates) if path in files and files[path].good is None]
        if not unread:
            return {}, ()
        by_file: dict[str, list[Ref]] = {}
        for ref, entry in self.stored().items():
            by_file.setdefault(entry.file, []).append(ref)
        self._let_go &= by_file.keys()
        for path in self._let_go:
            del by_file[path]
        revived: dict[str, list[Offer]] = {}
        lost: list[Problem] = []
        for file in unread:
            refs = list(by_file.get(file.path, ()))
            if file.fault is not None:  # it may be a directory that cannot be read
                inside = [path for path in by_file if path.startswith(f"{file.path}/") and path not in files]
                refs += [ref for path in inside for ref in by_file[path]]
            offers = revived.setdefault(file.path, [])
            for ref in refs:
                resource = self.revive(ref)
                if resource is not None:
                    offers.append((resource, resource.position))
                    continue
                message = (
                    f"the last good version of {ref} is no longer valid for this kvmd, so nothing stands in for it"
                )
                lost.append(Problem(Position(file.path), "stored-object", message, "mend the file", "warning"))
        return revived, tuple(lost)


def _offers(path: str, files: Mapping[str, SpecFile], revived: Mapping[str, list[Offer]]) -> list[Offer]:
    """What a file asks for, by itself or by what the store has of it."""
    file = files.get(path)
    if file is None:
        return []
    return revived.get(path, []) if file.good is None else list(zip(file.good, file.places, strict=True))
