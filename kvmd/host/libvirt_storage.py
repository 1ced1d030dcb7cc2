"""Calls of libvirt that storage needs; each takes the connection and raises libvirtError."""

from __future__ import annotations

import contextlib
from typing import Any

import libvirt

from kvmd import ops


def find_pool(connection: Any, uuid: str) -> Any:
    """The pool of that UUID."""
    return connection.storagePoolLookupByUUIDString(uuid)


def start_pool(connection: Any, uuid: str) -> None:
    """Start a pool unless it runs."""
    pool = find_pool(connection, uuid)
    if not pool.isActive():
        pool.create(0)


def undefine_pool(connection: Any, uuid: str) -> None:
    """Stop and undefine a pool; what lies in its directory is not looked at."""
    try:
        pool = find_pool(connection, uuid)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_POOL:
            return
        raise
    if pool.isActive():
        pool.destroy()
    if pool.isPersistent():
        pool.undefine()


def refresh_pool(connection: Any, name: str) -> None:
    """Let libvirt list a pool again, so that `virsh vol-list` shows what is there; it is not needed for more."""
    with contextlib.suppress(libvirt.libvirtError):
        connection.storagePoolLookupByName(name).refresh(0)


def pool_paths(connection: Any) -> list[str]:
    """The directories of all pools."""
    import xml.etree.ElementTree as ElementTree

    paths = (ElementTree.fromstring(pool.XMLDesc(0)).findtext("target/path") for pool in _pools(connection))
    return [path for path in paths if path]


def _pools(connection: Any) -> list[Any]:
    try:
        return list(connection.listAllStoragePools(0))
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
            return []
        raise


def domains_naming(connection: Any, path: str) -> list[str]:
    """The domains whose definition or running self names that file."""
    found = []
    for domain in connection.listAllDomains(0):
        texts = [domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), domain.XMLDesc(0)]
        if any(f"'{path}'" in text or f">{path}<" in text for text in texts):
            found.append(domain.name())
    return found


def resize_block(connection: Any, operation: ops.VolumeGrow) -> None:
    """Let QEMU make the disk of a running guest larger; the guest sees it at once."""
    domain = connection.lookupByUUIDString(operation.uuid)
    domain.blockResize(operation.path, operation.capacity, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
