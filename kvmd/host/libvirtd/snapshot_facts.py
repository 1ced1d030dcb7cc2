"""Reading snapshots: libvirt's own XML of each, which holds our mark in its description."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from typing import Any

import libvirt

from kvmd.api.mark import Mark
from kvmd.observed import Overlay, Snapshot


def snapshots_of(domain: Any) -> tuple[Snapshot, ...]:
    """Every snapshot of a domain, by name."""
    domain_name, uuid = domain.name(), domain.UUIDString()
    found = []
    for snapshot in domain.listAllSnapshots(0):
        try:
            xml = snapshot.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT:  # gone meanwhile
                raise
            continue
        found.append(_read(domain_name, uuid, ElementTree.fromstring(xml)))
    return tuple(sorted(found, key=lambda snapshot: snapshot.name))


def _read(domain: str, uuid: str, root: ElementTree.Element) -> Snapshot:
    name = root.findtext("name") or ""
    overlays = tuple(overlays_in(root))
    memory = root.find("memory")
    where = "no" if memory is None else memory.get("snapshot", "no")
    external = where == "external" or root.find("disks/disk[@snapshot='external']") is not None
    return Snapshot(
        name=f"{domain}/{name}",
        uuid=uuid,
        snapshot=name,
        state=root.findtext("state") or "",
        memory=where != "no",
        parent=root.findtext("parent/name") or "",
        created=int(root.findtext("creationTime") or 0),
        external=external,
        overlays=overlays,
        memory_file="" if memory is None else memory.get("file", ""),
        mark=Mark.from_text(root.findtext("description") or ""),
    )


def overlays_in(root: ElementTree.Element) -> Iterator[Overlay]:
    """The overlays, each with what the domain had under that target when the snapshot was taken."""
    before = {}
    for disk in root.findall("domain/devices/disk"):
        target, driver = disk.find("target"), disk.find("driver")
        if target is not None:
            format = "raw" if driver is None else driver.get("type", "raw")
            named = disk.find("alias")
            own = "" if named is None else named.get("name", "")
            before[target.get("dev", "")] = (_file(disk), format, own if own.startswith("ua-") else "")
    for disk in root.findall("disks/disk[@snapshot='external']"):
        path, name = _file(disk), disk.get("name", "")
        over, format, alias = before.get(name, ("", "", ""))
        if path and over:
            yield Overlay(path, over, format, name, alias)


def _file(disk: ElementTree.Element) -> str:
    source = disk.find("source")
    return "" if source is None else source.get("file") or source.get("dev") or ""
