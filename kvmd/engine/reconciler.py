"""One cycle: read the specs, look at the host, plan, dispatch what can be done now. It never waits for slow work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kvmd import ops
from kvmd.api.resource import Ref, Resource
from kvmd.engine.executor import Executor, Job, Outcome
from kvmd.engine.failures import Failures
from kvmd.engine.memory import Remembering
from kvmd.engine.records import Records
from kvmd.engine.windows import Windows
from kvmd.errors import Retry
from kvmd.host import LIBVIRT, Host
from kvmd.identity import changed
from kvmd.kinds import CONTROLLERS
from kvmd.observed import Observed
from kvmd.plan.model import Applied, Cause, Desired, Memory, ObjectPlan, Plan, Rules, SecretUser, Step
from kvmd.plan.paths import secret_may_be_read
from kvmd.plan.planner import Planner
from kvmd.plan.safety import WEIGHTY
from kvmd.settings import Settings
from kvmd.sources.directory import Directory
from kvmd.sources.snapshot import Snapshot

LINK_STEPS = 256  # in one batch
LOOK_AGAIN_SECONDS = 1.0  # at what could not be read

_SECRET_USERS = {kind: each for kind, each in CONTROLLERS.items() if isinstance(each, SecretUser)}
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

    def source_data(self, path: str) -> dict[str, Any]:
        """The state of the directory *path*, as people see it."""
        snapshot, plan = self.snapshot, self.plan
        return {
            "path": path,
            "revision": snapshot.revision,
            "digest": snapshot.digest,
            "files": snapshot.files,
            "complete": snapshot.complete,
            "reason": snapshot.reason,
            "problems": [str(problem) for problem in snapshot.problems],
            "held": [f"{hold.ref}: {hold.message}" for hold in plan.holds],
            "pruneDigest": plan.prune_digest,
        }


@dataclass(frozen=True, slots=True)
class Sources:
    """Where specs come from, and where what must survive of them is kept."""

    directory: Directory
    records: Records


class Reconciler:
    """Owns the memory and the executor; everything else it only reads."""

    def __init__(self, settings: Settings, host: Host, sources: Sources, executor: Executor, tell: Tell) -> None:
        self._settings, self._host, self._tell = settings, host, tell
        self._directory, self._records, self._executor = sources.directory, sources.records, executor
        self.memory = Remembering(settings.backoff)
        self.rules = rules_of(settings)
        self._planner = Planner(CONTROLLERS, self.rules)
        self._resources: Mapping[Ref, Resource] = {}
        self._windows = Windows()
        self._failures = Failures()
        self._files: dict[Ref, tuple[str, ...]] = {}
        self._paths: tuple[str, ...] = ()
        self._named_secrets: dict[Ref, tuple[str, ...]] = {}
        self._secrets: tuple[str, ...] = ()
        self._desired: tuple[Snapshot | None, Mapping[Ref, Applied], Desired] = (None, {}, Desired())
        self._changed_at: dict[Ref, float] = {}
        self._pruning: set[Ref] = set()
        self._departing: set[Ref] = set()
        self._judged: tuple[Mapping[Ref, Resource], Mapping[Ref, Any]] = ({}, {})  # of what departs
        for age, ref in host.ledger.removals():
            self.memory.note_pruned(ref, time.monotonic() - age)

    # ---------------------------------------------------------------------------------------- the cycle

    def cycle(self, act: bool = True) -> Report:
        """Run once; with *act* False nothing is dispatched (``kvmd plan``)."""
        begun = time.monotonic()
        outcomes = tuple(self._executor.outcomes())
        for outcome in outcomes:
            self.memory.end(outcome, begun)
        for outcome in outcomes:
            self._tell_end(outcome)
        snapshot, observed = self._look(begun)
        safe = act and self._safely(lambda: self._records.keep_specs(snapshot))
        dispatched: list[Step] = []
        plan = self._plan(snapshot, observed, begun, dispatched if safe else None)
        self.memory.take_plan(plan, begun)
        self._failures.tell(plan.objects, self._tell)
        if safe and self._safely(lambda: self._keep(snapshot, plan, observed, begun)):
            self._dispatch(plan, observed, begun, dispatched)
        propagated = self._propagation(plan, begun)
        wakes = [wake for wake in (plan.wake_at, snapshot.wake_at, self._next_try(plan, begun)) if wake is not None]
        if observed.missing:
            wakes.append(begun + LOOK_AGAIN_SECONDS)
        seconds = time.monotonic() - begun
        wake_at = min(wakes, default=None)
        return Report(plan, snapshot, observed, outcomes, tuple(dispatched), propagated, wake_at, seconds)

    def _look(self, now: float) -> tuple[Snapshot, Observed]:
        snapshot = self._directory.scan(now, time.time())
        self._take_specs(snapshot.resources, now)
        observed = self._host.observe(self._paths, self._secrets)
        complete = snapshot.complete and observed.complete
        self._take_marks(snapshot.resources, observed)
        self.memory.take_facts(self._departing, complete, observed, now)
        for ref, interval in self._windows.news(now, time.time()):
            self.memory.change(ref, window=interval)
        return snapshot, observed

    def _take_specs(self, resources: Mapping[Ref, Resource], now: float) -> None:
        """Note what is new, and which files the specs stand on."""
        news = changed(self._resources, resources)
        if not news:
            return
        for ref in self.memory.take_specs((ref, resources[ref]) for ref in news if ref in resources):
            self._changed_at[ref] = now
        others = False
        self._pruning.difference_update(resources.keys() & news)
        for ref in news:
            resource = resources.get(ref)
            self._windows.take(ref, resource)
            secrets = self._secrets_of(resource) if resource is not None else ()
            files = CONTROLLERS[ref.kind].files(resource.spec) if resource is not None else ()
            others |= _note(self._named_secrets, ref, secrets) | _note(self._files, ref, files)
        if others:
            self._paths = tuple(dict.fromkeys(path for files in self._files.values() for path in files))
            self._secrets = tuple(dict.fromkeys(name for names in self._named_secrets.values() for name in names))
        self._resources = resources

    def _secrets_of(self, resource: Resource) -> tuple[str, ...]:
        controller = _SECRET_USERS.get(resource.ref.kind)
        names = controller.secrets(resource.spec) if controller is not None else ()
        return tuple(name for name in names if secret_may_be_read(name, self.rules))

    def _take_marks(self, resources: Mapping[Ref, Resource], observed: Observed) -> None:
        """Note what is on the host and in no spec any more."""
        asked, marks = self._judged
        for ref in {*changed(asked, resources), *changed(marks, observed.marks)}:
            if ref in observed.marks and ref not in resources and ref.kind in CONTROLLERS:
                self._departing.add(ref)
            else:
                self._departing.discard(ref)
        self._judged = (resources, observed.marks)

    def _plan(self, snapshot: Snapshot, observed: Observed, now: float, begun: list[Step] | None) -> Plan:
        """Plan; where *begun* is a list, give workers at once what is certain, and note it there."""

        def begin(step: Step) -> None:
            if begun is not None and self._executor.room and self.memory.fruitless_until(step, now) is None:
                self._submit(Job((step,)), begun)

        return self._planner.plan(self._desired_of(snapshot), observed, self.memory.value(now), now, begin)

    def memory_value(self) -> Memory:
        """What is remembered now."""
        return self.memory.value(time.monotonic())

    def set_rules(self, rules: Rules) -> None:
        """Plan by other rules from now on."""
        self.rules = rules
        self._planner = Planner(CONTROLLERS, rules)

    def start_afresh(self) -> None:
        """Trust nothing that was derived before: a cycle broke off, perhaps between one table and the next."""
        self.set_rules(self.rules)
        self._host.forget_everything()

    # ------------------------------------------------------------------------------------------ reading

    def _desired_of(self, snapshot: Snapshot) -> Desired:
        if self._desired[0] is snapshot and self._desired[1] is self._records.applied:
            return self._desired[2]
        desired = Desired(
            resources=snapshot.resources,
            applied=self._records.applied,
            complete=snapshot.complete and not snapshot.pending,
            reason=snapshot.reason or f"{', '.join(snapshot.pending[:3])} may still be being written",
            empty=snapshot.empty,
            invalid_files=snapshot.invalid_files,
            duplicates=snapshot.duplicates,
        )
        self._desired = (snapshot, self._records.applied, desired)
        return desired

    # --------------------------------------------------------------------------------- what must survive

    def _safely(self, keep: Callable[[], None]) -> bool:
        """False where nothing may be done, because what must survive cannot be written down first."""
        try:
            keep()
        except Retry as error:
            self._tell("Host", "StateNotWritable", str(error), True)
            return False
        return True

    def _keep(self, snapshot: Snapshot, plan: Plan, observed: Observed, now: float) -> None:
        self._records.keep_applied(plan)
        doubtful = snapshot.pending or snapshot.invalid_files or snapshot.duplicates
        if doubtful or not (snapshot.complete and observed.complete):
            return
        for ref in self._records.forget_gone(now, self._may_be_forgotten):
            self.memory.forget(ref)
            if ref in self._pruning:
                self._pruning.discard(ref)
                self._tell(str(ref), "Removed", "its spec is gone and so is it", False)
            self._host.ledger.write(ops.LedgerWrite(str(ref), "forget"))

    def _may_be_forgotten(self, ref: Ref, absent: float) -> bool:
        """A file that is away for a moment leaves what is known; what was removed had its grace before."""
        return not self.memory.of(ref).busy and (ref in self._pruning or absent >= self.rules.prune_grace)

    # ------------------------------------------------------------------------------------------- acting

    def _dispatch(self, plan: Plan, observed: Observed, now: float, started: list[Step]) -> None:
        """Give workers what can be done now; a step that waits for another is planned again when that is a fact."""
        room = self._executor.room
        begun = {step.ref for step in started}
        jobs, waiting = _jobs(tuple(step for step in plan.steps if step.ref not in begun)), 0
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
            self._submit(job, started)

    def _submit(self, job: Job, started: list[Step]) -> None:
        for step in job.steps:
            self.memory.start(step)
            started.append(step)
        self._executor.submit(job)

    def _counted(self, step: Step, now: float) -> bool:
        """What is about to go counts for the brake, whatever becomes of this process; False where it cannot."""
        self._pruning.add(step.ref)
        if step.ref.kind in WEIGHTY and any(
            isinstance(item, ops.DomainUndefine | ops.VolumeTrash) for item in step.operations
        ):
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

    def _tell_end(self, outcome: Outcome) -> None:
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


def _note(table: dict[Ref, tuple[str, ...]], ref: Ref, names: tuple[str, ...]) -> bool:
    """Note the names, or that there are none; True where that is news."""
    before = table.pop(ref, ())
    if names:
        table[ref] = names
    return names != before


def rules_of(settings: Settings) -> Rules:
    """The part of the settings that planning obeys."""
    return Rules(
        owner=settings.owner,
        prune_grace=settings.prune.grace,
        prune_percent=settings.prune.max_percent,
        prune_minimum=settings.prune.min_objects,
        accelerator=settings.defaults.accelerator,
        allowed_paths=settings.policy.allowed_paths,
        own_paths=tuple(
            dict.fromkeys(name for path in settings.paths.every for name in (path, os.path.realpath(path)))
        ),
        uplinks=settings.policy.uplinks,
        host_devices=settings.policy.host_devices,
        images=os.path.join(settings.paths.state, "images"),
        seeds=os.path.join(settings.paths.state, "seeds"),
        memory_reserve=settings.admission.memory_reserve,
        nvram=settings.libvirt.nvram,
    )


def _jobs(steps: tuple[Step, ...]) -> list[Job]:
    """Steps that can start now: alone, or link steps as batches, those that hang together in the same one."""
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
    return [Job(tuple(group), batch=True) for group in _gathered(list(groups.values()))] + alone


def _gathered(groups: list[list[Step]]) -> list[list[Step]]:
    """Groups of link steps in few batches, since all links are read before and after each.

    What deletes is left alone and comes last: bridges go slowly, and nothing shall wait for them.
    """
    found: list[list[Step]] = []
    deleting: list[list[Step]] = []
    for group in groups:
        if any(isinstance(operation, ops.LinkDelete) for step in group for operation in step.operations):
            deleting.append(group)
        elif found and len(found[-1]) + len(group) <= LINK_STEPS:
            found[-1] += group
        else:
            found.append(list(group))
    return found + deleting


def _needs_libvirt(step: Step) -> bool:
    return any(not isinstance(operation, ops.LinkOp | ops.Guarded | ops.LedgerWrite) for operation in step.operations)
