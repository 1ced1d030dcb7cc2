"""The running self of a guest: what changes in it at once, what waits, and whether what waits gets a restart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from kvmd import ops, xmlmap
from kvmd.api.quantity import format_quantity
from kvmd.api.status import DEGRADED, Condition
from kvmd.kinds.virtual_machine import graphics, install, memory, port_group, power, snapshots, unplug
from kvmd.kinds.virtual_machine.domain import State, read
from kvmd.kinds.virtual_machine.guest import Guest
from kvmd.kinds.virtual_machine.live import LiveChanges, live_changes
from kvmd.kinds.virtual_machine.ownership import owned_changes
from kvmd.kinds.virtual_machine.processor import features_said
from kvmd.kinds.virtual_machine.restart import due
from kvmd.observed import Domain
from kvmd.plan.difference import LEAVE, differences
from kvmd.plan.leaving import to_leave
from kvmd.plan.look import Look
from kvmd.plan.model import ObjectMemory
from kvmd.xmlmap import Element

_EXPANDED = frozenset({"cpu.model", "cpu.features"})
BALLOON_TRIES = 3


@dataclass(frozen=True, slots=True)
class Running:
    """Its state (None: it does not run) and the changes of it."""

    state: State | None = None
    changes: LiveChanges = field(default_factory=LiveChanges)


def running(guest: Guest, look: Look) -> Running:
    """Compare it with what is wanted, field by field."""
    domain, want = guest.domain, guest.want.state
    if domain is None or domain.live is None:
        return Running()
    if want.cpu_model is LEAVE and guest.config is not None:
        want = replace(want, cpu_model=guest.config.cpu_model)  # libvirt's own choice, for the next boot, too
    root = xmlmap.parse(domain.live)
    state = read(root, guest.known)
    leaves = to_leave(domain.boot_mark, domain.mark, domain.run)
    also = leaves | unplug.left_behind(root, want) | install.owns(guest.spec, guest.installing)
    also |= graphics.owns(domain.live)
    found = owned_changes(differences(state, want), guest.resource, guest.applied, also)
    # The running self shows the CPU that host-model became; what it was started with stands in its mark.
    found = tuple(
        change for change in found if change.path not in _EXPANDED or _cpu_waits(guest, domain, change.path)
    )
    judged = _answer((state, guest.config or want, want), guest.memory, guest.ledger.balloon, look.now)
    if judged.wait_until is not None or judged.unanswered:
        found = tuple(change for change in found if change.path != "memory.guest")
    found = install.without_empty_tray(found)
    found = port_group.without_its_limits(found, domain, guest.known, want, look)
    changes = live_changes(domain, root, guest.known, (state, want), found, look.host().libvirt_version)
    notes = (ops.LedgerWrite(str(guest.ref), "balloon", judged.note),) if judged.note else ()
    plugging, untaken = _untaken(guest, root, look.now)
    operations = (*changes.operations, *notes)
    kept = unplug.unanswered(domain, operations, guest.memory.fruitless)
    said = (*_unanswered(judged, state, want), *untaken, *kept)
    return Running(
        state, replace(changes, operations=operations, wake_at=judged.wait_until or plugging, conditions=said)
    )


def restart_due(guest: Guest, changes: LiveChanges, look: Look) -> tuple[bool, float | None]:
    """Whether somebody asked for a restart, or the policy makes one of *changes* that wait; when to look again."""
    resource, memory, domain = guest.resource, guest.memory, guest.domain
    if domain is None or not domain.active or snapshots.half_restored(guest.ref, look):
        return False, None
    if memory.restart or power.restart_asked(resource, domain, look):
        return True, None
    if snapshots.restored(domain) and memory.approved_hash != resource.spec_hash:
        return False, None  # what it went back to would be lost
    return due(resource, guest.spec.update_policy, changes, guest.ledger.restarting, look)


class _Answer(NamedTuple):
    """Whether moving the balloon makes sense now: not while the guest boots, not where it never answers.

    *note* is what the ledger must remember, so that a guest without the driver is not asked again by each new
    process: QEMU keeps what was asked for, and a driver that comes later follows it by itself.
    """

    wait_until: float | None = None
    unanswered: bool = False
    note: str = ""


def _answer(states: tuple[State, State, State], known: ObjectMemory, noted: str, now: float) -> _Answer:
    """Judge a difference of memory that the definition has not: it was asked for, the guest has not followed."""
    live, config, want = states
    if live.memory == want.memory or config.memory != want.memory or live.hotplug != memory.BALLOON:
        return _Answer()
    if known.balloon_until is not None and now < known.balloon_until:
        return _Answer(wait_until=known.balloon_until)
    asked = f"{want.memory} of {live.memory}"
    if noted == asked:
        return _Answer(unanswered=True)
    return _Answer(unanswered=True, note=asked) if known.fruitless >= BALLOON_TRIES else _Answer()


def _unanswered(judged: _Answer, state: State, want: State) -> tuple[Condition, ...]:
    if not judged.unanswered:
        return ()
    text = (
        f"the guest has {format_quantity(state.memory)} instead of {format_quantity(want.memory)}: its balloon "
        "driver does not answer; load virtio_balloon in the guest"
    )
    return (Condition(DEGRADED, True, "BalloonUnanswered", text),)


def _untaken(guest: Guest, root: Element, now: float) -> tuple[float | None, tuple[Condition, ...]]:
    """Until when the guest has time to plug what it may, else what is said of it."""
    found, until = memory.untaken(root), guest.memory.balloon_until
    if found is None:
        return None, ()
    if until is not None and now < until:
        return until, ()
    taken, requested = format_quantity(found.taken), format_quantity(found.requested)
    text = f"the guest has plugged {taken} of the {requested} that it may; load virtio_mem in it"
    if found.taken > found.requested:
        text = (
            f"the guest still has {taken} plugged and should have {requested}: it uses the rest, or may not move it"
        )
    text += "; memory that its kernel is to give back must be movable: memhp_default_state=online_movable"
    return None, (Condition(DEGRADED, True, "MemoryNotPlugged", text),)


def _cpu_waits(guest: Guest, domain: Domain, path: str) -> bool:
    if domain.boot_mark is None:
        return False
    then = domain.boot_mark.written.get("cpu")
    then = then if isinstance(then, Mapping) else {}
    if path == "cpu.features":
        return features_said(then.get("features")) != guest.want.state.cpu_features
    return then.get("model") != guest.spec.cpu.model
