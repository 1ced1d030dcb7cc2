"""Memory of a machine: what its balloon may give back, or the devices that are plugged into it while it runs.

With devices libvirt wants a NUMA cell, which holds what the machine boots with; ``<memory>`` is the sum of it and
of every device. Of a virtio-mem device a part is *requested*, and as much as the guest has taken is *current*.
"""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import NamedTuple

from kvmd import ops, xmlmap
from kvmd.api.quantity import MEBIBYTE
from kvmd.errors import Unsupported
from kvmd.kinds.virtual_machine import balloon
from kvmd.observed import Domain
from kvmd.xmlmap import Element, Place

BALLOON, VIRTIO_MEM, DIMM = "Balloon", "VirtioMem", "Dimm"
BLOCK = 2 * MEBIBYTE  # the least that QEMU lets virtio-mem plug on x86: a transparent huge page
SECTION = 128 * MEBIBYTE  # Linux on x86 leaves a DIMM alone that is no whole number of sections
SLOTS = 16
ALIAS_VIRTIO_MEM = "ua-memory"
ALIAS_DIMM = "ua-dimm-"

_TOTAL, _CURRENT, _MAXIMUM = (xmlmap.size(path) for path in ("memory", "currentMemory", "maxMemory"))
_SIZE, _BLOCK, _REQUESTED, _TAKEN = (
    xmlmap.size(f"target/{word}") for word in ("size", "block", "requested", "current")
)


def step_of(mode: str, page: int | None) -> int:
    """What memory must be a multiple of, so that it can be plugged in that way."""
    return max({VIRTIO_MEM: BLOCK, DIMM: SECTION}.get(mode, MEBIBYTE), page or 0)


def refuse_odd(mode: str, guest: int, maximum: int, page: int | None) -> None:
    """Raise ValueError where those sizes cannot be plugged in."""
    step = step_of(mode, page)
    if mode != BALLOON and (guest % step or maximum % step):
        raise ValueError(f"with hotplug {mode} guest and maxGuest are multiples of {step // MEBIBYTE}Mi")


# ------------------------------------------------------------------------------------------------- reading


def _devices(root: Element, model: str) -> list[Element]:
    return root.findall(f"devices/memory[@model='{model}']")


def _size_of(devices: list[Element], place: Place = _SIZE) -> int:
    return sum(place.get(device) or 0 for device in devices)


def mode_of(root: Element) -> str:
    """How the memory of that domain grows."""
    if _devices(root, "virtio-mem"):
        return VIRTIO_MEM
    return DIMM if root.find("maxMemory") is not None else BALLOON


def _whole(size: int | None) -> int | None:
    """libvirt rounds memory up to whole MiB when it starts QEMU (qemuDomainAlignMemorySizes), so less is the same."""
    return None if size is None else -(-size // MEBIBYTE) * MEBIBYTE


def guest_of(root: Element) -> int | None:
    """What it has: of virtio-mem what is requested, whether the guest has taken it yet or not."""
    now, devices = _CURRENT.get(root), _devices(root, "virtio-mem")
    if now is None and mode_of(root) != BALLOON:
        now = _TOTAL.get(root)  # as libvirt has it
    if now is None or not devices:
        return _whole(now)
    base = (_TOTAL.get(root) or 0) - _size_of(devices)
    # A definition counts the whole device as current; the running self what its guest has taken.
    return _whole(min(base, now - _size_of(devices, _TAKEN)) + _size_of(devices, _REQUESTED))


def maximum_of(root: Element) -> int | None:
    """What it may grow to."""
    return _whole((_MAXIMUM if mode_of(root) == DIMM else _TOTAL).get(root))


def is_sayable(root: Element) -> bool:
    """True where it has devices for its memory and a spec can say so: one model, one cell, even sizes."""
    mode, guest, maximum = mode_of(root), guest_of(root) or 0, maximum_of(root) or 0
    models = {device.get("model") for device in root.findall("devices/memory")}
    if mode == BALLOON or not models <= {"virtio-mem" if mode == VIRTIO_MEM else "dimm"}:
        return False
    alone = len(root.findall("cpu/numa/cell")) == 1 and len(_devices(root, "virtio-mem")) < 2
    step = step_of(mode, None)
    return alone and not guest % step and not maximum % step and root.find("memoryBacking/hugepages") is None


# ------------------------------------------------------------------------------------------------- writing


def _guest_put(root: Element, guest: int) -> None:
    mode, maximum = mode_of(root), maximum_of(root)
    if mode == BALLOON:
        _CURRENT.put(root, guest)
    else:
        _build(root, mode, guest, maximum or guest)


def _maximum_put(root: Element, maximum: int) -> None:
    mode, guest = mode_of(root), guest_of(root)
    if mode == BALLOON:
        _TOTAL.put(root, maximum)
        if len(cells := root.findall("cpu/numa/cell")) == 1:  # libvirt takes the sum of the cells for the whole
            _cell_put(root, cells[0], maximum)
    elif mode == DIMM:
        _MAXIMUM.put(root, maximum)
    else:
        _build(root, mode, guest or maximum, maximum)


def _mode_put(root: Element, mode: str) -> None:
    if mode == mode_of(root) == BALLOON:
        return  # its cells, if it has any, are what somebody wrote
    guest, maximum = guest_of(root) or 0, maximum_of(root) or 0
    for model in ("virtio-mem", "dimm"):
        for device in _devices(root, model):
            xmlmap.reach(root, "devices").remove(device)
    xmlmap.cut(root, "maxMemory")
    if mode != BALLOON:
        _build(root, mode, guest, maximum)
        return
    _cell(root)  # refuses several
    xmlmap.cut(root, "cpu/numa")
    if (cpu := root.find("cpu")) is not None and not len(cpu) and not cpu.attrib:
        xmlmap.cut(root, "cpu")
    _TOTAL.put(root, maximum)
    _CURRENT.put(root, guest)


def _build(root: Element, mode: str, guest: int, maximum: int) -> None:
    """Share *guest* out between the cell and devices; those that are there already stay where that is possible."""
    cell = _cell(root)
    (_build_virtio_mem if mode == VIRTIO_MEM else _build_dimms)(root, cell, guest, maximum)
    highest = xmlmap.reach(root, "maxMemory")
    highest.set("slots", highest.get("slots", str(SLOTS)))
    _MAXIMUM.put(root, maximum)
    xmlmap.cut(root, "currentMemory")  # a balloon beside that stays empty


def _build_virtio_mem(root: Element, cell: Element, guest: int, maximum: int) -> None:
    page = root.find("memoryBacking/hugepages/page")
    step = step_of(VIRTIO_MEM, None if page is None else int(page.get("size", "0")) * 1024)
    device = next(iter(_devices(root, "virtio-mem")), None)
    base = (_TOTAL.get(root) or 0) - _size_of(_devices(root, "virtio-mem"))
    if device is None or base > guest or base >= maximum or (guest - base) % step or (maximum - base) % step:
        base = min(guest, maximum - step)  # without a device nobody could see how it is to grow
    if device is None:
        device = ElementTree.SubElement(xmlmap.reach(root, "devices"), "memory", {"model": "virtio-mem"})
        _target(device)
        ElementTree.SubElement(device, "alias", {"name": ALIAS_VIRTIO_MEM})
    _SIZE.put(device, maximum - base)
    _BLOCK.put(device, step)
    _REQUESTED.put(device, guest - base)
    _cell_put(root, cell, base)
    _TOTAL.put(root, maximum)


def _build_dimms(root: Element, cell: Element, guest: int, maximum: int) -> None:
    """One DIMM more, or some of ours fewer; where that does not add up the next boot has all of it in the cell."""
    devices, ours, highest = xmlmap.reach(root, "devices"), _ours(root), root.find("maxMemory")
    total = guest if highest is None else (_TOTAL.get(root) or 0)
    slots = SLOTS if highest is None else int(highest.get("slots", "0"))
    base = total - _size_of(_devices(root, "dimm"))
    for dimm in reversed(list(ours.values())):
        if (_SIZE.get(dimm) or 0) <= total - guest:
            devices.remove(dimm)
            total -= _SIZE.get(dimm) or 0
    if guest > total and not (guest - total) % SECTION and len(_devices(root, "dimm")) < slots:
        _add_dimm(devices, guest - total, set(ours))
    elif guest != total:
        for dimm in _devices(root, "dimm"):
            devices.remove(dimm)
        base = guest
    _cell_put(root, cell, base)
    _TOTAL.put(root, guest)


def _add_dimm(devices: Element, size: int, taken: set[str]) -> None:
    alias = next(name for number in itertools.count(1) if (name := f"{ALIAS_DIMM}{number}") not in taken)
    dimm = ElementTree.SubElement(devices, "memory", {"model": "dimm"})
    _target(dimm)
    _SIZE.put(dimm, size)
    ElementTree.SubElement(dimm, "alias", {"name": alias})


def _target(device: Element) -> None:
    target = ElementTree.SubElement(device, "target")
    ElementTree.SubElement(target, "size")  # libvirt's schema wants it first
    ElementTree.SubElement(target, "node").text = "0"


def _ours(root: Element) -> dict[str, Element]:
    """The DIMMs that have an alias of ours."""
    named = {_alias(device): device for device in _devices(root, "dimm")}
    return {alias: device for alias, device in named.items() if alias.startswith(ALIAS_DIMM)}


def _alias(device: Element) -> str:
    alias = device.find("alias")
    return "" if alias is None else alias.get("name", "")


def _cell(root: Element) -> Element:
    """The one NUMA cell that holds what it boots with."""
    cells = root.findall("cpu/numa/cell")
    if len(cells) > 1:
        raise Unsupported(
            f"the machine has {len(cells)} NUMA cells, and nobody says in which its memory is to change",
            hint="take memory.hotplug out, and change the cells with: virsh edit",
        )
    if not cells:
        cells = [ElementTree.SubElement(xmlmap.reach(root, "cpu/numa"), "cell", {"id": "0"})]
    return cells[0]


def _cell_put(root: Element, cell: Element, size: int) -> None:
    cell.set("memory", str(size // 1024))
    cell.set("unit", "KiB")
    cover(root)


def cover(root: Element) -> None:
    """A single NUMA cell holds every CPU that there may be: libvirt refuses one with more."""
    cells = root.findall("cpu/numa/cell")
    if len(cells) == 1:
        last = int(root.findtext("vcpu") or 1) - 1
        cells[0].set("cpus", f"0-{last}" if last else "0")


MODE = Place(mode_of, _mode_put)
GUEST = Place(guest_of, _guest_put)
MAXIMUM = Place(maximum_of, _maximum_put)


# ---------------------------------------------------------------------------------------------- running guest


def live_change(domain: Domain, root: Element, guest: int) -> ops.Op | None:
    """The operation that gives the running guest that much memory; None where only a boot does."""
    change: Callable[[Domain, Element, int], ops.Op | None] = {
        VIRTIO_MEM: _request,
        DIMM: _plug,
    }.get(mode_of(root), _inflate)
    return change(domain, root, guest)


def _inflate(domain: Domain, root: Element, guest: int) -> ops.Op | None:
    if guest > (maximum_of(root) or 0) or balloon.MODEL.get(root) == "none":
        return None
    return ops.DomainSetMemory(domain.name, domain.uuid, guest)


def _request(domain: Domain, root: Element, guest: int) -> ops.Op | None:
    """virtio-mem grows and shrinks between what the machine was booted with and the size of the device."""
    devices = _devices(root, "virtio-mem")
    device, base = devices[0], (_TOTAL.get(root) or 0) - _size_of(devices)
    wanted = guest - base - _size_of(devices[1:], _REQUESTED)
    if not 0 <= wanted <= (_SIZE.get(device) or 0) or wanted % (_BLOCK.get(device) or BLOCK):
        return None
    if _REQUESTED.get(device) == wanted:  # then somebody has filled the balloon
        return ops.DomainSetMemory(domain.name, domain.uuid, base)
    copy = ElementTree.fromstring(ElementTree.tostring(device))
    _REQUESTED.put(copy, wanted)
    return ops.DomainRequestMemory(domain.name, domain.uuid, guest, xmlmap.serialise(copy))


def _plug(domain: Domain, root: Element, guest: int) -> ops.Op | None:
    """The DIMM that the definition will have and the guest has not, or the other way round."""
    total = _TOTAL.get(root) or 0
    if total == guest:
        return ops.DomainSetMemory(domain.name, domain.uuid, guest)  # somebody has filled the balloon
    if guest > (maximum_of(root) or 0):
        return None
    after = xmlmap.parse(domain.config or "<domain/>")
    if mode_of(after) != DIMM:
        return None
    defined = _ours(after)
    _guest_put(after, guest)
    here, there = _ours(root), _ours(after)
    missing, surplus = [name for name in there if name not in here], [name for name in here if name not in there]
    if total < guest and missing:
        return ops.DomainAttach(domain.name, domain.uuid, missing[0], memory=True)
    if total > guest and surplus and _boots_alike(root, after):
        return ops.DomainDetach(domain.name, domain.uuid, surplus[-1], again=surplus[-1] not in defined)
    return None


def _boots_alike(root: Element, after: Element) -> bool:
    """True where the cells of both hold the same: else the DIMMs of the guest have become part of its cell."""
    bases = [(_TOTAL.get(each) or 0) - _size_of(_devices(each, "dimm")) for each in (root, after)]
    return bases[0] == bases[1]


class Untaken(NamedTuple):
    """What the guest has not done yet of what was requested; bytes."""

    requested: int
    taken: int


def untaken(root: Element) -> Untaken | None:
    """Of virtio-mem, where the guest has taken another part than is requested."""
    devices = _devices(root, "virtio-mem")
    found = Untaken(_size_of(devices, _REQUESTED), _size_of(devices, _TAKEN))
    return None if found.requested == found.taken else found
