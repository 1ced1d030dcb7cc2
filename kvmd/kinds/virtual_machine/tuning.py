"""What is tuned in a running guest without a device coming or going: limits, threads, statistics."""

from __future__ import annotations

from kvmd import ops
from kvmd.kinds.virtual_machine import io_threads
from kvmd.kinds.virtual_machine.domain import State
from kvmd.kinds.virtual_machine.io_tune import limits_after
from kvmd.observed import Domain
from kvmd.plan.difference import Change
from kvmd.xmlmap import Element


def disk_limits(domain: Domain, name: str, live: State, changes: tuple[Change, ...]) -> ops.Op | None:
    """All limits of a disk in one call, as some exclude others; those that nobody wrote stay what they are."""
    disk = next(disk for disk in live.disks if disk.name == name)
    prefix = f"disks[{name}]."
    changed = {change.path.removeprefix(prefix): change.after for change in changes if change.path.startswith(prefix)}
    return ops.DomainSetIoTune(domain.name, domain.uuid, disk.target, limits_after(disk, changed))


def threads(domain: Domain, root: Element, want: State) -> ops.Op | None:
    """As many as wanted; None while one that has to go serves a disk."""
    present, wanted = io_threads.numbers(root), frozenset(range(1, (want.io_threads or 0) + 1))
    if (present - wanted) & io_threads.used(root):
        return None
    add, remove = sorted(wanted - present), sorted(present - wanted)
    return ops.DomainSetIoThreads(domain.name, domain.uuid, tuple(add), tuple(remove))


def balloon_period(domain: Domain, live: State, want: State) -> ops.Op | None:
    """How often the balloon tells; None where there is no balloon."""
    if live.balloon == "none":
        return None
    return ops.DomainSetBalloonPeriod(domain.name, domain.uuid, want.balloon_period or 0)
