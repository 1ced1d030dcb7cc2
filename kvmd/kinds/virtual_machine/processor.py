"""Features of the virtual CPU: the spec, and where they stand in a domain's XML."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from typing import Any, Literal

from kvmd import xmlmap
from kvmd.api.quantity import Text
from kvmd.api.resource import SpecModel
from kvmd.api.schema import Update, leaf
from kvmd.xmlmap import Element, Place

Features = tuple[tuple[str, str], ...]


class Feature(SpecModel):
    """A feature of the CPU beside those of its model."""

    name: Text = leaf(about="Its name in libvirt.", example="aes", update=Update.NEXT_BOOT, min_length=1)
    policy: Literal["require", "optional", "disable", "forbid", "force"] = leaf(
        "require",
        about="require: the guest has it, or does not start. optional: where the host has it. disable: it has it "
        "not. forbid: nor may the host. force: it sees it in any case.",
        example="disable",
        update=Update.NEXT_BOOT,
    )


def features_said(written: Any) -> Features | None:
    """The features of a spec as it was written; None for none."""
    items = written if isinstance(written, list | tuple) else ()
    named = (item for item in items if isinstance(item, Mapping))
    found = ((str(item.get("name")), str(item.get("policy", "require"))) for item in named)
    return tuple(sorted(found)) or None


def _features_get(root: Element) -> Features | None:
    found = root.findall("cpu/feature")
    return tuple(sorted((item.get("name", ""), item.get("policy", "require")) for item in found)) or None


def _features_put(root: Element, features: Features | None) -> None:
    xmlmap.cut(root, "cpu/feature")
    for name, policy in features or ():
        ElementTree.SubElement(xmlmap.reach(root, "cpu"), "feature", {"policy": policy, "name": name})


FEATURES = Place(_features_get, _features_put)
