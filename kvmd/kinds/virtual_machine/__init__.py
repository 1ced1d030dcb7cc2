"""VirtualMachine: a domain of libvirt, from its definition to its power and the changes of its running self."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from kvmd import ops, xmlmap
from kvmd.api.mark import Mark, derived_uuid
from kvmd.api.quantity import duration_seconds, format_quantity
from kvmd.api.resource import Claim, Ref, Reference, Resource
from kvmd.api.status import DEGRADED, RECONCILING, Condition
from kvmd.errors import Refused
from kvmd.kinds.virtual_machine import ageing, direct, document, graphics, install, power, snapshots
from kvmd.kinds.virtual_machine.board import is_password_alone, written_at_boot
from kvmd.kinds.virtual_machine.cloud_init import redacted
from kvmd.kinds.virtual_machine.describe import describe
from kvmd.kinds.virtual_machine.domain import Known, State, read
from kvmd.kinds.virtual_machine.firmware import deletes_nvram
from kvmd.kinds.virtual_machine.live import Balloon, LiveChanges, balloon, live_changes, spoken
from kvmd.kinds.virtual_machine.login import secrets_of
from kvmd.kinds.virtual_machine.origins import Origins, attached_to, needs_of, objects_of, prepare, resolves
from kvmd.kinds.virtual_machine.ownership import owned_changes
from kvmd.kinds.virtual_machine.restart import due, on_reboot, reboots_to_apply
from kvmd.kinds.virtual_machine.spec import Spec
from kvmd.kinds.virtual_machine.status import status_of
from kvmd.kinds.virtual_machine.waits import (
    absent_files,
    consoles_of,
    files_of,
    possible,
    refuse_odd_consoles,
    replaced_files,
)
from kvmd.kinds.virtual_machine.want import Wanted, known_devices, wanted
from kvmd.observed import Domain, Key, Ledger
from kvmd.plan.difference import Change, differences
from kvmd.plan.look import Look
from kvmd.plan.model import Applied, Boot, Draft, Window
from kvmd.plan.paths import refuse_outside

KIND = "VirtualMachine"
PLURAL = "virtualmachines"
SHORT = "vm"

__all__ = ["KIND", "PLURAL", "SHORT", "Spec", "State", "describe"]


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
    if spec.install is not None and spec.install.source.image:
        found.append(Reference(ref, Ref("Image", spec.install.source.image)))
    found += [Reference(ref, dependency.target) for dependency in spec.depends_on]
    return tuple(found)


def claims(ref: Ref, spec: Spec) -> tuple[Claim, ...]:
    """Its name, its writable disks, its TAPs, MACs, reserved addresses and ports on the host."""
    found = [Claim("domain", host_key(ref, spec).name)]
    found += [Claim("disk", disk.path) for disk in spec.disks if disk.path and not disk.read_only]
    found += [Claim("disk", disk.url) for disk in spec.disks if disk.url and not disk.read_only]
    found += [Claim("disk", f"Volume/{disk.volume}") for disk in spec.disks if disk.volume and not disk.read_only]
    found += [Claim("disk", serial.file) for serial in spec.serials if serial.file]  # a start truncates it
    for nic in spec.interfaces:
        found += [Claim("tap", nic.tap)] if nic.tap else []
        found += [Claim("mac", nic.mac)] if nic.mac else []
        found += [Claim("address", nic.ip)] if nic.ip else []
        found += direct.claims_of(nic)
        ports = nic.user.port_forward if nic.user else ()
        found += [Claim(f"{item.protocol} port", str(item.host)) for item in ports]
    return tuple(found)


def files(spec: Spec) -> tuple[str, ...]:
    """Every file that must be there before it starts, and where consoles are written."""
    installer = spec.install.source.path if spec.install else None
    return tuple(dict.fromkeys((*files_of(spec), *consoles_of(spec), *([installer] if installer else []))))


def usable(ref: Ref, look: Look) -> bool:
    """True while it runs."""
    fact = look.fact(look.key(ref))
    return isinstance(fact, Domain) and fact.active


@dataclass(frozen=True, slots=True)
class _Wish:
    """What the spec asks for once every word in it is resolved, and the definition in the same names."""

    resource: Resource
    installing: str
    origins: Origins
    uuid: str
    known: Known
    config: State | None
    want: Wanted


def _wish(resource: Resource, domain: Domain | None, ledger: Ledger, look: Look) -> _Wish:
    ref = resource.ref
    assert isinstance(resource.spec, Spec)
    installing = install.stage(resource.spec, domain, ledger)
    spec = install.with_installer(resource.spec, installing)
    resource = replace(resource, spec=spec)
    refuse_outside(ref, files(spec), look)
    refuse_odd_consoles(ref, spec, look)
    root = xmlmap.parse(domain.config) if domain is not None and domain.config else None
    # Names of devices need the files of the spec; a file that nobody knows stays what the definition has.
    unresolved = read(root, Known()) if root is not None and resolves(spec) else None
    uuid = domain.uuid if domain else derived_uuid(look.host().machine_id, look.rules.owner, ref)
    origins = prepare(ref, spec, uuid, unresolved, look)
    origins = replace(origins, spec=snapshots.on_overlays(resource, origins.spec, domain, look))
    known = known_devices(resource, origins.spec, look)
    config = read(root, known) if root is not None else None
    want = wanted(resource, origins.spec, domain, config, look)
    want = replace(want, resolved=dict(want.resolved) | dict(origins.files) | dict(origins.drives.resolved))
    _refuse_renames(ref, config, want.state)
    return _Wish(resource, installing, origins, uuid, known, config, want)


def plan(ref: Ref, look: Look) -> Draft:
    """Definition first, then the running self, then power."""
    resource = look.spec(ref)
    assert resource is not None and isinstance(resource.spec, Spec)
    fact = look.fact(look.key(ref))
    domain = fact if isinstance(fact, Domain) else None
    ledger = power.ledger_of(ref, look)
    wish = _wish(resource, domain, ledger, look)
    resource, origins, config, want, known = wish.resource, wish.origins, wish.config, wish.want, wish.known
    assert isinstance(resource.spec, Spec)
    installing = wish.installing
    changes, definition = _definition(resource, domain, config, want, known, look)
    running, live = _running(resource, domain, config, want, known, look)
    absent = absent_files(resource.spec, look)
    aged = ageing.conditions(resource.spec, domain, want.state.machine, look)
    able = origins.startable and not any(item.reason != "MachineDeprecated" for item in aged)
    # A guest that could not start again is not shut down for the sake of a restart.
    startable = not absent and able and _stands(resource.spec, look)
    wanted_now, at_window = _restarts(resource, domain, running, look)
    restart = startable and wanted_now and installing != install.STARTED
    busy = snapshots.under_way(ref, look) if domain is not None else ""
    acts = power.decide(resource, domain, restart, wish.uuid, look)
    ends = startable and bool(running.pending), installing == install.STARTED
    live_operations = () if acts.stops else (*running.operations, *on_reboot(resource, domain, ends, look))
    now = possible(resource.spec, (*live_operations, *acts.operations), absent, look, not able)
    operations = (*origins.operations, *power.before_definition(resource, domain, look), *definition, *now.operations)
    operations = (*operations, *origins.drives.operations)  # they only start what then goes on beside the guest
    first = install.before_definition(ref, installing, ledger)
    alone = config is None and origins.drives.waits  # the guest counts its disks in one go: vda, vdb, ...
    operations = origins.drives.operations if alone else (*first, *operations)
    told = (*install.conditions(resource.spec, domain, ledger), *acts.conditions, *running.conditions)
    conditions = (*told, *now.conditions, *origins.conditions, *_fallback(want), *aged)
    wakes = [wake for wake in (acts.wake_at, running.wake_at, at_window, origins.drives.wake_at) if wake is not None]
    needs = needs_of(resource.spec, operations)
    if busy:
        operations, conditions = (), (*conditions, Condition(RECONCILING, True, "SnapshotUnderWay", busy))
    return Draft(
        operations,
        () if busy else _once_each((*changes, *running.changes), want.state),
        running.pending,
        conditions,
        tuple(dict.fromkeys(ref for each in needs for ref in each)),
        {
            **status_of(resource, domain, live, want.state, known, look),
            **graphics.status_of(domain.live if domain else None),
            **origins.drives.status,
        },
        min(wakes, default=None),
        acts.settled and running.wake_at is None and now.all and not busy,
        acts.reason if not changes and not running.changes else "",
        needed_by=needs,
        stopping=acts.stops,
        asked_elsewhere=_moved(domain, origins.files)
        or origins.drives.asked(domain, operations)
        or install.is_over(installing, config)
        or _own_start(resource, domain, operations)
        or is_password_alone(changes),
    )


def _stands(spec: Spec, look: Look) -> bool:
    """True where everything that it stands on can be used now."""
    return (
        direct.ready(spec, look)
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
    """What its start waits for: memory (all that its balloon may give back), turn and dependencies."""
    awaits = tuple((dependency.target, dependency.condition) for dependency in spec.depends_on)
    return Boot(spec.memory.maximum, spec.startup.order, awaits, spec.startup.delay_seconds)


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


def _refuse_renames(ref: Ref, config: State | None, want: State) -> None:
    """Raise Refused where a device that stays has another name: taken at its word the guest would lose it."""
    if config is None:
        return
    disks = [(item.name, item.source) for item in config.disks], [(item.name, item.source) for item in want.disks]
    nics = [(item.name, item.mac) for item in config.interfaces], [(item.name, item.mac) for item in want.interfaces]
    for what, (before, after) in (("disks", disks), ("interfaces", nics)):
        then, now = ({name for name, _ in items} for items in (before, after))
        gone = {thing: name for name, thing in before if thing and name not in now}
        for name, thing in after:
            if name not in then and thing in gone:
                raise Refused(
                    f"{ref}: {what}[{gone[thing]}] is called {name} now and is still {thing}; a device's name is its "
                    "identity, and taken at its word the running guest would lose it",
                    hint=f"write `name: {gone[thing]}` back, or take it out, apply, and then add {name}",
                )


def _own_start(resource: Resource, domain: Domain | None, operations: tuple[ops.Op, ...]) -> bool:
    """True for a first start, another try, and the start after a reboot of host or guest: nobody's drift."""
    starts = all(isinstance(item, ops.DomainStart | ops.LedgerWrite) for item in operations)
    own = ["", "unknown", "failed", "daemon", *(["shutdown"] if reboots_to_apply(resource) else [])]
    return starts and domain is not None and domain.reason in own


def _moved(domain: Domain | None, files: tuple[tuple[str, str], ...]) -> bool:
    """True where an object that it stands on is another file than when the definition was written."""
    then = domain.mark.resolved if domain is not None and domain.mark is not None else {}
    return any(then.get(name, path) != path for name, path in files)


def _spec_of(applied: Applied | None) -> Spec | None:
    try:
        return Spec.model_validate(applied.written) if applied is not None else None
    except ValueError:
        return None


def _definition(
    resource: Resource, domain: Domain | None, config: State | None, want: Wanted, known: Known, look: Look
) -> tuple[tuple[Change, ...], tuple[ops.Op, ...]]:
    """The operations on the definition: write it, and keep libvirt's own autostart off."""
    name = look.key(resource.ref).name
    host, owner, applied = look.host(), look.rules.owner, look.applied(resource.ref)
    if domain is None or config is None or domain.config is None:
        uuid = derived_uuid(host.machine_id, owner, resource.ref)
        before = (
            Mark(owner, resource.ref, applied.spec_hash, applied.generation)
            if applied and applied.generation
            else None
        )
        mark = _mark(resource, owner, uuid, before, want)
        xml = document.create(name, uuid, host.architecture, want.state, mark)
        return (), (ops.DomainDefine(name, uuid, xml, creates=True, secrets=want.state.secrets),)
    changes = owned_changes(differences(config, want.state), resource, applied)
    before = domain.mark if domain.mark is not None and domain.mark.ref == resource.ref else None
    if before is None and applied is not None and applied.generation:
        before = Mark(owner, resource.ref, applied.spec_hash, applied.generation)
    mark = _mark(resource, owner, domain.uuid, before, want)
    operations: list[ops.Op] = []
    if (
        changes
        or domain.mark is None
        or not domain.mark.says_the_same_as(mark)
        or not domain.persistent
        or before is None
    ):
        xml = document.overlay(domain.config, want.state, changes, known, mark)
        operations.append(ops.DomainDefine(domain.name, domain.uuid, xml, secrets=want.state.secrets))
    if domain.autostart:
        operations.append(ops.DomainSetAutostart(domain.name, domain.uuid, False))
    return changes, tuple(operations)


def _mark(resource: Resource, owner: str, uuid: str, before: Mark | None, want: Wanted) -> Mark:
    mark = Mark.of(resource, owner, uuid, before).with_resolved(want.resolved)
    return replace(mark, written=redacted(mark.written))


def _running(
    resource: Resource, domain: Domain | None, config: State | None, want: Wanted, known: Known, look: Look
) -> tuple[LiveChanges, State | None]:
    if domain is None or domain.live is None:
        return LiveChanges(), None
    root = xmlmap.parse(domain.live)
    live = read(root, known)
    applied = look.applied(resource.ref)
    found = owned_changes(differences(live, want.state), resource, applied, written_at_boot(domain))
    # The running self shows the CPU that host-model became; what it was started with stands in its mark.
    found = tuple(change for change in found if change.path != "cpu.model" or _model_waits(resource, domain))
    ledger = power.ledger_of(resource.ref, look)
    judged = balloon((live, config or want.state, want.state), look.memory(resource.ref), ledger.balloon, look.now)
    if judged.wait_until is not None or judged.unanswered:
        found = tuple(change for change in found if change.path != "memory.guest")
    changes = live_changes(domain, root, known, (live, want.state), found)
    notes = (ops.LedgerWrite(str(resource.ref), "balloon", judged.note),) if judged.note else ()
    return replace(
        changes,
        operations=(*changes.operations, *notes),
        wake_at=judged.wait_until,
        conditions=_unanswered(judged, live, want),
    ), live


def _once_each(changes: tuple[Change, ...], want: State) -> tuple[Change, ...]:
    """A leaf that differs in the definition and in the running self is one change to people, in their words."""
    found: dict[str, Change] = {}
    for change in changes:
        found.setdefault(change.path, spoken(change, want))
    return tuple(found.values())


def _unanswered(judged: Balloon, live: State, want: Wanted) -> tuple[Condition, ...]:
    if not judged.unanswered:
        return ()
    text = (
        f"the guest has {format_quantity(live.memory)} instead of {format_quantity(want.state.memory)}: its balloon "
        "driver does not answer; load virtio_balloon in the guest"
    )
    return (Condition(DEGRADED, True, "BalloonUnanswered", text),)


def _model_waits(resource: Resource, domain: Domain) -> bool:
    if domain.boot_mark is None:
        return False
    spec = resource.spec
    assert isinstance(spec, Spec)
    then = domain.boot_mark.written.get("cpu", {})
    return (then.get("model") if isinstance(then, Mapping) else None) != spec.cpu.model


def _restarts(
    resource: Resource, domain: Domain | None, running: LiveChanges, look: Look
) -> tuple[bool, float | None]:
    """Whether somebody asked for a restart, or the policy makes one of the changes that wait; when to look again."""
    spec, memory = resource.spec, look.memory(resource.ref)
    assert isinstance(spec, Spec)
    if domain is None or not domain.active or snapshots.half_restored(resource.ref, look):
        return False, None
    if memory.restart or power.restart_asked(resource, domain, look):
        return True, None
    if snapshots.restored(domain) and memory.approved_hash != resource.spec_hash:
        return False, None  # what it went back to would be lost
    return due(resource, spec.update_policy, running, power.ledger_of(resource.ref, look).restarting, look)


def _fallback(want: Wanted) -> tuple[Condition, ...]:
    return (Condition(DEGRADED, True, "AcceleratorFallback", want.fallback),) if want.fallback else ()
