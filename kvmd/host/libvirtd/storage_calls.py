"""Calls of libvirt that storage needs; each takes the connection and raises libvirtError."""

from __future__ import annotations

import contextlib
import os
import xml.etree.ElementTree as ElementTree
from typing import Any

import libvirt

from kvmd import ops
from kvmd.host.storage.backing import source_of
from kvmd.host.storage.bases import real_bases


def find_pool(connection: Any, uuid: str) -> Any:
    """The pool of that UUID."""
    return connection.storagePoolLookupByUUIDString(uuid)


def pool_at(connection: Any, uuid: str) -> tuple[str, str] | None:
    """Name and directory of the pool of that UUID, or None where there is none."""
    pool = next((pool for pool in _pools(connection) if pool.UUIDString() == uuid), None)
    if pool is None:
        return None
    return pool.name(), ElementTree.fromstring(pool.XMLDesc(0)).findtext("target/path") or ""


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
        if any(_names(text, path) for text in _texts(domain)):
            found.append(domain.name())
    return found


def domains_standing_on(connection: Any, path: str) -> list[str]:
    """The same, under whatever name, and those with a disk that stands on it, wherever that lies."""
    real = os.path.realpath(path)
    domains = connection.listAllDomains(0)
    return [domain.name() for domain in domains if any(_needs(text, path, real) for text in _texts(domain))]


def _texts(domain: Any) -> tuple[str, str]:
    return domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), domain.XMLDesc(0)


def _names(text: str, path: str) -> bool:
    return f"'{path}'" in text or f">{path}<" in text


def _needs(text: str, path: str, real: str) -> bool:
    if _names(text, path):
        return True
    root = ElementTree.fromstring(text)
    boot = [root.findtext(place) or "" for place in ("os/kernel", "os/initrd")]
    if any(os.path.realpath(name) == real for name in boot if name):
        return True
    disks = (source_of(disk) for disk in root.findall("devices/disk"))
    return any(os.path.realpath(name) == real or real in real_bases(name, format) for name, format in disks if name)


def resize_block(connection: Any, operation: ops.VolumeGrow) -> None:
    """Let QEMU make the disk of a running guest larger; the guest sees it at once."""
    domain = connection.lookupByUUIDString(operation.uuid)
    domain.blockResize(operation.path, operation.capacity, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
