"""What the engine makes of the same operations again: fruitless, undone by somebody, or overtaken by a change."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvmd import ops
from kvmd.api.resource import Ref
from kvmd.engine.executor import Outcome
from kvmd.engine.memory import MOST_RELAPSES, MOST_STALE, RELAPSE_SECONDS, Remembering
from kvmd.errors import KvmdError, Retry, Stale
from kvmd.plan.model import Cause, ObjectPlan, Plan, Step
from kvmd.settings import Backoff

REF = Ref("Bridge", "br0")
HEAL = Step(REF, (ops.BridgeCreate("br0", "mark"), ops.LinkSet("br0", up=True)), Cause.DRIFT, "")
ASK = ops.DomainDetach("web", "u", "ua-disk-data")
START = Step(REF, (ops.DomainStart("web", "u"),), Cause.DRIFT, "")
AT_REST = Plan({REF: ObjectPlan(REF, ready=True)})


def end(memory: Remembering, step: Step, now: float, error: KvmdError | None = None) -> None:
    memory.start(step)
    memory.end(Outcome(step, () if error else step.operations, error, 0.0), now)


def test_what_has_no_effect_is_spaced_out() -> None:
    memory, waits = Remembering(Backoff()), []
    for turn in range(4):
        now = turn * 100.0
        end(memory, HEAL, now)
        until = memory.fruitless_until(HEAL, now)
        assert until is not None
        waits.append(until - now)
    assert waits == [1.0, 2.0, 4.0, 8.0]
    assert memory.of(REF).fruitless == 3


def test_what_worked_and_was_undone_comes_again_at_once_but_not_for_ever() -> None:
    memory, now = Remembering(Backoff()), 0.0
    for _ in range(MOST_RELAPSES):
        end(memory, HEAL, now)
        memory.take_plan(AT_REST, now)
        assert memory.fruitless_until(HEAL, now + RELAPSE_SECONDS) is None
        now += RELAPSE_SECONDS
    assert memory.of(REF).fruitless == 0
    for wait in (1.0, 2.0, 4.0):
        end(memory, HEAL, now)
        memory.take_plan(AT_REST, now)
        assert memory.fruitless_until(HEAL, now) == now + wait
        now += wait


def test_a_guest_that_ends_again_and_again_is_started_at_growing_intervals() -> None:
    memory = Remembering(Backoff())
    for wait in (1.0, 2.0, 4.0):
        end(memory, START, 0.0)
        memory.take_plan(AT_REST, 0.0)
        assert memory.fruitless_until(START, 0.0) == wait


def test_a_guest_is_not_asked_again_at_once_for_a_device_whose_removal_had_other_parts_at_first() -> None:
    memory, first = Remembering(Backoff()), (ops.DomainSetVcpus("web", "u", 2), ASK)
    again = Step(REF, (replace(ASK, again=True),), Cause.DRIFT, "")
    end(memory, Step(REF, first, Cause.SPEC, ""), 0.0)
    assert memory.fruitless_until(again, 0.0) == 1.0
    end(memory, again, 1.0)
    assert memory.fruitless_until(again, 1.0) == 3.0
    other = Step(REF, (replace(ASK, alias="ua-disk-logs", again=True),), Cause.DRIFT, "")
    assert memory.fruitless_until(other, 1.0) is None


@pytest.mark.parametrize(
    ("error", "at_once"), [(Stale("it changed", hint="h"), MOST_STALE), (Retry("no", hint="h"), 0)]
)
def test_what_was_overtaken_by_a_change_is_planned_again_at_once(error: KvmdError, at_once: int) -> None:
    memory, soon = Remembering(Backoff()), 0
    for _ in range(MOST_STALE + 2):
        end(memory, HEAL, 0.0, error)
        soon += memory.of(REF).next_try == 0.0
    assert soon == at_once
