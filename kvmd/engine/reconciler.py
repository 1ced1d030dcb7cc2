"""One cycle: read the specs, look at the host, plan, dispatch what can be done now. It never waits for slow work."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kvmd import ops
from kvmd.api.resource import Ref, Resource
from kvmd.engine.executor import Executor, Job, Outcome
from kvmd.engine.memory import Remembering
from kvmd.errors import Retry
from kvmd.host import LIBVIRT, Host
from kvmd.observed import Observed
from kvmd.plan.model import Applied, Cause, Controller, Desired, Memory, ObjectPlan, Plan, Rules, Step
from kvmd.plan.planner import Planner
from kvmd.plan.safety import WEIGHTY
from kvmd.settings import Settings
from kvmd.sources.directory import Directory, Snapshot
from kvmd.sources.store import Store

LOOK_AGAIN_SECONDS = 1.0  # at what could not be read

Tell = Callable[[str, str, str, bool], None]  # object, reason, message, warning


@dataclass(frozen=True, slots=True)
class Report:
    """What one cycle found and did. *seconds* is its own time."""

    plan: Plan
    snapshot: Snapshot
    observed: Observed
    outcomes: tuple[Outcome, ...]
    dispatched: tuple[Step, ...]
    propagated: tuple[float, ...]
    wake_at: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Sources:
    """Where specs come from, and where their last good and last applied versions are kept."""

    directory: Directory
    good: Store
    applied: Store


class Reconciler:
    """Owns the memory and the executor; everything else it only reads."""

    def __init__(
        self,
        settings: Settings,
        host: Host,
        sources: Sources,
        controllers: Mapping[str, Controller],
        executor: Executor,
        tell: Tell,
    ) -> None:
        self._settings, self._host, self._tell = settings, host, tell
        self._directory, self._good, self._applied_store = sources.directory, sources.good, sources.applied
        self._controllers, self._executor = controllers, executor
        self.memory = Remembering(settings.backoff)
        self.rules = rules_of(settings)
        self._planner = Planner(controllers, self.rules)
        self._applied: dict[Ref, Applied] = {}
        self._applied_from: dict[Ref, object] = {}
        self._files: dict[Ref, tuple[Resource, tuple[str, ...]]] = {}
        self._paths: tuple[Mapping[Ref, Resource] | None, tuple[str, ...]] = (None, ())
        self._desired: tuple[Snapshot | None, Mapping[Ref, Applied], Desired] = (None, {}, Desired())
        self._changed_at: dict[Ref, float] = {}
        self._pruning: set[Ref] = set()
        self._kept_plan: Plan | None = None
        self._saved: Mapping[Ref, Resource] = {}
        self._load_applied()
        for age, ref in host.ledger.removals():
            self.memory.note_pruned(ref, time.monotonic() - age)

    # ---------------------------------------------------------------------------------------- the cycle

    def cycle(self, act: bool = True) -> Report:
        """Run once; with *act* False nothing is dispatched (``kvmd plan``)."""
        begun = time.monotonic()
        outcomes = tuple(self._executor.outcomes())
        for outcome in outcomes:
            self._end(outcome, begun)
        snapshot, observed = self._look(begun)
        plan = self._plan(snapshot, observed, begun)
        self.memory.take_plan(plan)
        dispatched: tuple[Step, ...] = ()
        if act and self._keep_safely(snapshot, plan, observed):
            dispatched = self._dispatch(plan, observed, begun)
        propagated = self._propagation(plan, begun)
        wakes = [wake for wake in (plan.wake_at, snapshot.wake_at, self._next_try(plan, begun)) if wake is not None]
        if observed.missing:
            wakes.append(begun + LOOK_AGAIN_SECONDS)
        seconds = time.monotonic() - begun
        return Report(plan, snapshot, observed, outcomes, dispatched, propagated, min(wakes, default=None), seconds)

    def _look(self, now: float) -> tuple[Snapshot, Observed]:
        snapshot = self._directory.scan(now, time.time())
        observed = self._host.observe(self._files_of(snapshot.resources))
        for ref in self.memory.take_specs(snapshot.resources.items()):
            self._changed_at[ref] = now
        complete = snapshot.complete and observed.complete
        departing = [ref for ref in observed.marks if ref not in snapshot.resources and ref.kind in self._controllers]
        self.memory.take_facts(departing, complete, observed, now)
        return snapshot, observed

    def _plan(self, snapshot: Snapshot, observed: Observed, now: float) -> Plan:
        return self._planner.plan(self._desired_of(snapshot), observed, self.memory.value(now), now)

    def memory_value(self) -> Memory:
        """What is remembered now."""
        return self.memory.value(time.monotonic())

    def set_rules(self, rules: Rules) -> None:
        """Plan by other rules from now on."""
        self.rules = rules
        self._planner = Planner(self._controllers, rules)

    # ------------------------------------------------------------------------------------------ reading

    def _files_of(self, resources: Mapping[Ref, Resource]) -> tuple[str, ...]:
        if self._paths[0] is resources:
            return self._paths[1]
        known: dict[Ref, tuple[Resource, tuple[str, ...]]] = {}
        for ref, resource in resources.items():
            before = self._files.get(ref)
            if before is not None and before[0] is resource:
                known[ref] = before
            else:
                known[ref] = (resource, self._controllers[ref.kind].files(resource.spec))
        self._files = known
        paths = tuple(dict.fromkeys(path for _, found in known.values() for path in found))
        self._paths = (resources, paths)
        return paths

    def _desired_of(self, snapshot: Snapshot) -> Desired:
        if self._desired[0] is snapshot and self._desired[1] is self._applied:
            return self._desired[2]
        desired = Desired(
            resources=snapshot.resources,
            applied=self._applied,
            complete=snapshot.complete and not snapshot.pending,
            reason=snapshot.reason or f"{', '.join(snapshot.pending[:3])} may still be being written",
            empty=snapshot.empty,
            invalid_files=snapshot.invalid_files,
            duplicates=snapshot.duplicates,
        )
        self._desired = (snapshot, self._applied, desired)
        return desired

    # --------------------------------------------------------------------------------- what must survive

    def _load_applied(self) -> None:
        stored = self._applied_store.load()
        self._applied = {
            ref: Applied(
                ref=ref,
                spec_hash=item.spec_hash,
                generation=item.generation,
                written=item.written,
                annotations=dict(item.metadata.get("annotations", {})),
                known=True,
            )
            for ref, item in stored.items()
        }

    def _keep_safely(self, snapshot: Snapshot, plan: Plan, observed: Observed) -> bool:
        """False where nothing may be done, because what must survive cannot be written down first."""
        try:
            self._keep(snapshot, plan, observed)
        except Retry as error:
            self._tell("Host", "StateNotWritable", str(error), True)
            return False
        return True

    def _keep(self, snapshot: Snapshot, plan: Plan, observed: Observed) -> None:
        """Write down last good specs before the first act on them, and what is applied once it is."""
        if self._saved is not snapshot.resources:
            known = self._saved
            fresh = [r for ref, r in snapshot.resources.items() if known.get(ref) is not r and not r.held]
            self._good.save_all([(resource, 0) for resource in fresh])
            self._saved = snapshot.resources
        if plan is not self._kept_plan:
            self._keep_applied(plan)
            self._kept_plan = plan
        self._forget_gone(snapshot, plan, observed)

    def _keep_applied(self, plan: Plan) -> None:
        """Note what is applied now, and, of what cannot carry its spec itself, what is about to be."""
        fresh: list[tuple[Resource, int]] = []
        for ref, item in plan.objects.items():
            if item.resource is None or item.resource.held:
                continue
            known = self._applied.get(ref)
            if item.step is not None and not _carries_its_mark(item.step):
                fresh += _intention(item.resource, known)
            elif item.ready and (known is None or not known.records(item.resource, item.generation)):
                fresh.append((item.resource, item.generation))
        if fresh:
            self._applied_store.save_all(fresh)
            self._applied = self._applied | {r.ref: _applied(r, generation) for r, generation in fresh}

    def _forget_gone(self, snapshot: Snapshot, plan: Plan, observed: Observed) -> None:
        if not (snapshot.complete and observed.complete) or snapshot.invalid_files or snapshot.duplicates:
            return
        gone = [ref for ref in self._applied if ref not in plan.objects and not self.memory.of(ref).busy]
        if not gone:
            return
        for ref in gone:
            self._good.remove(ref)
            self._applied_store.remove(ref)
            self.memory.forget(ref)
            if ref in self._pruning:
                self._pruning.discard(ref)
                self._tell(str(ref), "Removed", "its spec is gone and so is it", False)
            self._host.ledger.write(ops.LedgerWrite(str(ref), "forget"))
        self._applied = {ref: item for ref, item in self._applied.items() if ref not in gone}

    # ------------------------------------------------------------------------------------------- acting

    def _dispatch(self, plan: Plan, observed: Observed, now: float) -> tuple[Step, ...]:
        """Give workers what can be done now; a step that waits for another is planned again when that is a fact."""
        room = self._executor.room
        jobs, waiting = _jobs(plan.steps), 0
        started: list[Step] = []
        for job in jobs:
            if LIBVIRT in observed.missing and any(_needs_libvirt(step) for step in job.steps):
                continue
            if any(self.memory.fruitless_until(step, now) is not None for step in job.steps):
                continue
            if waiting >= room:
                break
            if not all(self._counted(step, now) for step in job.steps if step.cause is Cause.PRUNE):
                continue
            waiting += job.weight
            for step in job.steps:
                self.memory.start(step)
                started.append(step)
            self._executor.submit(job)
        return tuple(started)

    def _counted(self, step: Step, now: float) -> bool:
        """What is about to go counts for the brake, whatever becomes of this process; False where it cannot."""
        self._pruning.add(step.ref)
        if step.ref.kind in WEIGHTY and any(isinstance(item, ops.DomainUndefine) for item in step.operations):
            try:
                self._host.ledger.write(ops.LedgerWrite(str(step.ref), "removed", str(time.time())))
            except Retry as error:
                self._tell(str(step.ref), "StateNotWritable", str(error), True)
                return False
            self.memory.note_pruned(step.ref, now)
        return True

    def _next_try(self, plan: Plan, now: float) -> float | None:
        times = [until for step in plan.steps if (until := self.memory.fruitless_until(step, now)) is not None]
        return min(times, default=None)

    def _end(self, outcome: Outcome, now: float) -> None:
        self.memory.end(outcome, now)
        ref = str(outcome.step.ref)
        for operation in outcome.done:
            if isinstance(operation, ops.DomainDestroy):
                self._tell(ref, "ForcedStop", f"{operation.describe()}: {operation.reason}", True)
            else:
                self._tell(
                    ref, type(operation).__name__, f"{operation.describe()} ({outcome.step.cause.value})", False
                )
        if outcome.error is not None:
            self._tell(ref, type(outcome.error).__name__, str(outcome.error), True)

    def _propagation(self, plan: Plan, now: float) -> tuple[float, ...]:
        if not self._changed_at:
            return ()
        ended: list[float] = []
        for ref, since in list(self._changed_at.items()):
            item: ObjectPlan | None = plan.objects.get(ref)
            if item is None or item.ready:
                del self._changed_at[ref]
                if item is not None:
                    ended.append(now - since)
        return tuple(ended)


def rules_of(settings: Settings) -> Rules:
    """The part of the settings that planning obeys."""
    return Rules(
        owner=settings.owner,
        prune_grace=settings.prune.grace,
        prune_percent=settings.prune.max_percent,
        prune_minimum=settings.prune.min_objects,
        accelerator=settings.defaults.accelerator,
        allowed_paths=settings.policy.allowed_paths,
        uplinks=settings.policy.uplinks,
    )


def _applied(resource: Resource, generation: int) -> Applied:
    return Applied(
        ref=resource.ref,
        spec_hash=resource.spec_hash,
        generation=generation,
        written=resource.written,
        annotations=resource.metadata.annotations,
        known=True,
    )


def _intention(resource: Resource, known: Applied | None) -> list[tuple[Resource, int]]:
    """What must be known of an object if this process ends amid the step: what it had, and what it is to get."""
    if known is None:
        return [(resource, 0)]
    both = _both(known.written, resource.written)
    return [] if both == known.written else [(replace(resource, written=both), known.generation)]


def _both(old: Any, new: Any) -> Any:
    """Everything that either says; where they disagree on a value, what is to be."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return {**old, **{key: _both(old[key], value) if key in old else value for key, value in new.items()}}
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        return type(new)((*new, *(item for item in old if item not in new)))
    return new


def _carries_its_mark(step: Step) -> bool:
    """True where the first operation writes the whole spec with the object: nothing need be kept beside it."""
    return bool(step.operations) and isinstance(step.operations[0], ops.DomainDefine | ops.NetworkDefine)


def _jobs(steps: tuple[Step, ...]) -> list[Job]:
    """Steps that can start now: alone, or all link steps that hang together as one batch."""
    batches: dict[Ref, list[Step]] = {}
    alone: list[Job] = []
    for step in steps:
        links = all(isinstance(operation, ops.LinkOp) for operation in step.operations)
        if links and all(ref in batches for ref in step.after):
            merged = [step]
            for ref in step.after:
                merged = [*[item for item in batches[ref] if item not in merged], *merged]
            for item in merged:
                batches[item.ref] = merged
        elif not step.after:
            alone.append(Job((step,)))
    groups = {id(group): group for group in batches.values()}
    return [Job(tuple(group), batch=True) for group in groups.values()] + alone


def _needs_libvirt(step: Step) -> bool:
    return any(not isinstance(operation, ops.LinkOp | ops.LedgerWrite) for operation in step.operations)
