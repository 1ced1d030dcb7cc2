"""Memory of a machine in a domain's XML: how it is shared out between its cell and its devices, and said again."""

from __future__ import annotations

from typing import Any

import pytest

from kvmd import xmlmap
from kvmd.errors import Unsupported
from kvmd.kinds.virtual_machine import memory
from kvmd.kinds.virtual_machine.describe import describe
from kvmd.observed import Domain, Key, Observed

MIB = 2**20
DIMM = "<memory model='dimm'><target><size unit='MiB'>128</size><node>0</node></target></memory>"
VIRTIO_MEM = """<memory model='virtio-mem'><target><size unit='MiB'>{size}</size><node>0</node>
<block unit='MiB'>2</block><requested unit='MiB'>{requested}</requested></target></memory>"""


def domain(total: int, *devices: str, cells: int = 1, highest: int = 0) -> str:
    """A definition as libvirt has it; sizes in MiB."""
    base = total - sum(xmlmap.size("target/size").get(xmlmap.parse(device)) or 0 for device in devices) // MIB
    maximum = f"<maxMemory slots='4' unit='MiB'>{highest}</maxMemory>" if highest else ""
    numa = "".join(f"<cell id='{i}' cpus='{i}' memory='{base // cells}' unit='MiB'/>" for i in range(cells))
    return f"""<domain type='qemu'><name>web</name><uuid>5d4c1d5c-0000-4000-8000-000000000001</uuid>{maximum}
    <memory unit='MiB'>{total}</memory><currentMemory unit='MiB'>{total}</currentMemory><vcpu>{cells}</vcpu>
    <os><type machine='pc-q35-7.2'>hvm</type></os><cpu><numa>{numa}</numa></cpu>
    <devices>{"".join(devices)}</devices></domain>"""


def described(xml: str) -> dict[str, Any]:
    """The memory of the spec that import writes."""
    key, fact = Key("domain", "web"), Domain("web", "5d4c1d5c", "shutoff", "unknown", xml, None)
    found = describe(key, Observed({key: fact}))
    assert found is not None
    return dict(found.spec["memory"])


def test_import_says_memory_that_is_plugged() -> None:
    virtio = VIRTIO_MEM.format(size=512, requested=64)
    xml = domain(640, virtio, highest=1024)
    assert described(xml) == {"guest": "192Mi", "maxGuest": "640Mi", "hotplug": "VirtioMem"}
    assert described(domain(256, DIMM, highest=512)) == {"guest": "256Mi", "maxGuest": "512Mi", "hotplug": "Dimm"}
    assert described(domain(256)) == {"guest": "256Mi", "maxGuest": "256Mi"}


def test_import_says_only_how_much_there_is_where_no_spec_could_say_the_rest() -> None:
    """Two cells, or sizes that could not be plugged."""
    assert described(domain(256, DIMM, highest=512, cells=2)) == {"guest": "256Mi"}
    assert described(domain(257, DIMM, highest=512)) == {"guest": "257Mi"}


def test_memory_of_several_cells_is_left_to_people() -> None:
    root = xmlmap.parse(domain(256, cells=2))
    with pytest.raises(Unsupported, match="2 NUMA cells"):
        memory.MODE.put(root, memory.VIRTIO_MEM)


def test_dimms_that_do_not_add_up_become_part_of_the_cell() -> None:
    """Less than a DIMM, or no slot for another: the next boot has all of it from the start."""
    root = xmlmap.parse(domain(256, DIMM, highest=512))
    memory.GUEST.put(root, 192 * MIB)
    assert memory.GUEST.get(root) == 192 * MIB and root.find("devices/memory") is None
    full = xmlmap.parse(domain(640, DIMM, DIMM, DIMM, DIMM, highest=1024))
    memory.GUEST.put(full, 768 * MIB)
    assert memory.GUEST.get(full) == 768 * MIB and full.find("devices/memory") is None


def test_a_way_of_growing_that_goes_leaves_nothing_of_it() -> None:
    before = xmlmap.parse(domain(640, VIRTIO_MEM.format(size=512, requested=64), highest=1024))
    memory.MODE.put(before, memory.BALLOON)
    assert (memory.GUEST.get(before), memory.MAXIMUM.get(before)) == (192 * MIB, 640 * MIB)
    assert [path for path in ("maxMemory", "devices/memory", "cpu") if before.find(path) is not None] == []
