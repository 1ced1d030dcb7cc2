"""From a state back to the words of its spec: the inverse of rendering, by the paths that its fields declare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

from kvmd.observed import Key, Observed
from kvmd.plan.difference import LEAVE

Wording = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Described:
    """An object of the host in the words of the language; *unsaid* is what those words do not reach."""

    spec: dict[str, Any]
    unsaid: tuple[str, ...] = ()


@runtime_checkable
class Describer(Protocol):
    """A kind that can say in a spec what is on the host (`kvmd import`)."""

    def describe(self, key: Key, observed: Observed) -> Described | None:
        """The spec of what stands there; None where it is no object of this kind that a spec could own."""


def said(
    state: Any, words: Mapping[str, Wording] | None = None, skip: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Nest every value that is there under its path; *words* says single ones as people write them."""
    words = words or {}
    spec: dict[str, Any] = {}
    for item in fields(state):
        path = item.metadata.get("path")
        value = getattr(state, item.name)
        if path is None or path in skip or value is None or value is LEAVE or value == ():
            continue
        put(spec, path, words[path](value) if path in words else value)
    return spec


def put(spec: dict[str, Any], path: str, value: Any) -> None:
    """Set a leaf."""
    *way, leaf = path.split(".")
    for name in way:
        spec = spec.setdefault(name, {})
    spec[leaf] = value


def cut(spec: dict[str, Any], path: str) -> bool:
    """Take a leaf out, or one of a list of named things (`disks[root].cache`); True where it was there."""
    here: Any = spec
    steps = path.replace("[", ".[").split(".")
    for step in steps[:-1]:
        here = _step(here, step)
        if here is None:
            return False
    last = steps[-1]
    if isinstance(here, list):
        kept = [item for item in here if item.get("name") != last.strip("[]")]
        found = len(kept) < len(here)
        here[:] = kept
        return found
    return isinstance(here, dict) and here.pop(last, None) is not None


def _step(here: Any, step: str) -> Any:
    if isinstance(here, list):
        return next((item for item in here if item.get("name") == step.strip("[]")), None)
    return here.get(step) if isinstance(here, dict) else None
