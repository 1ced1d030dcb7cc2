"""A change of a whole structure, taken apart into what really differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_IDENTITIES = ("name", "address", "mac", "ip", "start")

Difference = tuple[str, Any, Any]


def unfold(path: str, before: Any, after: Any) -> Iterator[Difference]:
    """Yield path, before and after of every part that differs; items of lists go by their name, address or MAC."""
    if before == after:
        return
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in dict.fromkeys((*before, *after)):
            yield from unfold(f"{path}.{key}", before.get(key), after.get(key))
    elif isinstance(before, list | tuple) and isinstance(after, list | tuple) and before and after:
        yield from _items(path, before, after)
    else:
        yield path, before, after


def _items(path: str, before: Sequence[Any], after: Sequence[Any]) -> Iterator[Difference]:
    identity = next((key for key in _IDENTITIES if _tells_apart(key, before) and _tells_apart(key, after)), None)
    if identity is not None:
        old, new = ({item[identity]: item for item in items} for items in (before, after))
        for name in dict.fromkeys((*old, *new)):
            yield from unfold(f"{path}[{name}]", old.get(name), new.get(name))
        return
    gone, come = ([item for item in one if item not in other] for one, other in ((before, after), (after, before)))
    if not gone and not come:  # only their order or their number
        yield path, before, after
    yield from ((path, item, None) for item in gone)
    yield from ((path, None, item) for item in come)


def _tells_apart(key: str, items: Sequence[Any]) -> bool:
    if not all(isinstance(item, Mapping) and isinstance(item.get(key), str) for item in items):
        return False
    return len({item[key] for item in items}) == len(items)
