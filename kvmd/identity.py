"""Tables whose values keep their identity while they are equal: what changed is found without a look inside."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import compress
from operator import is_, is_not
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def changed(before: Mapping[K, V], after: Mapping[K, V]) -> list[K]:
    """Keys whose value is another object, has come or has gone."""
    if before is after:
        return []
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
