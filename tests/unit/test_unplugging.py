"""A device that came live and left its spec again, and a guest that does not let go of it."""

from __future__ import annotations

from typing import Any

from generators import decoded, document, machine_for
from simulator import Loop, Machine

from kvmd import ops
from kvmd.api.resource import Ref, Resource

REF = Ref("VirtualMachine", "web")


class Deaf(Machine):
    """A guest that does not hear that it should let go."""

    deaf = False

    def execute(self, operation: ops.Op) -> None:
        if not (self.deaf and isinstance(operation, ops.DomainDetach)):
            super().execute(operation)


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
    for _ in range(3):
        plan = loop.plan()
        found = [item for step in plan.steps for item in step.operations if isinstance(item, ops.DomainDetach)]
        assert {item.alias for item in found} == {"ua-disk-data", "ua-nic-net0"}
        assert not plan.objects[REF].ready
        loop.act(plan)
    machine.deaf = False
    loop.converge()
    assert "data.img" not in (machine.domain("web").live or "")


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
