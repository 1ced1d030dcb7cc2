"""A running network: a start, its guests' TAPs, DHCP in place, or a restart that may wait."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from kvmd import ops, xmlmap
from kvmd.api.resource import Resource
from kvmd.api.schema import Update
from kvmd.api.status import Pending
from kvmd.errors import Blocked
from kvmd.kinds.network.document import State, host_element, subnet_of
from kvmd.kinds.network.spec import Spec
from kvmd.observed import Key, Link, Ports
from kvmd.observed import Network as Fact
from kvmd.plan.difference import LEAVE, Change, differences, is_owned, plain
from kvmd.plan.look import Look


def running(
    network: Fact, want: State, owned: frozenset[str], resource: Resource, look: Look
) -> tuple[list[ops.Op], tuple[Pending, ...], tuple[Change, ...]]:
    """What the running network needs: a start, its guests' TAPs, DHCP in place, or a restart that may wait."""
    spec = resource.spec
    assert isinstance(spec, Spec)
    bridge = network.bridge
    after = want.bridge if isinstance(want.bridge, str) else bridge  # its name once it is started again
    ports = ports_of(look, bridge)
    taps, guests = tuple(tap for tap, _ in ports.taps), tuple(sorted({guest for _, guest in ports.taps}))
    if not network.active or network.live is None:
        cleared = left_behind(network, look)
        if not cleared:
            refuse_a_strangers_bridge(resource, after, look)
        return [*cleared, ops.NetworkStart(network.name, network.uuid, after, taps)], (), ()
    if bridge and look.fact(Key("link", bridge)) is None:
        # libvirt goes on saying that the network is active after its bridge was deleted.
        return [ops.NetworkRestart(network.name, network.uuid, after, taps, ())], (), ()
    live = xmlmap.read(State, xmlmap.parse(network.live))
    found = tuple(c for c in differences(live, want) if is_owned(c.path, owned))
    in_place = [c for c in found if c.path == "ips" and same_subnets(live, want)]
    disruptive = [c for c in found if c not in in_place]
    operations: list[ops.Op] = _dhcp_updates(network, live, want) if in_place else []
    operations += _replugs(ports, bridge, look)
    if not disruptive:
        return operations, (), found
    if after != bridge:
        refuse_a_strangers_bridge(resource, after, look)
    memory = look.memory(resource.ref)
    approved = memory.approved_hash == resource.spec_hash
    plugged = tuple(dict.fromkeys((*taps, *ports.members)))  # a Tap on this bridge is somebody's way out, too
    if spec.disruption_policy == "Replug" or approved or not plugged:
        restart = ops.NetworkRestart(network.name, network.uuid, after, plugged, guests)
        return [restart], (), found
    pending = tuple(Pending(f"spec.{c.path}", plain(c.before), plain(c.after), Update.REPLUG) for c in disruptive)
    return operations, pending, tuple(in_place)


def refuse_a_strangers_bridge(resource: Resource, bridge: str, look: Look) -> None:
    """Raise Blocked where a link that is not the network's has its bridge's name.

    A start would fail, and from libvirt 11 on its clearing up deletes that link (measured with 11.3).
    """
    if bridge and look.fact(Key("link", bridge)) is not None:
        raise Blocked(
            f"{resource.ref}: the link {bridge} exists and is not this network's bridge",
            hint=f"write another spec.bridge.name, or `ip link del {bridge}` if nobody needs it",
        )


def left_behind(network: Fact, look: Look) -> tuple[ops.LinkDelete, ...]:
    """The bridge that a libvirtd which died in the middle of a start made: with it there no start succeeds.

    It is known by the MAC that libvirt drew for this network alone.
    """
    link = look.fact(Key("link", network.bridge)) if network.bridge else None
    if not isinstance(link, Link) or link.kind != "bridge" or link.alias or ports_of(look, link.name).members:
        return ()
    mac = xmlmap.parse(network.config or "<network/>").find("mac")
    if mac is None or mac.get("address", "").lower() != link.mac:
        return ()
    return (ops.LinkDelete(link.name, link.index, "", link.mac),)


def same_subnets(live: State, want: State) -> bool:
    if live.subnets is LEAVE or want.subnets is LEAVE:
        return False
    return [subnet.name for subnet in live.subnets] == [subnet.name for subnet in want.subnets]


def _dhcp_updates(network: Fact, live: State, want: State) -> list[ops.Op]:
    """Removals first, so that an address can move from one reservation to another."""
    assert live.subnets is not LEAVE and want.subnets is not LEAVE
    order = [subnet_of(ip).name for ip in xmlmap.parse(network.live or "").findall("ip")]
    removals: list[ops.Op] = []
    additions: list[ops.Op] = []
    for old, new in zip(live.subnets, want.subnets, strict=True):
        index = order.index(new.name)
        for section, before, after in (("dhcp-range", old.ranges, new.ranges), ("dhcp-host", old.hosts, new.hosts)):
            for item in before:
                if item not in after:
                    removals.append(_update(network, section, "delete", item, index))
            for item in after:
                if item not in before:
                    additions.append(_update(network, section, "add", item, index))
    return [*removals, *additions]


def _update(network: Fact, section: str, command: str, item: tuple[str, ...], index: int) -> ops.Op:
    if section == "dhcp-host":
        element = host_element((item[0], item[1], item[2]))
    else:
        element = ElementTree.Element("range", {"start": item[0], "end": item[1]})
    xml = ElementTree.tostring(element, encoding="unicode")
    return ops.NetworkUpdate(network.name, network.uuid, section, command, xml, index, live=True)


def ports_of(look: Look, bridge: str) -> Ports:
    """The ports of a bridge as libvirt and the kernel have them."""
    fact = look.fact(Key("ports", bridge)) if bridge else None
    return fact if isinstance(fact, Ports) else Ports(bridge)


def _replugs(ports: Ports, bridge: str, look: Look) -> list[ops.Op]:
    """Put TAPs of running guests that lost their bridge back on it."""
    operations: list[ops.Op] = []
    for tap, _ in ports.taps:
        link = look.fact(Key("link", tap))
        if isinstance(link, Link) and not link.master and not link.persistent:
            operations.append(ops.LinkSet(tap, link.index, master=bridge, up=True))
    return operations
