"""Devices that leave their spec: hot-plugged, kept by the guest, or bound to what the machine has by itself."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from typing import Any

from generators import SPECS, decoded, document, machine_for
from simulator import Loop, Machine

from kvmd import ops
from kvmd.api.resource import Ref, Resource
from kvmd.observed import Domain
from kvmd.settings import Source
from kvmd.sources.decode import decode_file
from kvmd.xmlmap import Element, parse, reach

REF = Ref("VirtualMachine", "web")


class Deaf(Machine):
    """A guest that does not hear that it should let go."""

    deaf = False

    def execute(self, operation: ops.Op) -> None:
        if not (self.deaf and isinstance(operation, ops.DomainDetach)):
            super().execute(operation)


class Newer(Machine):
    """As libvirt 9.1 and newer: the watchdog of q35's chipset is written down, and all of them do the same."""

    def keep_definition(self, root: Element) -> Domain:
        found = root.findall("devices/watchdog")
        actions = {item.get("action", "reset") for item in found}
        assert len(actions) < 2, "watchdogs with different actions are not supported"
        if all(item.get("model") != "itco" for item in found):
            itco = {"model": "itco", "action": actions.pop() if actions else "reset"}
            ElementTree.SubElement(reach(root, "devices"), "watchdog", itco)
        return super().keep_definition(root)


def web(**more: Any) -> dict[Ref, Resource]:
    return decoded([document("VirtualMachine", "web", {"memory": {"guest": "1Gi"}} | more)])


def test_it_is_asked_again_until_the_device_is_gone() -> None:
    """Neither the boot nor the definition knows it any more, and yet it is ours: it carries our name."""
    with_disk = web(
        disks=[{"name": "data", "path": "/srv/data.img", "format": "raw"}], interfaces=[{"name": "net0", "user": {}}]
    )
    machine = Deaf()
    machine.facts |= machine_for(with_disk).facts
    loop = Loop(machine)
    loop.converge(web())
    loop.converge(with_disk)
    machine.deaf = True
    loop.resources = web()
    for number in range(3):
        plan = loop.plan()
        found = [item for step in plan.steps for item in step.operations if isinstance(item, ops.DomainDetach)]
        assert {item.alias for item in found} == {"ua-disk-data", "ua-nic-net0"}
        assert {item.again for item in found} == {number > 0}, "libvirt is asked once only"
        assert not plan.objects[REF].ready
        loop.act(plan)
    machine.deaf = False
    loop.converge()
    assert "data.img" not in (machine.domain("web").live or "")


def test_a_watchdog_and_the_one_of_the_chipset_do_the_same() -> None:
    """libvirt refuses two that differ, and writes the one of q35 down by itself."""
    loop, found = Loop(Newer()), []
    for watchdog in (None, {}, {"action": "none"}, {"action": "poweroff"}, None):
        loop.converge(web(devices={"watchdog": watchdog}, runStrategy="Halted"))
        root = parse(loop.machine.domain("web").config or "")
        found.append([(item.get("model"), item.get("action")) for item in root.findall("devices/watchdog")])
    both = [[("i6300esb", action), ("itco", action)] for action in ("reset", "none", "poweroff")]
    assert found == [[("itco", "reset")], *both, [("itco", "reset")]]


def test_the_watchdog_that_libvirt_gives_to_pc_only_is_refused_elsewhere() -> None:
    spec = {"memory": {"guest": "1Gi"}, "devices": {"watchdog": {"model": "ib700"}}}
    for machine, refused in (("q35", True), ("pc-q35-7.2", True), ("pc", False)):
        data = json.dumps(document("VirtualMachine", "web", spec | {"machine": machine})).encode()
        problems = [str(item) for item in decode_file(data, "web.yaml", Source(), SPECS).problems]
        assert bool(problems) == refused
        assert all(f"{machine} takes i6300esb" in text for text in problems), problems


def test_a_mac_that_is_taken_out_goes_and_one_that_was_never_written_stays() -> None:
    loop = Loop(Machine())
    loop.converge(web(interfaces=[{"name": "net0", "user": {}}], runStrategy="Halted"))
    derived = loop.machine.domain("web").config
    loop.converge(web(interfaces=[{"name": "net0", "user": {}, "mac": "52:54:00:00:00:07"}], runStrategy="Halted"))
    assert "52:54:00:00:00:07" in (loop.machine.domain("web").config or "")
    loop.converge(web(interfaces=[{"name": "net0", "user": {}}], runStrategy="Halted"))
    assert [line for line in (loop.machine.domain("web").config or "").split("<") if line.startswith("mac ")] == [
        line for line in (derived or "").split("<") if line.startswith("mac ")
    ]
    loop.machine.edit_domain("web", "config", {"devices/interface/mac@address": "52:54:00:00:00:09"})
    loop.converge()
    assert "52:54:00:00:00:09" in (loop.machine.domain("web").config or "")
