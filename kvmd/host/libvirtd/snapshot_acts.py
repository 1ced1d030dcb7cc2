"""Acts on snapshots. Going back to one replaces the running self and never the definition."""

from __future__ import annotations

import contextlib
import os
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from typing import Any

import libvirt

from kvmd import ops
from kvmd.api.mark import XML_NAMESPACE, XML_PREFIX, Mark, find_in
from kvmd.errors import Refused, Stale
from kvmd.host.libvirtd.connection import DEFINITION, SECURE
from kvmd.host.libvirtd.external_revert import go_back, merge_or_forget
from kvmd.host.libvirtd.snapshot_facts import overlays_in

_CANNOT = (libvirt.VIR_ERR_CONFIG_UNSUPPORTED, libvirt.VIR_ERR_OPERATION_UNSUPPORTED)


def act(domain: Any, operation: ops.SnapshotOp) -> None:
    """Carry out an operation on a snapshot of a domain. Raises libvirtError or KvmdError."""
    match operation:
        case ops.SnapshotTake():
            _take(domain, operation)
        case ops.SnapshotMark():
            _mark(domain, operation)
        case ops.SnapshotRemove():
            _remove(domain, operation)
        case ops.SnapshotRevert():
            _revert(domain, operation)


def _take(domain: Any, operation: ops.SnapshotTake) -> None:
    """All disks or none. A guest that has stopped or started since the plan is looked at again first."""
    memory = isinstance(operation, ops.SnapshotTakeWithMemory)
    active = bool(domain.isActive())
    if active != memory and not (active and operation.external):
        raise Stale(f"domain {domain.name()} has been {'started' if active else 'switched off'} since the plan")
    here = {disk.get("dev") for disk in ElementTree.fromstring(domain.XMLDesc(0)).findall("devices/disk/target")}
    asked = (disk.get("name") for disk in ElementTree.fromstring(operation.xml).findall("disks/disk"))
    if gone := [name for name in asked if name not in here]:
        raise Stale(f"domain {domain.name()} has let go of {', '.join(map(str, gone))} since the plan")
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
    if operation.external and not memory:
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    domain.snapshotCreateXML(operation.xml, flags)


def _mark(domain: Any, operation: ops.SnapshotMark) -> None:
    _describe(domain, domain.snapshotLookupByName(operation.snapshot), operation.mark)


def _describe(domain: Any, snapshot: Any, mark: Mark) -> None:
    """Only a redefinition changes a description; what else libvirt noted of the snapshot goes back as it was."""
    root = ElementTree.fromstring(snapshot.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE))
    description = root.find("description")
    if description is None:
        description = ElementTree.SubElement(root, "description")
    description.text = mark.as_text()
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
    if snapshot.isCurrent():
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT
    domain.snapshotCreateXML(ElementTree.tostring(root, encoding="unicode"), flags)


def _note_use(domain: Any, snapshot: Any, operation: ops.SnapshotRevert) -> None:
    """Say in a snapshot of ours who goes back to it: that outlives the ledger, and nothing rolls it back."""
    xml = snapshot.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE)
    mark = Mark.from_text(ElementTree.fromstring(xml).findtext("description") or "")
    if mark is not None:
        noted = {f"restored.{operation.by}": "begun", **{f"left.{path}": operation.by for path in operation.leaves}}
        _describe(domain, snapshot, mark.with_resolved({**mark.resolved, **noted}))


def _remove(domain: Any, operation: ops.SnapshotRemove) -> None:
    try:
        snapshot = domain.snapshotLookupByName(operation.snapshot)
        root = ElementTree.fromstring(snapshot.getXMLDesc(0))
        overlays = [(overlay.path, overlay.over) for overlay in overlays_in(root)]
        merges = not overlays or merge_or_forget(domain, snapshot, overlays)
        snapshot.delete(0 if merges else libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)
    except libvirt.libvirtError as error:
        code = error.get_error_code()
        if operation.external and code in _CANNOT:
            text = f"this libvirt cannot merge {operation.name}: {error}"
            raise Refused(text, hint=f"see: virsh snapshot-list --tree {domain.name()}") from None
        if code != libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT:
            raise
    if operation.memory_file:
        with contextlib.suppress(OSError):  # newer versions of libvirt remove it themselves
            os.unlink(operation.memory_file)


def _revert(domain: Any, operation: ops.SnapshotRevert) -> None:
    """The running self becomes what the snapshot shows; the definition stays today's, the disks of it apart."""
    snapshot = domain.snapshotLookupByName(operation.snapshot)
    _note_use(domain, snapshot, operation)
    if operation.swaps:
        go_back(domain, snapshot, operation)
    else:
        _load(domain, snapshot, operation)
    mark = find_in(ElementTree.fromstring(domain.XMLDesc(SECURE))) if domain.isActive() else None
    if mark is not None and (operation.memory_file or not operation.swaps):
        told = replace(mark, annotations=operation.annotations, resolved={**mark.resolved, "restored": operation.by})
        kind, live = libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_LIVE
        domain.setMetadata(kind, told.as_metadata(), XML_PREFIX, XML_NAMESPACE, live)


def _load(domain: Any, snapshot: Any, operation: ops.SnapshotRevert) -> None:
    """libvirt puts the definition of the snapshot in the place of today's: today's is put back at once."""
    definition = domain.XMLDesc(DEFINITION)
    # Without FORCE libvirt refuses wherever QEMU must be started anew, which is what was asked for.
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_FORCE
    flags |= libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING if operation.running else 0
    domain.revertToSnapshot(snapshot, flags)
    domain.connect().defineXML(definition)
