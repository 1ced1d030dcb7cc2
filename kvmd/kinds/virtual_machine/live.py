"""Changes of a running guest: which libvirt makes at once, and which wait for the next boot."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass, replace

from kvmd import ops, xmlmap
from kvmd.api.schema import Update
from kvmd.api.status import Condition, Pending
from kvmd.kinds.virtual_machine import domain as xml
from kvmd.kinds.virtual_machine import memory, port_group, tuning
from kvmd.kinds.virtual_machine.board import hidden
from kvmd.kinds.virtual_machine.cloud_init import SEED
from kvmd.kinds.virtual_machine.domain import DiskState, Known, NicState, State
from kvmd.kinds.virtual_machine.graphics import live_screen
from kvmd.kinds.virtual_machine.install import TRAY
from kvmd.kinds.virtual_machine.unplug import was_asked
from kvmd.observed import Domain
from kvmd.plan.difference import Change, plain
from kvmd.xmlmap import Element

_DEVICE = re.compile(r"(disks|interfaces|devices\.serial)\[([^\]]+)\](?:\.(.+))?")
SWITCHABLE = ("network:", "bridge:")
_NIC_LIVE = ("link", "bandwidth.")  # one call makes all of them so, and what it is plugged into
_PLUGGED = frozenset({"attachment", "portgroup"})
# Within one network libvirt 9.0 changes the portgroup of a running NIC, 11.3 refuses to; between was not tried.
PORTGROUP_STAYS_SINCE = 9_001_000


@dataclass(frozen=True, slots=True)
class LiveChanges:
    """Operations on the running guest, and what must wait."""

    operations: tuple[ops.Op, ...] = ()
    pending: tuple[Pending, ...] = ()
    changes: tuple[Change, ...] = ()  # those that the operations make
    conditions: tuple[Condition, ...] = ()
    wake_at: float | None = None


@dataclass(frozen=True, slots=True)
class _Running:
    """What the decisions need: the domain, its live XML and both states."""

    domain: Domain
    root: Element
    known: Known
    live: State
    want: State
    changes: tuple[Change, ...]
    libvirt: int  # its version


def live_changes(
    domain: Domain,
    root: Element,
    known: Known,
    states: tuple[State, State],
    changes: tuple[Change, ...],
    libvirt: int,
) -> LiveChanges:
    """Sort *changes* (live to wanted) into what can be done now and what waits."""
    running = _Running(domain, root, known, *states, changes, libvirt)
    operations: list[ops.Op] = []
    pending: list[Pending] = []
    done: list[Change] = []
    handled: set[str] = set()
    for change in changes:
        found = _operation(change, running)
        if found is None:
            said = spoken(change, running.want)
            pending.append(Pending(f"spec.{said.path}", plain(said.before), plain(said.after), Update.NEXT_BOOT))
        else:
            done.append(change)
            key = repr(found)
            if key not in handled:
                handled.add(key)
                operations.append(found)
    return LiveChanges(tuple(operations), tuple(pending), tuple(done))


def spoken(change: Change, want: State) -> Change:
    """The change as people write it: a NIC has ``network``, not ``attachment``; a CD-ROM has ``media``."""
    match = _DEVICE.fullmatch(change.path)
    group, name, leaf = match.groups() if match is not None else ("", "", None)
    if group == "interfaces" and leaf == "attachment":
        before, after = str(change.before).rstrip(":"), str(change.after).rstrip(":")
        kind, _, target = after.partition(":")
        if before.startswith(f"{kind}:"):
            before, after = before.removeprefix(f"{kind}:"), target
        return replace(change, path=f"interfaces[{name}].{kind}", before=before, after=after)
    if group == "disks" and name == SEED:
        return replace(change, path="cloudInit", before=_medium(change.before), after=_medium(change.after))
    is_tray = any(disk.name == name and disk.device == "cdrom" for disk in want.disks)
    if group == "disks" and leaf in ("path", "authFrom") and is_tray:
        return replace(change, path=f"disks[{name}].media.{leaf}")
    return hidden(change)


def _medium(value: object) -> object:
    return value.source if isinstance(value, DiskState) else value


def _operation(change: Change, running: _Running) -> ops.Op | None:
    """The operation that makes this change in the running guest; None where only a boot does."""
    simple: dict[str, Callable[[_Running], ops.Op | None]] = {"cpu.vcpus": _vcpus, "memory.guest": _memory}
    simple["devices.graphics.passwordFrom"] = _password
    simple["ioThreads"] = lambda running: tuning.threads(running.domain, running.root, running.want)
    simple["devices.balloon.statsPeriodSeconds"] = lambda running: tuning.balloon_period(
        running.domain, running.live, running.want
    )
    if change.path in simple:
        return simple[change.path](running)
    match = _DEVICE.fullmatch(change.path)
    if match is None:
        return None
    group, name, leaf = match.groups()
    if group == "disks":
        return _disk(change, name, leaf, running)
    if group == "interfaces":
        return _nic(change, name, leaf, running)
    return None


def _vcpus(running: _Running) -> ops.Op | None:
    """More only: under TCG QEMU 7.2 crashes some time after a live unplug (anchors: double free, 2 of 2)."""
    count = running.want.vcpus
    if running.live.vcpus < count <= running.live.max_vcpus:
        return ops.DomainSetVcpus(running.domain.name, running.domain.uuid, count)
    return None


def _memory(running: _Running) -> ops.Op | None:
    if running.live.hotplug == memory.DIMM != running.want.hotplug:
        return None  # the definition will have no DIMM that could be plugged
    return memory.live_change(running.domain, running.root, running.want.memory)


def _password(running: _Running) -> ops.Op | None:
    """Another one: whether QEMU asks for any is settled when it starts, and so is the type of the screen."""
    live, want = running.live, running.want
    if live.graphics != want.graphics or live.password is None or want.password is None:
        return None
    xml = live_screen(running.root, want.password)
    return ops.DomainUpdateDevice(running.domain.name, running.domain.uuid, "graphics", xml, want.secrets)


def _disk(change: Change, name: str, leaf: str | None, running: _Running) -> ops.Op | None:
    domain = running.domain
    if name == SEED:  # cloud-init reads it at boot, and may be reading it now
        return None
    if leaf is None:
        device = change.after or change.before
        assert isinstance(device, DiskState)
        if name == TRAY and change.after is None:  # it stays until the next boot, what lies in it does not
            element = dict(xml.disk_elements(running.root, running.known))[name]
            return _update(domain, xml.ALIAS_DISK + name, element, replace(device, source=None), "path", "format")
        if device.bus not in xml.HOT_PLUG_BUSES or _is_empty_tray(change.after):
            return None
        alias = xml.ALIAS_DISK + name
        if change.after:
            return ops.DomainAttach(domain.name, domain.uuid, alias)
        return _detach(domain, alias, dict(xml.disk_elements(running.root, running.known))[name])
    if leaf.startswith("ioTune."):
        return tuning.disk_limits(domain, name, running.live, running.changes)
    want = next(disk for disk in running.want.disks if disk.name == name)
    has_tray = any(disk.name == name and disk.device == "cdrom" for disk in running.live.disks)
    if leaf in ("path", "format", "authFrom") and want.device == "cdrom" and has_tray:
        element = dict(xml.disk_elements(running.root, running.known))[name]
        return _update(domain, xml.ALIAS_DISK + name, element, want, "path", "format", "authFrom")
    return None


def _is_empty_tray(device: object) -> bool:
    """libvirt 9.0 cannot plug one in: it looks for the name of the file that is not there."""
    return isinstance(device, DiskState) and device.device == "cdrom" and device.source is None


def _nic(change: Change, name: str, leaf: str | None, running: _Running) -> ops.Op | None:
    domain = running.domain
    alias = xml.ALIAS_NIC + name
    if leaf is None and change.after:
        return ops.DomainAttach(domain.name, domain.uuid, alias)
    if leaf is None:
        return _detach(domain, alias, dict(xml.nic_elements(running.root, running.known))[name])
    want = next(nic for nic in running.want.interfaces if nic.name == name)
    live = next(nic for nic in running.live.interfaces if nic.name == name)
    switchable = live.attachment.startswith(SWITCHABLE) and want.attachment.startswith(SWITCHABLE)
    if not leaf.startswith(_NIC_LIVE) and not (leaf in _PLUGGED and switchable):
        return None
    element = dict(xml.nic_elements(running.root, running.known))[name]
    prefix = f"interfaces[{name}]."
    differing = {item.path.removeprefix(prefix) for item in running.changes if item.path.startswith(prefix)}
    if running.libvirt >= PORTGROUP_STAYS_SINCE and "attachment" not in differing:
        differing.discard("portgroup")
    if leaf not in differing:
        return None
    paths = [path for path in sorted(differing) if path.startswith(_NIC_LIVE)]
    if switchable and differing & _PLUGGED:
        element = port_group.with_own_limits(element, domain, running.known, name)
        paths.append("portgroup")
    elif not switchable:
        want = replace(want, attachment=live.attachment)
    return _update(domain, alias, element, want, *paths)


def _detach(domain: Domain, alias: str, element: Element) -> ops.Op:
    """By alias; a guest that was adopted while it ran has other aliases until its next boot: by its element."""
    found = element.find("alias")
    named = found is not None and found.get("name") == alias
    xml = "" if named else xmlmap.serialise(element)
    return ops.DomainDetach(domain.name, domain.uuid, alias, xml, was_asked(domain, alias))


def _update(domain: Domain, alias: str, element: Element, want: DiskState | NicState, *paths: str) -> ops.Op:
    """The live element with the wanted leaves: libvirt refuses an update that differs in anything else."""
    copy = ElementTree.fromstring(ElementTree.tostring(element))
    if isinstance(want, NicState) and xml._attachment_get(copy) != want.attachment:
        target = copy.find("target")
        device = None if target is None else target.get("dev")
        xml._attachment_put(copy, want.attachment)
        if device:
            ElementTree.SubElement(copy, "target", {"dev": device})
    xmlmap.write(want, copy, lambda path: path in paths)
    return ops.DomainUpdateDevice(domain.name, domain.uuid, alias, xmlmap.serialise(copy))
