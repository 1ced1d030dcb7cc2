"""``make_plan``: the one function behind ``kvmd plan``, ``kvmd apply`` and the daemon. Pure and deterministic.

A planner remembers what each object read; an object is planned again only where one of those values is
another object than last time, or the time has come. What it remembers never changes what it answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from kvmd.api import status
from kvmd.api.resource import ANNOTATION_SUSPEND, Ref, Resource
from kvmd.api.status import Condition
from kvmd.errors import Blocked, Conflict, KvmdError, Refused, Unsupported
from kvmd.observed import Key, Ledger, Observed
from kvmd.ops import (
    DomainDefine,
    DomainDestroy,
    DomainResume,
    DomainSetOnReboot,
    DomainShutdown,
    DomainStart,
    LedgerWrite,
)
from kvmd.plan import safety
from kvmd.plan.index import Index
from kvmd.plan.look import Look, World
from kvmd.plan.model import Cause, Controller, Desired, Draft, Memory, ObjectPlan, Plan, Rules, Step
from kvmd.plan.order import blocked
from kvmd.plan.recall import Recall
from kvmd.plan.standing import ABSENT, COPIED, FOREIGN, refusal, standing_of
from kvmd.plan.starts import gate

BACKENDS = {
    "domain": "libvirt",
    "snapshot": "libvirt",
    "network": "libvirt",
    "link": "links",
}  # who must answer for a fact of that type


def make_plan(
    desired: Desired,
    observed: Observed,
    memory: Memory,
    rules: Rules,
    now: float,
    controllers: Mapping[str, Controller],
) -> Plan:
    """Compare what is desired with what is, and order what must change."""
    return Planner(controllers, rules).plan(desired, observed, memory, now)


class Planner:
    """``make_plan`` with a memory of what each object read."""

    def __init__(self, controllers: Mapping[str, Controller], rules: Rules) -> None:
        self.controllers = controllers
        self.rules = rules
        self._index = Index(controllers, rules)
        self._recall = Recall()
        self._last: Plan | None = None
        self._missing: frozenset[str] = frozenset()
        self._gated = False  # a start waits for what its own plan did not read

    def plan(
        self,
        desired: Desired,
        observed: Observed,
        memory: Memory,
        now: float,
        begin: Callable[[Step], None] | None = None,
    ) -> Plan:
        """Plan every object that could plan differently than last time; keep the rest.

        *begin* is told of each step as soon as it is certain, while the rest is still being planned; the plan that is
        returned is the same with it and without.
        """
        world = self._index.world(desired, observed, memory)
        recall = self._recall
        stale = recall.stale(world.tables, now)
        if (
            not stale
            and not self._gated
            and not world.departing
            and self._missing == observed.missing
            and self._last is not None
            and self._last.objects.keys() == world.specs.keys()
        ):
            return self._last
        for ref in sorted(stale):
            look = Look(world, now)
            item = _plan_object(ref, look)
            recall.keep(item, look.reads)
            if begin is not None and item.step is not None and not observed.missing and _is_certain(item.step):
                begin(item.step)
        verdict = safety.judge(desired, observed, memory, self.rules, now, world)
        objects, leaving = recall.plans.copy(), sorted(world.departing)
        for ref in leaving:
            objects[ref] = self._removal(ref, world, verdict, now)
        self._missing = observed.missing
        if observed.missing:
            objects = {ref: self._unless_unread(item, world, observed.missing) for ref, item in objects.items()}
        starts = gate(objects, (*recall.acting, *leaving), world, now)
        objects, steps, self._gated = starts.objects, starts.steps, starts.waits
        others = (starts.wake_at, verdict.wake_at, *(objects[ref].wake_at for ref in leaving))
        wakes = recall.wakes_after(now) + [wake for wake in others if wake is not None and wake > now]
        self._last = Plan(
            objects=MappingProxyType(objects),
            steps=steps,
            holds=tuple(verdict.holds.values()),
            prune_digest=verdict.digest,
            held=starts.held,
            wake_at=min(wakes, default=None),
        )
        return self._last

    def _unless_unread(self, item: ObjectPlan, world: World, missing: frozenset[str]) -> ObjectPlan:
        """No step for an object whose part of the host cannot be read now: what is known of it is old."""
        resource = item.resource
        key = world.keys.get(item.ref) or self.controllers[item.ref.kind].host_key(
            item.ref, resource.spec if resource else None
        )
        backend = BACKENDS.get(key.type, key.type)
        if backend not in missing:
            return item
        text = f"{backend} cannot be read; what is shown here was so before; type: kvmd check"
        others = tuple(c for c in item.conditions if c.type not in (status.READY, status.RECONCILING))
        unread = Condition(status.BACKEND_UNAVAILABLE, True, "CannotBeRead", text)
        ready = Condition(status.READY, False, "BackendUnavailable", text)
        return replace(item, step=None, ready=False, conditions=(ready, unread, *others))

    def _removal(self, ref: Ref, world: World, verdict: safety.Verdict, now: float) -> ObjectPlan:
        look = Look(world, now)
        hold = verdict.holds.get(ref)
        applied = look.applied(ref)
        base = ObjectPlan(ref, applied=applied, generation=applied.generation if applied else 0)
        if hold is not None:
            waits = hold.reason in safety.PASSING
            kind = status.RECONCILING if waits else status.PRUNE_HELD
            return replace(
                base, conditions=(Condition(kind, True, hold.reason, hold.message),), wake_at=verdict.wake_at
            )
        withheld = _suspended(base, look) or _withheld(base, look)
        if withheld is not None:
            return withheld
        try:
            draft = look.controller(ref).remove(ref, look.key(ref), look)
        except KvmdError as error:
            return replace(base, conditions=_from_error(error))
        except Exception as error:
            return replace(base, conditions=_broken(error))
        users = tuple(sorted({user.source for user in look.users(ref) if user.source in world.departing}))
        reason = draft.reason or "its spec is gone"
        step = Step(ref, draft.operations, Cause.PRUNE, reason, draft.changes, users, draft.later)
        conditions = (*draft.conditions, Condition(status.RECONCILING, True, "Pruning", step.reason))
        return replace(
            base,
            step=step if draft.operations else None,
            conditions=conditions,
            wake_at=draft.wake_at,
            status=draft.status,
            stopping=draft.stopping,
        )


def _is_certain(step: Step) -> bool:
    """True where no plan of another object can change it: it only defines a new machine, and waits for nothing.

    Claims were judged before: by the specs of all, which are read whole before anything is planned.
    """
    new = step.cause is Cause.CREATE and not step.after
    return new and all(isinstance(operation, DomainDefine) for operation in step.operations)


def _suspended(base: ObjectPlan, look: Look) -> ObjectPlan | None:
    """A suspended object is left alone when its spec is gone, too."""
    ledger = look.fact(Key("ledger", str(base.ref)))
    by_hand = isinstance(ledger, Ledger) and ledger.suspended
    by_spec = base.applied is not None and base.applied.annotations.get(ANNOTATION_SUSPEND) == "true"
    if not by_hand and not by_spec:
        return None
    message = f"its spec is gone and it is suspended, so it stays; type: kvmd resume {base.ref}"
    return replace(base, conditions=(Condition(status.PRUNE_HELD, True, "Suspended", message),))


def _plan_object(ref: Ref, look: Look) -> ObjectPlan:
    """Plan one object that has a spec."""
    resource = look.spec(ref)
    assert resource is not None
    applied = look.applied(ref)
    generation = 1 if applied is None else applied.generation + (not applied.of_this(resource))
    base = ObjectPlan(
        ref,
        resource,
        applied,
        generation=max(generation, 1),
        observed_generation=applied.generation if applied else 0,
        conditions=_held(resource),
    )
    try:
        standing, fact = standing_of(ref, look)
        if standing == ABSENT and look.memory(ref).busy:
            withheld = _withheld(base, look)
            assert withheld is not None
            return withheld
        refused = refusal(ref, resource, standing, fact, look)
        if refused is not None:
            return replace(base, conditions=(*base.conditions, *refused))
        draft = look.controller(ref).plan(ref, look)
    except KvmdError as error:
        return replace(base, conditions=(*base.conditions, *_from_error(error)))
    except Exception as error:  # one bad object stays one bad object
        return replace(base, conditions=(*base.conditions, *_broken(error)))
    return _judge(base, draft, standing, look)


def _held(resource: Resource) -> tuple[Condition, ...]:
    if not resource.held:
        return ()
    message = (
        f"{resource.position.file} cannot be used now; its last good version is kept exactly as it is; "
        f"type: kvmd validate {resource.position.file}"
    )
    return (Condition(status.SPEC_INVALID, True, "LastGoodVersionHeld", message),)


def _judge(base: ObjectPlan, draft: Draft, standing: str, look: Look) -> ObjectPlan:
    """Turn what the kind answered into a step, or say why there is none."""
    ref, resource = base.ref, base.resource
    assert resource is not None
    base = replace(
        base,
        pending=draft.pending,
        status=draft.status,
        wake_at=draft.wake_at,
        stopping=draft.stopping,
        conditions=(*base.conditions, *draft.conditions, *_restart_required(draft)),
    )
    if not draft.operations:
        return _at_rest(base, draft)
    cause = _cause(base, draft, standing, look)
    policy = getattr(resource.spec, "drift_policy", "Correct")
    if cause is Cause.DRIFT and policy != "Correct":
        message = f"differs from its spec and is left so (driftPolicy {policy}): {_changes(draft)}"
        drifted = replace(base, conditions=(*base.conditions, Condition(status.DEGRADED, True, "Drifted", message)))
        power = _power_only(draft)
        if not power.operations:
            ready = policy == "Ignore"
            return replace(drifted, ready=ready, conditions=_with_ready(drifted, ready, "Drifted"))
        base, draft = drifted if len(power.operations) < len(draft.operations) else base, power
    withheld = _withheld(base, look)
    if withheld is not None:
        return withheld
    missing = tuple(need for need in draft.needs if not look.usable(need))
    reason = draft.reason or _changes(draft)
    step = Step(ref, draft.operations, cause, reason, draft.changes, missing, needed_by=draft.needed_by)
    for need in missing:
        if look.spec(need) is None:
            base = replace(base, conditions=(*base.conditions, *blocked(need, "neither a spec nor the host has it")))
            rest = step.without(need)
            if rest is None:
                return base
            step = rest
    condition = Condition(status.RECONCILING, True, cause.value.capitalize(), step.reason)
    return replace(
        base,
        step=step,
        conditions=_with_ready(replace(base, conditions=(*base.conditions, condition)), False, "Reconciling"),
    )


def _power_only(draft: Draft) -> Draft:
    """What the run strategy or an installer asks for: it is kept whatever becomes of a drifted definition.

    A restart is not: it would take nothing over from a definition that stays as it is, and be asked for again.
    """
    if any(isinstance(operation, DomainShutdown) and operation.restart for operation in draft.operations):
        return replace(draft, operations=())
    acts = (DomainStart, DomainResume, DomainShutdown, DomainDestroy, DomainSetOnReboot, LedgerWrite)
    kept = [i for i, operation in enumerate(draft.operations) if isinstance(operation, acts)]
    needed_by = tuple(draft.needed_by[i] for i in kept) if draft.needed_by else ()
    needs = tuple(dict.fromkeys(ref for each in needed_by for ref in each)) if needed_by else draft.needs
    operations = tuple(draft.operations[i] for i in kept)
    return replace(draft, operations=operations, needed_by=needed_by, needs=needs, changes=())


def _at_rest(base: ObjectPlan, draft: Draft) -> ObjectPlan:
    """Nothing can be done now: it is as asked, or it waits for something."""
    seen = base.generation if draft.settled else base.observed_generation
    waits = (c for c in base.conditions if c.type in (status.STALLED, status.BLOCKED) and c.status)
    obstacle = next(waits, None)
    ready = draft.settled and obstacle is None
    reason, message = (obstacle.reason, obstacle.message) if obstacle else ("NotAsAsked", draft.reason)
    conditions = _with_ready(base, ready, reason, message)
    return replace(base, observed_generation=seen, ready=ready, conditions=conditions)


def _restart_required(draft: Draft) -> tuple[Condition, ...]:
    if not draft.pending:
        return ()
    paths = ", ".join(pending.path for pending in draft.pending)
    count = len(draft.pending)
    message = f"{count} change{'s' * (count != 1)} wait{'s' * (count == 1)}: {paths}"
    message += f"{status.WHEN_LET_THROUGH}{draft.noticed}" if draft.noticed else ""
    return (Condition(status.RESTART_REQUIRED, True, "PendingChanges", message),)


def _with_ready(base: ObjectPlan, ready: bool, reason: str, message: str = "") -> tuple[Condition, ...]:
    others = tuple(condition for condition in base.conditions if condition.type != status.READY)
    own = Condition(status.READY, True, "AsAsked") if ready else Condition(status.READY, False, reason, message)
    return (own, *others)


def _changes(draft: Draft) -> str:
    if draft.changes:
        paths = [f"spec.{change.path}" for change in draft.changes]
        more = f" and {len(paths) - 4} more" if len(paths) > 4 else ""
        return f"{', '.join(paths[:4])}{more} differ{'s' * (len(paths) == 1)}"
    return draft.operations[0].describe() if draft.operations else ""


def _cause(base: ObjectPlan, draft: Draft, standing: str, look: Look) -> Cause:
    memory = look.memory(base.ref)
    if all(isinstance(operation, LedgerWrite) for operation in draft.operations):
        return Cause.RECORD
    if standing == ABSENT:
        return Cause.DRIFT if _was_there(base) else Cause.CREATE
    if standing in (FOREIGN, COPIED):
        return Cause.ADOPT
    if memory.power or memory.restart or memory.approved_hash:
        return Cause.REQUEST
    return Cause.DRIFT if _was_there(base) and not draft.asked_elsewhere else Cause.SPEC


def _was_there(base: ObjectPlan) -> bool:
    """True where this very spec was applied before: somebody else changed the object."""
    if base.applied is None or base.resource is None or not base.applied.of_this(base.resource):
        return False
    return not (base.applied.known and base.resource.orders_differ(base.applied.annotations))


def _withheld(base: ObjectPlan, look: Look) -> ObjectPlan | None:
    """No step now: an operation is under way, or the last one failed and its time has not come."""
    memory = look.memory(base.ref)
    if memory.busy:
        condition = Condition(status.RECONCILING, True, "OperationUnderWay", memory.busy)
        if memory.overdue:
            condition = Condition(status.STALLED, True, "DeadlinePassed", memory.overdue)
        told = replace(base, conditions=(*base.conditions, condition))
        return replace(
            base, conditions=_with_ready(told, False, "DeadlinePassed" if memory.overdue else "Reconciling")
        )
    if memory.error and look.now < memory.next_try:
        final = memory.error_class in ("Refused", "Unsupported")
        condition = Condition(
            status.STALLED if final or memory.attempts >= 5 else status.RECONCILING,
            True,
            memory.error_class or "Retrying",
            f"{memory.error} (attempt {memory.attempts})",
        )
        wake_at = memory.next_try if base.wake_at is None else min(base.wake_at, memory.next_try)
        held = replace(base, conditions=(*base.conditions, condition), wake_at=wake_at)
        return replace(held, conditions=_with_ready(held, False, condition.reason))
    return None


def _from_error(error: KvmdError) -> tuple[Condition, ...]:
    if isinstance(error, Blocked):
        return (
            Condition(status.READY, False, "Blocked"),
            Condition(status.BLOCKED, True, "Blocked", str(error)),
        )
    if isinstance(error, Conflict):
        left = Condition(status.READY, False, "ClaimedTwice")
        return (left, Condition(status.CONFLICT, True, "ClaimedTwice", str(error)))
    reason = type(error).__name__
    if isinstance(error, Refused | Unsupported):
        return (Condition(status.READY, False, reason), Condition(status.STALLED, True, reason, str(error)))
    return (Condition(status.READY, False, reason), Condition(status.DEGRADED, True, reason, str(error)))


def _broken(error: Exception) -> tuple[Condition, ...]:
    text = f"planning failed: {type(error).__name__}: {error}; please report it; the object is left alone"
    return (Condition(status.READY, False, "InternalError"), Condition(status.STALLED, True, "InternalError", text))
