"""Which remembered plans still hold: an index from what was read to who read it.

It makes the cost of a change independent of how many objects there are: only the readers of a value that is
another object than last time are planned again, and those whose time has come.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvmd.api.resource import Ref
from kvmd.identity import changed
from kvmd.plan.look import Reads
from kvmd.plan.model import ObjectPlan

Tables = Mapping[str, Mapping[Any, Any]]
Read = tuple[str, Any]
NOTHING: Mapping[Any, Any] = {}


class Recall:
    """Plans by object, with what each of them read."""

    def __init__(self) -> None:
        self.plans: dict[Ref, ObjectPlan] = {}
        self.acting: dict[Ref, None] = {}  # those whose plan has a step
        self._reads: dict[Ref, tuple[Read, ...]] = {}
        self._readers: dict[Read, Ref | set[Ref]] = {}  # most have one, and a set of one takes 200 bytes
        self._wakes: dict[Ref, float] = {}
        self._tables: dict[str, Mapping[Any, Any]] = {}

    def stale(self, tables: Tables, now: float) -> set[Ref]:
        """The objects with a spec that must be planned again; one whose spec is gone is forgotten."""
        found = {ref for ref, wake_at in self._wakes.items() if now >= wake_at}
        wanted = tables["specs"]
        for ref in changed(self._tables.get("specs", NOTHING), wanted):
            if ref not in wanted:
                self._forget(ref)
            elif ref not in self.plans:
                found.add(ref)
        for name, table in tables.items():
            for key in changed(self._tables.get(name, NOTHING), table):
                readers = self._readers.get((name, key))
                if isinstance(readers, set):
                    found |= readers
                elif readers is not None:
                    found.add(readers)
        self._tables = dict(tables)
        return {ref for ref in found if ref in wanted}

    def wakes_after(self, now: float) -> list[float]:
        """When plans are to be looked at again."""
        return [wake_at for wake_at in self._wakes.values() if wake_at > now]

    def keep(self, plan: ObjectPlan, reads: Reads) -> None:
        """Remember a plan and what it came from."""
        ref = plan.ref
        self._unread(ref)
        self.plans[ref], self._reads[ref] = plan, tuple(reads)
        for read in reads:
            readers = self._readers.setdefault(read, ref)
            if isinstance(readers, set):
                readers.add(ref)
            elif readers != ref:
                self._readers[read] = {readers, ref}
        if plan.wake_at is not None:
            self._wakes[ref] = plan.wake_at
        if plan.step is not None:
            self.acting[ref] = None

    def _forget(self, ref: Ref) -> None:
        self._unread(ref)
        self.plans.pop(ref, None)

    def _unread(self, ref: Ref) -> None:
        """Forget what a plan came from and what it asks for; its place among the plans stays."""
        for read in self._reads.pop(ref, ()):
            readers = self._readers[read]
            if isinstance(readers, set):
                readers.discard(ref)
            if not readers or readers == ref:
                del self._readers[read]
        self._wakes.pop(ref, None)
        self.acting.pop(ref, None)
