"""Passwords of disks: libvirt has each only while a call lasts that opens the disk, and writes it nowhere.

The XML of a disk says by the usage of its secret where the password is read (``kvmd:`` and the name): whoever reads
the XML learns the place and not the word. QEMU keeps for itself what it needs to log in again.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote

import libvirt

from kvmd.host.secrets import password_from

USAGE = "kvmd:"
_SPACE = uuid.UUID("5c2a6a53-6f6e-4b53-9b0d-5a1a5b6a7c11")
_lock = threading.Lock()
_lent: dict[str, int] = {}  # how many calls need each now


@contextlib.contextmanager
def lent(connection: Any, xml: str) -> Iterator[None]:
    """Let libvirt have the passwords that this XML names, until the block ends. Raises Retry or libvirtError."""
    names = _names(xml) if USAGE in xml else ()
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(_one(connection, name))
        yield


def _names(xml: str) -> tuple[str, ...]:
    usages = (secret.get("usage", "") for secret in ElementTree.fromstring(xml).iter("secret"))
    return tuple(dict.fromkeys(unquote(usage.removeprefix(USAGE)) for usage in usages if usage.startswith(USAGE)))


@contextlib.contextmanager
def _one(connection: Any, name: str) -> Iterator[None]:
    word, identity = password_from(name), str(uuid.uuid5(_SPACE, name))
    with _lock:
        connection.secretDefineXML(_definition(name, identity)).setValue(word.encode())
        _lent[name] = _lent.get(name, 0) + 1
    try:
        yield
    finally:
        with _lock:
            _lent[name] -= 1
            if not _lent[name]:
                del _lent[name]
                with contextlib.suppress(libvirt.libvirtError):  # of a libvirtd that died meanwhile: it is gone
                    connection.secretLookupByUUIDString(identity).undefine()


def _definition(name: str, identity: str) -> str:
    """Ephemeral: never on disk. Private: nobody reads its value."""
    root = ElementTree.Element("secret", {"ephemeral": "yes", "private": "yes"})
    ElementTree.SubElement(root, "uuid").text = identity
    ElementTree.SubElement(root, "description").text = "lent by kvmd to one call"
    usage = ElementTree.SubElement(root, "usage", {"type": "iscsi"})
    ElementTree.SubElement(usage, "target").text = USAGE + quote(name, safe="")
    return ElementTree.tostring(root, encoding="unicode")
