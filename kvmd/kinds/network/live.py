"""A running network: a start, its guests' TAPs, DHCP in place, or a restart that may wait."""

from __future__ import annotations

from kvmd import ops, xmlmap
from kvmd.api.resource import Resource
from kvmd.api.schema import Update
from kvmd.api.status import Pending
from kvmd.errors import Blocked
from kvmd.kinds.network.document import State
from kvmd.kinds.network.in_place import KERNEL, bridge_attributes, lands_in_place, updates
from kvmd.kinds.network.spec import Spec
from kvmd.observed import Domain, Key, Link, Ports
from kvmd.observed import Network as Fact
from kvmd.plan.difference import Change, differences, is_owned, plain
from kvmd.plan.links import ports_of
from kvmd.plan.look import Look


def running(
    network: Fact, want: State, owned: frozenset[str], resource: Resource, look: Look
) -> tuple[list[ops.Op], tuple[Pending, ...], tuple[Change, ...]]:
    """What the running network needs: a start, its guests' TAPs, DHCP in place, or a restart that may wait."""
    spec = resource.spec
    assert isinstance(spec, Spec)
    bridge = network.bridge
    after = want.bridge if isinstance(want.bridge, str) else bridge  # its name once it is started again
    ports = plugged_into(network, look)
    taps, guests = tuple(tap for tap, _ in ports.taps), tuple(sorted({guest for _, guest in ports.taps}))
    if not network.active or network.live is None:
        cleared = left_behind(network, look)
        if not cleared:
            refuse_a_strangers_bridge(resource, want.forward, after, look)
        return [*cleared, ops.NetworkStart(network.name, network.uuid, after, taps)], (), ()
    live = xmlmap.read(State, xmlmap.parse(network.live))
    if bridge and look.fact(Key("link", bridge)) is None and live.forward != "bridge":
        # libvirt goes on saying that the network is active after its bridge was deleted.
        return [ops.NetworkRestart(network.name, network.uuid, after, taps, ())], (), ()
    found = tuple(c for c in differences(live, want) if is_owned(c.path, owned) and c.path not in KERNEL)
    in_place = [c for c in found if lands_in_place(c.path, live, want)]
    disruptive = [c for c in found if c not in in_place]
    operations: list[ops.Op] = updates(network, live, want, {change.path for change in in_place})
    operations += _replugs(ports, bridge, look)
    if not disruptive:
        set_bridge, kernel = bridge_attributes(want, owned, bridge, look)
        return [*operations, *set_bridge], (), (*found, *kernel)
    if after != bridge:
        refuse_a_strangers_bridge(resource, want.forward, after, look)
    memory = look.memory(resource.ref)
    approved = memory.approved_hash == resource.spec_hash
    plugged = tuple(dict.fromkeys((*taps, *ports.members)))  # a Tap on this bridge is somebody's way out, too
    if not ports.above and (spec.disruption_policy == "Replug" or approved or not plugged):
        restart = ops.NetworkRestart(network.name, network.uuid, after, plugged, guests)
        return [restart], (), found
    pending = tuple(Pending(f"spec.{c.path}", plain(c.before), plain(c.after), Update.REPLUG) for c in disruptive)
    set_bridge, kernel = bridge_attributes(want, owned, bridge, look)
    return [*operations, *set_bridge], pending, (*in_place, *kernel)


def refuse_a_strangers_bridge(resource: Resource, mode: str, bridge: str, look: Look) -> None:
    """Raise Blocked where a link that is not the network's has its bridge's name, unless it is there to be used.

    A start would fail, and from libvirt 11 on its clearing up deletes that link (measured with 11.3).
    """
    if mode != "bridge" and bridge and look.fact(Key("link", bridge)) is not None:
        raise Blocked(
            f"{resource.ref}: the link {bridge} exists and is not this network's bridge",
            hint=f"write another spec.bridge.name, or `ip link del {bridge}` if nobody needs it",
        )


def left_behind(network: Fact, look: Look) -> tuple[ops.LinkDelete, ...]:
    """The bridge that a libvirtd which died in the middle of a start made: with it there no start succeeds.

    It is known by the MAC that libvirt drew for this network alone.
    """
    link = look.fact(Key("link", network.bridge)) if network.bridge else None
    if not isinstance(link, Link) or link.kind != "bridge" or link.alias:
        return ()
    found = ports_of(look, link.name)
    if found.members or found.above:
        return ()
    mac = xmlmap.parse(network.config or "<network/>").find("mac")
    if mac is None or mac.get("address", "").lower() != link.mac:
        return ()
    return (ops.LinkDelete(link.name, link.index, "", link.mac),)


def plugged_into(network: Fact, look: Look) -> Ports:
    """Who is on the network: all ports of its bridge, or on a bridge of others only the guests that name it."""
    ports = ports_of(look, network.bridge)
    shown = network.live or network.config or "<network/>"
    if xmlmap.read(State, xmlmap.parse(shown)).forward != "bridge":
        return ports
    taps = tuple((tap, guest) for tap, guest in ports.taps if _names(guest, tap, network.name, look))
    members = tuple(tap for tap, _ in taps if tap in ports.members)
    return Ports(ports.bridge, taps, members)


def _names(guest: str, tap: str, network: str, look: Look) -> bool:
    domain = look.fact(Key("domain", guest))
    if not isinstance(domain, Domain) or domain.live is None:
        return False
    for nic in xmlmap.parse(domain.live).findall("devices/interface[@type='network']"):
        source, target = nic.find("source"), nic.find("target")
        if source is not None and target is not None and target.get("dev") == tap:
            return source.get("network") == network
    return False


def _replugs(ports: Ports, bridge: str, look: Look) -> list[ops.Op]:
    """Put TAPs of running guests that lost their bridge back on it."""
    operations: list[ops.Op] = []
    for tap, _ in ports.taps:
        link = look.fact(Key("link", tap))
        if isinstance(link, Link) and not link.master and not link.persistent:
            operations.append(ops.LinkSet(tap, link.index, master=bridge, up=True))
    return operations
