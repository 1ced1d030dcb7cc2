"""Failures of work that goes on beside the steps: no worker comes back with them, so conditions tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kvmd.api.resource import Ref
from kvmd.api.status import FETCH_FAILED
from kvmd.identity import changed
from kvmd.plan.model import ObjectPlan


class Failures:
    """What was told last of each object."""

    def __init__(self) -> None:
        self._objects: Mapping[Ref, ObjectPlan] = {}
        self._told: dict[Ref, frozenset[str]] = {}

    def tell(self, objects: Mapping[Ref, ObjectPlan], tell: Callable[[str, str, str, bool], None]) -> None:
        """Tell each failure once, and the next try's anew."""
        for ref in changed(self._objects, objects):
            item = objects.get(ref)
            conditions = item.conditions if item is not None else ()
            said = frozenset(item.message for item in conditions if item.reason == FETCH_FAILED)
            for message in sorted(said - self._told.get(ref, frozenset())):
                tell(str(ref), FETCH_FAILED, message, True)
            if said:
                self._told[ref] = said
            else:
                self._told.pop(ref, None)
        self._objects = objects
