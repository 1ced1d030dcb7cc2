"""The order of steps: each after what it needs; what needs itself, or what does not come, is Blocked."""

from __future__ import annotations

import graphlib
from collections.abc import Iterable
from dataclasses import replace

from kvmd.api import status
from kvmd.api.resource import Ref
from kvmd.api.status import Condition
from kvmd.plan.model import ObjectPlan, Step


def in_order(objects: dict[Ref, ObjectPlan], acting: Iterable[Ref]) -> tuple[dict[Ref, ObjectPlan], tuple[Step, ...]]:
    """Order the steps, which only those *acting* have, after their needs; one whose need has no step is Blocked."""
    steps = {ref: step for ref in acting if (step := objects[ref].step) is not None}
    changed = True
    while changed:
        changed = False
        for ref, step in list(steps.items()):
            lost = next((need for need in step.after if need not in steps), None)
            if lost is not None:
                provider = objects.get(lost)
                why = next((c.message or c.reason for c in provider.conditions if c.status), "") if provider else ""
                kept = tuple(c for c in objects[ref].conditions if c.type not in (status.READY, status.RECONCILING))
                rest = step.without(lost)
                conditions = (*blocked(lost, why or "not there yet"), *kept)
                objects[ref] = replace(objects[ref], step=rest, conditions=conditions)
                del steps[ref]
                if rest is not None:
                    steps[ref] = rest
                changed = True
    graph = {ref: tuple(need for need in step.after if need in steps) for ref, step in sorted(steps.items())}
    try:
        order = tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        members = error.args[1]
        for ref in set(members):
            text = f"waits for itself: {' -> '.join(str(member) for member in members)}"
            objects[ref] = replace(
                objects[ref],
                step=None,
                conditions=(Condition(status.BLOCKED, True, "DependencyCycle", text),),
            )
        return in_order(objects, steps)
    return objects, tuple(steps[ref] for ref in order)


def blocked(need: Ref, why: str) -> tuple[Condition, ...]:
    """The conditions of an object that waits for another."""
    return (
        Condition(status.READY, False, "Blocked"),
        Condition(status.BLOCKED, True, "WaitsForObject", f"waits for {need}: {why}; type: kvmd get {need}"),
    )
