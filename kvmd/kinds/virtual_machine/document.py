"""Writing a domain's definition: a new one, or an overlay of the owned fields on the one that is there."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from kvmd import xmlmap
from kvmd.api.mark import Mark, put_into
from kvmd.kinds.virtual_machine import domain, filesystems, host_devices, numa, slots
from kvmd.kinds.virtual_machine.board import forget_itco
from kvmd.kinds.virtual_machine.domain import DiskState, Known, NicState, SerialState, State
from kvmd.kinds.virtual_machine.firmware import place_nvram
from kvmd.plan.difference import Change
from kvmd.xmlmap import Element

# Without spare ports a q35 guest takes one more device and then no other.
SPARE_ROOT_PORTS = 8


@lru_cache(maxsize=256)
def create(name: str, uuid: str, architecture: str, want: State, mark: Mark) -> str:
    """A new definition. Everything that libvirt would draw at random is written.

    Remembered, because a new machine is planned again at each turn until its start has been seen.
    """
    root = ElementTree.Element("domain")
    ElementTree.SubElement(root, "name").text = name
    ElementTree.SubElement(root, "uuid").text = uuid
    xmlmap.reach(root, "vcpu")
    system = ElementTree.SubElement(root, "os")
    ElementTree.SubElement(system, "type", {"arch": architecture}).text = "hvm"
    features = ElementTree.SubElement(root, "features")
    ElementTree.SubElement(features, "acpi")
    ElementTree.SubElement(features, "apic")
    ElementTree.SubElement(root, "clock", {"offset": "utc"})
    for event, action in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")):
        ElementTree.SubElement(root, event).text = action
    devices = ElementTree.SubElement(root, "devices")
    _root_ports(devices, want)
    ElementTree.SubElement(devices, "memballoon", {"model": "virtio"})
    xmlmap.write(want, root)
    place_nvram(root, want.nvram)
    for disk in want.disks:
        _add_disk(root, disk)
    for nic in want.interfaces:
        _add_nic(root, nic)
    for share in want.shares:
        filesystems.add(root, share)
    filesystems.share_memory(root, want.shares)
    for device in want.passed:
        host_devices.add(root, device)
    for serial in want.serials:
        _add_serial(root, serial)
    _controllers(root, want)
    put_into(root, mark)
    return xmlmap.serialise(root)


def overlay(
    base: str, want: State, changes: tuple[Change, ...], known: Known, mark: Mark, live: str | None = None
) -> str:
    """Write onto a definition exactly the changes, the aliases and the mark; all else stays as it is."""
    root = xmlmap.parse(base)
    paths = {change.path for change in changes}
    if "machine" in paths and _is_q35(root.find("os/type")) != ("q35" in want.machine):
        _leave_chipset(root, want)
    xmlmap.write(want, root, lambda path: path in paths)
    if {"memory.hotplug", "cpu.numa"} <= paths:
        numa.CELLS.put(root, want.cells)  # the cell of the memory devices has gone with them
    if "firmware.type" in paths:
        place_nvram(root, want.nvram)
    _devices(root, "disks", want.disks, dict(domain.disk_elements(root, known)), paths, _add_disk)
    _devices(root, "interfaces", want.interfaces, dict(domain.nic_elements(root, known)), paths, _add_nic)
    shares, passed = filesystems.elements(root, known.shares), host_devices.elements(root, known.passed)
    _devices(root, "filesystems", want.shares, dict(shares), paths, filesystems.add)
    if any(path.startswith("filesystems") for path in paths):
        filesystems.share_memory(root, want.shares)
    _devices(root, "hostDevices", want.passed, dict(passed), paths, host_devices.add)
    consoles = dict(domain.serial_elements(root, known))
    _close_ranks(consoles, {serial.name for serial in want.serials}, paths)
    _devices(root, "devices.serial", want.serials, consoles, paths, _add_serial)
    if any(path.startswith("devices.serial") for path in paths):
        _drop_mirrors(root)
    if root.find("devices/*/boot") is not None:
        # libvirt writes <boot dev='hd'/> where no device has an order, and refuses it beside one that has.
        xmlmap.cut(root, "os/boot")
    _name_devices(root, want, known)
    _controllers(root, want)
    if live is not None:
        slots.place(root, xmlmap.parse(live))
    put_into(root, mark)
    return xmlmap.serialise(root)


def _is_q35(element: Element | None) -> bool:
    return element is not None and "q35" in element.get("machine", "")


def _leave_chipset(root: Element, want: State) -> None:
    """Another chipset has other slots: let libvirt place everything anew, or it refuses the definition."""
    devices = xmlmap.reach(root, "devices")
    for controller in devices.findall("controller"):
        if controller.get("type") != "scsi":
            devices.remove(controller)
    forget_itco(devices)  # part of the q35 chipset
    for device in devices:
        for address in device.findall("address"):
            device.remove(address)
    _root_ports(devices, want)


def _root_ports(devices: Element, want: State) -> None:
    if "q35" not in want.machine:
        return
    count = SPARE_ROOT_PORTS + len(want.disks) + len(want.interfaces)
    ElementTree.SubElement(devices, "controller", {"type": "pci", "index": "0", "model": "pcie-root"})
    for index in range(1, count + 1):
        ElementTree.SubElement(devices, "controller", {"type": "pci", "index": str(index), "model": "pcie-root-port"})


def _devices(
    root: Element,
    where: str,
    wanted: tuple[Any, ...],
    elements: dict[str, Element],
    paths: set[str],
    add: Callable[[Element, Any], None],
) -> None:
    devices = xmlmap.reach(root, "devices")
    names = {item.name for item in wanted}
    for name, element in elements.items():
        if f"{where}[{name}]" in paths and name not in names:
            devices.remove(element)
    for item in wanted:
        found = elements.get(item.name)
        if found is None and f"{where}[{item.name}]" in paths:
            add(root, item)
        elif found is not None:
            _write_device(item, found, f"{where}[{item.name}].", paths)


def _write_device(item: Any, element: Element, prefix: str, paths: set[str]) -> None:
    xmlmap.write(item, element, lambda path: prefix + path in paths)
    if isinstance(item, DiskState) and prefix + "bus" in paths:
        # Another bus is another place in the guest: the old address and target would not fit it.
        xmlmap.cut(element, "address")
        xmlmap.reach(element, "target").set("dev", item.target)
    if isinstance(item, DiskState) and prefix + "path" in paths:
        xmlmap.cut(element, "backingStore")  # what the other file stood on


def _close_ranks(consoles: dict[str, Element], stay: set[str], paths: set[str]) -> None:
    """What comes after a console that goes moves up: left where it was, a guest would have no ttyS0 any more."""
    going = [name for name in consoles if name not in stay and f"devices.serial[{name}]" in paths]
    gone = [_port(consoles[name]) for name in going]
    for name, element in consoles.items():
        target, port = element.find("target"), _port(element)
        if target is not None and name not in going and port >= 0:
            target.set("port", str(port - sum(0 <= other < port for other in gone)))


def _port(serial: Element) -> int:
    """Its number among those of the ISA bus; -1 for one on another."""
    target = serial.find("target")
    if target is None or target.get("type", "isa-serial") != "isa-serial":
        return -1
    return int(target.get("port", "-1"))


def _drop_mirrors(root: Element) -> None:
    """libvirt mirrors the first serial as <console>, and makes a serial of a <console> that has lost its own."""
    devices = xmlmap.reach(root, "devices")
    for console in devices.findall("console"):
        target = console.find("target")
        if target is None or target.get("type", "serial") == "serial":
            devices.remove(console)


def _name_devices(root: Element, want: State, known: Known) -> None:
    """Give adopted devices their alias, from which on they are known by it."""
    groups = (
        (domain.disk_elements(root, known), want.disks, domain.ALIAS_DISK),
        (domain.nic_elements(root, known), want.interfaces, domain.ALIAS_NIC),
        (domain.serial_elements(root, known), want.serials, domain.ALIAS_SERIAL),
        (filesystems.elements(root, known.shares), want.shares, filesystems.ALIAS),
        (host_devices.elements(root, known.passed), want.passed, host_devices.ALIAS),
    )
    for elements, wanted, prefix in groups:
        names = {item.name for item in wanted}
        for name, element in list(elements):
            if name in names and element.find("alias") is None:
                ElementTree.SubElement(element, "alias", {"name": prefix + name})


def disk_element(disk: DiskState) -> Element:
    """The XML of one disk."""
    element = ElementTree.Element("disk", {"type": "file"})
    ElementTree.SubElement(element, "driver", {"name": "qemu"})
    ElementTree.SubElement(element, "target", {"dev": disk.target})
    xmlmap.write(disk, element)
    ElementTree.SubElement(element, "alias", {"name": domain.ALIAS_DISK + disk.name})
    return element


def nic_element(nic: NicState) -> Element:
    """The XML of one NIC."""
    element = ElementTree.Element("interface", {"type": "user"})
    xmlmap.write(nic, element)
    ElementTree.SubElement(element, "alias", {"name": domain.ALIAS_NIC + nic.name})
    return element


def _add_disk(root: Element, disk: DiskState) -> None:
    xmlmap.reach(root, "devices").append(disk_element(disk))


def _add_nic(root: Element, nic: NicState) -> None:
    xmlmap.reach(root, "devices").append(nic_element(nic))


def _add_serial(root: Element, serial: SerialState) -> None:
    devices = xmlmap.reach(root, "devices")
    used = {target.get("port") for target in devices.findall("serial/target")}
    # Left to libvirt the next is one above the highest: after a few changes it is above the four that there are.
    port = next(number for number in map(str, itertools.count()) if number not in used)
    element = ElementTree.SubElement(devices, "serial", {"type": "pty"})
    ElementTree.SubElement(element, "target", {"port": port})
    xmlmap.write(serial, element)
    ElementTree.SubElement(element, "alias", {"name": domain.ALIAS_SERIAL + serial.name})


def _controllers(root: Element, want: State) -> None:
    """A SCSI disk gets virtio-scsi: left alone, libvirt would give it a controller that Linux guests lack."""
    scsi = any(disk.bus == "scsi" for disk in want.disks)
    if scsi and root.find("devices/controller[@type='scsi']") is None:
        attributes = {"type": "scsi", "index": "0", "model": "virtio-scsi"}
        ElementTree.SubElement(xmlmap.reach(root, "devices"), "controller", attributes)
