"""Look-up tables over specs, facts and memory, rebuilt only where they changed; equal values keep identity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from kvmd.api.mark import Mark
from kvmd.api.resource import Claim, Ref, Reference, Resource
from kvmd.observed import Domain, Fact, Key, Link, Network, Observed
from kvmd.plan.look import World
from kvmd.plan.model import Applied, Controller, Desired, Memory, Rules


@dataclass(frozen=True, slots=True)
class _Names:
    """What one spec names and claims."""

    of: Any
    references: tuple[Reference, ...]
    claims: tuple[Claim, ...]


class Index:
    """Builds the ``World`` of a cycle from the parts that changed since the last one."""

    def __init__(self, controllers: Mapping[str, Controller], rules: Rules) -> None:
        self._controllers = controllers
        self._rules = rules
        self._names: dict[Ref, _Names] = {}
        self._users: dict[Ref, tuple[Reference, ...]] = {}
        self._contested: dict[Claim, list[Ref]] = {}
        self._claimants: dict[Claim, tuple[Ref, ...]] = {}
        self._applied: dict[Ref, Applied] = {}
        self._applied_from: dict[Ref, Any] = {}
        self._keys: dict[Ref, Key] = {}
        self._departing: frozenset[Ref] = frozenset()
        self._inputs: tuple[Any, ...] = ()

    def world(self, desired: Desired, observed: Observed, memory: Memory) -> World:
        """The look-up tables of this cycle."""
        inputs = (desired.resources, desired.applied, observed.facts, observed.marks)
        if len(self._inputs) != len(inputs) or any(
            new is not old for new, old in zip(inputs, self._inputs, strict=True)
        ):
            self._index(desired, observed)
            self._inputs = inputs
        tables: dict[str, Mapping[Any, Any]] = {
            "specs": desired.resources,
            "facts": observed.facts,
            "applied": self._applied,
            "memory": memory.objects,
            "users": self._users,
            "claimants": self._claimants,
            "keys": self._keys,
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

    def _index(self, desired: Desired, observed: Observed) -> None:
        self._index_marks(desired, observed)
        self._index_applied(desired, observed)
        self._departing = frozenset(
            ref for ref in self._keys if ref not in desired.resources and ref.kind in self._controllers
        )
        self._index_names(desired)

    def _index_marks(self, desired: Desired, observed: Observed) -> None:
        """Where each marked object is. A link's mark cannot name its link: it counts only under its spec's name."""
        keys: dict[Ref, Key] = {}
        for ref, found in observed.marks.items():
            key: Key | None = found[0]
            if found[0].type == "link" and ref.kind in self._controllers:
                key = next((name for name in self._names_of_link(ref, desired) if name in found), None)
            if key is not None:
                keys[ref] = self._keys[ref] if self._keys.get(ref) == key else key
        self._keys = keys

    def _names_of_link(self, ref: Ref, desired: Desired) -> tuple[Key, ...]:
        """The links that its spec, and the spec that was last applied, say it is."""
        controller = self._controllers[ref.kind]
        resource = desired.resources.get(ref)
        former = _spec_of(desired.applied.get(ref), controller)
        specs = ([resource.spec] if resource is not None else []) + ([former] if former is not None else [])
        return tuple(controller.host_key(ref, spec) for spec in specs or [None])

    def _index_applied(self, desired: Desired, observed: Observed) -> None:
        applied: dict[Ref, Applied] = {}
        sources: dict[Ref, Any] = {}
        for ref, key in self._keys.items():
            mark = _mark_of(observed.facts.get(key))
            if mark is None:
                continue
            stored = None if mark.written else desired.applied.get(ref)
            source = (mark, stored)
            before = self._applied_from.get(ref, (None, None))
            sources[ref] = source
            if before[0] is mark and before[1] is stored:
                applied[ref] = self._applied[ref]
            else:
                applied[ref] = Applied.of(mark) if mark.written else _of_short(mark, stored)
        for ref, stored in desired.applied.items():
            # Generation 0 is an intention: it counts for an object that is marked, not for one that is not there.
            if ref not in applied and stored.generation > 0:
                applied[ref] = stored
        self._applied, self._applied_from = applied, sources

    def _index_names(self, desired: Desired) -> None:
        names: dict[Ref, _Names] = {}
        for ref, resource in desired.resources.items():
            names[ref] = self._known(ref, resource) or self._read(ref, resource.spec, resource)
        for ref in self._departing:
            applied = self._applied.get(ref)
            spec = _spec_of(applied, self._controllers[ref.kind])
            if spec is not None:
                names[ref] = self._known(ref, applied) or self._read(ref, spec, applied)
        changed = names.keys() != self._names.keys() or any(names[ref] is not self._names[ref] for ref in names)
        self._names = names
        if changed:
            self._users = _keeping(self._users, self._collect_users())
            self._contested = self._collect_contested()
        self._claimants = _keeping(self._claimants, self._in_order_of_right())

    def _known(self, ref: Ref, source: Resource | Applied | None) -> _Names | None:
        known = self._names.get(ref)
        return known if known is not None and known.of is source else None

    def _read(self, ref: Ref, spec: Any, source: Any) -> _Names:
        controller = self._controllers[ref.kind]
        return _Names(source, controller.references(ref, spec), controller.claims(ref, spec))

    def _collect_users(self) -> dict[Ref, tuple[Reference, ...]]:
        users: dict[Ref, list[Reference]] = {}
        for names in self._names.values():
            for reference in names.references:
                users.setdefault(reference.target, []).append(reference)
        return {ref: tuple(sorted(found, key=_reference_order)) for ref, found in users.items()}

    def _collect_contested(self) -> dict[Claim, list[Ref]]:
        """Claims made more than once."""
        claims: dict[Claim, list[Ref]] = {}
        for ref, names in self._names.items():
            for claim in names.claims:
                claims.setdefault(claim, []).append(ref)
        return {claim: refs for claim, refs in claims.items() if len(refs) > 1}

    def _in_order_of_right(self) -> dict[Claim, tuple[Ref, ...]]:
        """Who wants what is contested: the present holder first, the others by name."""
        return {
            claim: tuple(sorted(refs, key=lambda ref: (not self._holds(ref, claim), ref)))
            for claim, refs in self._contested.items()
        }

    def _holds(self, ref: Ref, claim: Claim) -> bool:
        """True where the object is on the host and was last applied with that claim."""
        if ref not in self._keys:
            return False
        spec = _spec_of(self._applied.get(ref), self._controllers[ref.kind])
        return spec is not None and claim in self._controllers[ref.kind].claims(ref, spec)


def _reference_order(reference: Reference) -> tuple[Any, ...]:
    return (reference.source, reference.target, reference.attributes)


def _of_short(mark: Mark, stored: Applied | None) -> Applied:
    """A link's mark has no room for the spec: the store has that part."""
    if stored is None:
        return Applied(mark.ref, mark.spec_hash, mark.generation)
    return replace(stored, spec_hash=mark.spec_hash, generation=mark.generation)


def _mark_of(fact: Fact | None) -> Mark | None:
    return fact.mark if isinstance(fact, Domain | Network | Link) else None


def _spec_of(applied: Applied | None, controller: Controller) -> Any:
    """The last applied spec with types, or None where it is unknown or no longer valid."""
    if applied is None or not applied.known:
        return None
    try:
        return controller.Spec.model_validate(applied.written)
    except ValueError:
        return None


def _keeping(old: Mapping[Any, Any], new: dict[Any, Any]) -> dict[Any, Any]:
    """Prefer the old value objects where they are equal, so that comparing by identity works."""
    return {key: old[key] if key in old and old[key] == value else value for key, value in new.items()}
