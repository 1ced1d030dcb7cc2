"""Which object stands where: a table from an object to the facts that carry its mark."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from kvmd.api.mark import Mark
from kvmd.api.resource import Ref
from kvmd.identity import changed
from kvmd.observed import Fact, Key, Marked, Observed


def marks_of(before: Observed, facts: Mapping[Key, Fact]) -> Mapping[Ref, tuple[Key, ...]]:
    """Where each object of this owner is now; only facts that are not what they were *before* are looked at."""
    marks = dict(before.marks)
    came: dict[Ref, list[Key]] = {}
    news = changed(before.facts, facts)
    for key in news:
        if (ref := _marked(before.facts.get(key), before.owner)) is not None:
            came.setdefault(ref, [])
        if (ref := _marked(facts.get(key), before.owner)) is not None:
            came.setdefault(ref, []).append(key)
    stale = set(news) if came else set()
    for ref, keys in came.items():
        known = marks.pop(ref, ())
        found = tuple(sorted({*keys, *(key for key in known if key not in stale)}))
        if found:
            marks[ref] = known if found == known else found
    return MappingProxyType(marks)


def _marked(fact: Fact | None, owner: str) -> Ref | None:
    """The object whose mark is on a fact, where it is that owner's and no copy."""
    mark: Mark | None = fact.mark if isinstance(fact, Marked) else None
    if mark is None or mark.owner != owner or mark.object_id != getattr(fact, "uuid", "") or mark.retained:
        return None
    return mark.ref
