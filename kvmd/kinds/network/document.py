"""A network as libvirt writes it down: XML read into a state, and a state laid over XML."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field, fields

from kvmd import xmlmap
from kvmd.api.mark import Mark, put_into
from kvmd.kinds.network.names import FORWARDERS, HOSTS, SRV, TXT, DnsHost, Forwarder, Srv, Txt
from kvmd.kinds.network.subnet import SUBNETS, Subnet
from kvmd.kinds.network.traffic import PORT_GROUPS, ROUTES, PortGroup, Rate, StaticRoute, rate
from kvmd.plan.difference import LEAVE, Leave, at
from kvmd.xmlmap import Element, Place

ROUTED = ("nat", "route", "open")  # the ways out that the host's own routing takes part in


def _forward_get(root: Element) -> str:
    forward = root.find("forward")
    return "isolated" if forward is None else forward.get("mode", "nat")


def _forward_put(root: Element, mode: str) -> None:
    """What stood beside another mode goes with it: NAT of a routed network, the addresses of a bridge of others."""
    before, forward = _forward_get(root), root.find("forward")
    if mode == before:
        return
    if forward is not None and {mode, before} == {"nat", "route"}:  # the link that they go out by stays
        forward.set("mode", mode)
        xmlmap.cut(root, "forward/nat")
        return
    xmlmap.cut(root, "forward")
    if mode != "isolated":
        ElementTree.SubElement(root, "forward", {"mode": mode})
    bridge = root.find("bridge")
    if mode == "bridge" and bridge is not None:
        for name in set(bridge.attrib) - {"name"}:
            del bridge.attrib[name]
    if mode == "bridge":
        xmlmap.cut(root, "mac")


def _device_get(root: Element) -> str | None:
    forward = root.find("forward")
    return None if forward is None else forward.get("dev")


def _device_put(root: Element, device: str | None) -> None:
    """libvirt writes it down twice, and takes the element where both are there."""
    forward = root.find("forward")
    if forward is None:
        return
    xmlmap.cut(forward, "interface")
    forward.attrib.pop("dev", None)
    if device is not None:
        forward.set("dev", device)


def _nat_get(child: str) -> Place:
    def get(root: Element) -> tuple[str, str] | None:
        found = root.find(f"forward/nat/{child}")
        return None if found is None else (found.get("start", ""), found.get("end", ""))

    def put(root: Element, ends: tuple[str, str] | None) -> None:
        xmlmap.cut(root, f"forward/nat/{child}")
        if ends is not None:
            nat = xmlmap.reach(root, "forward/nat")
            ElementTree.SubElement(nat, child, {"start": ends[0], "end": ends[1]})
        _drop_empty_nat(root)

    return Place(get, put)


def _drop_empty_nat(root: Element) -> None:
    nat = root.find("forward/nat")
    if nat is not None and not len(nat) and not nat.attrib:
        xmlmap.cut(root, "forward/nat")


def _mtu_put(root: Element, size: int | None) -> None:
    xmlmap.cut(root, "mtu")
    if size is not None:
        ElementTree.SubElement(root, "mtu", {"size": str(size)})


def _switch(path: str, name: str, default: bool) -> Place:
    """A yes or no that is *default* where nobody wrote it; the default is written as absence."""
    place = xmlmap.attribute(path, name)

    def put(root: Element, value: bool) -> None:
        place.put(root, None if value is default else ("yes" if value else "no"))
        _drop_empty_nat(root)

    return Place(lambda root: default if (word := place.get(root)) is None else word == "yes", put)


def _delay_get(root: Element) -> int:
    value = xmlmap.attribute("bridge", "delay").get(root)
    return int(value) if value else 0


@dataclass(frozen=True, slots=True)
class State:
    """A network as it is or should be."""

    forward: str = field(metadata=at("forward.mode", xml=Place(_forward_get, _forward_put)))
    device: str | None = field(metadata=at("forward.device", xml=Place(_device_get, _device_put)))
    nat_addresses: tuple[str, str] | None = field(metadata=at("forward.nat.addresses", xml=_nat_get("address")))
    nat_ports: tuple[str, str] | None = field(metadata=at("forward.nat.ports", xml=_nat_get("port")))
    nat_ipv6: bool = field(metadata=at("forward.nat.ipv6", xml=_switch("forward/nat", "ipv6", False)))
    bridge: str | Leave | None = field(metadata=at("bridge.name", xml=xmlmap.attribute("bridge", "name")))
    stp: bool | Leave | None = field(
        metadata=at("bridge.stp", xml=xmlmap.attribute("bridge", "stp", {"on": True, "off": False}))
    )
    delay: int | Leave = field(
        metadata=at("bridge.forwardDelaySeconds", xml=Place(_delay_get, xmlmap.attribute("bridge", "delay").put))
    )
    domain: str | None = field(metadata=at("domain.name", xml=xmlmap.attribute("domain", "name")))
    local_only: bool = field(metadata=at("domain.localOnly", xml=_switch("domain", "localOnly", False)))
    dns: bool = field(metadata=at("dns.enable", xml=_switch("dns", "enable", True)))
    plain_names: bool = field(metadata=at("dns.forwardPlainNames", xml=_switch("dns", "forwardPlainNames", True)))
    forwarders: tuple[Forwarder, ...] = field(metadata=at("dns.forwarders", xml=FORWARDERS))
    dns_hosts: tuple[DnsHost, ...] = field(metadata=at("dns.hosts", xml=HOSTS))
    dns_txt: tuple[Txt, ...] = field(metadata=at("dns.txt", xml=TXT))
    dns_srv: tuple[Srv, ...] = field(metadata=at("dns.srv", xml=SRV))
    inbound: Rate | None = field(metadata=at("bandwidth.inbound", xml=rate("inbound")))
    outbound: Rate | None = field(metadata=at("bandwidth.outbound", xml=rate("outbound")))
    mtu: int | None = field(
        metadata=at("mtu", xml=Place(xmlmap.number(xmlmap.attribute("mtu", "size")).get, _mtu_put))
    )
    subnets: tuple[Subnet, ...] | Leave = field(metadata=at("ips", xml=SUBNETS))
    routes: tuple[StaticRoute, ...] = field(metadata=at("routes", xml=ROUTES))
    portgroups: tuple[PortGroup, ...] = field(metadata=at("portgroups", xml=PORT_GROUPS))


PATHS = frozenset(item.metadata["path"] for item in fields(State))


def overlay(base: str, want: State, mark: Mark, paths: set[str] | None) -> str:
    """Overlay what is wanted (all of it, or the paths that changed) and the mark on a definition."""
    root = xmlmap.parse(base)
    left = {item.metadata["path"] for item in fields(want) if getattr(want, item.name) is LEAVE}
    written = (PATHS if paths is None else paths) - left
    if "bridge.name" in written and want.bridge is not None:
        xmlmap.reach(root, "bridge")
    xmlmap.write(want, root, lambda path: path in written)
    put_into(root, mark)
    return xmlmap.serialise(root)
