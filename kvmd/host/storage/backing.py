"""What disk images stand on, and what stands on them: read from their headers, asked of nobody."""

from __future__ import annotations

import contextlib
import os
import stat
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable

from kvmd.host.attributes import mark_on
from kvmd.host.storage.bases import bases_of, real_bases
from kvmd.host.storage.disk_header import read_header
from kvmd.observed import said_format

MOST_LINKS = 64


def chain_of(path: str, format: str) -> list[tuple[str, str]]:
    """That file and every file under it, each with its format; it ends where a header says nothing that is plain."""
    found = [(path, format)]
    while format == "qcow2" and len(found) < MOST_LINKS:
        try:
            header = read_header(os.path.realpath(path), 0)
        except OSError:
            break
        below = os.path.join(os.path.dirname(path), header.backing) if header.backing else ""
        if not below or ":" in header.backing.partition("/")[0]:
            break
        path, format = below, header.backing_format
        found.append((path, format))
    return found


def files_under(domain: str) -> set[str]:
    """Every file that the disks of this XML of a domain lead to."""
    found: set[str] = set()
    for disk in ElementTree.fromstring(domain).findall("devices/disk"):
        path, format = source_of(disk)
        if path:
            found.update(name for name, _ in chain_of(path, format))
    return found


def source_of(disk: ElementTree.Element) -> tuple[str, str]:
    """The file or block device under a disk of a domain's XML, and its format; "" for one on a server or none."""
    source, driver = disk.find("source"), disk.find("driver")
    path = "" if source is None else source.get("file") or source.get("dev") or ""
    return path, "raw" if driver is None else driver.get("type", "raw")


def overlays_on(path: str, folders: Iterable[str], *, to_the_bottom: bool = False) -> list[str]:
    """The files in these folders, and in its own, that stand on it, directly or through others, by any name.

    Raises OSError where a folder is there and cannot be read: nobody knows then what stands on the file.
    """
    real, found = os.path.realpath(path), []
    for folder in {*folders, os.path.dirname(path)}:
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(folder):
                with contextlib.suppress(FileNotFoundError):
                    if entry.is_file(follow_symlinks=False) and _stands_on(entry.path, real, to_the_bottom):
                        found.append(entry.path)
    return sorted(found)


def put_over(disk: ElementTree.Element, overlay: str, under: list[tuple[str, str]]) -> None:
    """Let the disk of a domain be *overlay*, a qcow2 file, and say what it stands on, top first."""
    for name in ("source", "backingStore", "mirror"):
        for element in disk.findall(name):
            disk.remove(element)
    disk.set("type", "file")
    driver = disk.find("driver")
    if driver is None:
        driver = ElementTree.SubElement(disk, "driver", {"name": "qemu"})
    driver.set("type", "qcow2")
    ElementTree.SubElement(disk, "source", {"file": overlay})
    if not all(format for _, format in under):
        return  # libvirt finds out what no header names
    parent = disk
    for path, format in under:
        kind, word = ("block", "dev") if _is_block(path) else ("file", "file")
        parent = ElementTree.SubElement(parent, "backingStore", {"type": kind})
        ElementTree.SubElement(parent, "format", {"type": format})
        ElementTree.SubElement(parent, "source", {word: path})
    ElementTree.SubElement(parent, "backingStore")


def _stands_on(overlay: str, real: str, to_the_bottom: bool) -> bool:
    mark = mark_on(overlay)
    said = said_format(mark) if mark is not None else ""
    if to_the_bottom:
        return real in real_bases(overlay, said)
    header = read_header(overlay, 0, said)
    return any(os.path.realpath(base) == real for base in bases_of(overlay, header.backing))


def _is_block(path: str) -> bool:
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False
