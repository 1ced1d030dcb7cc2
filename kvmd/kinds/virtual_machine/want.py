"""From spec to state: resolving the words that the host decides, keeping what was decided before."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kvmd.api.mark import derived_mac, derived_uuid
from kvmd.api.resource import Ref, Resource
from kvmd.errors import Refused, Unsupported
from kvmd.kinds.virtual_machine import bandwidth, direct, filesystems, host_devices, user_network
from kvmd.kinds.virtual_machine.balloon import Balloon
from kvmd.kinds.virtual_machine.disk import Disk
from kvmd.kinds.virtual_machine.domain import TARGET_PREFIX, DiskState, Known, NicState, SerialState, State
from kvmd.kinds.virtual_machine.firmware import nvram_path
from kvmd.kinds.virtual_machine.graphics import screen_of
from kvmd.kinds.virtual_machine.io_tune import limits_of
from kvmd.kinds.virtual_machine.nic import Interface
from kvmd.kinds.virtual_machine.numa import cells_of
from kvmd.kinds.virtual_machine.origins import attached_to
from kvmd.kinds.virtual_machine.remote import auth_word, is_url
from kvmd.kinds.virtual_machine.spec import Spec
from kvmd.observed import Domain
from kvmd.plan.difference import LEAVE, Leave
from kvmd.plan.look import Look
from kvmd.plan.model import Applied


@dataclass(frozen=True, slots=True)
class Wanted:
    """The state that a spec asks for, what its words were resolved to, and why auto did not mean kvm."""

    state: State
    resolved: Mapping[str, str]
    fallback: str = ""


def known_devices(resource: Resource, spec: Spec, look: Look) -> Known:
    """How devices without an alias are to be named; *spec* has every object resolved to its file."""
    applied = look.applied(resource.ref)
    nics = {nic.mac: nic.name for nic in spec.interfaces if nic.mac}
    for key, mac in (applied.resolved if applied else {}).items():
        if key.startswith("mac."):
            nics.setdefault(mac, key.removeprefix("mac."))
    return Known(
        disks={disk.path: disk.name for disk in spec.disks if disk.path},
        nics=nics,
        serials=tuple(serial.name for serial in spec.serials),
        shares={share.tag or share.name: share.name for share in spec.filesystems},
        passed={device.pci or device.usb or "": device.name for device in spec.host_devices},
        trays=tuple(disk.name for disk in spec.disks if disk.device == "cdrom"),
    )


def wanted(resource: Resource, spec: Spec, domain: Domain | None, config: State | None, look: Look) -> Wanted:
    """Render *spec*, which has every object resolved; what *config* has and the spec does not say is kept."""
    ref = resource.ref
    resolved: dict[str, str] = {}
    host = look.host()
    word = spec.accelerator or look.rules.accelerator
    accelerator = _kept("accelerator", word, ref, domain, look)
    applied = look.applied(ref)
    owned = resource.owned | (applied.owned if applied else frozenset())
    if accelerator is None and config is not None and "accelerator" not in owned:
        accelerator = config.accelerator  # of a guest that was adopted: nobody has asked for another
    if accelerator is None:
        accelerator = ("kvm" if host.kvm_usable else "tcg") if word == "auto" else word
    if accelerator == "kvm" and word == "kvm" and not host.kvm_usable:
        raise Unsupported(
            f"{ref}: accelerator is kvm, but {host.kvm_reason or 'this host has none'}", hint="kvmd check"
        )
    machine = _kept("machine", spec.machine, ref, domain, look) or host.canonical_machine(spec.machine)
    resolved |= {
        "accelerator": accelerator,
        "accelerator.word": word,
        "machine": machine,
        "machine.word": spec.machine,
    }
    interfaces = tuple(_nic(nic, ref, config, look) for nic in spec.interfaces)
    resolved |= {f"mac.{nic.name}": nic.mac for nic in interfaces}
    boot, topology = spec.kernel_boot, spec.cpu.topology
    state = State(
        **_board(ref, spec, domain, look),
        accelerator=accelerator,
        machine=machine,
        max_vcpus=spec.cpu.maximum
        if config is None or topology is not None or spec.cpu.numa or "cpu.maxVcpus" in owned
        else max(spec.cpu.vcpus, config.max_vcpus),
        vcpus=spec.cpu.vcpus,
        cpu_model=_cpu_model(spec.cpu.model, accelerator, config, applied),
        topology=(topology.sockets, topology.cores, topology.threads) if topology else None,
        max_memory=spec.memory.maximum
        if config is None or "memory.maxGuest" in owned
        else max(spec.memory.guest, config.max_memory),
        memory=spec.memory.guest,
        hotplug=spec.memory.hotplug,
        cells=cells_of(spec.cpu.numa),
        kernel=boot.kernel.path if boot else None,
        initrd=boot.initrd.path if boot and boot.initrd else None,
        arguments=(boot.args or None) if boot else None,  # libvirt drops an empty command line
        rng=spec.devices.rng,
        guest_agent=spec.devices.guest_agent,
        tablet=spec.devices.tablet,
        sound=spec.devices.sound,
        disks=_disks(spec.disks, config, domain),
        interfaces=interfaces,
        shares=filesystems.states_of(spec.filesystems),
        passed=host_devices.states_of(spec.host_devices),
        serials=tuple(SerialState(serial.name, serial.file) for serial in spec.serials),
    )
    fallback = ""
    if word == "auto" and accelerator == "tcg":
        fallback = "runs emulated (tcg), since KVM is not usable on this host; to see why type: kvmd check"
    return Wanted(state, resolved, fallback)


def _board(ref: Ref, spec: Spec, domain: Domain | None, look: Look) -> dict[str, Any]:
    """What the machine has one of."""
    firmware, watchdog, tpm = spec.firmware, spec.devices.watchdog, spec.devices.tpm
    balloon = spec.devices.balloon or Balloon()
    screen = screen_of(ref, spec.devices.graphics, spec.devices.video, look)
    uuid = domain.uuid if domain is not None else derived_uuid(look.host().machine_id, look.rules.owner, ref)
    return {
        "firmware": firmware.type if firmware else "bios",
        "secure_boot": firmware.secure_boot if firmware else False,
        "nvram": nvram_path(look.rules.nvram, look.key(ref).name, uuid),
        "cpu_features": tuple(sorted((item.name, item.policy) for item in spec.cpu.features)) or None,
        "io_threads": spec.io_threads,
        "huge_pages": spec.memory.hugepages.size if spec.memory.hugepages else None,
        "graphics": screen.type,
        "listen": screen.listen,
        "password": screen.password,
        "secrets": screen.secrets,
        "video": screen.video,
        "balloon": balloon.model,
        "balloon_period": balloon.stats_period_seconds,
        "free_page_reporting": balloon.free_page_reporting,
        "watchdog": watchdog.model if watchdog else None,
        "watchdog_action": watchdog.action if watchdog else None,
        "tpm": tpm.model if tpm else None,
        "tpm_version": tpm.version if tpm else None,
    }


def _kept(key: str, word: str, ref: Ref, domain: Domain | None, look: Look) -> str | None:
    """What the host made of that very word before: an upgrade of anything must edit no guest."""
    applied = look.applied(ref)
    sources = [applied.resolved if applied else {}]
    if domain is not None and domain.boot_mark is not None:
        sources.append(domain.boot_mark.resolved)
    for resolved in sources:
        if resolved.get(f"{key}.word") == word and key in resolved:
            return resolved[key]
    return None


def _cpu_model(
    word: str | None, accelerator: str, config: State | None, applied: Applied | None
) -> str | Leave | None:
    """The CPU; where nobody names one under tcg, libvirt writes the one of its own choice into the definition."""
    if word is not None:
        return word
    if accelerator == "kvm":
        return "host-model"
    if config is None or config.accelerator != accelerator:
        return None
    former = applied.written.get("cpu") if applied else None
    return None if isinstance(former, Mapping) and former.get("model") else LEAVE


def _target_names(prefix: str) -> Iterator[str]:
    """vda to vdz, then vdaa to vdzz."""
    for first in ("", *string.ascii_lowercase):
        for letter in string.ascii_lowercase:
            yield f"{prefix}{first}{letter}"


# What the running self still has, its definition may have lost: a new disk cannot be plugged in under that name.
_TARGET = re.compile(r"<target dev=['\"]([svh]d[a-z]+)['\"]")


def _disks(disks: tuple[Disk, ...], config: State | None, domain: Domain | None) -> tuple[DiskState, ...]:
    present = {disk.name: disk for disk in config.disks} if config else {}
    used = {disk.target for disk in present.values()}
    if domain is not None and domain.live is not None:
        used.update(_TARGET.findall(domain.live))
    found = []
    for disk in sorted(disks, key=lambda disk: disk.name):
        prefix = TARGET_PREFIX[disk.effective_bus]
        before = present.get(disk.name)
        if before is not None and before.target.startswith(prefix):
            target = before.target
        else:
            target = next(name for name in _target_names(prefix) if name not in used)
            used.add(target)
        source = disk.media.path if disk.media else disk.path
        found.append(
            DiskState(
                name=disk.name,
                device=disk.device,
                source=source,
                format=None if source is None else disk.format or "raw",
                bus=disk.effective_bus,
                read_only=disk.read_only or disk.device == "cdrom",
                boot_order=disk.boot_order,
                serial=disk.serial,
                cache=disk.cache,
                io=disk.io,
                discard=disk.discard,
                detect_zeroes=disk.detect_zeroes,
                io_thread=disk.io_thread,
                auth=_auth(disk, source, before),
                target=target,
                **limits_of(disk.io_tune),
            )
        )
    return tuple(found)


def _auth(disk: Disk, source: str | None, before: DiskState | None) -> str | None:
    """Who asks its server; where another one is waited for, who asks that of now."""
    item = disk.media or disk
    if item.url is not None:
        return before.auth if before is not None else None
    asks = item.auth_from if is_url(source) else None
    return auth_word(asks.user or "", asks.secret) if asks else None


def _nic(nic: Interface, ref: Ref, config: State | None, look: Look) -> NicState:
    return NicState(
        name=nic.name,
        attachment=_attachment(nic, ref, look),
        portgroup=nic.portgroup,
        mac=nic.mac or _unwritten_mac(nic.name, ref, config, look),
        model=nic.model,
        link=nic.link,
        queues=nic.queues,
        boot_order=nic.boot_order,
        **bandwidth.limits_of(nic.bandwidth),
    )


def _unwritten_mac(name: str, ref: Ref, config: State | None, look: Look) -> str:
    """What the NIC has, be it of an adopted guest; derived for a new one and where ``mac`` was taken out."""
    applied = look.applied(ref)
    before = next((item.mac for item in config.interfaces if item.name == name), None) if config else None
    if before is None or (applied is not None and f"interfaces[{name}].mac" in applied.owned):
        return derived_mac(look.host().machine_id, look.rules.owner, ref, name)
    return before


def _attachment(nic: Interface, ref: Ref, look: Look) -> str:
    target = attached_to(nic)
    if target is not None:
        if target.kind == "Tap" and look.spec(target) is None and look.spec(Ref("Tun", target.name)) is not None:
            raise Refused(
                f"{ref}: interface {nic.name} names '{target.name}', a Tun (layer 3); a NIC needs a Tap (layer 2)",
                hint="kvmd explain vm.interfaces.tap",
            )
        return f"{nic.attachment}:{look.key(target).name}"
    if nic.direct is not None:
        return direct.attachment_of(nic, ref, look)
    return user_network.attachment_of(nic, ref, look)
