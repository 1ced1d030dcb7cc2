"""Memory devices of the host in memory: what libvirt 9.0 makes of them, and what it refuses."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from kvmd.xmlmap import Element, parse, reach, size


class MemoryRefused(AssertionError):
    """libvirt would refuse it."""


def _demand(condition: object, why: str) -> None:
    if not condition:
        raise MemoryRefused(why)


def _kib(element: Element, path: str) -> int:
    return (size(path).get(element) or 0) // 1024


def _set(element: Element, path: str, kib: int) -> None:
    found = reach(element, path)
    found.set("unit", "KiB")
    found.text = str(kib)


def _sizes(root: Element) -> int:
    return sum(_kib(device, "target/size") for device in root.findall("devices/memory"))


def complete(root: Element) -> None:
    """The whole is the sum of cells and devices, and must fit the maximum."""
    devices, cells, highest = root.findall("devices/memory"), root.findall("cpu/numa/cell"), root.find("maxMemory")
    if highest is None and not cells:
        _demand(not devices, "cannot use/hotplug a memory device when domain 'maxMemory' is not defined")
        return
    if highest is not None:
        _demand(cells, "At least one numa node has to be configured when enabling memory hotplug")
        _demand(int(highest.get("slots", "0")) >= len(devices), "memory device count exceeds slots count")
    base = sum(int(cell.get("memory", "0")) for cell in cells)
    for cell in cells:
        last = int(cell.get("cpus", "0").rpartition("-")[2])
        _demand(last < int(root.findtext("vcpu") or 1), "Number of CPUs in <numa> exceeds the <vcpu> count")
    _set(root, "memory", base + _sizes(root))
    if highest is not None:
        _demand(_kib(root, "maxMemory") >= _kib(root, "memory"), "maximum memory size must be equal or greater")
    for device in devices:
        wanted, whole = _kib(device, "target/requested"), _kib(device, "target/size")
        _demand(0 <= wanted <= whole and whole > 0, "requested size must be smaller than @size")
        step = _kib(device, "target/block") or 1024
        _demand(wanted % step == 0 and whole % step == 0, "size must be a multiple of the block size")


def start(root: Element) -> None:
    """The guest takes what is requested at once."""
    for device in root.findall("devices/memory[@model='virtio-mem']"):
        _set(device, "target/current", 0)
        _set(root, "currentMemory", min(_kib(root, "currentMemory"), _kib(root, "memory") - _sizes(root)))
        _take(root, device)


def _take(root: Element, device: Element) -> None:
    before, wanted = _kib(device, "target/current"), _kib(device, "target/requested")
    _set(device, "target/current", wanted)
    _set(root, "currentMemory", _kib(root, "currentMemory") + wanted - before)


def request(root: Element, xml: str) -> None:
    """Another size is requested of a virtio-mem device."""
    wanted, device = parse(xml), root.find("devices/memory[@model='virtio-mem']")
    _demand(device is not None and _kib(device, "target/size") == _kib(wanted, "target/size"), "no such device")
    assert device is not None
    kib = _kib(wanted, "target/requested")
    _demand(kib <= _kib(device, "target/size"), "more than its size")
    _demand(kib % _kib(device, "target/block") == 0, "no multiple of its block")
    _set(device, "target/requested", kib)
    _take(root, device)


def plug(root: Element, device: Element, sign: int = 1) -> None:
    """A DIMM comes (1) or goes (-1)."""
    if device.tag != "memory":
        return
    for path in ("memory", "currentMemory"):
        _set(root, path, _kib(root, path) + sign * _kib(device, "target/size"))
    _demand(_kib(root, "memory") <= _kib(root, "maxMemory"), "more than the maximum")
    _demand(
        len(root.findall("devices/memory")) < int(reach(root, "maxMemory").get("slots", "0")) or sign < 0, "no slot"
    )
    ElementTree.indent(root)
