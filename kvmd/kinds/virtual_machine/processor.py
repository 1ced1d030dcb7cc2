"""Features and NUMA cells of the virtual CPU: the spec, and where they stand in a domain's XML."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from kvmd import xmlmap
from kvmd.api.quantity import Memory, Text
from kvmd.api.resource import SpecModel
from kvmd.api.schema import Update, leaf
from kvmd.xmlmap import Element, Place

Features = tuple[tuple[str, str], ...]
Cells = tuple[tuple[str, int], ...]
_RANGES = re.compile(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*")


class Feature(SpecModel):
    """A feature of the CPU beside those of its model."""

    name: Text = leaf(about="Its name in libvirt.", example="aes", update=Update.NEXT_BOOT, min_length=1)
    policy: Literal["require", "optional", "disable", "forbid", "force"] = leaf(
        "require",
        about="require: the guest has it, or does not start. optional: where the host has it. disable: it has it "
        "not. forbid: nor may the host. force: it sees it in any case.",
        example="disable",
        update=Update.NEXT_BOOT,
    )


def numbers(ranges: str) -> frozenset[int]:
    """The numbers of ``0-2,5``."""
    found: set[int] = set()
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return frozenset(found)


def _canonical(ranges: str) -> str:
    """As libvirt writes it: sorted, neighbours joined."""
    if not _RANGES.fullmatch(ranges) or not numbers(ranges):
        raise ValueError(f"'{ranges}' is no list of CPUs; write e.g. 0-3 or 0,2")
    runs: list[list[int]] = []
    for number in sorted(numbers(ranges)):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


class Cell(SpecModel):
    """A NUMA cell that the guest sees; its number is its place in the list."""

    cpus: Annotated[Text, AfterValidator(_canonical)] = leaf(
        about="Its vCPUs, from 0.", example="0-1", update=Update.NEXT_BOOT
    )
    memory: Memory = leaf(about="Its memory, in whole MiB.", example="2Gi", update=Update.NEXT_BOOT)


def refuse_odd_cells(cells: Iterable[Cell], vcpus: int, memory: int) -> None:
    """Raise ValueError where the cells are not the whole machine, each part of it once."""
    cells = tuple(cells)
    if not cells:
        return
    placed = sorted(number for cell in cells for number in numbers(cell.cpus))
    if placed != list(range(vcpus)):
        raise ValueError(f"the cells of cpu.numa hold the vCPUs {placed}, and there are 0 to {vcpus - 1}, each once")
    if sum(cell.memory for cell in cells) != memory:
        total = sum(cell.memory for cell in cells) // 2**20
        raise ValueError(f"the cells of cpu.numa hold {total} MiB, and the guest may have {memory // 2**20} MiB")


def features_said(written: Any) -> Features | None:
    """The features of a spec as it was written; None for none."""
    items = written if isinstance(written, list | tuple) else ()
    named = (item for item in items if isinstance(item, Mapping))
    found = ((str(item.get("name")), str(item.get("policy", "require"))) for item in named)
    return tuple(sorted(found)) or None


def _features_get(root: Element) -> Features | None:
    found = root.findall("cpu/feature")
    return tuple(sorted((item.get("name", ""), item.get("policy", "require")) for item in found)) or None


def _features_put(root: Element, features: Features | None) -> None:
    xmlmap.cut(root, "cpu/feature")
    for name, policy in features or ():
        ElementTree.SubElement(xmlmap.reach(root, "cpu"), "feature", {"policy": policy, "name": name})


def _cells_get(root: Element) -> Cells | None:
    found = root.findall("cpu/numa/cell")
    return tuple((item.get("cpus", ""), _memory(item)) for item in found) or None


def _memory(cell: Element) -> int:
    holder = ElementTree.Element("cell")
    ElementTree.SubElement(holder, "memory", {"unit": cell.get("unit", "KiB")}).text = cell.get("memory")
    return xmlmap.size("memory").get(holder) or 0


def _cells_put(root: Element, cells: Cells | None) -> None:
    xmlmap.cut(root, "cpu/numa")
    for number, (cpus, memory) in enumerate(cells or ()):
        attributes = {"id": str(number), "cpus": cpus, "memory": str(memory // 2**10), "unit": "KiB"}
        ElementTree.SubElement(xmlmap.reach(root, "cpu/numa"), "cell", attributes)


FEATURES = Place(_features_get, _features_put)
CELLS = Place(_cells_get, _cells_put)
