"""A subnet of a network as libvirt writes it down: its address, DHCP and what machines boot from."""

from __future__ import annotations

import ipaddress
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field

from kvmd import xmlmap
from kvmd.plan.difference import at
from kvmd.xmlmap import Element, Place

_SECONDS = {"seconds": 1, "minutes": 60, "hours": 3600}


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """A range of DHCP; *lease* in seconds, None where nobody wrote one."""

    start: str = field(metadata=at("start"))
    end: str = field(metadata=at("end"))
    lease: int | None = field(default=None, metadata=at("leaseSeconds"))


@dataclass(frozen=True, slots=True, order=True)
class Host:
    """A reservation: of IPv4 by MAC, of IPv6 by DUID or name."""

    mac: str = field(metadata=at("mac"))
    ip: str = field(metadata=at("ip"))
    name: str = field(default="", metadata=at("name"))
    id: str = field(default="", metadata=at("id"))
    lease: int | None = field(default=None, metadata=at("leaseSeconds"))


@dataclass(frozen=True, slots=True)
class Subnet:
    """One subnet; its name is its address."""

    name: str
    ranges: tuple[Range, ...] = field(default=(), metadata=at("dhcp.ranges"))
    hosts: tuple[Host, ...] = field(default=(), metadata=at("dhcp.hosts"))
    tftp: str = field(default="", metadata=at("tftp"))
    bootp: tuple[str, str] | None = field(default=None, metadata=at("dhcp.bootp"))  # file, server


def subnet_of(ip: Element) -> Subnet:
    """The subnet that an ``<ip>`` declares."""
    tftp, bootp = ip.find("tftp"), ip.find("dhcp/bootp")
    return Subnet(
        _cidr(ip),
        tuple(
            sorted((_range(item) for item in ip.findall("dhcp/range")), key=lambda found: (found.start, found.end))
        ),
        tuple(sorted((_host(item) for item in ip.findall("dhcp/host")), key=lambda found: (found.mac, found.ip))),
        "" if tftp is None else tftp.get("root", ""),
        None if bootp is None else (bootp.get("file", ""), bootp.get("server", "")),
    )


def _cidr(ip: Element) -> str:
    address = ip.get("address", "")
    prefix = ip.get("prefix") or ip.get("netmask") or ("64" if ":" in address else "24")
    return str(ipaddress.ip_interface(f"{address}/{prefix}"))


def _range(item: Element) -> Range:
    return Range(item.get("start", ""), item.get("end", ""), _lease_get(item))


def _host(item: Element) -> Host:
    return Host(
        (item.get("mac") or "").lower(),
        item.get("ip", ""),
        item.get("name") or "",
        item.get("id") or "",
        _lease_get(item),
    )


def _lease_get(item: Element) -> int | None:
    lease = item.find("lease")
    return None if lease is None else int(lease.get("expiry", "0")) * _SECONDS[lease.get("unit", "minutes")]


def _with_lease(element: Element, seconds: int | None) -> Element:
    if seconds is not None:
        ElementTree.SubElement(element, "lease", {"expiry": str(seconds), "unit": "seconds"})
    return element


def range_element(item: Range) -> Element:
    """A range of DHCP."""
    return _with_lease(ElementTree.Element("range", {"start": item.start, "end": item.end}), item.lease)


def host_element(host: Host) -> Element:
    """A reservation: MAC or DUID, name, address."""
    words = {"mac": host.mac, "id": host.id, "name": host.name, "ip": host.ip}
    element = ElementTree.Element("host", {key: value for key, value in words.items() if value})
    return _with_lease(element, host.lease)


def _subnets_get(root: Element) -> tuple[Subnet, ...]:
    return tuple(sorted((subnet_of(ip) for ip in root.findall("ip")), key=lambda subnet: subnet.name))


def _subnets_put(root: Element, subnets: tuple[Subnet, ...]) -> None:
    """Write what is inside ``<ip>`` whole; its attributes stay (localPtr, for which there is no word)."""
    present = {_cidr(ip): ip for ip in root.findall("ip")}
    xmlmap.cut(root, "ip")
    for subnet in subnets:
        interface = ipaddress.ip_interface(subnet.name)
        words = {"address": str(interface.ip), "prefix": str(interface.network.prefixlen)}
        ip = present.get(subnet.name)
        ip = ElementTree.SubElement(root, "ip", words) if ip is None else ip
        if subnet.name in present:
            root.append(ip)
        if interface.version == 6:
            ip.set("family", "ipv6")
        for child in list(ip):
            ip.remove(child)
        if subnet.tftp:
            ElementTree.SubElement(ip, "tftp", {"root": subnet.tftp})
        if subnet.ranges or subnet.hosts or subnet.bootp:
            _put_dhcp(ElementTree.SubElement(ip, "dhcp"), subnet)


def _put_dhcp(dhcp: Element, subnet: Subnet) -> None:
    dhcp.extend(map(range_element, subnet.ranges))
    dhcp.extend(map(host_element, subnet.hosts))
    if subnet.bootp is not None:
        file, server = subnet.bootp
        ElementTree.SubElement(dhcp, "bootp", {"file": file} | ({"server": server} if server else {}))


SUBNETS = Place(_subnets_get, _subnets_put)
