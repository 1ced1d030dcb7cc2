"""Tables whose values keep their identity while they are equal: what changed is found without a look inside."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import compress
from operator import is_, is_not
from typing import Any, TypeVar

K = TypeVar("K")
V = TypeVar("V")
_Comparison = tuple[Mapping[Any, Any], Mapping[Any, Any], list[Any]]

_REMEMBERED = 4  # comparisons: in a cycle the same two tables are compared by up to five who each took them over
_recent: tuple[_Comparison, ...] = ()


def changed(before: Mapping[K, V], after: Mapping[K, V]) -> list[K]:
    """Keys whose value is another object, has come or has gone.

    Neither table may be changed in place afterwards, nor may the list: the next who asks gets the same one.
    """
    global _recent
    if before is after:
        return []
    for known in _recent:
        if known[0] is before and known[1] is after:
            return known[2]
    found = _compared(before, after)
    _recent = ((before, after, found), *_recent[: _REMEMBERED - 1])
    return found


def _compared(before: Mapping[K, V], after: Mapping[K, V]) -> list[K]:
    if len(before) == len(after) and all(map(is_, before, after)):
        # The same keys in the same order, as a table and its successor have them: no key need be looked up.
        return list(compress(after, map(is_not, before.values(), after.values())))
    found = list(compress(after, map(is_not, map(before.get, after), after.values())))
    came = sum(key not in before for key in found)
    if len(before) + came > len(after):
        found += [key for key in before if key not in after]
    return found


def kept(old: V | None, new: V) -> V:
    """The old object where it is equal to the new one, so that comparing by identity works."""
    return old if old is not None and old == new else new
