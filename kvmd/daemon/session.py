"""One run in process, for ``kvmd plan``, ``diff``, ``apply`` and ``render``: the same machinery as the daemon's."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from kvmd import ops
from kvmd.api.problem import Problem
from kvmd.api.resource import Ref
from kvmd.daemon.assembly import assemble
from kvmd.daemon.lock import Lock
from kvmd.daemon.once import converge
from kvmd.engine.facade import Event
from kvmd.engine.reconciler import Report
from kvmd.errors import BackendUnavailable, KvmdError, Stale
from kvmd.kinds import CONTROLLERS
from kvmd.observed import Observed
from kvmd.plan.model import Cause, Desired, Memory, Plan, Rules
from kvmd.plan.planner import make_plan
from kvmd.settings import Settings

SETTLE_PATIENCE_SECONDS = 10.0


class Session:
    """Reads the specs and the host once; plans as if a person had confirmed, so that removals show."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._assembly = assemble(settings)
        self._report: Report | None = None
        self._seen = 0

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading."""
        self._assembly.close()

    def _look(self) -> Report:
        """One cycle without acts, repeated while a file is still being written."""
        deadline = time.monotonic() + SETTLE_PATIENCE_SECONDS
        memory = self._assembly.reconciler.memory
        memory.confirmed = None
        report = self._assembly.reconciler.cycle(act=False)
        while report.snapshot.wake_at is not None and time.monotonic() < deadline:
            time.sleep(max(0.01, report.snapshot.wake_at - time.monotonic()))
            report = self._assembly.reconciler.cycle(act=False)
        self._report = report
        return report

    def plan(self) -> Plan:
        """What would be done; raises BackendUnavailable where the host cannot be read."""
        report = self._look()
        if report.observed.missing:
            missing = ", ".join(sorted(report.observed.missing))
            raise BackendUnavailable(f"no plan can be made: {missing} cannot be read", hint="kvmd check")
        return report.plan

    def host(self) -> Observed:
        """All that is on the host; raises BackendUnavailable where it cannot be read."""
        self.plan()
        assert self._report is not None
        return self._report.observed

    def rules(self) -> Rules:
        """The settings that planning obeys."""
        return self._assembly.reconciler.rules

    def source(self) -> dict[str, Any]:
        """The state of the directory, as the daemon's facade gives it."""
        return (self._report or self._look()).source_data(self._settings.source.path)

    def problems(self) -> tuple[Problem, ...]:
        """Everything wrong in the files."""
        report = self._report or self._look()
        return report.snapshot.problems

    def apply(
        self,
        plan: Plan,
        *,
        prune: bool = True,
        progress: Callable[[Event], None] | None = None,
        timeout: float = 600.0,
    ) -> Plan:
        """Carry it out until nothing is left that can be done; returns what is left. Raises Refused or Stale."""
        lock = Lock(self._settings)
        digest = self._report.snapshot.digest if self._report is not None else ""
        try:
            reconciler = self._assembly.reconciler
            self._assembly.host.recover()
            fresh = self._look()
            if fresh.snapshot.digest != digest:
                raise Stale("the specs have changed since they were shown", hint="look again: kvmd apply")
            removed = frozenset(step.ref for step in plan.steps if step.cause is Cause.PRUNE)
            reconciler.memory.confirmed = removed if prune else frozenset()
            if not prune:
                reconciler.set_rules(dataclasses.replace(reconciler.rules, prune=False))

            def tell(_report: Report) -> None:
                for event in self._assembly.events.after(self._seen):
                    self._seen = event.sequence
                    if progress is not None:
                        progress(event)

            report = converge(self._assembly, timeout, tell)
            self._report = report
            return report.plan
        finally:
            lock.close()


def render_object(settings: Settings, ref: Ref) -> str:
    """What kvmd would write for an object that is not there yet: XML, or the operations on links."""
    with Session(settings) as session:
        report = session._look()
        resource = report.snapshot.resources.get(ref)
        if resource is None:
            raise KvmdError(f"{ref} is not among the specs in {settings.source.path}", hint="see: kvmd validate")
        resources = report.snapshot.resources
        facts = {key: fact for key, fact in report.observed.facts.items() if key.type in ("host", "file", "secret")}
        desired = Desired(resources=resources, complete=False)
        plan = make_plan(desired, Observed(facts), Memory(), session._assembly.reconciler.rules, 0.0, CONTROLLERS)
        step = plan.objects[ref].step
        if step is None:
            reasons = "; ".join(c.message for c in plan.objects[ref].conditions if c.message)
            raise KvmdError(f"{ref} cannot be rendered: {reasons}", hint=f"kvmd explain {ref.kind}")
        return "\n".join(_text(operation) for operation in step.operations)


def _text(operation: ops.Op) -> str:
    if isinstance(operation, ops.DomainDefine | ops.NetworkDefine):
        return operation.xml
    values = {item.name: getattr(operation, item.name) for item in dataclasses.fields(operation)}
    shown = ", ".join(f"{name}={value!r}" for name, value in values.items() if value not in (None, "", ()))
    return f"# {operation.describe()}: {shown}"
