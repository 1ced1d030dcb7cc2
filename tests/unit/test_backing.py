"""What disks stand on: read from headers, and written into definitions."""

from __future__ import annotations

import struct
from pathlib import Path

from casework import Situation

from kvmd import ops
from kvmd.host.storage.backing import chain_of, overlays_on
from kvmd.xmlmap import parse

CASES = Path(__file__).parents[1] / "cases"
FORMAT_OF_BACKING = 0xE2792ACA


def qcow2(path: Path, backing: str = "", format: str = "") -> Path:
    """The header of a qcow2 file, as QEMU writes it."""
    name, extension = backing.encode(), b""
    if format:
        word = format.encode()
        extension = struct.pack(">II", FORMAT_OF_BACKING, len(word)) + word.ljust((len(word) + 7) // 8 * 8, b"\0")
    extension += bytes(8)
    header = struct.pack(">4sIQIIQ", b"QFI\xfb", 3, 104 + len(extension) if backing else 0, len(name), 16, 1 << 20)
    path.write_bytes(header.ljust(100, b"\0") + struct.pack(">I", 104) + extension + name)
    return path


def test_a_chain_is_followed_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "base.raw").write_bytes(bytes(512))
    one = qcow2(tmp_path / "one.qcow2", "base.raw", "raw")
    two = qcow2(tmp_path / "two.qcow2", str(one), "qcow2")
    other = qcow2(tmp_path / "other.qcow2", str(one), "qcow2")
    far = qcow2(tmp_path / "far.qcow2", "nbd://server/base", "raw")
    base = str(tmp_path / "base.raw")
    assert chain_of(str(two), "qcow2") == [(str(two), "qcow2"), (str(one), "qcow2"), (base, "raw")]
    assert chain_of(str(two), "raw") == [(str(two), "raw")], "a raw disk may hold anything"
    assert chain_of(str(far), "qcow2") == [(str(far), "qcow2")]
    assert overlays_on(str(one), ()) == sorted([str(two), str(other)])
    assert overlays_on(base, ()) == [str(one)]
    loop = qcow2(tmp_path / "loop.qcow2", "loop.qcow2", "qcow2")
    assert len(chain_of(str(loop), "qcow2")) <= 64


def test_a_disk_of_another_file_stands_on_nothing_of_the_old_one() -> None:
    plan = Situation(CASES / "VirtualMachine" / "overlay-left-for-another-file").plan()
    (define,) = (item for step in plan.steps for item in step.operations if isinstance(item, ops.DomainDefine))
    disk = parse(define.xml).find("devices/disk")
    assert disk is not None and disk.find("source").get("file") == "/srv/other.raw"  # type: ignore[union-attr]
    assert disk.find("backingStore") is None
