"""One declaration per field: it reads XML, writes XML onto what is there, and so compares.

A state is a frozen dataclass whose fields carry ``xml``: where in an element the value stands. Writing overlays:
what the declaration does not name (addresses, controllers, what libvirt or others put there) stays.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, TypeVar
from xml.sax.saxutils import escape

StateT = TypeVar("StateT")
Element = ElementTree.Element

# https://libvirt.org/formatdomain.html#memory-allocation: scaled integers, KiB where no unit is written.
_UNITS = {"b": 1, "bytes": 1, "KB": 10**3, "k": 2**10, "KiB": 2**10, "MB": 10**6, "M": 2**20, "MiB": 2**20}
_UNITS |= {"GB": 10**9, "G": 2**30, "GiB": 2**30, "TB": 10**12, "T": 2**40, "TiB": 2**40}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands in an element: how it is read and how it is written (None takes it away)."""

    get: Callable[[Element], Any]
    put: Callable[[Element, Any], None]


def parse(text: str) -> Element:
    """Parse XML that libvirt gave us."""
    return ElementTree.fromstring(text)


def serialise(root: Element) -> str:
    """The text of an element, indented as libvirt indents.

    Our own few lines, since a plan of a thousand new machines spends a third of its time in ElementTree's; that one
    still writes what is in a namespace.
    """
    parts: list[str] = []
    _write_element(root, "\n", parts)
    return "".join(parts)


def _write_element(element: Element, indent: str, parts: list[str]) -> None:
    tag = element.tag
    if tag[0] == "{" or "{" in "".join(element.keys()):
        tail, element.tail = element.tail, None
        parts.append(ElementTree.tostring(element, encoding="unicode"))
        element.tail = tail
        return
    attributes = "".join([f' {name}="{_escaped(value)}"' for name, value in element.items()])
    text = _escaped(element.text) if element.text else ""
    if not len(element):
        parts.append(f"<{tag}{attributes}>{text}</{tag}>" if text else f"<{tag}{attributes} />")
        return
    parts.append(f"<{tag}{attributes}>{text if text.strip() else ''}")
    inner = f"{indent}  "
    for child in element:
        parts.append(inner)
        _write_element(child, inner, parts)
    parts.append(f"{indent}</{tag}>")


_SPECIAL = re.compile('[&<>"\r\n\t]')
_ENTITIES = {'"': "&quot;", "\r": "&#13;", "\n": "&#10;", "\t": "&#09;"}


def _escaped(text: str) -> str:
    return text if _SPECIAL.search(text) is None else escape(text, _ENTITIES)


def find(root: Element, path: str) -> Element | None:
    """Return the element at a path of plain tags, the first of each; ElementTree's own way costs three times that."""
    found: Element | None = root
    for tag in path.split("/"):
        if found is None:
            return None
        found = found.find(tag)
    return found


def children(root: Element, path: str) -> list[Element]:
    """Return every element of the last tag within the first of those before it."""
    above, _, tag = path.rpartition("/")
    parent = find(root, above) if above else root
    return [] if parent is None else parent.findall(tag)


def reach(root: Element, path: str) -> Element:
    """Return the element at a path of plain tags, making what is missing."""
    for tag in path.split("/"):
        child = root.find(tag)
        root = ElementTree.SubElement(root, tag) if child is None else child
    return root


def cut(root: Element, path: str) -> None:
    """Remove the element at a path, if it is there."""
    parent_path, _, tag = path.rpartition("/")
    parent = find(root, parent_path) if parent_path else root
    if parent is not None:
        for child in parent.findall(tag):
            parent.remove(child)


def attribute(path: str, name: str, words: Mapping[str, Any] | None = None) -> Place:
    """An attribute of the element at *path* ("" is the element itself); *words* maps XML words to values."""
    outward = {value: word for word, value in (words or {}).items()}

    def get(root: Element) -> Any:
        element = root if not path else find(root, path)
        text = None if element is None else element.get(name)
        return words.get(text, text) if words is not None and text is not None else text

    def put(root: Element, value: Any) -> None:
        element = root if not path else find(root, path)
        if value is None:
            if element is not None:
                element.attrib.pop(name, None)
                if path and not element.attrib and not len(element) and not (element.text or "").strip():
                    cut(root, path)  # libvirt's schema has no empty <link/> or <domain/>
            return
        if element is None:
            element = reach(root, path)
        element.set(name, str(outward.get(value, value)))

    return Place(get, put)


def text(path: str) -> Place:
    """The text of the element at *path*."""

    def get(root: Element) -> str | None:
        element = find(root, path)
        return None if element is None else element.text or ""

    def put(root: Element, value: Any) -> None:
        if value is None:
            cut(root, path)
        else:
            reach(root, path).text = str(value)

    return Place(get, put)


def number(place: Place) -> Place:
    """The same place, read as an integer."""

    def get(root: Element) -> int | None:
        value = place.get(root)
        return int(value) if value else None

    return Place(get, place.put)


def presence(path: str) -> Place:
    """True where the element is there."""

    def get(root: Element) -> bool:
        return find(root, path) is not None

    def put(root: Element, value: Any) -> None:
        if value:
            reach(root, path)
        else:
            cut(root, path)

    return Place(get, put)


def size(path: str) -> Place:
    """A scaled integer in bytes, written as KiB."""

    def get(root: Element) -> int | None:
        element = find(root, path)
        if element is None or not element.text:
            return None
        return int(element.text) * _UNITS.get(element.get("unit", "KiB"), 2**10)

    def put(root: Element, value: Any) -> None:
        if value is None:
            cut(root, path)
            return
        element = reach(root, path)
        element.set("unit", "KiB")
        element.text = str(value // 2**10)

    return Place(get, put)


def read(cls: type[StateT], root: Element, **given: Any) -> StateT:
    """Read every declared field of a state; fields without a place come from *given*."""
    values = dict(given)
    for name, _, place in _places(cls):  # type: ignore[arg-type]
        if name not in values:
            values[name] = place.get(root)
    return cls(**values)


@cache
def _places(cls: Any) -> tuple[tuple[str, str | None, Place], ...]:
    """Name, path in the spec and place of each declared field."""
    found = ((item.name, item.metadata.get("path"), item.metadata.get("xml")) for item in fields(cls))
    return tuple((name, path, place) for name, path, place in found if place is not None)


def write(state: Any, root: Element, only: Callable[[str], bool] = lambda path: True) -> None:
    """Overlay the declared fields of a state whose spec path *only* accepts and which differ from *root*."""
    for name, path, place in _places(type(state)):  # type: ignore[arg-type]
        if path is None or not only(path):
            continue
        value = getattr(state, name)
        if place.get(root) != value:
            place.put(root, value)
