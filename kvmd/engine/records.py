"""What must survive the process: the last good specs, and what was last applied of each object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from kvmd import ops
from kvmd.api.resource import Ref, Resource
from kvmd.identity import changed
from kvmd.plan.model import Applied, ObjectPlan, Plan, Step
from kvmd.sources.snapshot import Snapshot
from kvmd.sources.store import Store


class Records:
    """Two stores, written before the first act that needs them. *applied* is replaced, never changed in place."""

    def __init__(self, good: Store, applied: Store) -> None:
        self._good, self._store = good, applied
        applied.load()
        applied.share(good)
        self.applied: Mapping[Ref, Applied] = {ref: _stored(item) for ref, item in applied.objects().items()}
        self._saved: Mapping[Ref, Resource] = {}
        self._plan = self._seen = Plan({})
        self._lonely = {*self.applied, *good.objects()}  # what is known of objects that no plan has

    def keep_specs(self, snapshot: Snapshot) -> None:
        """Write down last good specs, before the first act on them. Raises Retry."""
        resources = snapshot.resources
        news = (resources[ref] for ref in changed(self._saved, resources) if ref in resources)
        self._good.save_all([(resource, 0) for resource in news if not resource.held])
        self._saved = resources

    def keep_applied(self, plan: Plan) -> None:
        """Note what is applied now, and, of what cannot carry its spec itself, what is about to be. Raises Retry."""
        fresh: list[tuple[Resource, int]] = []
        for ref in changed(self._plan.objects, plan.objects):
            item = plan.objects.get(ref)
            fresh += to_note(item, self.applied.get(ref)) if item is not None else []
        if fresh:
            self._store.save_all(fresh)
            self.applied = {**self.applied, **{item.ref: applied_of(item, number) for item, number in fresh}}
        self._plan = plan

    def forget_gone(self, plan: Plan, may_go: Callable[[Ref], bool]) -> list[Ref]:
        """Forget what was applied of objects that are neither asked for nor there; returns them. Raises Retry."""
        for ref in changed(self._seen.objects, plan.objects):
            if ref in plan.objects:
                self._lonely.discard(ref)
            elif ref in self.applied or ref in self._good.objects():  # what never came to be is in the second alone
                self._lonely.add(ref)
        self._seen = plan
        gone = [ref for ref in self._lonely if may_go(ref)]
        for ref in gone:
            self._good.remove(ref)
            self._store.remove(ref)
        if gone:
            self._lonely.difference_update(gone)
            leaving = set(gone)
            self.applied = {ref: item for ref, item in self.applied.items() if ref not in leaving}
        return gone


def to_note(item: ObjectPlan, known: Applied | None) -> list[tuple[Resource, int]]:
    """What is to be noted as applied of an object, with its generation, where *known* is what was noted before."""
    if item.resource is None or item.resource.held:
        return []
    if item.step is not None and not _carries_its_mark(item.step):
        return _intention(item.resource, known)
    # While something waits, what was noted before stays: a leaf that was taken out would be forgotten before it left.
    waits = known is not None and bool(item.pending)
    is_new = known is None or not known.records(item.resource, item.generation)
    return [(item.resource, item.generation)] if item.ready and is_new and not waits else []


def _stored(item: Any) -> Applied:
    return Applied(
        ref=item.ref,
        spec_hash=item.spec_hash,
        generation=item.generation,
        written=item.written,
        annotations=dict(item.metadata.get("annotations", {})),
        known=True,
    )


def applied_of(resource: Resource, generation: int) -> Applied:
    """What is remembered of a spec that was applied."""
    return Applied(
        ref=resource.ref,
        spec_hash=resource.spec_hash,
        generation=generation,
        written=resource.written,
        annotations=resource.metadata.annotations,
        known=True,
    )


def _intention(resource: Resource, known: Applied | None) -> list[tuple[Resource, int]]:
    """What must be known of an object if this process ends amid the step: what it had, and what it is to get."""
    if known is None:
        return [(resource, 0)]
    both = _both(known.written, resource.written)
    return [] if both == known.written else [(replace(resource, written=both), known.generation)]


def _both(old: Any, new: Any) -> Any:
    """Everything that either says; where they disagree on a value, what is to be."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return {**old, **{key: _both(old[key], value) if key in old else value for key, value in new.items()}}
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        return type(new)((*new, *(item for item in old if item not in new)))
    return new


def _carries_its_mark(step: Step) -> bool:
    """True where the first operation writes the whole spec with the object: nothing need be kept beside it."""
    return bool(step.operations) and isinstance(step.operations[0], ops.DomainDefine | ops.NetworkDefine)
