"""A network that somebody else made, in the words of the language."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from kvmd import xmlmap
from kvmd.kinds.network.document import State
from kvmd.kinds.network.names import Forwarder, Record
from kvmd.kinds.network.subnet import Host, Range, Subnet
from kvmd.kinds.network.traffic import PortGroup, Rate, StaticRoute
from kvmd.observed import Key, Network, Observed
from kvmd.plan.wording import Described, Wording, said
from kvmd.xmlmap import Element

_SAID = frozenset(
    {
        "name",
        "uuid",
        "metadata",
        "forward",
        "bridge",
        "mac",
        "domain",
        "dns",
        "bandwidth",
        "mtu",
        "ip",
        "route",
        "portgroup",
    }
)
_SAID_BELOW = ("forward/nat", "forward/interface", "dns/forwarder", "dns/host", "dns/txt", "dns/srv")
_OF_BRIDGES = frozenset({"bridge.stp", "bridge.forwardDelaySeconds"})


def describe(key: Key, observed: Observed) -> Described | None:
    """The spec of a network of libvirt."""
    network = observed.facts.get(key)
    if not isinstance(network, Network) or network.config is None:
        return None
    root = xmlmap.parse(network.config)
    state = xmlmap.read(State, root)
    words: dict[str, Wording] = {
        "ips": lambda subnets: [_subnet(subnet) for subnet in subnets],
        "forward.nat.addresses": _ends,
        "forward.nat.ports": lambda ends: {name: int(port) for name, port in _ends(ends).items()},
        "bandwidth.inbound": _rate,
        "bandwidth.outbound": _rate,
        "portgroups": lambda groups: [_group(group) for group in groups],
        "routes": lambda routes: [_record(route) for route in routes],
        "dns.forwarders": lambda forwarders: [_record(forwarder) for forwarder in forwarders],
        **{path: lambda records: [_record(item) for item in records] for path in ("dns.hosts", "dns.txt", "dns.srv")},
    }
    return Described(said(state, words, _defaults(state)), tuple(dict.fromkeys(_unsaid(root))))


def _defaults(state: State) -> frozenset[str]:
    """What goes without saying, and what a bridge of others has nothing to do with."""
    plain: dict[str, bool | int] = {
        "forward.nat.ipv6": False,
        "domain.localOnly": False,
        "dns.enable": True,
        "dns.forwardPlainNames": True,
    }
    plain |= {"bridge.forwardDelaySeconds": 0}
    values = {item.metadata["path"]: getattr(state, item.name) for item in fields(state)}
    found = {path for path, value in plain.items() if values[path] == value}
    return frozenset(found) | (_OF_BRIDGES if state.forward == "bridge" else frozenset())


def _unsaid(root: Element) -> list[str]:
    """What stays as it is on the host, and no word of the spec is about."""
    found = [f"<{element.tag}>" for element in root if element.tag not in _SAID]
    for parent in ("forward", "dns"):
        found += [
            f"<{parent}><{item.tag}>"
            for item in root.findall(f"{parent}/*")
            if f"{parent}/{item.tag}" not in _SAID_BELOW
        ]
    inner = ("name", "default", "bandwidth")
    found += [f"<portgroup><{item.tag}>" for item in root.findall("portgroup/*") if item.tag not in inner]
    return found


def _ends(ends: tuple[str, str]) -> dict[str, Any]:
    return {"start": ends[0], "end": ends[1]}


def _rate(rate: Rate) -> dict[str, Any]:
    return {name: value for name, value in said(rate).items() if value}


def _group(group: PortGroup) -> dict[str, Any]:
    limits = {name: _rate(found) for name in ("inbound", "outbound") if (found := getattr(group, name))}
    more: dict[str, Any] = {"default": True} if group.default else {}
    return {"name": group.name} | more | ({"bandwidth": limits} if limits else {})


def _record(record: Record | StaticRoute | Forwarder) -> dict[str, Any]:
    found = {name: value for name, value in said(record).items() if value}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def _lease(item: Range | Host) -> dict[str, Any]:
    return {} if item.lease is None else {"lease": f"{item.lease}s"}


def _subnet(subnet: Subnet) -> dict[str, Any]:
    ranges = [{"start": item.start, "end": item.end} | _lease(item) for item in subnet.ranges]
    words = (
        {name: getattr(host, name) for name in ("mac", "id", "ip", "name")} | _lease(host) for host in subnet.hosts
    )
    hosts = [{name: value for name, value in each.items() if value} for each in words]
    bootp = dict(zip(("file", "server"), subnet.bootp or (), strict=False))
    bootp = {name: value for name, value in bootp.items() if value}
    dhcp = {name: value for name, value in (("ranges", ranges), ("hosts", hosts), ("bootp", bootp)) if value}
    tftp = {"tftp": subnet.tftp} if subnet.tftp else {}
    return {"address": subnet.name} | tftp | ({"dhcp": dhcp} if dhcp else {})
