"""Links that stand on others, on the real kernel: it deletes them with the one below."""

from __future__ import annotations

import pytest
from test_links import BRIDGE_MARK, TAP_MARK, World, world

from kvmd.errors import Refused
from kvmd.ops import BridgeCreate, LinkDelete, TapCreate

pytestmark = pytest.mark.root

__all__ = ["world"]

VXLAN_MARK = "kvmd:v1:kvmd:Vxlan/vx0:1:0123456789abcdef"


def test_what_others_stand_on_stays_and_they_are_named(world: World) -> None:
    world.do(BridgeCreate("br0", BRIDGE_MARK), TapCreate("tap0", TAP_MARK))
    world.net.run("ip", "link", "add", "vx0", "type", "vxlan", "id", "42", "remote", "192.0.2.2", "dstport", "4789")
    world.net.run("ip", "link", "set", "vx0", "alias", VXLAN_MARK)
    marks = {"br0": BRIDGE_MARK, "tap0": TAP_MARK, "vx0": VXLAN_MARK}
    for below in marks:
        world.net.run("ip", "link", "add", "link", below, "name", f"on-{below}", "type", "macvtap", "mode", "bridge")
    seen = world.look()
    results = world.fail(*(LinkDelete(name, seen[name].index, mark) for name, mark in marks.items()))
    for name, result in zip(marks, results, strict=True):
        assert isinstance(result, Refused)
        assert f"on-{name} would go with it" in result.message
    assert world.look().keys() == seen.keys()
    for name, mark in marks.items():
        world.net.run("ip", "link", "del", f"on-{name}")
        world.do(LinkDelete(name, seen[name].index, mark))
    assert world.look().keys() == {"lo"}
