"""What the tests of the front doors share: objects as the daemon reports them, a plan, and an agent that has them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvmd import ops
from kvmd.api.problem import Position
from kvmd.api.resource import Metadata, Ref, Resource, SpecModel
from kvmd.api.schema import Update
from kvmd.api.status import Condition, Pending
from kvmd.engine.facade import Answer, Event
from kvmd.plan.difference import Change
from kvmd.plan.model import Applied, Cause, Hold, ObjectPlan, Plan, Step
from kvmd.server import Server
from kvmd.settings import Settings, settings_from

WEB, DATABASE, BRIDGE, OLD = (
    Ref("VirtualMachine", "web"),
    Ref("VirtualMachine", "db"),
    Ref("Bridge", "br0"),
    Ref("Tap", "old"),
)


def condition(type_: str, status: bool = True, reason: str = "Because", message: str = "") -> dict[str, Any]:
    return Condition(type_, status, reason, message).as_data()


def make_object(ref: Ref, *conditions: dict[str, Any], **status: Any) -> dict[str, Any]:
    return {
        "apiVersion": "kvmd.dev/v1alpha1",
        "kind": ref.kind,
        "metadata": {"name": ref.name, "labels": {"app": ref.name}, "annotations": {}},
        "spec": {"memory": {"guest": "2Gi"}} if ref.kind == "VirtualMachine" else {},
        "status": {
            "generation": 2,
            "observedGeneration": 2,
            "conditions": list(conditions),
            "pendingChanges": [],
            "source": f"specs/{ref.name}.yaml",
            **status,
        },
    }


def interface(broken: bool = False) -> dict[str, Any]:
    return {
        "name": "net0",
        "mac": "52:54:00:12:34:56",
        "attachment": {"bridge": "br0"},
        "tap": "vnet3",
        "addresses": ["192.168.122.10"],
        "path": [
            {"hop": "nic", "name": "net0", "state": "up", "broken": False},
            {"hop": "tap", "name": "vnet3", "state": "up", "broken": False},
            {"hop": "bridge", "name": "br0", "state": "down" if broken else "up", "broken": broken},
            {"hop": "uplink", "name": "eno1", "state": "up", "broken": False},
        ],
    }


def some_objects() -> list[dict[str, Any]]:
    pending = [Pending("spec.machine", "pc-q35-7.2", "pc-q35-8.0", Update.NEXT_BOOT).as_data()]
    return [
        make_object(
            WEB,
            condition("Ready"),
            condition("RestartRequired", message="machine"),
            power="running",
            accelerator="kvm",
            interfaces=[interface()],
            pendingChanges=pending,
        ),
        make_object(
            DATABASE,
            condition("Ready", False, "Waiting", "waits for Network/lab"),
            condition("Blocked", True, "Missing", "waits for Network/lab"),
            power="shutoff",
            interfaces=[interface(broken=True)],
        ),
        make_object(
            BRIDGE,
            condition("Ready"),
            operState="up",
            carrier=True,
            addresses=["10.0.0.1/24"],
            ports=["eno1", "vnet3"],
        ),
    ]


class AnySpec(SpecModel):
    """A spec of anything."""


def resource(ref: Ref, written: dict[str, Any]) -> Resource:
    return Resource(ref, Metadata(name=ref.name), AnySpec(), written, Position(f"specs/{ref.name}.yaml"))


def some_plan() -> Plan:
    """Create, change and remove something; one change waits, one removal is held, one object is blocked."""
    create = Step(BRIDGE, (ops.BridgeCreate("br0", alias="a"), ops.LinkSet("br0", up=True)), Cause.CREATE, "new", ())
    changes = (
        Change("memory.guest", 2**30, 2**31),
        Change("disks[data]", None, {"name": "data", "path": "/srv/data.qcow2"}),
    )
    change = Step(
        WEB, (ops.DomainSetMemory("web", "u", 2**31),), Cause.SPEC, "its spec changed", changes, after=(BRIDGE,)
    )
    remove = Step(OLD, (ops.LinkDelete("old", 7, "x"),), Cause.PRUNE, "its spec is gone")
    pending = (Pending("spec.machine", "pc-q35-7.2", "pc-q35-8.0", Update.NEXT_BOOT),)
    blocked = (Condition("Blocked", True, "Missing", "waits for Network/lab"), Condition("Ready", False, "Blocked"))
    items = (
        ObjectPlan(BRIDGE, resource(BRIDGE, {"stp": False}), step=create),
        ObjectPlan(WEB, resource(WEB, {}), step=change, pending=pending, ready=True),
        ObjectPlan(DATABASE, resource(DATABASE, {}), conditions=blocked),
        ObjectPlan(OLD, None, Applied(OLD, written={"owner": "root"}, known=True), step=remove),
    )
    held = Hold(Ref("Volume", "root"), "Confirm", "volumes are removed only when approved", "kvmd approve prune")
    return Plan({item.ref: item for item in items}, (create, change, remove), (held,), prune_digest="abc")


@dataclass
class StaticAgent:
    """An agent that knows what it was given and remembers what it was asked to do."""

    items: list[dict[str, Any]] = field(default_factory=some_objects)
    planned: Plan = field(default_factory=lambda: Plan({}))
    answer: Answer = field(default_factory=lambda: Answer(0, "done"))
    is_ready: bool = True
    acts: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    tree: dict[str, Any] = field(default_factory=lambda: {"path": "/specs", "digest": "d1", "held": []})

    def objects(self) -> list[dict[str, Any]]:
        return self.items

    def events(self, after: int = 0) -> list[Event]:
        every = [
            Event(1, 1000.0, str(WEB), "Normal", "Started", "start domain web"),
            Event(2, 1001.0, str(DATABASE), "Warning", "Blocked", "waits for Network/lab", 3),
        ]
        return [event for event in every if event.sequence > after]

    def plan(self) -> Plan:
        return self.planned

    def source(self) -> dict[str, Any]:
        return self.tree

    def act(self, verb: str, reference: str, options: dict[str, Any]) -> Answer:
        self.acts.append((verb, reference, options))
        return self.answer

    def healthy(self) -> tuple[bool, dict[str, Any]]:
        return True, {"cycles": 3}

    def ready(self) -> tuple[bool, dict[str, Any]]:
        return self.is_ready, {"libvirt": self.is_ready}

    def metrics(self) -> bytes:
        return b"# TYPE kvmd_libvirt_up gauge\nkvmd_libvirt_up 1.0\n"


def make_settings(folder: Path, **sections: dict[str, Any]) -> Settings:
    data = {"paths": {"run": str(folder / "run")}, "http": {"listen": "127.0.0.1:0"}, **sections}
    return settings_from(data, "test")


@contextlib.contextmanager
def serving(agent: Any, settings: Settings) -> Iterator[Server]:
    server = Server(agent, settings)
    server.start()
    try:
        yield server
    finally:
        server.stop()
