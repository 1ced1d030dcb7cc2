"""Passwords of disks: libvirt has each only while a call lasts that opens the disk, and writes it nowhere.

The XML of a disk says by the usage of its secret where the password is read (``kvmd:`` and the name): whoever reads
the XML learns the place and not the word. QEMU keeps for itself what it needs to log in again.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import threading
import uuid
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote

import libvirt

from kvmd.errors import Retry
from kvmd.host.secrets import password_from

USAGE = "kvmd:"
_SPACE = uuid.UUID("5c2a6a53-6f6e-4b53-9b0d-5a1a5b6a7c11")
_lock = threading.Lock()
_lent: dict[str, int] = {}  # how many calls need each now


@contextlib.contextmanager
def lent(connection: Any, xml: str) -> Iterator[None]:
    """Let libvirt have the passwords that this XML names, until the block ends. Raises Retry or libvirtError."""
    secrets = _secrets(xml) if USAGE in xml else ()
    with contextlib.ExitStack() as stack:
        for kind, name in secrets:
            stack.enter_context(_one(connection, kind, name))
        yield


def _secrets(xml: str) -> tuple[tuple[str, str], ...]:
    """Type (iscsi or ceph) and name of each."""
    found = ElementTree.fromstring(xml).iter("secret")
    usages = ((secret.get("type", ""), secret.get("usage", "")) for secret in found)
    ours = ((kind, unquote(usage.removeprefix(USAGE))) for kind, usage in usages if usage.startswith(USAGE))
    return tuple(dict.fromkeys(ours))


def value_of(kind: str, name: str) -> bytes:
    """What libvirt is to know: a password, or the key of Ceph that its keyring has in base64. Raises Retry."""
    word = password_from(name)
    if kind != "ceph":
        return word.encode()
    try:
        return base64.b64decode(word, validate=True)
    except binascii.Error:
        hint = "write the key alone, as `ceph auth get-key client.NAME` prints it"
        raise Retry(f"{name}: what is read there is no key of Ceph", hint=hint) from None


@contextlib.contextmanager
def _one(connection: Any, kind: str, name: str) -> Iterator[None]:
    secret = f"{kind} {name}"
    value, identity = value_of(kind, name), str(uuid.uuid5(_SPACE, secret))
    with _lock:
        connection.secretDefineXML(definition(kind, name, identity)).setValue(value)
        _lent[secret] = _lent.get(secret, 0) + 1
    try:
        yield
    finally:
        with _lock:
            _lent[secret] -= 1
            if not _lent[secret]:
                del _lent[secret]
                with contextlib.suppress(libvirt.libvirtError):  # of a libvirtd that died meanwhile: it is gone
                    connection.secretLookupByUUIDString(identity).undefine()


def definition(kind: str, name: str, identity: str) -> str:
    """Ephemeral: never on disk. Private: nobody reads its value."""
    root = ElementTree.Element("secret", {"ephemeral": "yes", "private": "yes"})
    ElementTree.SubElement(root, "uuid").text = identity
    ElementTree.SubElement(root, "description").text = "lent by kvmd to one call"
    usage = ElementTree.SubElement(root, "usage", {"type": kind})
    ElementTree.SubElement(usage, "name" if kind == "ceph" else "target").text = USAGE + quote(name, safe="")
    return ElementTree.tostring(root, encoding="unicode")
