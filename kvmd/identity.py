"""Tables whose values keep their identity while they are equal: what changed is found without a look inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def changed(before: Mapping[K, V], after: Mapping[K, V]) -> list[K]:
    """Keys whose value is another object, has come or has gone."""
    if before is after:
        return []
    get = before.get
    found = [key for key, value in after.items() if get(key) is not value]
    if found or len(before) != len(after):
        found += [key for key in before if key not in after]
    return found


def kept(old: V | None, new: V) -> V:
    """The old object where it is equal to the new one, so that comparing by identity works."""
    return old if old is not None and old == new else new
