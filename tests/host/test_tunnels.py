"""Vxlan on the real kernel: two namespaces reach each other through it; Vlan where the kernel has it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hermetic import Agent, wait_until
from netns import NetNamespace, namespace
from small import link

from kvmd.host.links.kernel import Links
from kvmd.host.preflight.rows import lacking_links
from kvmd.observed import Key, Link, Stacked
from kvmd.ops import LinkSet, VlanCreate, VxlanCreate

pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces: run pytest as root"),
]

BRIDGE = link("Bridge", "br0", "{addresses: {from: Static, static: [10.42.0.1/24]}}")


def vxlan(number: int = 42, more: str = "bridge: br0") -> str:
    """A tunnel to the other namespace."""
    return link("Vxlan", "vx42", f"{{id: {number}, local: 10.9.0.1, remote: 10.9.0.2, parent: up0, {more}}}")


@pytest.fixture
def far(agent: Agent) -> Iterator[NetNamespace]:
    """Another host: a namespace at the end of a cable, with its end of the tunnel."""
    with namespace() as other:
        run = agent.hermetic.run
        run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "far0", "netns", other.path)
        run("ip", "addr", "add", "10.9.0.1/24", "dev", "up0")
        run("ip", "link", "set", "up0", "up")
        other.shell(
            "ip link set lo up; ip addr add 10.9.0.2/24 dev far0; ip link set far0 up;"
            "ip link add vx type vxlan id 42 local 10.9.0.2 remote 10.9.0.1 dstport 4789 dev far0;"
            "ip addr add 10.42.0.2/24 dev vx; ip link set vx up"
        )
        yield other
        agent.stop()
        for name in ("vx42", "br0", "up0"):
            run("ip", "link", "del", name, check=False)


def reaches(agent: Agent) -> bool:
    """Does the other namespace answer through the tunnel?"""
    ping = ("ping", "-c", "1", "-W", "1", "10.42.0.2")
    return "1 received" in agent.hermetic.run(*ping, check=False)


@pytest.mark.shows("Vxlan", "remote", "local", "parent", "bridge")
def test_two_namespaces_reach_each_other_and_the_tunnel_heals(agent: Agent, far: NetNamespace) -> None:
    agent.write("links.yaml", BRIDGE + vxlan())
    agent.start()
    agent.wait_ready("Bridge/br0", "Vxlan/vx42")
    wait_until(lambda: reaches(agent), 10, "an answer through the tunnel")
    made = agent.hermetic.links()["vx42"]
    data = made["linkinfo"]["info_data"]
    assert (made["master"], made["mtu"], data["id"], data["port"]) == ("br0", 1450, 42, 4789)
    assert (data["local"], data["remote"], data["link"]) == ("10.9.0.1", "10.9.0.2", "up0")
    assert made["ifalias"].startswith("kvmd:v1:kvmd:Vxlan/vx42:")
    assert "No changes" in agent.kvmd("plan")
    agent.hermetic.run("ip", "link", "del", "vx42")
    wait_until(lambda: "vx42" in agent.hermetic.links() and reaches(agent), 10, "the tunnel is back")
    agent.wait_ready("Vxlan/vx42")
    assert agent.hermetic.links()["vx42"]["address"] == made["address"], "made anew it has the MAC of before"
    agent.write("links.yaml", BRIDGE)
    wait_until(lambda: "vx42" not in agent.hermetic.links(), 20, "the tunnel goes with its spec")
    assert "up0" in agent.hermetic.links()


@pytest.mark.shows("Vxlan", "id")
def test_another_id_waits_while_it_is_a_port_and_is_made_once_approved(agent: Agent, far: NetNamespace) -> None:
    agent.write("links.yaml", BRIDGE + vxlan())
    agent.start()
    agent.wait_ready("Bridge/br0", "Vxlan/vx42")
    index = agent.hermetic.links()["vx42"]["ifindex"]
    agent.write("links.yaml", BRIDGE + vxlan(43))
    found = wait_until(lambda: agent.object("Vxlan/vx42")["status"]["pendingChanges"], 10)  # type: ignore[index]
    assert [(change["path"], change["effect"]) for change in found] == [("spec.id", "Replug")]
    assert agent.hermetic.links()["vx42"]["ifindex"] == index
    agent.kvmd("approve", "Vxlan/vx42")
    wait_until(
        lambda: agent.hermetic.links().get("vx42", {}).get("linkinfo", {}).get("info_data", {}).get("id") == 43, 10
    )
    agent.wait_ready("Vxlan/vx42")
    assert agent.hermetic.links()["vx42"]["master"] == "br0"


@pytest.mark.shows("Vxlan", "mtu")
def test_it_is_an_uplink_of_a_bridge(agent: Agent, far: NetNamespace) -> None:
    bridge = link("Bridge", "br0", "{uplinks: [{name: vx42}], addresses: {from: Static, static: [10.42.0.1/24]}}")
    agent.write("links.yaml", bridge + vxlan(more="mtu: 1400"))
    agent.start()
    agent.wait_ready("Bridge/br0", "Vxlan/vx42")
    wait_until(lambda: reaches(agent), 10, "an answer through the tunnel")
    assert agent.hermetic.links()["vx42"]["mtu"] == 1400


@pytest.mark.skipif("vlan" not in lacking_links(), reason="this kernel has 802.1Q")
def test_a_kind_that_the_kernel_lacks_is_named_once_and_not_tried_again(agent: Agent, far: NetNamespace) -> None:
    agent.write("links.yaml", link("Vlan", "storage", "{parent: up0, id: 100}"))
    agent.start()
    stalled = agent.wait_condition("Vlan/storage", "Stalled")
    assert stalled["reason"] == "Unsupported"
    assert "modprobe 8021q" in stalled["message"]
    assert agent.metric("kvmd_operations_total", operation="VlanCreate") == 0


@pytest.mark.shows("Vxlan", "group", "port")
def test_what_is_made_is_what_ip_says_and_stacks_in_one_batch() -> None:
    """IPv6 ends, a multicast group, a tunnel on a tunnel: read back as written, and as ip has it."""
    with namespace() as net:
        net.shell("ip link add d0 type veth peer d1; ip link set d0 up; ip addr add fd00:9::1/64 dev d0 nodad")
        links = Links(net.path)
        made = [
            VxlanCreate("vx2", "kvmd:b", 2, parent="vx1", remote="239.1.1.2", port=8472, mtu=1300),
            VxlanCreate("vx1", "kvmd:a", 1, parent="d0", local="fd00:9::1", remote="fd00:9::2"),
            LinkSet("vx2", up=True),
        ]
        assert links.execute(made) == [None, None, None]
        seen = {key.name: found for key, found in links.observe()[0].items()}
        assert seen["vx1"].stacked == Stacked(1, "fd00:9::1", "fd00:9::2", 4789)
        assert (seen["vx1"].parent, seen["vx2"].parent, seen["d0"].parent) == ("d0", "vx1", "")
        data = net.links()["vx2"]["linkinfo"]["info_data"]
        assert (data["id"], data["group"], data["link"], data["port"]) == (2, "239.1.1.2", "vx1", 8472)
        (error,) = links.execute([VxlanCreate("vx3", "kvmd:c", 1, parent="d0", remote="fd00:9::2")])
        assert error is not None and error.hint
        assert Key("link", "vx3") not in links.observe()[0]
        links.close()


@pytest.mark.shows("Vlan", "parent", "id")
def test_a_vlan_is_made_or_the_kernel_says_that_it_has_none() -> None:
    with namespace() as net:
        net.shell("ip link add d0 type veth peer d1; ip link set d0 up")
        links = Links(net.path)
        (error,) = links.execute([VlanCreate("d0.100", "kvmd:v", "d0", 100)])
        found = links.observe()[0].get(Key("link", "d0.100"))
        if "vlan" in lacking_links():
            assert error is not None and "modprobe 8021q" in error.hint and found is None
        else:
            assert error is None and isinstance(found, Link)
            assert (found.parent, found.stacked) == ("d0", Stacked(100))
        links.close()
