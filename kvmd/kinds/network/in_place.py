"""Changes of a running network that no guest notices: by libvirt's update of a section, or in the kernel."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from dataclasses import replace

from kvmd import ops, xmlmap
from kvmd.api.bridge_settings import BRIDGE
from kvmd.kinds.network.document import State
from kvmd.kinds.network.names import SECTIONS, Record, element_of, key_element_of
from kvmd.kinds.network.subnet import Subnet, host_element, range_element, subnet_of
from kvmd.kinds.network.traffic import PortGroup, lay_group
from kvmd.observed import Key, Link
from kvmd.observed import Network as Fact
from kvmd.plan.bridge_settings import Written, changes_of, differing, numbers_of
from kvmd.plan.difference import LEAVE, Change, is_owned
from kvmd.plan.look import Look
from kvmd.xmlmap import Element

# Of the bridge itself: libvirt sets them when a network starts, and never looks again.
KERNEL = frozenset({"bridge.stp", "bridge.forwardDelaySeconds"})
_LEAST_DELAY = 2.0  # what the kernel takes with STP on (BR_MIN_FORWARD_DELAY)
_FIELDS = {"dns.hosts": "dns_hosts", "dns.txt": "dns_txt", "dns.srv": "dns_srv"}


def lands_in_place(path: str, live: State, want: State) -> bool:
    """True where libvirt can make that change in the running network."""
    if path in SECTIONS:
        return live.dns and want.dns
    if path == "forward.device":
        return live.forward == want.forward
    return path == "portgroups" or (path == "ips" and _differ_in_dhcp_alone(live, want))


def _differ_in_dhcp_alone(live: State, want: State) -> bool:
    if live.subnets is LEAVE or want.subnets is LEAVE:
        return False
    before, after = (
        [replace(subnet, ranges=(), hosts=()) for subnet in subnets] for subnets in (live.subnets, want.subnets)
    )
    return before == after


def updates(network: Fact, live: State, want: State, paths: set[str]) -> list[ops.Op]:
    """Removals first, so that an address or a name can move from one entry to another."""
    found: list[ops.NetworkUpdate] = []
    if "ips" in paths:
        found += _dhcp(network, live, want)
    for path in SECTIONS:
        if path in paths:
            before, after = getattr(live, _FIELDS[path]), getattr(want, _FIELDS[path])
            found += _records(network, SECTIONS[path], before, after)
    if "portgroups" in paths:
        found += _port_groups(network, live.portgroups, want.portgroups)
    if "forward.device" in paths:
        ends = (("delete", live.device), ("add", want.device))
        found += [
            _update(network, "forward-interface", command, ElementTree.Element("interface", {"dev": device}))
            for command, device in ends
            if device is not None
        ]
    return [*sorted(found, key=lambda update: update.command != "delete")]


def _dhcp(network: Fact, live: State, want: State) -> Iterable[ops.NetworkUpdate]:
    assert live.subnets is not LEAVE and want.subnets is not LEAVE
    order = [subnet_of(ip).name for ip in xmlmap.parse(network.live or "").findall("ip")]
    for old, new in zip(live.subnets, want.subnets, strict=True):
        index = order.index(new.name)
        for command, this, other in (("delete", old, new), ("add", new, old)):
            yield from (
                _update(network, section, command, element, index) for section, element in _lacking(this, other)
            )


def _lacking(this: Subnet, other: Subnet) -> Iterable[tuple[str, Element]]:
    """The ranges and reservations of one that the other has not."""
    yield from (("dhcp-range", range_element(item)) for item in this.ranges if item not in other.ranges)
    yield from (("dhcp-host", host_element(item)) for item in this.hosts if item not in other.hosts)


def _records(
    network: Fact, section: str, before: tuple[Record, ...], after: tuple[Record, ...]
) -> Iterable[ops.NetworkUpdate]:
    yield from (_update(network, section, "delete", key_element_of(item)) for item in before if item not in after)
    yield from (_update(network, section, "add", element_of(item)) for item in after if item not in before)


def _port_groups(
    network: Fact, before: tuple[PortGroup, ...], after: tuple[PortGroup, ...]
) -> Iterable[ops.NetworkUpdate]:
    """Over what the running network has, so that what no word of ours is about stays; the default moves in order."""
    elements = {item.get("name", ""): item for item in xmlmap.parse(network.live or "").findall("portgroup")}
    old, names = {group.name: group for group in before}, {group.name for group in after}
    for group in before:
        if group.name not in names:
            yield _update(network, "portgroup", "delete", ElementTree.Element("portgroup", {"name": group.name}))
    for group in sorted(after, key=lambda group: group.default):
        if old.get(group.name) != group:
            command = "modify" if group.name in old else "add"
            element = lay_group(elements.get(group.name, ElementTree.Element("portgroup")), group)
            yield _update(network, "portgroup", command, element)


def _update(network: Fact, section: str, command: str, element: Element, index: int = -1) -> ops.NetworkUpdate:
    xml = ElementTree.tostring(element, encoding="unicode")
    return ops.NetworkUpdate(network.name, network.uuid, section, command, xml, index, live=True)


def bridge_attributes(
    want: State, owned: frozenset[str], bridge: str, look: Look
) -> tuple[tuple[ops.LinkSet, ...], tuple[Change, ...]]:
    """What the bridge itself should have: STP, and with it the forward delay."""
    link = look.fact(Key("link", bridge))
    if not isinstance(link, Link) or want.stp is LEAVE or want.delay is LEAVE:
        return (), ()
    owns = [path.removeprefix("bridge.") for path in KERNEL if is_owned(path, owned)]
    stp = want.stp if "stp" in owns else link.stp
    # Without STP the kernel keeps whatever delay it has.
    values = {"stp": stp, "forwardDelaySeconds": max(_LEAST_DELAY, float(want.delay)) if stp else None}
    now = {leaf: values[leaf] for leaf in owns if values[leaf] is not None}
    found = list(differing(BRIDGE, Written(now, {}), link.settings))
    if not found:
        return (), ()
    return (ops.LinkSet(bridge, link.index, settings=numbers_of(found)),), changes_of(found, "bridge.")
