"""States of a kind, compared leaf by leaf: what differs, and whether somebody ever wrote it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any


class Leave(Enum):
    """The value of a leaf that nobody wrote: not compared, not touched."""

    LEAVE = "leave"

    def __repr__(self) -> str:
        return "LEAVE"


LEAVE = Leave.LEAVE


@dataclass(frozen=True, slots=True)
class Change:
    """One leaf that differs; *path* is relative to ``spec``."""

    path: str
    before: Any
    after: Any
    always: bool = field(default=False, compare=False, repr=False)  # ours even where nobody wrote it

    def as_data(self) -> dict[str, Any]:
        """The JSON form."""
        return {"path": f"spec.{self.path}", "from": plain(self.before), "to": plain(self.after)}


def at(path: str, **more: Any) -> dict[str, Any]:
    """Field metadata of a state: the leaf of the spec that it stands for."""
    return {"path": path, **more}


def differences(before: Any, after: Any, prefix: str = "") -> Iterator[Change]:
    """Yield each field with a path in which *after* (where it says anything) differs from *before*.

    Tuples of states with a ``name`` are compared by name; an item that *before* lacks, or that *after*
    lacks, is one change.
    """
    for name, path, keyed, always in _compared(type(after)):  # type: ignore[arg-type]
        old, new = getattr(before, name), getattr(after, name)
        if new is LEAVE:
            continue
        if keyed:
            yield from _keyed(old, new, f"{prefix}{path}")
        elif old != new:
            yield Change(f"{prefix}{path}", old, new, always)


@cache
def _compared(cls: Any) -> tuple[tuple[str, str, bool, bool], ...]:
    """Of each field that is compared its name, its path, whether it holds named items, whether it is always ours."""
    found = ((item.name, item.metadata) for item in fields(cls))
    return tuple(
        (name, told["path"], bool(told.get("keyed")), bool(told.get("always")))
        for name, told in found
        if "path" in told
    )


def _keyed(old: tuple[Any, ...], new: tuple[Any, ...], where: str) -> Iterator[Change]:
    before, after = {item.name: item for item in old}, {item.name: item for item in new}
    for name in sorted(before.keys() - after.keys()):
        yield Change(f"{where}[{name}]", before[name], None)
    for name, item in after.items():
        if name not in before:
            yield Change(f"{where}[{name}]", None, item)
        else:
            yield from differences(before[name], item, f"{where}[{name}].")


def is_owned(path: str, owned: frozenset[str]) -> bool:
    """True where the user wrote that leaf, something below it, or a whole that holds it."""
    if path in owned:
        return True
    return any(
        leaf.startswith((f"{path}.", f"{path}[")) or path.startswith((f"{leaf}.", f"{leaf}[")) for leaf in owned
    )


def plain(value: Any) -> Any:
    """Reduce a state's value to what JSON can hold."""
    if value is LEAVE:
        return None
    if is_dataclass(value) and not isinstance(value, type):
        return {
            str(item.metadata.get("path", item.name)): plain(getattr(value, item.name))
            for item in fields(value)
            if getattr(value, item.name) not in (None, LEAVE, (), "")
        }
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return value
