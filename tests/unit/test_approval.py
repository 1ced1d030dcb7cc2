"""What a person approves is done once: the next loss of the same object is a question again."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from kvmd import ops
from kvmd.api.resource import Ref, Resource
from kvmd.engine.executor import Outcome
from kvmd.engine.memory import Remembering
from kvmd.errors import KvmdError, Refused, Retry, Stale
from kvmd.kinds import CONTROLLERS
from kvmd.observed import HOST, Checkpoint, Host, Key, Observed, Pool
from kvmd.plan.look import Look, World
from kvmd.plan.model import Applied, Cause, Desired, ObjectPlan, Plan, Rules, Step
from kvmd.plan.planner import make_plan
from kvmd.plan.uplinks import rejected
from kvmd.settings import Backoff, Source
from kvmd.sources.decode import decode_file

VOLUME = b"""apiVersion: kvmd.dev/v1alpha1
kind: Volume
metadata: {name: data}
spec: {pool: default, format: qcow2, capacity: 1Gi}
"""
HOST_FACT = Host(machine_id="0" * 32, memory_bytes=2**34)
POOL = Pool(name="default", uuid="u", active=True, path="/p", type="dir")
BRIDGE = Ref("Bridge", "br0")
GUARDED = ops.Guarded("br0", (), str(BRIDGE), "h")


@pytest.fixture
def volume() -> Resource:
    specs = {kind: controller.Spec for kind, controller in CONTROLLERS.items()}
    return decode_file(VOLUME, "/specs/data.yaml", Source(), specs).resources[0]


def planned(memory: Remembering, lost: Resource) -> ObjectPlan:
    """The plan of a volume that was made before and whose file is gone."""
    applied = {lost.ref: Applied(lost.ref, lost.spec_hash, 1, lost.written, {}, known=True)}
    observed = Observed({HOST: HOST_FACT, Key("pool", "default"): POOL})
    desired = Desired({lost.ref: lost}, applied)
    return make_plan(desired, observed, memory.value(0.0), Rules(), 0.0, CONTROLLERS).objects[lost.ref]


def run(memory: Remembering, step: Step, error: KvmdError | None = None) -> None:
    memory.start(step)
    memory.end(Outcome(step, () if error else step.operations, error, 0.1), 1.0)


def test_a_lost_volume_is_made_anew_once(volume: Resource) -> None:
    memory = Remembering(Backoff())
    memory.change(volume.ref, approved_hash=volume.spec_hash)
    making = planned(memory, volume).step
    assert making is not None and isinstance(making.operations[0], ops.VolumeCreate)
    run(memory, making, Retry("no space"))
    memory.retry_now(volume.ref)
    assert planned(memory, volume).step == making, "what was approved and not done is still to be done"
    run(memory, making)
    again = planned(memory, volume)
    stalled = again.condition("Stalled")
    assert again.step is None and stalled is not None and stalled.reason == "VolumeLost"


def test_a_volume_that_came_back_by_itself_needs_no_approval_any_more(volume: Resource) -> None:
    memory = Remembering(Backoff())
    memory.change(volume.ref, approved_hash=volume.spec_hash)
    memory.take_plan(Plan({volume.ref: planned(memory, volume)}), 1.0)
    assert memory.of(volume.ref).approved_hash
    memory.take_plan(Plan({volume.ref: ObjectPlan(volume.ref, volume, ready=True)}), 2.0)
    assert planned(memory, volume).step is None


def _is_stalled(memory: Remembering) -> bool:
    facts = {Key("checkpoint", str(BRIDGE)): Checkpoint(str(BRIDGE), "h", "rolled back", "no answer")}
    objects = memory.value(0.0).objects
    tables = MappingProxyType({"facts": facts, "memory": objects})
    world = World({}, facts, {}, objects, {}, {}, {}, CONTROLLERS, Rules(), tables=tables)
    return rejected(BRIDGE, "h", Look(world, 0.0)) is not None


@pytest.mark.parametrize(
    ("error", "over"), [(Refused("rolled back"), True), (Retry("broken"), True), (Stale("it changed"), False)]
)
def test_what_was_rolled_back_is_tried_once_more(error: KvmdError, over: bool) -> None:
    memory = Remembering(Backoff())
    assert _is_stalled(memory)
    memory.change(BRIDGE, approved_hash="h")
    assert not _is_stalled(memory)
    run(memory, Step(BRIDGE, (GUARDED,), Cause.REQUEST, ""), error)
    assert _is_stalled(memory) == over


@pytest.mark.parametrize(
    "operation", [ops.LinkDelete("vlan5", 7, "alias"), ops.SnapshotTake("web/s", "u", "s", "<xml/>")]
)
def test_a_replug_and_a_snapshot_are_approved_once(operation: ops.Op) -> None:
    memory, step = Remembering(Backoff()), Step(BRIDGE, (operation,), Cause.REQUEST, "")
    memory.change(BRIDGE, approved_hash="h")
    run(memory, step, Retry("not now"))
    assert memory.of(BRIDGE).approved_hash
    run(memory, step)
    assert not memory.of(BRIDGE).approved_hash
