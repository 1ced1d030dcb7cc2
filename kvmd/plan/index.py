"""Look-up tables over specs, facts and memory: only what changed is looked at; equal values keep identity.

Every table is replaced, never changed in place, once anything in it changes: whoever holds a world holds it whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeVar

from kvmd.api.mark import Mark
from kvmd.api.resource import Claim, Ref, Reference, Resource
from kvmd.identity import changed, kept
from kvmd.observed import Fact, Key, Marked, Observed
from kvmd.plan.look import World
from kvmd.plan.model import Applied, Controller, Desired, Memory, Rules
from kvmd.plan.places import Places

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class _Names:
    """What one spec names and claims."""

    of: Any
    references: tuple[Reference, ...] = ()
    claims: tuple[Claim, ...] = ()


_NO_NAMES = _Names(None)
_Inputs = tuple[Mapping[Ref, Resource], Mapping[Ref, Applied], Mapping[Key, Fact], Mapping[Ref, tuple[Key, ...]]]


class Index:
    """Builds the ``World`` of a cycle from the parts that changed since the last one."""

    def __init__(self, controllers: Mapping[str, Controller], rules: Rules) -> None:
        self._controllers = controllers
        self._rules = rules
        self._inputs: _Inputs = ({}, {}, {}, {})
        self._keys: dict[Ref, Key] = {}
        self._at: dict[Key, Ref] = {}
        self._applied: dict[Ref, Applied] = {}
        self._applied_from: dict[Ref, tuple[Mark, Applied | None]] = {}
        self._names: dict[Ref, _Names] = {}
        self._naming: dict[Ref, dict[Ref, None]] = {}  # who names an object
        self._claiming: dict[Claim, dict[Ref, None]] = {}  # who claims what
        self._users: dict[Ref, tuple[Reference, ...]] = {}
        self._claimants: dict[Claim, tuple[Ref, ...]] = {}
        self._departing: frozenset[Ref] = frozenset()
        self._places = Places()

    def world(self, desired: Desired, observed: Observed, memory: Memory) -> World:
        """The look-up tables of this cycle."""
        inputs = (desired.resources, desired.applied, observed.facts, observed.marks)
        stale = self._stale(inputs)
        self._inputs = inputs
        self._places.take(observed.facts)
        if stale:
            self._look_again(stale)
        tables: dict[str, Mapping[Any, Any]] = {
            "specs": desired.resources,
            "facts": observed.facts,
            "applied": self._applied,
            "memory": memory.objects,
            "users": self._users,
            "claimants": self._claimants,
            "keys": self._keys,
            "marks": observed.marks,
            "stored": self._places.stored,
            "spellings": self._places.spellings,
        }
        return World(
            specs=desired.resources,
            facts=observed.facts,
            applied=self._applied,
            memory=memory.objects,
            users=self._users,
            claimants=self._claimants,
            keys=self._keys,
            controllers=self._controllers,
            rules=self._rules,
            departing=self._departing,
            tables=MappingProxyType(tables),
        )

    def _stale(self, inputs: _Inputs) -> set[Ref]:
        """The objects of which a spec, a mark, or what carries the mark is not what it was."""
        resources, applied, facts, marks = self._inputs
        stale = {*changed(resources, inputs[0]), *changed(applied, inputs[1]), *changed(marks, inputs[3])}
        return stale | {self._at[key] for key in changed(facts, inputs[2]) if key in self._at}

    def _look_again(self, stale: set[Ref]) -> None:
        self._keys = _with(self._keys, {ref: self._placed(ref) for ref in stale})
        self._applied = _with(self._applied, {ref: self._applied_now(ref) for ref in stale})
        self._departing = self._departing - stale | {ref for ref in stale if self._is_departing(ref)}
        targets: set[Ref] = set()
        claims: set[Claim] = set()
        for ref in stale:
            before, after = self._names.get(ref, _NO_NAMES), self._names_now(ref)
            targets.update(reference.target for names in (before, after) for reference in names.references)
            claims.update(before.claims, after.claims)
            self._name(ref, before, after)
        self._users = _with(self._users, {target: self._users_of(target) for target in targets})
        self._claimants = _with(self._claimants, {claim: self._claimants_of(claim) for claim in claims})

    # ------------------------------------------------------------------------------- where it is, what it was

    def _placed(self, ref: Ref) -> Key | None:
        """Where a marked object is. A link's mark cannot name its link: it counts only under its spec's name."""
        found = self._inputs[3].get(ref, ())
        key: Key | None = next(iter(found), None)
        if key is not None and key.type == "link" and ref.kind in self._controllers:
            key = next((name for name in self._names_of_link(ref) if name in found), None)
        before = self._keys.get(ref)
        if before is not None and self._at.get(before) == ref:
            del self._at[before]
        if key is not None:
            key = kept(before, key)
            self._at[key] = ref
        return key

    def _names_of_link(self, ref: Ref) -> tuple[Key, ...]:
        """The links that its spec, and the spec that was last applied, say it is."""
        controller = self._controllers[ref.kind]
        resource = self._inputs[0].get(ref)
        former = _spec_of(self._inputs[1].get(ref), controller)
        specs = ([resource.spec] if resource is not None else []) + ([former] if former is not None else [])
        return tuple(controller.host_key(ref, spec) for spec in specs or [None])

    def _applied_now(self, ref: Ref) -> Applied | None:
        """What was last applied: by the object's own mark, else by the store."""
        stored = self._inputs[1].get(ref)
        key = self._keys.get(ref)
        mark = _mark_of(self._inputs[2].get(key)) if key is not None else None
        before, source = self._applied.get(ref), self._applied_from.pop(ref, None)
        if mark is None:
            # Generation 0 is an intention: it counts for an object that is marked, not for one that is not there.
            return stored if stored is not None and stored.generation > 0 else None
        used = None if mark.written else stored
        self._applied_from[ref] = (mark, used)
        if before is not None and source is not None and source[0] is mark and source[1] is used:
            return before
        return Applied.of(mark) if mark.written else _of_short(mark, used)

    def _is_departing(self, ref: Ref) -> bool:
        return ref in self._keys and ref not in self._inputs[0] and ref.kind in self._controllers

    # ----------------------------------------------------------------------------------- what names what

    def _names_now(self, ref: Ref) -> _Names:
        """What an object's spec names, or, where it is about to go, the spec that was last applied."""
        resource = self._inputs[0].get(ref)
        source: Resource | Applied | None = resource
        if resource is None and ref in self._departing:
            source = self._applied.get(ref)
        known = self._names.get(ref, _NO_NAMES)
        if known.of is source:
            return known
        if source is None:
            return _NO_NAMES
        controller = self._controllers[ref.kind]
        spec = resource.spec if resource is not None else _spec_of(self._applied.get(ref), controller)
        if spec is None:
            return _NO_NAMES
        return _Names(source, controller.references(ref, spec), controller.claims(ref, spec))

    def _name(self, ref: Ref, before: _Names, after: _Names) -> None:
        if before is after:
            return
        for reference in before.references:
            _leave(self._naming, reference.target, ref)
        for claim in before.claims:
            _leave(self._claiming, claim, ref)
        for reference in after.references:
            self._naming.setdefault(reference.target, {})[ref] = None
        for claim in after.claims:
            self._claiming.setdefault(claim, {})[ref] = None
        self._names[ref] = after
        if after is _NO_NAMES:
            del self._names[ref]

    def _users_of(self, target: Ref) -> tuple[Reference, ...]:
        sources = self._naming.get(target, {})
        found = (item for ref in sources for item in self._names[ref].references if item.target == target)
        return kept(self._users.get(target), tuple(sorted(found, key=_reference_order)))

    def _claimants_of(self, claim: Claim) -> tuple[Ref, ...]:
        """Who wants that: the present holder first, the others by name."""
        refs = self._claiming.get(claim, {})
        order = sorted(refs, key=lambda ref: (not self._holds(ref, claim), ref)) if len(refs) > 1 else refs
        return kept(self._claimants.get(claim), tuple(order))

    def _holds(self, ref: Ref, claim: Claim) -> bool:
        """True where the object is on the host and was last applied with that claim."""
        if ref not in self._keys:
            return False
        spec = _spec_of(self._applied.get(ref), self._controllers[ref.kind])
        return spec is not None and claim in self._controllers[ref.kind].claims(ref, spec)


def _with(table: dict[K, V], news: Mapping[K, V | None]) -> dict[K, V]:
    """The table with those values and without what is nothing now; the very same where nothing is new."""
    if all(table.get(key) is (value or None) for key, value in news.items()):
        return table
    left = table.copy()
    for key, value in news.items():
        if value:
            left[key] = value
        else:
            left.pop(key, None)
    return left


def _leave(table: dict[K, dict[Ref, None]], key: K, ref: Ref) -> None:
    """Take one out; what nobody names any more is not kept."""
    refs = table.get(key, {})
    refs.pop(ref, None)
    if not refs:
        table.pop(key, None)


def _reference_order(reference: Reference) -> tuple[Any, ...]:
    return (reference.source, reference.target, reference.attributes)


def _of_short(mark: Mark, stored: Applied | None) -> Applied:
    """A link's mark has no room for the spec: the store has that part."""
    if stored is None:
        return Applied(mark.ref, mark.spec_hash, mark.generation)
    return replace(stored, spec_hash=mark.spec_hash, generation=mark.generation)


def _mark_of(fact: Fact | None) -> Mark | None:
    return fact.mark if isinstance(fact, Marked) else None


def _spec_of(applied: Applied | None, controller: Controller) -> Any:
    """The last applied spec with types, or None where it is unknown or no longer valid."""
    if applied is None or not applied.known:
        return None
    try:
        return controller.Spec.model_validate(applied.written)
    except (ValueError, TypeError, AttributeError, LookupError):  # a kind may trip over what no kvmd has written
        return None
