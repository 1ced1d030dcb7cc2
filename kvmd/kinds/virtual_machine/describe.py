"""A domain that somebody else made, in the words of the language."""

from __future__ import annotations

from typing import Any, get_args

from kvmd import xmlmap
from kvmd.api.quantity import format_quantity
from kvmd.kinds.virtual_machine import memory, numa
from kvmd.kinds.virtual_machine.devices import SoundModel
from kvmd.kinds.virtual_machine.domain import FOREIGN, DiskState, Known, NicState, State, read
from kvmd.kinds.virtual_machine.filesystems import FilesystemState
from kvmd.kinds.virtual_machine.nic import ATTACHMENTS
from kvmd.observed import Domain, Key, Observed
from kvmd.plan.wording import Described, Wording, put, said
from kvmd.xmlmap import Element

# What the language reaches, or libvirt adds to every domain by itself.
_SAID = frozenset(
    ("name", "uuid", "metadata", "memory", "currentMemory", "vcpu", "os", "cpu", "features", "clock", "iothreads")
)
_BY_ITSELF = frozenset(("on_poweroff", "on_reboot", "on_crash", "pm", "devices", "resource", "seclabel"))
_SAID_DEVICES = frozenset(("disk", "interface", "serial", "channel", "rng", "filesystem"))
_DEVICES_BY_ITSELF = frozenset(("emulator", "console", "controller", "input", "memballoon", "audio"))
_SAID_OS = frozenset(("type", "kernel", "initrd", "cmdline"))


def describe(key: Key, observed: Observed) -> Described | None:
    """The spec of a domain; its power is left to people unless libvirt was told to start it at boot."""
    domain = observed.facts.get(key)
    if key.type != "domain" or not isinstance(domain, Domain) or domain.config is None or not domain.persistent:
        return None
    root = xmlmap.parse(domain.config)
    state = read(root, _names(root))
    words: dict[str, Wording] = {
        "memory.guest": format_quantity,
        "memory.maxGuest": format_quantity,
        "cpu.topology": lambda value: dict(zip(("sockets", "cores", "threads"), value, strict=True)),
        "cpu.features": lambda features: [{"name": name, "policy": policy} for name, policy in features],
        "cpu.numa": lambda cells: [{"cpus": cpus, "memory": format_quantity(size)} for cpus, size in cells],
        "disks": lambda disks: [_disk(disk) for disk in disks if _reaches(disk)],
        "interfaces": lambda nics: [_nic(nic) for nic in nics if _is_sayable(nic)],
        "filesystems": lambda shares: [{"name": share.name} | said(share) for share in shares if _is_share(share)],
        "devices.serial": lambda serials: [{"name": item.name} | said(item) for item in serials],
    }
    # Not its accelerator: unsaid it stays what it is, and a host that has lost its KVM can be imported too. Nor
    # devices of the host: while policy.hostDevices does not name them the whole machine would be refused.
    plugged = memory.is_sayable(root)
    skip = {"accelerator", "hostDevices"} | (set() if plugged else {"memory.hotplug"})
    skip |= set() if state.sound in get_args(SoundModel) else {"devices.sound"}
    skip |= {"memory.maxGuest"} if not plugged and state.hotplug != memory.BALLOON else set()
    skip |= set() if numa.is_sayable(state.cells, state.max_vcpus) else {"cpu.numa"}
    spec = said(state, words, skip=frozenset(skip))
    put(spec, "runStrategy", "Always" if domain.autostart else "Manual")
    return Described(spec, tuple(_unsaid(root, state, plugged)))


def _names(root: Element) -> Known:
    """The names that devices get: their target, or their place."""
    disks: dict[str, str] = {}
    trays = []
    for element in root.findall("devices/disk"):
        target, source = element.find("target"), element.find("source")
        name = "" if target is None else target.get("dev", "")
        path = None if source is None else source.get("file") or source.get("dev")
        if element.get("device") == "cdrom":
            trays.append(name)
        elif path:
            disks.setdefault(path, name)
    macs = [mac.get("address", "") for mac in root.findall("devices/interface/mac")]
    serials = tuple(f"serial{number}" for number, _ in enumerate(root.findall("devices/serial")))
    tags = [target.get("dir", "") for target in root.findall("devices/filesystem/target")]
    shares = {tag: f"share{number}" for number, tag in enumerate(tags)}
    nics = {mac: f"net{number}" for number, mac in enumerate(macs)}
    return Known(disks, nics, serials, tuple(trays), shares)


def _reaches(disk: DiskState) -> bool:
    return not disk.name.startswith(FOREIGN) and (disk.device == "cdrom" or disk.source is not None)


def _is_share(share: FilesystemState) -> bool:
    return bool(share.type and share.path and share.tag) and not share.name.startswith(FOREIGN)


def _is_sayable(nic: NicState) -> bool:
    return not nic.name.startswith(FOREIGN) and nic.attachment.partition(":")[0] in ATTACHMENTS


def _disk(disk: DiskState) -> dict[str, Any]:
    spec = {"name": disk.name} | said(disk, skip=frozenset({"authFrom"}))
    if disk.device == "cdrom":
        path = spec.pop("path", None)
        for word in ("format", "readOnly"):
            spec.pop(word, None)
        spec["media"] = {"path": path} if path else None
    return spec


def _nic(nic: NicState) -> dict[str, Any]:
    spec = {"name": nic.name} | said(nic, skip=frozenset({"attachment"}))
    kind, _, name = nic.attachment.partition(":")
    if kind != "user":
        spec[kind] = name
        return spec
    if name == "passt":
        spec["user"] = {"backend": "passt"}
        return spec
    ports = (item.split("/") for item in name.split(",") if item)
    forwards = [{"protocol": protocol, "host": int(host), "guest": int(guest)} for protocol, host, guest in ports]
    spec["user"] = {"portForward": forwards} if forwards else {}
    return spec


def _unsaid(root: Element, state: State, plugged: bool) -> list[str]:
    """What stays as it is on the host, and no word of the spec is about."""
    whole = _SAID | _BY_ITSELF | ({"maxMemory"} if plugged else set())
    found = [f"<{element.tag}>" for element in root if element.tag not in whole]
    sayable = state.cells is None or numa.is_sayable(state.cells, state.max_vcpus)
    found += [] if sayable else ["<cpu><numa>"]
    found += [f"<os><{element.tag}>" for element in root.findall("os/*") if element.tag not in _SAID_OS]
    devices = _SAID_DEVICES | _DEVICES_BY_ITSELF | ({"memory"} if plugged else set())
    devices |= {"sound"} if state.sound in get_args(SoundModel) else set()
    found += [f"device <{element.tag}>" for element in root.findall("devices/*") if element.tag not in devices]
    found += [f"share {share.tag}" for share in state.shares if not _is_share(share)]
    found += [f"login of disk {disk.target}" for disk in state.disks if disk.auth]
    found += [f"disk {disk.target}" for disk in state.disks if not _reaches(disk)]
    found += [f"NIC {nic.mac} ({nic.attachment})" for nic in state.interfaces if not _is_sayable(nic)]
    return list(dict.fromkeys(found))
