"""Marks: how an object on the host says that kvmd made it, from what, and for whom.

Domains and networks carry the whole mark as XML metadata; a link's ``ifalias`` has room for its first part.
A mark names the very object it was written on, so a copy of it proves nothing.
"""

from __future__ import annotations

import json
import uuid
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from kvmd.api.resource import EMPTY, Ref, Resource, steering, with_shared_keys

XML_NAMESPACE = "https://kvmd.dev/xmlns/libvirt/1"
XML_PREFIX = "kvmd"
_TAG = f"{{{XML_NAMESPACE}}}mark"
_ALIAS_VERSION = "kvmd:v1"
_NAMESPACE_UUID = uuid.UUID("6d9e8a53-6a0f-5a3e-9a2a-0c8d4f6f6b11")

ElementTree.register_namespace(XML_PREFIX, XML_NAMESPACE)


@dataclass(frozen=True, slots=True)
class Mark:
    """*object_id* is the UUID (libvirt) of the object that carries the mark; links have none.

    *written* is the spec as it was last applied, its sensitive leaves by their digest; *resolved* is what the host
    made of words such as ``auto``.
    """

    owner: str
    ref: Ref
    spec_hash: str
    generation: int = 1
    object_id: str = ""
    source: str = ""
    written: Mapping[str, Any] = field(default_factory=lambda: EMPTY, hash=False)
    annotations: Mapping[str, str] = field(default_factory=lambda: EMPTY, hash=False)
    resolved: Mapping[str, str] = field(default_factory=lambda: EMPTY, hash=False)

    @classmethod
    def of(cls, resource: Resource, owner: str, object_id: str = "", before: Mark | None = None) -> Mark:
        """The mark that *resource* asks for; the generation rises where the meaning differs from *before*."""
        generation = 1
        if before is not None:
            generation = before.generation + (before.spec_hash not in (resource.spec_hash, resource.former_hash))
        return cls(
            owner=owner,
            ref=resource.ref,
            spec_hash=resource.spec_hash,
            generation=generation,
            object_id=object_id,
            source=resource.position.file,
            written=resource.readable,
            annotations=resource.metadata.annotations,
        )

    def with_resolved(self, resolved: Mapping[str, str]) -> Mark:
        """The same mark with what the host made of the spec's words."""
        return replace(self, resolved=dict(resolved))

    def as_element(self) -> ElementTree.Element:
        """The XML form, with its prefix as plain text: to write a namespace takes twice as long."""
        element = ElementTree.Element(f"{XML_PREFIX}:mark", {f"xmlns:{XML_PREFIX}": XML_NAMESPACE})
        element.set("owner", self.owner)
        element.set("ref", str(self.ref))
        element.set("uuid", self.object_id)
        element.set("specHash", self.spec_hash)
        element.set("generation", str(self.generation))
        element.set("source", self.source)
        details = {
            "written": self.written,
            "annotations": dict(self.annotations),
            "resolved": dict(self.resolved),
        }
        element.text = json.dumps(details, sort_keys=True, separators=(",", ":"))
        return element

    def as_metadata(self) -> str:
        """The text that libvirt's call for metadata takes: it adds the namespace itself."""
        element = self.as_element()
        element.tag = "mark"
        del element.attrib[f"xmlns:{XML_PREFIX}"]
        return ElementTree.tostring(element, encoding="unicode")

    @classmethod
    def from_element(cls, element: ElementTree.Element) -> Mark | None:
        """Read the XML form; a mark that nobody can read is no mark."""
        try:
            details = json.loads(element.text or "{}", object_pairs_hook=with_shared_keys)
            tables = [details.get(name, {}) for name in ("written", "annotations", "resolved")]
            if not all(isinstance(table, dict) for table in tables):
                return None
            written, annotations, resolved = tables
            return cls(
                owner=element.attrib["owner"],
                ref=Ref.parse(element.attrib["ref"]),
                spec_hash=element.attrib["specHash"],
                generation=int(element.attrib["generation"]),
                object_id=element.attrib["uuid"],
                source=element.get("source", ""),
                written=written,
                annotations=annotations,
                resolved=resolved,
            )
        except (KeyError, ValueError, AttributeError, RecursionError):
            return None

    def as_alias(self) -> str:
        """The form that fits a link's ``ifalias`` (at most 254 bytes)."""
        return f"{_ALIAS_VERSION}:{self.owner}:{self.ref}:{self.generation}:{self.spec_hash[:16]}"

    @classmethod
    def from_alias(cls, alias: str | None) -> Mark | None:
        """Read the form of ``as_alias``."""
        parts = (alias or "").rsplit(":", 4)
        if len(parts) != 5 or parts[0] != _ALIAS_VERSION or "/" not in parts[2] or not parts[3].isdecimal():
            return None
        return cls(owner=parts[1], ref=Ref.parse(parts[2]), spec_hash=parts[4], generation=int(parts[3]))

    @property
    def retained(self) -> bool:
        """True where the object was let go of, and only a spec of the same name may take it back."""
        return self.generation == 0

    def as_text(self) -> str:
        """The XML form as text, for what holds text only (extended attributes, side files)."""
        return ElementTree.tostring(self.as_element(), encoding="unicode")

    @classmethod
    def from_text(cls, text: str) -> Mark | None:
        """Read the form of ``as_text``."""
        try:
            return cls.from_element(ElementTree.fromstring(text))
        except (ElementTree.ParseError, ValueError):
            return None

    def says_the_same_as(self, other: Mark) -> bool:
        """True where both record the same wish (where it came from and free annotations aside).

        A restart would be asked for at each boot if the mark kept an old ``restarted-at``.
        """
        return (
            self.spec_hash[:16] == other.spec_hash[:16]
            and self.resolved == other.resolved
            and steering(self.annotations) == steering(other.annotations)
        )


def find_in(root: ElementTree.Element) -> Mark | None:
    """Return the mark in the metadata of a libvirt object."""
    element = root.find(f"metadata/{_TAG}")
    return None if element is None else Mark.from_element(element)


def put_into(root: ElementTree.Element, mark: Mark | None) -> None:
    """Replace (or, with None, take off) the mark in the metadata of a libvirt object."""
    metadata = root.find("metadata")
    if metadata is None:
        metadata = ElementTree.Element("metadata")
        root.insert(0, metadata)
    for old in metadata.findall(_TAG):
        metadata.remove(old)
    if mark is not None:
        metadata.append(mark.as_element())
    if len(metadata) == 0:
        root.remove(metadata)


def derived_uuid(machine_id: str, owner: str, ref: Ref) -> str:
    """The UUID that an object gets at creation: two hosts never share one."""
    return str(uuid.uuid5(_NAMESPACE_UUID, f"{machine_id}/{owner}/{ref}"))


@lru_cache(maxsize=4096)  # asked for at each look
def derived_mac(machine_id: str, owner: str, ref: Ref, interface: str) -> str:
    """The MAC that a NIC gets at creation, in QEMU's range 52:54:00."""
    digest = uuid.uuid5(_NAMESPACE_UUID, f"{machine_id}/{owner}/{ref}/{interface}").bytes
    return "52:54:00:" + ":".join(f"{octet:02x}" for octet in digest[:3])


def derived_port_mac(machine_id: str, owner: str, ref: Ref, interface: str) -> str:
    """The same for what may become a port: so high that no bridge, which takes the lowest of its ports, takes it."""
    return "fe" + derived_mac(machine_id, owner, ref, interface)[2:]
