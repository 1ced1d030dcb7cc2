"""What the engine remembers between cycles. Losing it only makes kvmd slower to destroy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

from kvmd import ops
from kvmd.api.resource import Ref, Resource
from kvmd.engine.backoff import delay_seconds
from kvmd.engine.executor import Outcome
from kvmd.errors import Stale
from kvmd.observed import Domain, Observed
from kvmd.plan.model import Cause, Memory, ObjectMemory, ObjectPlan, Plan, Step
from kvmd.plan.safety import HOUR_SECONDS
from kvmd.settings import Backoff

# The same operations again within this time of their success did not have their effect.
FRUITLESS_SECONDS = 600.0
# libvirt asks for the boot memory itself; the guest follows once its balloon driver runs.
BOOT_BALLOON_SECONDS = 30.0
BALLOON_SECONDS = 5.0
_REPEATABLE = (ops.DomainShutdown, ops.LedgerWrite)
# What heals a network may come again at once where it had its effect before somebody undid it, but two programs that
# undo each other's work shall not do so for ever: so often, and not closer together.
_HEALING = (ops.LinkOp, ops.NetworkStart)
MOST_RELAPSES = 20
RELAPSE_SECONDS = 0.25
MOST_STALE = 3  # failures in a row for which nothing is wrong but that the host changed meanwhile


class _Success(NamedTuple):
    operations: tuple[ops.Op, ...]
    at: float
    times: int = 1  # how often in a row without an effect
    worked: bool = False  # the object was seen as asked since
    relapses: int = 0  # how often it worked before, and was undone


class Remembering:
    """The one writer of ``Memory``."""

    def __init__(self, settings: Backoff) -> None:
        self._settings = settings
        self._steady = settings.model_copy(update={"jitter": 0.0})
        self._objects: dict[Ref, ObjectMemory] = {}
        self._specs: dict[Ref, Resource] = {}
        self._successes: dict[Ref, _Success] = {}
        self._unseen: set[Ref] = set()  # whose last success was not yet seen to have an effect
        self._pruned: tuple[tuple[float, Ref], ...] = ()
        self.prune_approved: frozenset[Ref] = frozenset()
        self.confirmed: frozenset[Ref] | None = frozenset()
        self.complete_since: float | None = None

    def value(self, now: float) -> Memory:
        """The frozen value that planning reads."""
        self._pruned = tuple(item for item in self._pruned if now - item[0] < HOUR_SECONDS)
        return Memory(
            MappingProxyType(dict(self._objects)),
            self.prune_approved,
            self.confirmed,
            self._pruned,
            self.complete_since,
        )

    def of(self, ref: Ref) -> ObjectMemory:
        """What is remembered of one object."""
        return self._objects.get(ref, ObjectMemory())

    def change(self, ref: Ref, **fields: Any) -> None:
        """Remember something of one object; what is nothing new keeps its identity."""
        before = self.of(ref)
        after = replace(before, **fields)
        if after == ObjectMemory():
            self._objects.pop(ref, None)
        elif after != before:
            self._objects[ref] = after

    def retry_now(self, ref: Ref) -> None:
        """Somebody asked to look again: whatever failed before may be tried at once."""
        self._successes.pop(ref, None)
        if ref in self._objects:
            self.change(ref, attempts=0, next_try=0.0, error="", error_class="")

    def forget(self, ref: Ref) -> None:
        """The object is gone."""
        self._objects.pop(ref, None)
        self._successes.pop(ref, None)
        self._specs.pop(ref, None)

    def note_pruned(self, ref: Ref, now: float) -> None:
        """It was removed by us: the brake counts it for an hour."""
        self._pruned = (*(item for item in self._pruned if item[1] != ref), (now, ref))

    def take_specs(self, resources: Iterable[tuple[Ref, Resource]]) -> list[Ref]:
        """A new spec may be tried at once whatever failed before; returns the objects whose spec is new."""
        changed: list[Ref] = []
        for ref, resource in resources:
            if self._specs.get(ref) is not resource:
                changed.append(ref)
                self._specs[ref] = resource
                self._successes.pop(ref, None)
                if ref in self._objects:
                    self.change(
                        ref, attempts=0, next_try=0.0, error="", error_class="", missing_since=None, fruitless=0
                    )
        return changed

    def take_facts(self, departing: Iterable[Ref], complete: bool, observed: Observed, now: float) -> None:
        """Start and end graces; end shutdowns that came to their end."""
        if complete and self.complete_since is None:
            self.complete_since = now
        leaving = set(departing)
        if complete:
            self.prune_approved &= leaving
            for ref in leaving:
                if self.of(ref).missing_since is None:
                    self.change(ref, missing_since=now)
        for ref, item in list(self._objects.items()):
            if item.missing_since is not None and ref not in leaving:
                self.change(ref, missing_since=None)
            if item.settling_until is not None and now >= item.settling_until:
                self.change(ref, settling_until=None)
            if item.asked_at is not None and not _active(ref, observed):
                self.change(ref, asked_at=None, asked_last=None, power="" if item.power == "stop" else item.power)

    def take_plan(self, plan: Plan, now: float) -> None:
        """What a guest was given time for has come true, or nobody wants it any more."""
        self._see_effects(plan)
        for ref in plan.held:
            if self.of(ref).held_since is None:
                self.change(ref, held_since=now)
        for ref, item in list(self._objects.items()):
            if item.asked_at is not None and not item.busy and not plan.objects.get(ref, ObjectPlan(ref)).stopping:
                # A later wish gives the guest its full time again: nothing is forced on the strength of an old one.
                self.change(ref, asked_at=None, asked_last=None)
            if item.held_since is not None and ref in plan.objects and plan.objects[ref].ready:
                self.change(ref, held_since=None)
            if item.balloon_until is not None and ref in plan.objects and plan.objects[ref].ready:
                self.change(ref, balloon_until=None)

    def _see_effects(self, plan: Plan) -> None:
        for ref in list(self._unseen):
            done = plan.objects.get(ref)
            if done is not None and done.ready and done.step is None:
                self._unseen.discard(ref)
                if (success := self._successes.get(ref)) is not None:
                    self._successes[ref] = success._replace(worked=True)

    def start(self, step: Step) -> None:
        """The step is given to a worker."""
        self.change(step.ref, busy=step.operations[0].describe() if step.operations else "")

    def note_overdue(self, ref: Ref, message: str) -> bool:
        """A call on the object has passed its deadline and goes on; True where that is news."""
        known = self.of(ref)
        self.change(ref, overdue=message)
        return bool(known.busy) and not known.overdue

    def fruitless_until(self, step: Step, now: float) -> float | None:
        """When a step may be repeated that succeeded just before without having its effect; None: now."""
        success = self._successes.get(step.ref)
        if success is None or not _repeats(step, success) or now - success.at > FRUITLESS_SECONDS:
            return None
        if any(isinstance(operation, _REPEATABLE) for operation in step.operations):
            return None
        heals = success.worked and all(isinstance(operation, _HEALING) for operation in step.operations)
        if heals and success.relapses < MOST_RELAPSES:
            until = success.at + RELAPSE_SECONDS
        else:
            count = success.relapses - MOST_RELAPSES + 1 if heals else success.times
            until = success.at + delay_seconds(count, self._steady)
        return until if until > now else None

    def end(self, outcome: Outcome, now: float) -> None:
        """The step has ended: back off after a failure, take note of requests that are carried out."""
        ref, step = outcome.step.ref, outcome.step
        if outcome.error is not None:
            attempts = self.of(ref).attempts + 1
            soon = isinstance(outcome.error, Stale) and attempts <= MOST_STALE
            self.change(
                ref,
                busy="",
                overdue="",
                attempts=attempts,
                next_try=now if soon else now + delay_seconds(attempts, self._settings),
                error=str(outcome.error),
                error_class=type(outcome.error).__name__,
            )
        else:
            success = self._succeeded(ref, step, now)
            fruitless = success.times - 1
            self.change(
                ref, busy="", overdue="", attempts=0, next_try=0.0, error="", error_class="", fruitless=fruitless
            )
        for operation in outcome.done:
            self._note(ref, operation, now)

    def _succeeded(self, ref: Ref, step: Step, now: float) -> _Success:
        """Note what was done; the same again counts as fruitless, or as a relapse where it had its effect before."""
        before, success = self._successes.get(ref), _Success(step.operations, now)
        if before is not None and _repeats(step, before):
            heals = before.worked and all(isinstance(operation, _HEALING) for operation in step.operations)
            times, relapses = (1, before.relapses + 1) if heals else (before.times + 1, before.relapses)
            success = success._replace(times=times, relapses=relapses)
        self._successes[ref] = success
        self._unseen.add(ref)
        return success

    def _note(self, ref: Ref, operation: ops.Op, now: float) -> None:
        match operation:
            case ops.DomainShutdown():
                known = self.of(ref)
                self.change(ref, asked_at=now if known.asked_at is None else known.asked_at, asked_last=now)
            case ops.DomainStart() | ops.NetworkRestart():
                if isinstance(operation, ops.DomainStart) and operation.settle_seconds:
                    self.change(ref, settling_until=now + operation.settle_seconds)
                power = self.of(ref).power
                power = "" if power == "start" else power
                until = now + BOOT_BALLOON_SECONDS
                self.change(ref, restart=False, approved_hash="", power=power, balloon_until=until)
            case ops.LedgerWrite(entry="restore"):
                self.change(ref, approved_hash="")  # good for one run
            case ops.DomainSetMemory() | ops.DomainRequestMemory():
                self.change(ref, balloon_until=now + BALLOON_SECONDS)
            case ops.DomainDestroy():
                power = self.of(ref).power
                self.change(ref, power="" if power == "stop" else power)


def _repeats(step: Step, before: _Success) -> bool:
    """The same operations; of a device's removal the asking alone, which had other operations beside it at first."""
    if before.operations == step.operations:
        return True
    asked = {(op.alias, op.xml) for op in before.operations if isinstance(op, ops.DomainDetach)}
    return bool(asked) and all(
        isinstance(op, ops.DomainDetach) and op.again and (op.alias, op.xml) in asked for op in step.operations
    )


def _active(ref: Ref, observed: Observed) -> bool:
    for key in observed.marks.get(ref, ()):
        fact = observed.facts.get(key)
        if isinstance(fact, Domain) and fact.active:
            return True
    return False


def is_drift(outcome: Outcome) -> bool:
    """True where the step put right what somebody else had changed."""
    return outcome.error is None and outcome.step.cause is Cause.DRIFT
