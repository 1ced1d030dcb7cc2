"""The packet path in the status of a VM: what lies behind its bridge, where it breaks, where it is too narrow."""

from __future__ import annotations

from typing import Any

import pytest
from casework import resources_of
from generators import machine_for
from simulator import Loop

from kvmd import ops
from kvmd.api.resource import Ref
from kvmd.observed import BridgePort, Link
from kvmd.render.topology import topology_data, topology_dot, topology_tree

SPECS = """
apiVersion: kvmd.dev/v1alpha1
kind: VirtualMachine
metadata: {name: web}
spec: {memory: {guest: 1Gi}, interfaces: [{name: net0, bridge: br0}]}
---
apiVersion: kvmd.dev/v1alpha1
kind: Bridge
metadata: {name: br0}
spec: {}
---
apiVersion: kvmd.dev/v1alpha1
kind: Vlan
metadata: {name: lan}
spec: {nameOnHost: eno1.100, parent: eno1, id: 100, bridge: br0}
"""


@pytest.fixture
def loop() -> Loop:
    resources = resources_of(SPECS, "specs.yaml")
    made = Loop(machine_for(resources))
    made.converge(resources)
    for name in ("br0", "eno1.100"):
        made.machine.set_link(name, carrier=True, operstate="up")
    return made


def path(loop: Loop) -> list[dict[str, Any]]:
    """The path of the one NIC, as the status has it."""
    status = loop.fresh_plan().objects[Ref("VirtualMachine", "web")].status
    found: list[dict[str, Any]] = status["interfaces"][0]["path"]
    return found


def drawn(loop: Loop) -> list[dict[str, Any]]:
    """The same as the commands and the API have it."""
    interfaces = [{"name": "net0", "path": path(loop)}]
    item = {"kind": "VirtualMachine", "metadata": {"name": "web"}, "status": {"interfaces": interfaces}}
    return topology_data([item])


def test_a_vlan_and_the_nic_below_it_are_hops_with_their_mtu(loop: Loop) -> None:
    hops = [(hop["hop"], hop["name"], hop["broken"], hop.get("mtu")) for hop in path(loop)[2:]]
    assert hops == [
        ("bridge", "br0", False, 1500),
        ("vlan", "eno1.100", False, 1500),
        ("uplink", "eno1", False, 1500),
    ]
    assert drawn(loop)[0]["interfaces"][0]["brokenAt"] is None
    assert "vlan eno1.100 (up, forwarding) -> uplink eno1 (up) -> outside" in topology_tree(drawn(loop))
    assert '"vlan eno1.100" -> "uplink eno1"' in topology_dot(drawn(loop))


def test_a_nic_without_carrier_below_a_vlan_is_where_it_breaks(loop: Loop) -> None:
    loop.machine.set_link("eno1", carrier=False)
    assert drawn(loop)[0]["interfaces"][0]["brokenAt"] == "uplink eno1"


def test_the_path_is_that_of_the_running_nic_while_another_waits_for_the_next_boot(loop: Loop) -> None:
    loop.converge(resources_of(SPECS.replace("bridge: br0}]", "user: {}}]"), "specs.yaml"))
    assert [hop["hop"] for hop in path(loop)] == ["nic", "tap", "bridge", "vlan", "uplink"]
    assert drawn(loop)[0]["interfaces"][0]["brokenAt"] is None
    uuid = loop.fresh_plan().objects[Ref("VirtualMachine", "web")].status["uuid"]
    loop.machine.execute(ops.DomainDestroy("web", uuid))
    loop.converge(resources_of(SPECS.replace("bridge: br0}]", "user: {}}]"), "specs.yaml"))
    assert [hop["name"] for hop in path(loop)] == ["net0", "NAPT in the QEMU process"]


def test_a_port_that_spanning_tree_blocks_is_where_it_breaks(loop: Loop) -> None:
    loop.machine.set_link("eno1.100", port=BridgePort("blocking"))
    assert drawn(loop)[0]["interfaces"][0]["brokenAt"] == "vlan eno1.100"


def test_the_first_hop_that_is_too_narrow_says_so_and_is_not_broken(loop: Loop) -> None:
    loop.machine.set_link("eno1.100", mtu=1400)
    loop.machine.set_link("eno1", mtu=1400)
    narrow = [hop["name"] for hop in path(loop) if "narrows" in hop]
    assert narrow == ["eno1.100"]
    assert drawn(loop)[0]["interfaces"][0]["brokenAt"] is None
    assert "vlan eno1.100: MTU 1400 is below the 1500 of" in topology_tree(drawn(loop))


SEVERAL = SPECS.replace("spec: {}", "spec: {uplinks: [{name: eno2}, {name: eno3}]}")


@pytest.fixture
def several() -> Loop:
    """A bridge with a VLAN and two NICs: three ways out."""
    resources = resources_of(SEVERAL, "specs.yaml")
    made = Loop(machine_for(resources))
    made.machine.add_link(Link("eno3", 0, "", mac="02:00:00:00:00:03", up=True))
    made.converge(resources)
    for name in ("br0", "eno1.100", "eno2", "eno3"):
        made.machine.set_link(name, carrier=True, operstate="up")
    return made


def test_several_ways_out_stand_side_by_side(several: Loop) -> None:
    dot, tree = topology_dot(drawn(several)), topology_tree(drawn(several))
    for edge in ("bridge br0", "vlan eno1.100"), ("vlan eno1.100", "uplink eno1"), ("bridge br0", "uplink eno3"):
        assert f'"{edge[0]}" -> "{edge[1]}"' in dot
    assert dot.count(" -> ") == 6  # NIC, TAP, bridge, three ways, one of them through a VLAN
    assert '"uplink eno1" -> ' not in dot and '"uplink eno2" -> ' not in dot
    assert '[label="uplink eno2\\nup, forwarding\\nMTU 1500"' in dot
    assert "and bridge br0 -> uplink eno2 (up, forwarding) -> outside" in tree
    assert tree.count("-> outside") == 3


def test_a_way_that_is_broken_breaks_nothing_while_another_is_whole(several: Loop) -> None:
    several.machine.set_link("eno2", carrier=False)
    assert drawn(several)[0]["interfaces"][0]["brokenAt"] is None
    assert "breaks at" not in topology_tree(drawn(several))
    for name in ("eno1", "eno3"):
        several.machine.set_link(name, carrier=False)
    assert drawn(several)[0]["interfaces"][0]["brokenAt"] == "uplink eno1"
    several.machine.set_link("br0", up=False)
    assert drawn(several)[0]["interfaces"][0]["brokenAt"] == "bridge br0"
