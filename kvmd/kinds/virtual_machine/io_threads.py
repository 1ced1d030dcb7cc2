"""The threads of QEMU that serve disks, numbered from 1, in a domain's XML."""

from __future__ import annotations

from kvmd import xmlmap
from kvmd.xmlmap import Element, Place

_COUNT = xmlmap.number(xmlmap.text("iothreads"))


def numbers(root: Element) -> frozenset[int]:
    """The numbers of the threads that there are; libvirt lists them once they are not 1 to n any more."""
    listed = [int(item.get("id", "0")) for item in root.findall("iothreadids/iothread")]
    return frozenset(listed or range(1, (_COUNT.get(root) or 0) + 1))


def used(root: Element) -> frozenset[int]:
    """The threads that a device is served by."""
    return frozenset(int(item.get("iothread", "0")) for item in root.findall("devices/*/driver[@iothread]"))


def _get(root: Element) -> int | None:
    """The highest number: those of others may have gaps."""
    return max(numbers(root), default=0) or None


def _put(root: Element, count: int | None) -> None:
    """libvirt numbers by itself what is not listed."""
    listed = root.find("iothreadids")
    for item in root.findall("iothreadids/iothread"):
        if listed is not None and int(item.get("id", "0")) > (count or 0):
            listed.remove(item)
    if listed is not None and not len(listed):
        xmlmap.cut(root, "iothreadids")
    _COUNT.put(root, count)


IO_THREADS = Place(_get, _put)
