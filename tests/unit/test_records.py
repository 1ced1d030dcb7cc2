"""What is known of an object is forgotten once it is certain that the object is gone, and not before."""

from __future__ import annotations

import time
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from test_reconciler import EmptyHost, Notes

from kvmd import ops
from kvmd.api.resource import Resource
from kvmd.engine.reconciler import Reconciler, Sources
from kvmd.engine.records import Records
from kvmd.kinds import CONTROLLERS
from kvmd.observed import HOST, Host, Key, Observed, Pool
from kvmd.plan.model import ObjectPlan, Plan
from kvmd.settings import Settings, Source
from kvmd.sources.decode import decode_file
from kvmd.sources.directory import Directory
from kvmd.sources.snapshot import Snapshot
from kvmd.sources.store import Store

VOLUME = """apiVersion: kvmd.dev/v1alpha1
kind: Volume
metadata: {name: data}
spec: {pool: default, format: qcow2, capacity: 1Gi}
"""
TAP = "apiVersion: kvmd.dev/v1alpha1\nkind: Tap\nmetadata: {name: other}\nspec: {}\n"
SPECS = {kind: controller.Spec for kind, controller in CONTROLLERS.items()}
GRACE, SETTLE = 15.0, 0.05


@pytest.fixture
def volume() -> Resource:
    return decode_file(VOLUME.encode(), "/specs/data.yaml", Source(), SPECS).resources[0]


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Store, Store]:
    return Store(str(tmp_path / "state" / "specs.jsonl")), Store(str(tmp_path / "state" / "applied.jsonl"))


def seen(*resources: Resource) -> tuple[Snapshot, Plan]:
    table = MappingProxyType({resource.ref: resource for resource in resources})
    plan = Plan(
        MappingProxyType({ref: ObjectPlan(ref, item, ready=True, generation=1) for ref, item in table.items()})
    )
    return Snapshot(table, {}, (), (), (), {}, True, "", False, 1, None, ""), plan


def keep(records: Records, snapshot: Snapshot, plan: Plan) -> None:
    records.keep_specs(snapshot)
    records.keep_applied(plan)


def test_what_came_and_went_while_nothing_could_be_forgotten_is_forgotten_later(
    volume: Resource, stores: tuple[Store, Store]
) -> None:
    records = Records(*stores)
    keep(records, *seen())
    assert records.forget_gone(0.0, lambda *_: True) == []
    keep(records, *seen(volume))
    keep(records, *seen())
    assert records.forget_gone(1.0, lambda *_: True) == [volume.ref]
    assert not records.applied and not [store for store in stores if volume.ref in store.objects()]


def test_an_absence_counts_from_the_first_time_that_it_is_certain(
    volume: Resource, stores: tuple[Store, Store]
) -> None:
    records, told = Records(*stores), []

    def ask(now: float) -> None:
        records.forget_gone(now, lambda _ref, seconds: bool(told.append(seconds)))

    keep(records, *seen(volume))
    keep(records, *seen())
    ask(10.0)
    ask(14.0)
    keep(records, *seen(volume))
    ask(20.0)
    keep(records, *seen())
    ask(30.0)
    assert told == [0.0, 4.0, 0.0]


class PoolHost(EmptyHost):
    """A host whose pool has lost its volume."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[ops.Op] = []

    def write(self, operation: ops.Op) -> None:
        self.written.append(operation)

    def observe(self, *_what: Any) -> Observed:
        host, pool = Host(machine_id="0" * 32, memory_bytes=2**34), Pool("default", "u", True, "/p", "dir")
        return Observed(MappingProxyType({HOST: host, Key("pool", "default"): pool}))


class Running:
    """A reconciler of two files, of which one asks for a volume that is lost."""

    def __init__(self, folder: Path, stores: tuple[Store, Store], volume: Resource) -> None:
        (folder / "specs").mkdir()
        self.file, self._ref = folder / "specs" / "data.yaml", volume.ref
        self.file.write_text(VOLUME)
        (folder / "specs" / "other.yaml").write_text(TAP)
        source = {"path": str(folder / "specs"), "settle": "50ms"}
        settings = Settings.model_validate({"source": source})
        assert settings.prune.grace == GRACE
        for store in stores:
            store.save(volume, 1)
        self.host = PoolHost()
        sources = Sources(Directory(source["path"], settings.source, SPECS, stores[0]), Records(*stores))
        notes = Notes(folder / "unused")
        self._reconciler = Reconciler(settings, self.host, sources, notes, lambda *_: None)  # type: ignore[arg-type]

    def cycle(self) -> str:
        """Why the volume is as it is, once the files are at rest; "" where nobody asks for it."""
        time.sleep(2 * SETTLE)
        item = self._reconciler.cycle().plan.objects.get(self._ref)
        stalled = item.condition("Stalled") if item is not None else None
        return stalled.reason if stalled is not None else str(item.step and item.step.reason) if item else ""


def test_a_lost_volume_is_no_blank_disk_where_its_file_was_away_for_a_moment(
    tmp_path: Path, stores: tuple[Store, Store], volume: Resource, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = Running(tmp_path, stores, volume)
    assert running.cycle() == "VolumeLost"
    running.file.unlink()
    assert [running.cycle(), running.cycle(), running.cycle()] == ["", "", ""]
    running.file.write_text(VOLUME)
    assert running.cycle() == "VolumeLost" and not running.host.written
    running.file.unlink()
    assert [running.cycle(), running.cycle()] == ["", ""]
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + GRACE)
    assert running.cycle() == "" and [operation.entry for operation in running.host.written] == ["forget"]
    assert volume.ref not in stores[0].objects()
