"""DNS of a network as libvirt writes it down: forwarders, hosts, TXT and SRV records."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field, fields

from kvmd import xmlmap
from kvmd.plan.difference import at
from kvmd.xmlmap import Element, Place


@dataclass(frozen=True, slots=True, order=True)
class Forwarder:
    """Who is asked for names, of one domain or all."""

    domain: str = field(default="", metadata=at("domain"))
    address: str = field(default="", metadata=at("address"))


@dataclass(frozen=True, slots=True, order=True)
class DnsHost:
    """An address with its names."""

    ip: str = field(metadata=at("ip"))
    names: tuple[str, ...] = field(metadata=at("names"))


@dataclass(frozen=True, slots=True, order=True)
class Txt:
    """A TXT record."""

    name: str = field(metadata=at("name"))
    value: str = field(metadata=at("value"))


@dataclass(frozen=True, slots=True, order=True)
class Srv:
    """An SRV record; 0 and "" are what nobody wrote."""

    service: str = field(metadata=at("service"))
    protocol: str = field(metadata=at("protocol"))
    domain: str = field(default="", metadata=at("domain"))
    target: str = field(default="", metadata=at("target"))
    port: int = field(default=0, metadata=at("port"))
    priority: int = field(default=0, metadata=at("priority"))
    weight: int = field(default=0, metadata=at("weight"))


Record = DnsHost | Txt | Srv
SECTIONS = {"dns.hosts": "dns-host", "dns.txt": "dns-txt", "dns.srv": "dns-srv"}


def element_of(record: Record) -> Element:
    """The element of a record."""
    match record:
        case DnsHost(ip=ip, names=names):
            element = ElementTree.Element("host", {"ip": ip})
            for name in names:
                ElementTree.SubElement(element, "hostname").text = name
            return element
        case Txt(name=name, value=value):
            return ElementTree.Element("txt", {"name": name, "value": value})
        case Srv():
            values = {item.name: getattr(record, item.name) for item in fields(record)}
            return ElementTree.Element("srv", {name: str(value) for name, value in values.items() if value})


def key_element_of(record: Record) -> Element:
    """What names a record in a removal: a host by its address alone, since libvirt would look for its names, too."""
    return ElementTree.Element("host", {"ip": record.ip}) if isinstance(record, DnsHost) else element_of(record)


def _hosts_get(root: Element) -> tuple[DnsHost, ...]:
    found = root.findall("dns/host")
    names = (tuple(sorted(name.text or "" for name in item.findall("hostname"))) for item in found)
    return tuple(sorted(DnsHost(item.get("ip", ""), each) for item, each in zip(found, names, strict=True)))


def _txt_get(root: Element) -> tuple[Txt, ...]:
    return tuple(sorted(Txt(item.get("name", ""), item.get("value", "")) for item in root.findall("dns/txt")))


def _srv_get(root: Element) -> tuple[Srv, ...]:
    numbers = ("port", "priority", "weight")
    return tuple(
        sorted(
            Srv(
                item.get("service", ""),
                item.get("protocol", ""),
                item.get("domain", ""),
                item.get("target", ""),
                *(int(item.get(name) or 0) for name in numbers),
            )
            for item in root.findall("dns/srv")
        )
    )


def _forwarders_get(root: Element) -> tuple[Forwarder, ...]:
    """In order: with strict-order dnsmasq asks the first one first."""
    return tuple(Forwarder(item.get("domain", ""), item.get("addr", "")) for item in root.findall("dns/forwarder"))


def _forwarders_put(root: Element, forwarders: tuple[Forwarder, ...]) -> None:
    words = ({"domain": item.domain, "addr": item.address} for item in forwarders)
    elements = [
        ElementTree.Element("forwarder", {key: value for key, value in each.items() if value}) for each in words
    ]
    _replace(root, "forwarder", elements)


def _records_put(tag: str) -> Place:
    getter = {"host": _hosts_get, "txt": _txt_get, "srv": _srv_get}[tag]
    return Place(getter, lambda root, records: _replace(root, tag, [element_of(record) for record in records]))


def _replace(root: Element, tag: str, elements: list[Element]) -> None:
    xmlmap.cut(root, f"dns/{tag}")
    if elements:
        dns = xmlmap.reach(root, "dns")
        dns.extend(elements)
    dns_or_none = root.find("dns")
    if dns_or_none is not None and not len(dns_or_none) and not dns_or_none.attrib:
        xmlmap.cut(root, "dns")


FORWARDERS = Place(_forwarders_get, _forwarders_put)
HOSTS, TXT, SRV = (_records_put(tag) for tag in ("host", "txt", "srv"))
