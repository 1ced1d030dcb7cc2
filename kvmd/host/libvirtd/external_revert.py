"""Going back to an external snapshot: new overlays over the files that show the moment.

Neither those files nor what the disks have become since are written to. libvirt can do it itself from 9.9 on, but it
then deletes what the disks have become since: so every libvirt is given overlays of ours (docs/adr/0018).
"""

from __future__ import annotations

import contextlib
import os
import xml.etree.ElementTree as ElementTree
from typing import Any

import libvirt

from kvmd import ops
from kvmd.errors import KvmdError, Refused, Retry
from kvmd.host.libvirtd.connection import DEFINITION, SECURE, is_lost
from kvmd.host.libvirtd.disk_keys import lent
from kvmd.host.storage.backing import chain_of, files_under, overlays_on, put_over
from kvmd.host.storage.qemu_img import qemu_img


def go_back(domain: Any, snapshot: Any, operation: ops.SnapshotRevert) -> None:
    """Make the overlays, switch the guest off, point its definition at them, and let it run where it is to."""
    connection = domain.connect()
    running = _saved_self(connection, operation)
    definition = _disks_swapped(domain.XMLDesc(DEFINITION), operation)
    _make(operation.swaps)
    try:
        if domain.isActive():
            _destroy(domain)
        connection.defineXML(definition)
    except libvirt.libvirtError as error:
        if not is_lost(error):  # else nobody knows whether the definition names them
            _unlink(operation.swaps)
        raise
    _point(domain, snapshot, operation)
    if operation.memory_file:
        flags = libvirt.VIR_DOMAIN_SAVE_RUNNING if operation.running else 0
        with lent(connection, running):
            connection.restoreFlags(operation.memory_file, running, flags)
    elif operation.running:
        with lent(connection, definition):
            domain.create()


def merge_or_forget(domain: Any, snapshot: Any, overlays: list[tuple[str, str]]) -> bool:
    """True where libvirt may merge them; False where the machine stands on none, so that their files just stay.

    Raises Retry while a file that the machine does not stand on would lose what is under it.
    """
    ours = files_under(domain.XMLDesc(DEFINITION))
    if domain.isActive():
        ours |= files_under(domain.XMLDesc(0))
    used = [path for path, _ in overlays if path in ours]
    if not used:
        return False
    if len(used) < len(overlays):
        others = ", ".join(path for path, _ in overlays if path not in ours)
        raise Refused(
            f"snapshot {snapshot.getName()} cannot be merged: the machine does not stand on {others}",
            hint=f"virsh domblklist {domain.name()}; merge the others by hand with virsh blockcommit",
        )
    over = {file for pair in overlays for file in pair}
    left = sorted({file for path in over for file in overlays_on(path, ()) if file not in ours})
    if left:
        raise Retry(
            f"snapshot {snapshot.getName()} waits: merging it would spoil {', '.join(left)}, which stands on its "
            "files and is no part of the machine now (what a disk was before a restore, or another machine's)",
            hint=f"keep it by: qemu-img convert -O qcow2 {left[0]} NEW; where nobody needs it: rm {left[0]}",
        )
    return True


def _saved_self(connection: Any, operation: ops.SnapshotRevert) -> str:
    """The running self in the memory file, on the new overlays; read before anything is touched."""
    if not operation.memory_file:
        return ""
    return _disks_swapped(connection.saveImageGetXMLDesc(operation.memory_file, SECURE), operation)


def _disks_swapped(xml: str, operation: ops.SnapshotRevert) -> str:
    root = ElementTree.fromstring(xml)
    disks = root.findall("devices/disk")
    for swap in operation.swaps:
        found = [disk for disk in disks if swap.alias and _named(disk, "alias", "name") == swap.alias]
        found = found or [disk for disk in disks if _named(disk, "target", "dev") == swap.target]
        if not found:
            raise Refused(
                f"{operation.describe()}: the machine has no disk {swap.alias or swap.target} any more",
                hint="give it back the disks that it had then",
            )
        put_over(found[0], swap.path, chain_of(swap.over, swap.over_format))
    return ElementTree.tostring(root, encoding="unicode")


def _named(disk: ElementTree.Element, element: str, attribute: str) -> str:
    found = disk.find(element)
    return "" if found is None else found.get(attribute, "")


def _make(swaps: tuple[ops.Swap, ...]) -> None:
    """The new overlays, all or none."""
    if there := [swap.path for swap in swaps if os.path.lexists(swap.path)]:
        raise Refused(f"{', '.join(there)} is already there", hint="see what it is, and move it away")
    try:
        for swap in swaps:
            qemu_img("create", "-q", "-f", "qcow2", "-F", swap.over_format, "-b", swap.over, swap.path)
            os.chmod(swap.path, 0o600)
    except (KvmdError, OSError):
        _unlink(swaps)
        raise


def _unlink(swaps: tuple[ops.Swap, ...]) -> None:
    """Nothing has been written into them yet."""
    for swap in swaps:
        with contextlib.suppress(OSError):
            os.unlink(swap.path)


def _destroy(domain: Any) -> None:
    try:
        domain.destroy()
    except libvirt.libvirtError:
        if domain.isActive():
            raise


def _point(domain: Any, snapshot: Any, operation: ops.SnapshotRevert) -> None:
    """Let libvirt know the new overlays as those of the snapshot: what it takes and merges from here on is right."""
    root = ElementTree.fromstring(snapshot.getXMLDesc(SECURE))
    for swap in operation.swaps:
        for disk in root.findall("disks/disk[@snapshot='external']"):
            source = disk.find("source")
            if disk.get("name") == swap.target and source is not None:
                source.set("file", swap.path)
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT
    domain.snapshotCreateXML(ElementTree.tostring(root, encoding="unicode"), flags)
