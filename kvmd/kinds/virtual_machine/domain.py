"""State: the part of a domain's XML that kvmd owns, read and written by one declaration."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from kvmd import xmlmap
from kvmd.kinds.virtual_machine import filesystems, host_devices, remote
from kvmd.kinds.virtual_machine.bandwidth import BandwidthState
from kvmd.kinds.virtual_machine.board import Board
from kvmd.kinds.virtual_machine.devices import AGENT, RNG, SOUND, TABLET
from kvmd.kinds.virtual_machine.io_tune import IoTuneState
from kvmd.kinds.virtual_machine.memory import GUEST, MAXIMUM, MODE, cover
from kvmd.plan.difference import Leave, at
from kvmd.xmlmap import Element, Place

ALIAS_DISK = "ua-disk-"
ALIAS_NIC = "ua-nic-"
ALIAS_SERIAL = "ua-serial-"
FOREIGN = "@"  # the first letter of the name of a device that nobody's spec names
ACCELERATORS = {"kvm": "kvm", "qemu": "tcg"}
TARGET_PREFIX = {"virtio": "vd", "scsi": "sd", "sata": "sd", "usb": "sd", "ide": "hd"}
HOT_PLUG_BUSES = frozenset({"virtio", "scsi", "usb"})


def _source_get(root: Element) -> str | None:
    if root.get("type") == "network":
        return remote.source_get(root)
    source = root.find("source")
    return None if source is None else source.get("file") or source.get("dev")


def _source_put(root: Element, path: str | None) -> None:
    """A path under /dev is a block device; an empty tray has no source, and no server."""
    auth = root.find("source/auth")
    xmlmap.cut(root, "source")
    if path is None:
        root.set("type", "file" if root.get("type") == "network" else root.get("type", "file"))
        return
    if remote.is_url(path):
        remote.source_put(root, path, auth)
        return
    block = path.startswith("/dev/")
    root.set("type", "block" if block else "file")
    ElementTree.SubElement(root, "source", {"dev" if block else "file": path})


DRIVER_TYPE = xmlmap.attribute("driver", "type")
# libvirt writes a format into an empty tray, or leaves it out: nothing is there that could have one.
FORMAT = Place(lambda root: None if _source_get(root) is None else DRIVER_TYPE.get(root), DRIVER_TYPE.put)


def _boot_order(root: Element) -> int | None:
    value = root.find("boot")
    return None if value is None else int(value.get("order", "0"))


def _boot_order_put(root: Element, order: int | None) -> None:
    xmlmap.cut(root, "boot")
    if order is not None:
        ElementTree.SubElement(root, "boot", {"order": str(order)})


BOOT_ORDER = Place(_boot_order, _boot_order_put)


def _or(place: Place, default: Any) -> Place:
    """The same place; what is not there reads as *default*, and *default* is written as absence."""
    return Place(
        lambda root: default if (value := place.get(root)) is None else value,
        lambda root, value: place.put(root, None if value == default else value),
    )


@dataclass(frozen=True, slots=True)
class DiskState(IoTuneState):
    """A disk or CD-ROM. *source* of a CD-ROM is its medium."""

    name: str
    device: str = field(metadata=at("device", xml=xmlmap.attribute("", "device")))
    source: str | None = field(metadata=at("path", xml=Place(_source_get, _source_put)))
    format: str | None = field(metadata=at("format", xml=FORMAT))
    bus: str | None = field(metadata=at("bus", xml=xmlmap.attribute("target", "bus")))
    read_only: bool = field(metadata=at("readOnly", xml=xmlmap.presence("readonly")))
    boot_order: int | None = field(metadata=at("bootOrder", xml=BOOT_ORDER))
    serial: str | None = field(metadata=at("serial", xml=xmlmap.text("serial")))
    cache: str = field(metadata=at("cache", xml=_or(xmlmap.attribute("driver", "cache"), "default")))
    io: str = field(metadata=at("io", xml=_or(xmlmap.attribute("driver", "io"), "default")))
    discard: str = field(metadata=at("discard", xml=_or(xmlmap.attribute("driver", "discard"), "default")))
    detect_zeroes: str = field(
        metadata=at("detectZeroes", xml=_or(xmlmap.attribute("driver", "detect_zeroes"), "default"))
    )
    io_thread: int | None = field(metadata=at("ioThread", xml=xmlmap.number(xmlmap.attribute("driver", "iothread"))))
    target: str = ""
    auth: str | None = field(default=None, metadata=at("authFrom", xml=remote.AUTH))  # user and secret


_TYPES = {"network": "network", "bridge": "bridge", "ethernet": "tap", "user": "user", "direct": "direct"}


_GROUP = xmlmap.attribute("source", "portgroup")


def _portgroup_put(root: Element, name: str | None) -> None:
    if root.get("type") == "network":  # nothing else has groups
        _GROUP.put(root, name)


PORTGROUP = Place(_GROUP.get, _portgroup_put)


def _attachment_get(root: Element) -> str:
    kind = _TYPES.get(root.get("type", ""), root.get("type", ""))
    source, target = root.find("source"), root.find("target")
    if kind in ("network", "bridge") and source is not None:
        return f"{kind}:{source.get(kind, '')}"
    if kind == "direct" and source is not None:
        return f"direct:{source.get('dev', '')}/{source.get('mode', 'vepa')}"
    if kind == "tap" and target is not None:
        return f"tap:{target.get('dev', '')}"
    if kind == "user":
        ports = ",".join(
            f"{forward.get('proto')}/{item.get('start')}/{item.get('to') or item.get('start')}"
            for forward in root.findall("portForward")
            for item in forward.findall("range")
        )
        backend = root.find("backend")
        return f"user:{ports or ('' if backend is None else backend.get('type', ''))}"
    return kind


def _attachment_put(root: Element, attachment: str) -> None:
    kind, _, name = attachment.partition(":")
    group = PORTGROUP.get(root)
    for path in ("source", "target", "backend", "portForward"):
        xmlmap.cut(root, path)
    root.set("type", {value: key for key, value in _TYPES.items()}[kind])
    if kind in ("network", "bridge"):
        ElementTree.SubElement(root, "source", {kind: name})
        PORTGROUP.put(root, group)
    elif kind == "direct":
        device, _, mode = name.partition("/")
        ElementTree.SubElement(root, "source", {"dev": device, "mode": mode})
    elif kind == "tap":
        # managed='no': libvirt neither makes nor deletes it (with 'yes' it was measured to delete an existing TAP)
        ElementTree.SubElement(root, "target", {"dev": name, "managed": "no"})
    elif name:
        ElementTree.SubElement(root, "backend", {"type": "passt"})
        for item in name.split(",") if name != "passt" else ():
            protocol, host, guest = item.split("/")
            forward = ElementTree.SubElement(root, "portForward", {"proto": protocol})
            ElementTree.SubElement(forward, "range", {"start": host, "to": guest})


@dataclass(frozen=True, slots=True)
class NicState(BandwidthState):
    """A NIC. *attachment*: ``network:default``, ``bridge:br0``, ``tap:tap1``, ``user:``, ``direct:eno1/bridge``."""

    name: str
    attachment: str = field(metadata=at("attachment", always=True, xml=Place(_attachment_get, _attachment_put)))
    portgroup: str | None = field(metadata=at("portgroup", xml=PORTGROUP))
    mac: str = field(metadata=at("mac", xml=xmlmap.attribute("mac", "address")))
    model: str | None = field(metadata=at("model", xml=xmlmap.attribute("model", "type")))
    link: str = field(metadata=at("link", xml=_or(xmlmap.attribute("link", "state"), "up")))
    queues: int | None = field(metadata=at("queues", xml=xmlmap.number(xmlmap.attribute("driver", "queues"))))
    boot_order: int | None = field(metadata=at("bootOrder", xml=BOOT_ORDER))
    target: str = ""


def _log_put(root: Element, path: str | None) -> None:
    xmlmap.cut(root, "log")
    if path is not None:
        ElementTree.SubElement(root, "log", {"file": path, "append": "off"})


@dataclass(frozen=True, slots=True)
class SerialState:
    """A serial console: a pseudo-terminal whose output libvirt also writes to a file."""

    name: str
    file: str | None = field(metadata=at("file", xml=Place(xmlmap.attribute("log", "file").get, _log_put)))


def _cpu_get(root: Element) -> str | None:
    cpu = root.find("cpu")
    if cpu is None:
        return None
    return cpu.findtext("model") if cpu.get("mode", "custom") == "custom" else cpu.get("mode")


def _cpu_put(root: Element, model: str | None) -> None:
    """Topology and NUMA cells stay; features are beside a model, and without one libvirt refuses them."""
    before = root.find("cpu")
    stays = ("topology", "numa", *(("feature",) if model is not None else ()))
    kept = [] if before is None else [item for item in before if item.tag in stays]
    xmlmap.cut(root, "cpu")
    if model is None and not kept:
        return
    cpu = ElementTree.SubElement(root, "cpu")
    if model in ("host-model", "host-passthrough", "maximum"):
        cpu.set("mode", model)
    elif model is not None:
        cpu.set("mode", "custom")
        cpu.set("match", "exact")
        ElementTree.SubElement(cpu, "model", {"fallback": "forbid"}).text = model
    cpu.extend(kept)


def _topology_get(root: Element) -> tuple[int, int, int] | None:
    topology = xmlmap.find(root, "cpu/topology")
    if topology is None:
        return None
    return (int(topology.get("sockets", "1")), int(topology.get("cores", "1")), int(topology.get("threads", "1")))


def _topology_put(root: Element, topology: tuple[int, int, int] | None) -> None:
    xmlmap.cut(root, "cpu/topology")
    if topology is not None:
        names = ("sockets", "cores", "threads")
        cpu = xmlmap.reach(root, "cpu")
        ElementTree.SubElement(cpu, "topology", {n: str(v) for n, v in zip(names, topology, strict=True)})


def _vcpus_get(root: Element) -> int:
    element = root.find("vcpu")
    return 1 if element is None else int(element.get("current") or element.text or 1)


def _vcpus_put(root: Element, count: int) -> None:
    xmlmap.reach(root, "vcpu").set("current", str(count))


def _max_vcpus_put(root: Element, count: int) -> None:
    """Keep how many there are now: without *current* all of the maximum would be; libvirt refuses more than that."""
    now = _vcpus_get(root)
    element = xmlmap.reach(root, "vcpu")
    element.text = str(count)
    element.set("current", str(min(now, count)))
    cover(root)


@dataclass(frozen=True, slots=True)
class State(Board):
    """A domain as it is or should be; sizes in bytes."""

    accelerator: str = field(metadata=at("accelerator", xml=xmlmap.attribute("", "type", ACCELERATORS)))
    machine: str = field(metadata=at("machine", xml=xmlmap.attribute("os/type", "machine")))
    max_vcpus: int = field(
        metadata=at("cpu.maxVcpus", xml=Place(xmlmap.number(xmlmap.text("vcpu")).get, _max_vcpus_put))
    )
    vcpus: int = field(metadata=at("cpu.vcpus", xml=Place(_vcpus_get, _vcpus_put)))
    cpu_model: str | Leave | None = field(metadata=at("cpu.model", xml=Place(_cpu_get, _cpu_put)))
    topology: tuple[int, int, int] | None = field(
        metadata=at("cpu.topology", xml=Place(_topology_get, _topology_put))
    )
    max_memory: int = field(metadata=at("memory.maxGuest", xml=MAXIMUM))
    memory: int = field(metadata=at("memory.guest", xml=GUEST))
    hotplug: str = field(metadata=at("memory.hotplug", xml=MODE))
    kernel: str | None = field(metadata=at("kernelBoot.kernel.path", xml=xmlmap.text("os/kernel")))
    initrd: str | None = field(metadata=at("kernelBoot.initrd.path", xml=xmlmap.text("os/initrd")))
    arguments: str | None = field(metadata=at("kernelBoot.args", xml=xmlmap.text("os/cmdline")))
    rng: bool = field(metadata=at("devices.rng", xml=RNG))
    guest_agent: bool = field(metadata=at("devices.guestAgent", xml=AGENT))
    tablet: bool = field(metadata=at("devices.tablet", xml=TABLET))
    sound: str | None = field(metadata=at("devices.sound", xml=SOUND))
    disks: tuple[DiskState, ...] = field(metadata=at("disks", keyed=True))
    interfaces: tuple[NicState, ...] = field(metadata=at("interfaces", keyed=True))
    shares: tuple[filesystems.FilesystemState, ...] = field(metadata=at("filesystems", keyed=True))
    passed: tuple[host_devices.HostDeviceState, ...] = field(metadata=at("hostDevices", keyed=True))
    serials: tuple[SerialState, ...] = field(metadata=at("devices.serial", keyed=True))


Names = Callable[[Element], str]


@dataclass(frozen=True, slots=True)
class Known:
    """How devices without an alias of ours get their names: by source or target, by MAC, by order."""

    disks: dict[str, str] = field(default_factory=dict)  # source path -> name
    nics: dict[str, str] = field(default_factory=dict)  # MAC -> name
    serials: tuple[str, ...] = ()
    trays: tuple[str, ...] = ()  # names of CD-ROMs, in order
    shares: dict[str, str] = field(default_factory=dict)  # tag -> name
    passed: dict[str, str] = field(default_factory=dict)  # address or vendor and product -> name


def read(root: Element, known: Known) -> State:
    """Read the state out of a domain's XML."""
    return xmlmap.read(
        State,
        root,
        disks=tuple(
            xmlmap.read(DiskState, element, name=name, target=_target(element))
            for name, element in disk_elements(root, known)
        ),
        interfaces=tuple(
            xmlmap.read(NicState, element, name=name, target=_target(element))
            for name, element in nic_elements(root, known)
        ),
        shares=tuple(
            xmlmap.read(filesystems.FilesystemState, element, name=name)
            for name, element in filesystems.elements(root, known.shares)
        ),
        passed=tuple(
            xmlmap.read(host_devices.HostDeviceState, element, name=name)
            for name, element in host_devices.elements(root, known.passed)
        ),
        serials=tuple(xmlmap.read(SerialState, element, name=name) for name, element in serial_elements(root, known)),
    )


def _target(element: Element) -> str:
    target = element.find("target")
    return "" if target is None else target.get("dev", "")


def _alias(element: Element, prefix: str) -> str | None:
    alias = element.find("alias")
    name = "" if alias is None else alias.get("name", "")
    return name.removeprefix(prefix) if name.startswith(prefix) else None


def disk_elements(root: Element, known: Known) -> Iterable[tuple[str, Element]]:
    """Every disk with its name: its alias, else its source, else (a CD-ROM) its place among the trays."""
    elements = [
        item for item in xmlmap.children(root, "devices/disk") if item.get("device", "disk") in ("disk", "cdrom")
    ]
    taken = {name for element in elements if (name := _alias(element, ALIAS_DISK)) is not None}
    trays = [name for name in known.trays if name not in taken]
    for element in elements:
        name = _alias(element, ALIAS_DISK)
        if name is None and element.get("device") == "cdrom":
            name = trays.pop(0) if trays else None
        elif name is None:
            name = known.disks.get(_source_get(element) or "")
            name = None if name in taken else name
        yield name or f"{FOREIGN}{_target(element)}", element


def nic_elements(root: Element, known: Known) -> Iterable[tuple[str, Element]]:
    """Every NIC with its name: its alias, else its MAC."""
    for element in xmlmap.children(root, "devices/interface"):
        mac = element.find("mac")
        address = "" if mac is None else mac.get("address", "")
        yield _alias(element, ALIAS_NIC) or known.nics.get(address) or f"{FOREIGN}{address}", element


def serial_elements(root: Element, known: Known) -> Iterable[tuple[str, Element]]:
    """Every serial console with its name: its alias, else its place in the order."""
    rest = list(known.serials)
    for number, element in enumerate(xmlmap.children(root, "devices/serial")):
        name = _alias(element, ALIAS_SERIAL)
        if name is None:
            name = rest[number] if number < len(rest) else f"{FOREIGN}{number}"
        yield name, element
