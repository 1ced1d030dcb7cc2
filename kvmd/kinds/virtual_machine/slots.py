"""PCI slots of new devices: none that the running guest still holds with a device that the definition has lost.

Left to itself libvirt gives a new device the first slot that is free in the definition. Where the guest has not let
go of the device that was there, the new one could not be plugged in.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from kvmd.xmlmap import Element

Slot = tuple[int, int]  # bus and slot

_PC_SLOTS = [(0, slot) for slot in range(3, 32)]  # the first hold the chipset and, mostly, the screen


def place(root: Element, live: Element) -> None:
    """Give each new device of *root* a slot that is free in both selves, where the running one holds more."""
    defined, held = _taken(root), _taken(live)
    if not held - defined:
        return
    free = [slot for slot in _slots(root) if slot in _slots(live) and slot not in defined | held]
    for device in root.findall("devices/*"):
        if free and _is_new(device):
            bus, slot = free.pop(0)
            numbers = {"bus": f"0x{bus:02x}", "slot": f"0x{slot:02x}", "function": "0x0"}
            ElementTree.SubElement(device, "address", {"type": "pci", "domain": "0x0000", **numbers})


def _taken(root: Element) -> set[Slot]:
    addresses = root.findall("devices/*/address[@type='pci']")
    return {(int(item.get("bus", "0"), 0), int(item.get("slot", "0"), 0)) for item in addresses}


def _slots(root: Element) -> list[Slot]:
    """Where a device can be plugged in: the root ports of q35, the one bus of pc."""
    ports = root.findall("devices/controller[@model='pcie-root-port']")
    if ports:
        return sorted((int(port.get("index", "0")), 0) for port in ports)
    return _PC_SLOTS if root.find("devices/controller[@model='pci-root']") is not None else []


def _is_new(device: Element) -> bool:
    target, alias = device.find("target"), device.find("alias")
    if alias is None or not alias.get("name", "").startswith("ua-") or device.find("address") is not None:
        return False
    bus = "" if target is None else target.get("bus", "")
    return device.tag == "interface" or (device.tag == "disk" and bus == "virtio")
