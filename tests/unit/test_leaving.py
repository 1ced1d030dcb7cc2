"""A leaf taken out of the spec of something that runs is told as waiting until the running self is without it."""

from __future__ import annotations

from typing import Any

import pytest
from generators import decoded, document, machine_for
from simulator import Loop

from kvmd import ops
from kvmd.api.resource import Ref, Resource
from kvmd.errors import Stale

REF = Ref("VirtualMachine", "web")
NETWORK = Ref("Network", "lan")
DISK = {"name": "root", "path": "/srv/a.qcow2", "format": "qcow2"}
NIC = {"name": "net0", "user": {}}
# What stands in the spec first, and the path that waits when it no longer does.
LEAVES: dict[str, dict[str, Any]] = {
    "spec.cpu.maxVcpus": {"cpu": {"maxVcpus": 4}},
    "spec.cpu.model": {"cpu": {"model": "max"}},
    "spec.memory.maxGuest": {"memory": {"guest": "1Gi", "maxGuest": "2Gi"}},
    "spec.machine": {"machine": "pc"},
    "spec.kernelBoot.args": {"kernelBoot": {"kernel": {"path": "/srv/kernel"}, "args": "quiet"}},
    "spec.devices.serial[console].file": {"devices": {"serial": [{"name": "console", "file": "/srv/console"}]}},
    "spec.devices.rng": {"devices": {"rng": True}},
    "spec.disks[root].cache": {"disks": [DISK | {"cache": "none"}]},
    "spec.disks[root].io": {"disks": [DISK | {"io": "threads"}]},
    "spec.disks[root].readOnly": {"disks": [DISK | {"readOnly": True}]},
    "spec.disks[root].serial": {"disks": [DISK | {"serial": "abc"}]},
    "spec.disks[root].bootOrder": {"disks": [DISK | {"bootOrder": 1}]},
    "spec.interfaces[net0].model": {"interfaces": [NIC | {"model": "e1000"}]},
    "spec.interfaces[net0].mac": {"interfaces": [NIC | {"mac": "52:54:00:11:22:33"}]},
}


def web(more: dict[str, Any], **always: Any) -> dict[Ref, Resource]:
    spec = {"memory": {"guest": "1Gi"}, "disks": [DISK], "interfaces": [NIC]} | always | more
    return decoded([document("VirtualMachine", "web", spec)])


def waiting(loop: Loop) -> set[str]:
    return {item.path for item in loop.plan().objects[REF].pending}


@pytest.mark.parametrize(("path", "leaf"), LEAVES.items())
def test_it_waits_until_the_next_boot(path: str, leaf: dict[str, Any]) -> None:
    loop = Loop(machine_for(web(leaf)))
    loop.converge(web(leaf))
    loop.converge(web({}))
    for _ in range(3):
        assert path in waiting(loop)
        assert not loop.plan().steps
        loop.act(loop.plan())
    loop.machine.stop("web", "shutdown")
    loop.converge()
    assert not waiting(loop)


def test_a_guest_that_was_asked_to_power_off_for_it_is_started_again() -> None:
    """What waits must not be forgotten while the guest is on its way down: the note of the restart went with it."""
    always = {"runStrategy": "Manual", "updatePolicy": {"restart": "Automatic"}}
    before = web({"disks": [DISK | {"cache": "none"}]}, **always)
    loop = Loop(machine_for(before))
    loop.converge(before)
    loop.machine.start("web")
    loop.converge()
    loop.machine.deaf.add("web")
    loop.resources = web({}, **always)
    for _ in range(4):
        loop.act(loop.plan())
    loop.machine.stop("web", "shutdown")
    loop.converge()
    assert loop.machine.domain("web").active and "cache=" not in (loop.machine.domain("web").live or "")


def test_a_live_change_that_failed_once_is_made_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    before = web({"interfaces": [NIC | {"link": "down"}]})
    loop = Loop(machine_for(before))
    loop.converge(before)
    execute, failed = loop.machine.execute, list[ops.Op]()

    def fail_once(operation: ops.Op) -> None:
        if isinstance(operation, ops.DomainUpdateDevice) and not failed:
            failed.append(operation)
            raise Stale("libvirt was restarted just now")
        execute(operation)

    monkeypatch.setattr(loop.machine, "execute", fail_once)
    loop.resources = web({})
    for _ in range(4):
        loop.act(loop.plan())
        loop.now += 60
    assert failed and "down" not in (loop.machine.domain("web").live or "").partition("<interface")[2]


def lan(**more: Any) -> dict[Ref, Resource]:
    """A network with a guest on it."""
    network = {"bridge": {"name": "virbr7"}, "ips": [{"address": "10.7.0.1/24"}]} | more
    guest = {"memory": {"guest": "1Gi"}, "interfaces": [{"name": "net0", "network": "lan"}]}
    return decoded([document("Network", "lan", network), document("VirtualMachine", "web", guest)])


@pytest.mark.parametrize(
    ("path", "leaf"), {"spec.mtu": {"mtu": 1400}, "spec.domain.name": {"domain": {"name": "lab.example"}}}.items()
)
def test_a_network_waits_until_it_is_started_again(path: str, leaf: dict[str, Any]) -> None:
    loop = Loop(machine_for(lan(**leaf)))
    loop.converge(lan(**leaf))
    loop.converge(lan())
    for _ in range(3):
        plan = loop.plan()
        assert [item.path for item in plan.objects[NETWORK].pending] == [path] and not plan.steps
        loop.act(plan)
    loop.machine.stop("web", "shutdown")
    loop.converge()
    assert not loop.plan().objects[NETWORK].pending


def test_a_record_whose_removal_failed_once_leaves_the_running_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """It came while the network ran, so what it was started with does not tell of it either."""
    loop = Loop(machine_for(lan()))
    loop.converge(lan())
    loop.converge(lan(dns={"hosts": [{"ip": "10.7.0.9", "names": ["printer"]}]}))
    execute, failed = loop.machine.execute, list[ops.Op]()

    def fail_once(operation: ops.Op) -> None:
        if isinstance(operation, ops.NetworkUpdate) and not failed:
            failed.append(operation)
            raise Stale("libvirt was restarted just now")
        execute(operation)

    monkeypatch.setattr(loop.machine, "execute", fail_once)
    loop.resources = lan()
    for _ in range(4):
        loop.act(loop.plan())
        loop.now += 60
    live = (loop.machine.network("lan").live or "").partition("</metadata>")[2]
    assert failed and "printer" not in live


def test_an_owner_of_a_tap_in_use_is_taken_off_once_nobody_holds_it() -> None:
    """The mark of a link has no room for the spec: it must not be forgotten elsewhere while it waits."""

    def tap(**more: Any) -> dict[Ref, Resource]:
        return decoded([document("Tap", "tap1", more)])

    loop = Loop(machine_for(tap(owner=1000)))
    loop.converge(tap(owner=1000))
    loop.machine.set_link("tap1", carrier=True)
    loop.converge(tap())
    for _ in range(3):
        plan = loop.plan()
        assert [item.path for item in plan.objects[Ref("Tap", "tap1")].pending] == ["spec.owner"]
        loop.act(plan)
    loop.machine.set_link("tap1", carrier=False)
    loop.converge()
    assert loop.machine.link("tap1").owner is None
