"""A network as libvirt writes it down: XML read into a state, and a state laid over XML."""

from __future__ import annotations

import ipaddress
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field

from kvmd import xmlmap
from kvmd.api.mark import Mark, put_into
from kvmd.plan.difference import LEAVE, Leave, at
from kvmd.xmlmap import Element


@dataclass(frozen=True, slots=True)
class Subnet:
    """One subnet; its name is its address."""

    name: str
    ranges: tuple[tuple[str, str], ...] = ()
    hosts: tuple[tuple[str, str, str], ...] = ()  # MAC, IP, name


def _subnets_get(root: Element) -> tuple[Subnet, ...]:
    return tuple(sorted((subnet_of(ip) for ip in root.findall("ip")), key=lambda subnet: subnet.name))


def subnet_of(ip: Element) -> Subnet:
    """The subnet that an ``<ip>`` declares."""
    address = ip.get("address", "")
    prefix = ip.get("prefix") or ip.get("netmask") or ("64" if ":" in address else "24")
    cidr = str(ipaddress.ip_interface(f"{address}/{prefix}"))
    ranges = sorted((item.get("start", ""), item.get("end", "")) for item in ip.findall("dhcp/range"))
    hosts = sorted(
        ((item.get("mac") or "").lower(), item.get("ip", ""), item.get("name") or "")
        for item in ip.findall("dhcp/host")
    )
    return Subnet(cidr, tuple(ranges), tuple(hosts))


def _subnets_put(root: Element, subnets: tuple[Subnet, ...]) -> None:
    """Write subnets whole: libvirt adds nothing of its own inside ``<ip>``."""
    for old in root.findall("ip"):
        root.remove(old)
    for subnet in subnets:
        interface = ipaddress.ip_interface(subnet.name)
        ip = ElementTree.SubElement(
            root, "ip", {"address": str(interface.ip), "prefix": str(interface.network.prefixlen)}
        )
        if interface.version == 6:
            ip.set("family", "ipv6")
        if subnet.ranges or subnet.hosts:
            dhcp = ElementTree.SubElement(ip, "dhcp")
            for start, end in subnet.ranges:
                ElementTree.SubElement(dhcp, "range", {"start": start, "end": end})
            for host in subnet.hosts:
                dhcp.append(host_element(host))


def host_element(host: tuple[str, str, str]) -> Element:
    """A reservation: MAC, address, name."""
    mac, ip, name = host
    element = ElementTree.Element("host", {"mac": mac})
    if name:
        element.set("name", name)
    element.set("ip", ip)
    return element


def _forward_get(root: Element) -> str:
    forward = root.find("forward")
    return "isolated" if forward is None else forward.get("mode", "nat")


def _forward_put(root: Element, mode: str) -> None:
    if mode == "isolated":
        xmlmap.cut(root, "forward")
    elif mode != _forward_get(root):
        xmlmap.cut(root, "forward")
        ElementTree.SubElement(root, "forward", {"mode": mode})


def _mtu_put(root: Element, size: int | None) -> None:
    xmlmap.cut(root, "mtu")
    if size is not None:
        ElementTree.SubElement(root, "mtu", {"size": str(size)})


@dataclass(frozen=True, slots=True)
class State:
    """A network as it is or should be."""

    forward: str = field(metadata=at("forward.mode", xml=xmlmap.Place(_forward_get, _forward_put)))
    bridge: str | Leave | None = field(metadata=at("bridge.name", xml=xmlmap.attribute("bridge", "name")))
    stp: bool | None = field(
        metadata=at("bridge.stp", xml=xmlmap.attribute("bridge", "stp", {"on": True, "off": False}))
    )
    domain: str | None = field(metadata=at("domain.name", xml=xmlmap.attribute("domain", "name")))
    mtu: int | None = field(
        metadata=at("mtu", xml=xmlmap.Place(xmlmap.number(xmlmap.attribute("mtu", "size")).get, _mtu_put))
    )
    subnets: tuple[Subnet, ...] | Leave = field(metadata=at("ips", xml=xmlmap.Place(_subnets_get, _subnets_put)))


def overlay(base: str, want: State, mark: Mark, paths: set[str] | None) -> str:
    """Overlay what is wanted (all of it, or the paths that changed) and the mark on a definition."""
    root = xmlmap.parse(base)
    if want.bridge is LEAVE:
        paths = (
            {"forward.mode", "bridge.stp", "domain.name", "mtu", "ips"} if paths is None else paths - {"bridge.name"}
        )
    if paths is None or "bridge.name" in paths:
        xmlmap.reach(root, "bridge")
    xmlmap.write(want, root, lambda path: paths is None or path in paths)
    put_into(root, mark)
    return xmlmap.serialise(root)
