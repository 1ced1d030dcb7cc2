"""VirtualMachine: a domain of libvirt, from its definition to its power and the changes of its running self."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvmd import ops
from kvmd.api.quantity import duration_seconds
from kvmd.api.resource import Claim, Ref, Reference, Resource
from kvmd.api.status import DEGRADED, RECONCILING, Condition
from kvmd.kinds.virtual_machine import (
    ageing,
    direct,
    graphics,
    guest_agent,
    host_devices,
    install,
    port_group,
    power,
    snapshots,
    tap_queues,
    user_network,
)
from kvmd.kinds.virtual_machine.board import is_password_alone
from kvmd.kinds.virtual_machine.definition import Definition, definition
from kvmd.kinds.virtual_machine.describe import describe
from kvmd.kinds.virtual_machine.domain import State
from kvmd.kinds.virtual_machine.firmware import deletes_nvram
from kvmd.kinds.virtual_machine.guest import Guest, files, guest_of
from kvmd.kinds.virtual_machine.live import LiveChanges, spoken
from kvmd.kinds.virtual_machine.login import secrets_of
from kvmd.kinds.virtual_machine.origins import attached_to, needs_of, objects_of
from kvmd.kinds.virtual_machine.restart import on_reboot, reboots_to_apply
from kvmd.kinds.virtual_machine.running import restart_due, running
from kvmd.kinds.virtual_machine.spec import Spec
from kvmd.kinds.virtual_machine.status import status_of
from kvmd.kinds.virtual_machine.waits import absent_files, possible, replaced_files
from kvmd.observed import Domain, Key
from kvmd.plan.difference import Change
from kvmd.plan.look import Look
from kvmd.plan.model import Applied, Boot, Draft, Window

KIND = "VirtualMachine"
PLURAL = "virtualmachines"
SHORT = "vm"

__all__ = ["KIND", "PLURAL", "SHORT", "Spec", "State", "describe", "files"]


def host_key(ref: Ref, spec: Spec | None, look: Look | None = None) -> Key:
    """The domain of libvirt."""
    return Key("domain", (spec.name_on_host if spec else None) or ref.name)


def references(ref: Ref, spec: Spec) -> tuple[Reference, ...]:
    """What its NICs are attached to; to a Network, with what a reservation needs."""
    found = [Reference(ref, target) for target in objects_of(spec)]
    for nic in spec.interfaces:
        target = attached_to(nic)
        if target is not None:
            attributes = (("interface", nic.name), ("ip", nic.ip), ("mac", nic.mac))
            found.append(
                Reference(ref, target, tuple((key, value) for key, value in attributes if value is not None))
            )
        found += direct.references_of(nic, ref)
    found += [Reference(ref, target) for target in objects_of(install.with_installer(spec, install.WAITING))]
    found += [Reference(ref, dependency.target) for dependency in spec.depends_on]
    return tuple(found)


def claims(ref: Ref, spec: Spec) -> tuple[Claim, ...]:
    """Its name, its writable disks, its TAPs, MACs, reserved addresses and ports on the host."""
    found = [Claim("domain", host_key(ref, spec).name)]
    found += [Claim("disk", disk.path) for disk in spec.disks if disk.path and not disk.read_only]
    found += [Claim("disk", disk.url) for disk in spec.disks if disk.url and not disk.read_only]
    found += [Claim("disk", f"Volume/{disk.volume}") for disk in spec.disks if disk.volume and not disk.read_only]
    found += [Claim("host device", device.id) for device in spec.host_devices]
    found += [Claim("disk", serial.file) for serial in spec.serials if serial.file]  # a start truncates it
    for nic in spec.interfaces:
        found += [Claim("tap", nic.tap)] if nic.tap else []
        found += [Claim("mac", nic.mac)] if nic.mac else []
        found += [Claim("address", nic.ip)] if nic.ip else []
        found += direct.claims_of(nic)
        ports = nic.user.port_forward if nic.user else ()
        found += [Claim(f"{item.protocol} port", str(item.host)) for item in ports]
    return tuple(found)


def usable(ref: Ref, look: Look) -> bool:
    """True while it runs."""
    fact = look.fact(look.key(ref))
    return isinstance(fact, Domain) and fact.active


def plan(ref: Ref, look: Look) -> Draft:
    """Definition first, then the running self, then power."""
    guest = guest_of(ref, look)
    defined, now = definition(guest, look), running(guest, look)
    acts = _acts(guest, now.changes, look)
    status = {
        **status_of(guest.resource, guest.domain, now.state, guest.want.state, guest.known, look),
        **graphics.status_of(guest.domain.live if guest.domain else None),
        **guest_agent.status_of(guest.domain, look),
        **guest.origins.drives.status,
    }
    told = (*_told(guest), *now.changes.conditions, *acts.conditions)
    times = (now.changes.wake_at, acts.wake_at, guest.origins.drives.wake_at)
    wakes = [wake for wake in times if wake is not None]
    draft = Draft(
        pending=now.changes.pending, conditions=told, status=status, wake_at=min(wakes, default=None), settled=False
    )
    if guest.domain is not None and (busy := snapshots.under_way(ref, look)):
        waits = Condition(RECONCILING, True, "SnapshotUnderWay", busy)
        return replace(draft, conditions=(*told, waits), stopping=acts.power.stops)
    operations = _in_order(guest, defined, acts.operations, look)
    needs = needs_of(guest.spec, operations)
    changes = _once_each((*defined.changes, *now.changes.changes), guest.want.state)
    return replace(
        draft,
        operations=operations,
        changes=changes,
        needs=tuple(dict.fromkeys(target for each in needs for target in each)),
        needed_by=needs,
        settled=acts.settled and now.changes.wake_at is None,
        reason="" if changes else acts.power.reason,
        stopping=acts.power.stops,
        asked_elsewhere=_is_asked_elsewhere(guest, defined.changes, operations),
    )


@dataclass(frozen=True, slots=True)
class _Acts:
    """What can be done to the running self and to power now, and what is said of the rest."""

    operations: tuple[ops.Op, ...]
    conditions: tuple[Condition, ...]
    power: power.Power
    wake_at: float | None
    settled: bool


def _acts(guest: Guest, changes: LiveChanges, look: Look) -> _Acts:
    spec, domain = guest.spec, guest.domain
    absent = absent_files(spec, look)
    running = domain is not None and domain.active
    passed = host_devices.conditions(spec.host_devices, running, look)
    aged = (*ageing.conditions(spec, domain, guest.want.state.machine, look), *passed)
    able = guest.origins.startable and not any(item.reason != "MachineDeprecated" for item in aged)
    # A guest that could not start again is not shut down for the sake of a restart.
    startable = not absent and able and _stands(spec, guest.config, look)
    is_due, at_window = restart_due(guest, changes, look)
    installs = guest.installing == install.STARTED
    decided = power.decide(guest.resource, domain, startable and is_due and not installs, guest.uuid, look)
    ends = installs and spec.install is not None and spec.install.ends_by_reboot
    reboot = on_reboot(guest.resource, domain, (startable and bool(changes.pending), ends), look)
    live = () if decided.stops else (*changes.operations, *reboot)
    now = possible((spec, guest.config), (*live, *decided.operations), absent, look, not able)
    wakes = [wake for wake in (decided.wake_at, at_window) if wake is not None]
    conditions = (*decided.conditions, *now.conditions, *aged)
    return _Acts(now.operations, conditions, decided, min(wakes, default=None), decided.settled and now.all)


def _in_order(guest: Guest, defined: Definition, acts: tuple[ops.Op, ...], look: Look) -> tuple[ops.Op, ...]:
    """What must be noted or be there first, then the definition, the acts, and last what goes on beside the guest."""
    fetches = guest.origins.drives.operations
    if guest.config is None and guest.origins.drives.waits:
        return fetches  # the guest counts its disks in one go: vda, vdb, ...
    notes = install.before_definition(guest.ref, guest.installing, guest.ledger)
    once = power.before_definition(guest.resource, guest.domain, look)
    return (*notes, *guest.origins.operations, *once, *defined.operations, *acts, *fetches)


def _told(guest: Guest) -> tuple[Condition, ...]:
    """What is said of it whatever is done."""
    fallback = guest.want.fallback
    said = (Condition(DEGRADED, True, "AcceleratorFallback", fallback),) if fallback else ()
    limits = user_network.told(guest.spec.interfaces)
    return (*install.conditions(guest.spec, guest.domain, guest.ledger), *guest.origins.conditions, *said, *limits)


def _is_asked_elsewhere(guest: Guest, changes: tuple[Change, ...], operations: tuple[ops.Op, ...]) -> bool:
    """True where what is done follows from something else than this object's spec, and is nobody's drift."""
    return (
        guest.moved
        or guest.origins.drives.asked(guest.domain, operations)
        or install.is_over(guest.spec, guest.installing, changes)
        or _own_start(guest.resource, guest.domain, operations)
        or is_password_alone(changes)
        or (not changes and _has_former_mark(guest))
        or all(isinstance(item, ops.DomainDetach) for item in operations)  # asked again, until the guest lets go
    )


def _has_former_mark(guest: Guest) -> bool:
    """True where its mark tells more of what is sensitive than marks do now: it is only written anew."""
    mark, resource = guest.domain.mark if guest.domain is not None else None, guest.resource
    return mark is not None and mark.spec_hash == resource.former_hash != resource.spec_hash


def _stands(spec: Spec, config: State | None, look: Look) -> bool:
    """True where everything that it stands on can be used now."""
    return (
        direct.ready(spec, look)
        and port_group.ready(spec, look)
        and tap_queues.ready(spec, config, look)
        and all(look.usable(ref) for ref in objects_of(spec))
        and not replaced_files(spec, look)  # its last writes would be lost
    )


def secrets(spec: Spec) -> tuple[str, ...]:
    """What its user data, the password of its screen and the logins of its drives are read from."""
    screen = spec.devices.graphics
    sources = (spec.cloud_init and spec.cloud_init.user_data_from, screen and screen.password_from)
    drives = (name for disk in spec.disks for item in (disk, disk.media) for name in secrets_of(item))
    return tuple(dict.fromkeys((*(source.secret for source in sources if source), *drives)))


def boot(spec: Spec) -> Boot:
    """What its start waits for: memory, turn and dependencies."""
    awaits = tuple((dependency.target, dependency.condition) for dependency in spec.depends_on)
    return Boot(spec.memory.promised, spec.startup.order, awaits, spec.startup.delay_seconds)


def window(spec: Spec) -> Window | None:
    """When it may be restarted."""
    found = spec.update_policy.window
    return Window(found.schedule, duration_seconds(found.duration), found.time_zone) if found else None


def remove(ref: Ref, key: Key, look: Look) -> Draft:
    """Shut it down as its last spec said, then undefine it; disks stay."""
    domain, applied = look.fact(key), look.applied(ref)
    if not isinstance(domain, Domain):
        return Draft()
    if applied is not None and applied.written.get("deletionPolicy") == "Orphan":
        mark = ops.DomainSetMark(domain.name, domain.uuid, None, live=domain.active)
        return Draft((mark,), reason="let go of, as its deletionPolicy asks")
    snapshots.refuse_removal(ref, domain)
    nvram = applied is not None and deletes_nvram(applied.written, domain.config)
    undefine: tuple[ops.Op, ...] = (ops.DomainUndefine(domain.name, domain.uuid, nvram),)
    if applied is not None and applied.written.get("cloudInit"):
        undefine = (*undefine, ops.SeedRemove(ref.name))
    if not domain.active:
        return Draft(undefine)
    act = power.stop(ref, _spec_of(applied), domain, look, "its spec is gone")
    return Draft(
        act.operations,
        conditions=act.conditions,
        wake_at=act.wake_at,
        settled=False,
        reason=act.reason,
        later=undefine,
        stopping=True,
    )


def _own_start(resource: Resource, domain: Domain | None, operations: tuple[ops.Op, ...]) -> bool:
    """True for a first start, another try, and the start after a reboot of host or guest: nobody's drift."""
    starts = all(isinstance(item, ops.DomainStart | ops.LedgerWrite) for item in operations)
    own = ["", "unknown", "failed", "daemon", *(["shutdown"] if reboots_to_apply(resource) else [])]
    return starts and domain is not None and domain.reason in own


def _spec_of(applied: Applied | None) -> Spec | None:
    try:
        return Spec.model_validate(applied.written) if applied is not None else None
    except ValueError:
        return None


def _once_each(changes: tuple[Change, ...], want: State) -> tuple[Change, ...]:
    """A leaf that differs in the definition and in the running self is one change to people, in their words."""
    found: dict[str, Change] = {}
    for change in changes:
        found.setdefault(change.path, spoken(change, want))
    return tuple(found.values())
