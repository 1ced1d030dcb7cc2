"""NUMA cells of the virtual machine: which of its CPUs and how much of its memory the guest sees near each other."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable

from kvmd import xmlmap
from kvmd.api.quantity import Memory, Text
from kvmd.api.resource import SpecModel
from kvmd.api.schema import Update, leaf
from kvmd.kinds.virtual_machine.memory import BALLOON, mode_of
from kvmd.xmlmap import Element, Place

Cells = tuple[tuple[str, int], ...]  # CPUs as libvirt writes them, and bytes
MOST_CPUS = 710
_PATTERN = r"^\d+(-\d+)?(,\d+(-\d+)?)*$"
_MEMORY = xmlmap.size("memory")


class Cell(SpecModel):
    """A cell; its place in the list is its number in the guest."""

    cpus: Text = leaf(
        about="Its virtual CPUs, from 0; each of maxVcpus is in one cell.",
        example="0-1",
        update=Update.NEXT_BOOT,
        pattern=_PATTERN,
    )
    memory: Memory = leaf(
        about="Its memory; all cells have maxGuest together.", example="1Gi", update=Update.NEXT_BOOT
    )


def agree(cells: tuple[Cell, ...], cpus: int, memory: int, hotplug: str) -> None:
    """Raise ValueError unless the cells share out exactly those CPUs and that memory."""
    if not cells:
        return
    if hotplug != BALLOON:
        raise ValueError(
            f"memory.hotplug {hotplug} keeps what the machine boots with in a cell of its own; take cpu.numa out, or "
            "write `hotplug: Balloon`"
        )
    numbers = [number for cell in cells for number in _numbers(cell.cpus)]
    if sorted(numbers) != list(range(cpus)):
        raise ValueError(f"cpu.numa: each CPU from 0 to {cpus - 1} (maxVcpus {cpus}) belongs to exactly one cell")
    if sum(cell.memory for cell in cells) != memory:
        raise ValueError("cpu.numa: the memory of its cells and maxGuest (by default guest) must be the same")


def cells_of(cells: tuple[Cell, ...]) -> Cells | None:
    """The same as a state has it; None for none."""
    return tuple((_written(_numbers(cell.cpus)), cell.memory) for cell in cells) or None


def is_sayable(cells: Cells | None, cpus: int) -> bool:
    """True where a spec can say these: no cell without CPUs, and every CPU in one."""
    if cells is None or not all(re.match(_PATTERN, words) for words, _ in cells):
        return False
    return sorted(number for words, _ in cells for number in _numbers(words)) == list(range(cpus))


def _numbers(words: str) -> Iterable[int]:
    for part in words.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), min(int(last or first), MOST_CPUS) + 1)


def _written(numbers: Iterable[int]) -> str:
    ranges: list[list[int]] = []
    for number in sorted(set(numbers)):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def _get(root: Element) -> Cells | None:
    """None too where memory devices have their cell: that one nobody wrote."""
    if mode_of(root) != BALLOON:
        return None
    found = []
    for cell in root.findall("cpu/numa/cell"):
        size = ElementTree.Element("size")
        ElementTree.SubElement(size, "memory", {"unit": cell.get("unit", "KiB")}).text = cell.get("memory", "0")
        found.append((cell.get("cpus", ""), _MEMORY.get(size) or 0))
    return tuple(found) or None


def _put(root: Element, cells: Cells | None) -> None:
    """A cell keeps what else somebody has said of it."""
    if mode_of(root) != BALLOON:
        return
    if cells is None:
        xmlmap.cut(root, "cpu/numa")
        if (cpu := root.find("cpu")) is not None and not len(cpu) and not cpu.attrib:
            xmlmap.cut(root, "cpu")
        return
    numa = xmlmap.reach(root, "cpu/numa")
    present = numa.findall("cell")
    for surplus in present[len(cells) :]:
        numa.remove(surplus)
    for number, (cpus, memory) in enumerate(cells):
        cell = present[number] if number < len(present) else ElementTree.SubElement(numa, "cell", {"id": str(number)})
        cell.set("cpus", cpus)
        cell.set("memory", str(memory // 1024))
        cell.set("unit", "KiB")


CELLS = Place(_get, _put)
