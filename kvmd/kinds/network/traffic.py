"""Bandwidth, port groups and routes of a network as libvirt writes them down."""

from __future__ import annotations

import ipaddress
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field

from kvmd import xmlmap
from kvmd.api.bandwidth import KIBIBYTE, KILOBYTE
from kvmd.plan.difference import at
from kvmd.xmlmap import Element, Place

_UNITS = {"average": KILOBYTE, "peak": KILOBYTE, "burst": KIBIBYTE}


@dataclass(frozen=True, slots=True)
class Rate:
    """A limit in one direction: bytes a second, and bytes of the burst; 0 is what nobody wrote."""

    average: int = field(default=0, metadata=at("average"))
    peak: int = field(default=0, metadata=at("peak"))
    burst: int = field(default=0, metadata=at("burst"))


@dataclass(frozen=True, slots=True)
class PortGroup:
    """A group of guests' NICs with limits of its own."""

    name: str = field(metadata=at("name"))
    default: bool = field(default=False, metadata=at("default"))
    inbound: Rate | None = field(default=None, metadata=at("bandwidth.inbound"))
    outbound: Rate | None = field(default=None, metadata=at("bandwidth.outbound"))


@dataclass(frozen=True, slots=True, order=True)
class StaticRoute:
    """A route of the host through the network."""

    to: str = field(metadata=at("to"))
    via: str = field(metadata=at("via"))
    metric: int = field(default=0, metadata=at("metric"))


def _rate_get(root: Element, direction: str) -> Rate | None:
    element = root.find(f"bandwidth/{direction}")
    if element is None:
        return None
    return Rate(*(int(element.get(name) or 0) * unit for name, unit in _UNITS.items()))


def _rate_put(root: Element, direction: str, rate: Rate | None) -> None:
    """Keep what else libvirt knows of that direction (floor)."""
    if rate is None:
        xmlmap.cut(root, f"bandwidth/{direction}")
        bandwidth = root.find("bandwidth")
        if bandwidth is not None and not len(bandwidth):
            root.remove(bandwidth)
        return
    element = xmlmap.reach(root, f"bandwidth/{direction}")
    for name, unit in _UNITS.items():
        element.attrib.pop(name, None)
        if value := getattr(rate, name):
            element.set(name, str(value // unit))


def rate(direction: str) -> Place:
    """The limit of a direction: inbound is what comes to the guests."""
    return Place(lambda root: _rate_get(root, direction), lambda root, value: _rate_put(root, direction, value))


def group_of(element: Element) -> PortGroup:
    """The port group that an element declares."""
    limits = (_rate_get(element, direction) for direction in ("inbound", "outbound"))
    return PortGroup(element.get("name", ""), element.get("default") == "yes", *limits)


def _groups_get(root: Element) -> tuple[PortGroup, ...]:
    return tuple(sorted(map(group_of, root.findall("portgroup")), key=lambda group: group.name))


def lay_group(element: Element, group: PortGroup) -> Element:
    """Write a port group over its element; what no word of ours is about (VLANs, virtual ports) stays."""
    element.set("name", group.name)
    element.attrib.pop("default", None)
    if group.default:
        element.set("default", "yes")
    _rate_put(element, "inbound", group.inbound)
    _rate_put(element, "outbound", group.outbound)
    return element


def _groups_put(root: Element, groups: tuple[PortGroup, ...]) -> None:
    present = {element.get("name", ""): element for element in root.findall("portgroup")}
    wanted = {group.name for group in groups}
    for name, element in present.items():
        if name not in wanted:
            root.remove(element)
    for group in groups:
        found = present.get(group.name)
        lay_group(ElementTree.SubElement(root, "portgroup") if found is None else found, group)


def _routes_get(root: Element) -> tuple[StaticRoute, ...]:
    found = []
    for item in root.findall("route"):
        address = item.get("address", "")
        prefix = item.get("prefix") or item.get("netmask") or ("128" if ":" in address else "32")
        to = str(ipaddress.ip_network(f"{address}/{prefix}", strict=False))
        found.append(StaticRoute(to, item.get("gateway", ""), int(item.get("metric") or 0)))
    return tuple(sorted(found))


def _routes_put(root: Element, routes: tuple[StaticRoute, ...]) -> None:
    xmlmap.cut(root, "route")
    for route in routes:
        to = ipaddress.ip_network(route.to)
        words = {"address": str(to.network_address), "prefix": str(to.prefixlen), "gateway": route.via}
        words |= {"family": "ipv6"} if to.version == 6 else {}
        ElementTree.SubElement(root, "route", words | ({"metric": str(route.metric)} if route.metric else {}))


PORT_GROUPS = Place(_groups_get, _groups_put)
ROUTES = Place(_routes_get, _routes_put)
