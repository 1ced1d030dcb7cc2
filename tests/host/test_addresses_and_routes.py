"""Addresses and routes on the real kernel where that one has ideas of its own; ``ip`` says what became of them."""

from __future__ import annotations

import ast
import ipaddress
import sys

import pytest
from hermetic import wait_until
from netns import namespace
from test_links import BRIDGE_MARK, TAP_MARK, World, world

from kvmd.errors import Refused
from kvmd.ops import AddressAdd, AddressDelete, BridgeCreate, LinkSet, RouteAdd, RouteDelete, TapCreate, VxlanCreate

pytestmark = pytest.mark.root

__all__ = ["world"]

VXLAN_MARK = "kvmd:v1:kvmd:Vxlan/vx0:1:0123456789abcdef"


def tun(world: World) -> int:
    """A TUN that is up, with an address of each family."""
    addresses = (AddressAdd("tun0", 0, "10.9.0.1/24"), AddressAdd("tun0", 0, "fd00:9::1/64"))
    world.do(TapCreate("tun0", TAP_MARK, "tun"), LinkSet("tun0", up=True), *addresses)
    return world.look()["tun0"].index


@pytest.mark.parametrize(("to", "via"), [("10.7.0.0/16", "10.9.0.2"), ("fd07::/64", "fd00:9::2"), ("fd07::/64", "")])
def test_a_route_gets_another_metric(world: World, to: str, via: str) -> None:
    """Deleting one of IPv6 without a metric the kernel takes the first that it finds: the new one."""
    index = tun(world)
    world.do(RouteAdd("tun0", index, to, via))
    world.do(RouteAdd("tun0", index, to, via, 100), RouteDelete("tun0", index, to, via))
    assert [(route.via, route.metric) for route in world.look()["tun0"].routes if route.to == to] == [(via, 100)]


def test_a_strangers_route_beside_ours_stays(world: World) -> None:
    index = tun(world)
    world.do(RouteAdd("tun0", index, "fd07::/64"))
    world.net.ip("-6 route add fd07::/64 dev tun0 metric 7")
    world.do(RouteDelete("tun0", index, "fd07::/64"))
    assert [route.metric for route in world.look()["tun0"].routes if route.to == "fd07::/64"] == [7]


@pytest.mark.parametrize(("old", "new"), [("fd00:9::1/64", "fd00:9::1/80"), ("10.9.0.1/24", "10.9.0.1/25")])
def test_an_address_gets_another_length_of_prefix_at_once(world: World, old: str, new: str) -> None:
    index = tun(world)
    world.do(AddressAdd("tun0", index, new), AddressDelete("tun0", index, old, (new,)))
    cidrs = {address.cidr for address in world.look()["tun0"].addresses}
    assert new in cidrs
    assert old not in cidrs


def test_an_address_of_ipv4_within_one_of_ipv6_is_read_as_specs_say_it(world: World) -> None:
    index = tun(world)
    ends = [str(ipaddress.ip_address(text)) for text in ("::ffff:192.0.2.7", "::192.0.2.7")]
    world.do(*(AddressAdd("tun0", index, f"{end}/128") for end in ends))
    world.do(VxlanCreate("vx0", VXLAN_MARK, 42, remote=ends[0]))
    assert {f"{end}/128" for end in ends} <= {address.cidr for address in world.look()["tun0"].addresses}


def test_neighbours_hear_of_another_mac_of_a_bridge(world: World) -> None:
    """Unheard they go on sending to the old one: 37 s were measured for IPv4."""
    world.do(BridgeCreate("br0", BRIDGE_MARK, "52:54:00:00:00:01"), LinkSet("br0", up=True))
    world.do(AddressAdd("br0", 0, "10.9.0.1/24"), AddressAdd("br0", 0, "fd00:9::1/64"))
    with namespace() as guest:
        world.net.shell(f"ip link add v0 master br0 type veth peer name e0 netns {guest.path}; ip link set v0 up")
        guest.shell("ip addr add 10.9.0.2/24 dev e0; ip addr add fd00:9::2/64 dev e0 nodad; ip link set e0 up")
        for address in ("10.9.0.1", "fd00:9::1"):
            guest.shell(f"ping -c 1 -W 5 {address} || ping -c 1 -W 5 {address}")
        # While the link's own IPv6 address is still being proven the kernel advertises nothing.
        wait_until(lambda: "tentative" not in world.net.ip("-6 addr show br0"), 5, "the bridge has its own address")
        world.do(LinkSet("br0", world.look()["br0"].index, mac="52:54:00:00:00:02"))
        for address in ("10.9.0.1", "fd00:9::1"):
            guest.shell(f"ping -c 1 -W 2 {address} || ping -c 1 -W 2 {address}")
    switches = "cat /proc/sys/net/ipv4/conf/br0/arp_notify /proc/sys/net/ipv6/conf/br0/ndisc_notify"
    assert world.net.run("sh", "-c", switches).split() == ["0", "0"]


def test_the_way_back_is_that_of_an_address_of_the_guests(world: World) -> None:
    """The last of the /24 around each leaves by v0; the last of br2 and br3 is the host's own."""
    addresses = ("10.9.0.1/25", "10.9.1.17/28", "10.9.2.126/25", "10.9.3.5/31", "10.9.4.1/25")
    bridges = [f"br{number}" for number in range(len(addresses))]
    lines = ["ip link add v0 type veth peer v1", "ip link set v0 up", "ip link set v1 up"]
    lines += ["ip addr add 192.0.2.1/24 dev v0", "ip route add default via 192.0.2.2"]
    for bridge, address in zip(bridges, addresses, strict=True):
        lines += [f"ip link add {bridge} type bridge", f"ip link set {bridge} up"]
        lines += [f"ip addr add {address} dev {bridge}"]
    world.net.shell("; ".join([*lines, "ip route add 10.9.4.64/26 via 192.0.2.2"]))
    asked = f"from kvmd.host.forwarding.facts import _astray; print([f for b in {bridges} for f in _astray(b)])"
    assert ast.literal_eval(world.net.run(sys.executable, "-c", asked)) == [("br4", "v0")]


def test_one_that_cannot_be_said_to_the_kernel_fails_alone(world: World) -> None:
    results = world.fail(
        TapCreate("tap8", TAP_MARK, owner=1 << 40),
        TapCreate("tap7", TAP_MARK, owner=5_000_000_000),
        TapCreate("tap9", TAP_MARK),
        LinkSet("tap9", up=True),
    )
    assert [type(result) for result in results] == [Refused, Refused, type(None), type(None)]
    assert world.look().keys() == {"lo", "tap9"}
