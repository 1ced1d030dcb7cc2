"""Folders of the host that a guest mounts."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import model_validator

from kvmd import xmlmap
from kvmd.api.quantity import Boolean, DeviceName, HostPath, Text
from kvmd.api.resource import SpecModel
from kvmd.api.schema import Update, leaf
from kvmd.plan.difference import at
from kvmd.xmlmap import Element, Place

ALIAS = "ua-fs-"
LONGEST_TAG = {"virtiofs": 36, "9p": 31}  # virtio specification 5.11.4; QEMU's hw/9pfs/9p.h
_DRIVERS = {"virtiofs": "virtiofs", "path": "9p", "handle": "9p"}


class Filesystem(SpecModel):
    """A folder of the host, mounted in the guest with `mount -t virtiofs TAG /mnt`, or `-t 9p`."""

    name: DeviceName = leaf(about="Name of the share.", example="data", update=Update.IMMUTABLE)
    path: HostPath = leaf(
        about="The folder, below policy.allowedPaths.", example="/srv/data", update=Update.NEXT_BOOT
    )
    tag: Text | None = leaf(
        None, about="What the guest mounts; default its name.", example="data", update=Update.NEXT_BOOT, min_length=1
    )
    type: Literal["virtiofs", "9p"] = leaf(
        "virtiofs",
        about="virtiofs: fast; a process of its own on the host, and memory that it shares. 9p: slower, within QEMU.",
        example="virtiofs",
        update=Update.NEXT_BOOT,
    )
    read_only: Boolean = leaf(
        False,
        about="Whether the guest may only read; libvirt 9 can do that with 9p alone.",
        example=True,
        update=Update.NEXT_BOOT,
    )

    @model_validator(mode="after")
    def _agree(self) -> Filesystem:
        longest = LONGEST_TAG[self.type]
        if len((self.tag or self.name).encode()) > longest:
            raise ValueError(f"the tag of a share of type {self.type} has at most {longest} bytes")
        return self


def _driver_get(root: Element) -> str:
    driver = root.find("driver")
    return _DRIVERS.get("path" if driver is None else driver.get("type", "path"), "")


def _driver_put(root: Element, driver: str) -> None:
    """virtiofs knows no other way of access than passthrough; with it 9p is the same."""
    xmlmap.cut(root, "driver")
    xmlmap.cut(root, "binary")
    root.set("type", "mount")
    root.set("accessmode", "passthrough")
    ElementTree.SubElement(root, "driver", {"type": "virtiofs" if driver == "virtiofs" else "path"})


@dataclass(frozen=True, slots=True)
class FilesystemState:
    """A share as it is or should be."""

    name: str
    type: str = field(metadata=at("type", xml=Place(_driver_get, _driver_put)))
    path: str | None = field(metadata=at("path", xml=xmlmap.attribute("source", "dir")))
    tag: str | None = field(metadata=at("tag", xml=xmlmap.attribute("target", "dir")))
    read_only: bool = field(metadata=at("readOnly", xml=xmlmap.presence("readonly")))


def states_of(shares: Iterable[Filesystem]) -> tuple[FilesystemState, ...]:
    """What the shares of a spec ask for."""
    return tuple(
        FilesystemState(share.name, share.type, share.path, share.tag or share.name, share.read_only)
        for share in shares
    )


def elements(root: Element, known: Mapping[str, str]) -> list[tuple[str, Element]]:
    """Every share with its name: its alias, else what the spec calls that tag (*known*), else ``@`` and the tag."""
    found = []
    for element in root.findall("devices/filesystem"):
        alias, target = element.find("alias"), element.find("target")
        name = "" if alias is None else alias.get("name", "")
        tag = "" if target is None else target.get("dir", "")
        found.append((name.removeprefix(ALIAS) if name.startswith(ALIAS) else known.get(tag, f"@{tag}"), element))
    return found


def add(root: Element, share: FilesystemState) -> None:
    """A new share."""
    element = ElementTree.SubElement(xmlmap.reach(root, "devices"), "filesystem")
    xmlmap.write(share, element)
    ElementTree.SubElement(element, "alias", {"name": ALIAS + share.name})


def share_memory(root: Element, shares: Iterable[FilesystemState]) -> None:
    """virtiofs reads and writes the guest's memory, which therefore must be shared with it; it stays so."""
    if not any(share.type == "virtiofs" for share in shares):
        return
    backing = xmlmap.reach(root, "memoryBacking")
    if backing.find("source") is None:
        ElementTree.SubElement(backing, "source", {"type": "memfd"})
    xmlmap.reach(backing, "access").set("mode", "shared")
