"""Cycles until the host agrees with the specs, or nothing more can be done: ``run --once`` and ``apply``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from kvmd.api import status
from kvmd.daemon.assembly import Assembly
from kvmd.engine.reconciler import Report
from kvmd.plan.model import ObjectPlan

PATIENCE_SECONDS = 600.0
_WAITING_FOR_PEOPLE = frozenset(
    {status.STALLED, status.BLOCKED, status.CONFLICT, status.COPIED_MARK, status.PRUNE_HELD, status.SPEC_INVALID}
)
MOST_ATTEMPTS = 4


def converge(
    assembly: Assembly, patience: float = PATIENCE_SECONDS, progress: Callable[[Report], None] | None = None
) -> Report:
    """Run cycles until everything is as asked, or what is left waits for people or failed several times."""
    deadline = time.monotonic() + patience
    while True:
        assembly.wake.clear()
        report = assembly.reconciler.cycle()
        if progress is not None:
            progress(report)
        moving = report.dispatched or not assembly.executor.idle
        if not moving and report.snapshot.wake_at is None and (_proven(report) or not _unfinished(assembly, report)):
            return report
        now = time.monotonic()
        if now >= deadline:
            return report
        assembly.wake.wait(_pause(assembly, report, now))
        assembly.executor.slow()


def _proven(report: Report) -> bool:
    """True where this look, taken after all acts had ended, found everything as asked."""
    return not (report.plan.steps or report.observed.missing) and all(i.ready for i in report.plan.objects.values())


def _pause(assembly: Assembly, report: Report, now: float) -> float:
    """How long to wait for an event at most, in seconds; hardly where what has just ended must only be looked at."""
    if report.outcomes and assembly.executor.idle:
        return 0.005
    wake_at = report.wake_at if report.wake_at is not None else now + 1.0
    return max(0.005, min(1.0, wake_at - now))


def _unfinished(assembly: Assembly, report: Report) -> bool:
    if report.observed.missing or report.outcomes:
        return True
    return any(_goes_on(assembly, item) for item in report.plan.objects.values())


def _goes_on(assembly: Assembly, item: ObjectPlan) -> bool:
    """True where time alone may bring it further."""
    if item.ready or any(c.type in _WAITING_FOR_PEOPLE and c.status for c in item.conditions):
        return False
    if item.step is None and item.condition(status.RECONCILING) is None and item.wake_at is None:
        return False
    return assembly.reconciler.memory.of(item.ref).attempts < MOST_ATTEMPTS


def print_rest(report: Report) -> int:
    """Say what is left; 0 where nothing is."""
    left = [item for item in report.plan.objects.values() if not item.ready]
    for problem in report.snapshot.problems:
        print(problem, file=sys.stderr)
    for item in left:
        told = next((c for c in item.conditions if c.status and c.message), None)
        print(f"{item.ref}: {told.type}: {told.message}" if told else f"{item.ref}: not ready", file=sys.stderr)
    for missing in sorted(report.observed.missing):
        print(f"{missing} cannot be read; type: kvmd check", file=sys.stderr)
    failed = bool(left or report.snapshot.invalid_files or report.observed.missing)
    if not failed:
        print(f"{len(report.plan.objects)} objects are as their specs ask.")
    return 1 if failed else 0
