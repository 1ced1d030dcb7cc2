"""A network that somebody else made, in the words of the language."""

from __future__ import annotations

from typing import Any

from kvmd import xmlmap
from kvmd.kinds.network.document import State, Subnet
from kvmd.observed import Key, Network, Observed
from kvmd.plan.wording import Described, said

_SAID = frozenset({"name", "uuid", "metadata", "forward", "bridge", "mac", "domain", "ip"})


def describe(key: Key, observed: Observed) -> Described | None:
    """The spec of a network of libvirt."""
    network = observed.facts.get(key)
    if not isinstance(network, Network) or network.config is None:
        return None
    root = xmlmap.parse(network.config)
    spec = said(xmlmap.read(State, root), {"ips": lambda subnets: [_subnet(subnet) for subnet in subnets]})
    unsaid = [f"<{element.tag}>" for element in root if element.tag not in _SAID]
    unsaid += [f"<forward><{element.tag}>" for element in root.findall("forward/*") if element.tag != "nat"]
    return Described(spec, tuple(dict.fromkeys(unsaid)))


def _subnet(subnet: Subnet) -> dict[str, Any]:
    ranges = [{"start": start, "end": end} for start, end in subnet.ranges]
    hosts = [{"mac": mac, "ip": ip} | ({"name": name} if name else {}) for mac, ip, name in subnet.hosts]
    dhcp = {name: value for name, value in (("ranges", ranges), ("hosts", hosts)) if value}
    return {"address": subnet.name} | ({"dhcp": dhcp} if dhcp else {})
