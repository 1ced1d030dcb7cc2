"""One cycle of the engine: what is begun while the rest is planned, and what is on disk before."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from kvmd import ops
from kvmd.api.resource import Ref
from kvmd.engine.executor import Job
from kvmd.engine.reconciler import Reconciler, Report, Sources
from kvmd.engine.records import Records
from kvmd.kinds import CONTROLLERS
from kvmd.observed import HOST, Host, Observed
from kvmd.plan import planner
from kvmd.plan.look import Look
from kvmd.plan.model import ObjectPlan
from kvmd.settings import Settings
from kvmd.sources.directory import Directory
from kvmd.sources.store import Store

MACHINE = """apiVersion: kvmd.dev/v1alpha1
kind: VirtualMachine
metadata: {{name: {name}}}
spec: {{runStrategy: {strategy}, accelerator: tcg, memory: {{guest: 64Mi}}}}
"""


class EmptyHost:
    """A host with nothing on it."""

    def __init__(self) -> None:
        self.ledger = self
        self.missing: frozenset[str] = frozenset()

    def removals(self) -> list[tuple[float, Ref]]:
        return []

    def write(self, operation: ops.Op) -> None:
        raise AssertionError(f"nothing is forgotten here: {operation}")

    def forget_everything(self) -> None:
        """It has nothing to forget."""

    def observe(self, _paths: Sequence[str], _secrets: Sequence[str]) -> Observed:
        facts = {HOST: Host(machine_id="0" * 32, memory_bytes=2**34)}
        return Observed(MappingProxyType(facts), missing=self.missing)


class Notes:
    """An executor that only notes what it is given, how much was planned by then, and what the store had."""

    def __init__(self, store: Path, room: int = 100) -> None:
        self.jobs: list[Job] = []
        self.stored: list[str] = []
        self.planned: list[Ref] = []
        self.when: list[int] = []
        self.room = room
        self._store = store

    def outcomes(self) -> list[Any]:
        return []

    def submit(self, job: Job) -> None:
        self.jobs.append(job)
        self.room -= job.weight
        self.when.append(len(self.planned))
        self.stored.append(self._store.read_text() if self._store.exists() else "")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Reconciler, Notes, EmptyHost]:
    (tmp_path / "specs").mkdir()
    for name in ("b", "c", "d"):
        (tmp_path / "specs" / f"{name}.yaml").write_text(MACHINE.format(name=name, strategy="Halted"))
    (tmp_path / "specs" / "a.yaml").write_text(MACHINE.format(name="a", strategy="Always"))
    settings = Settings.model_validate({"source": {"path": str(tmp_path / "specs"), "settle": "50ms"}})
    time.sleep(0.06)
    good = Store(str(tmp_path / "state" / "specs.jsonl"))
    specs = {kind: controller.Spec for kind, controller in CONTROLLERS.items()}
    sources = Sources(
        Directory(settings.source.path, settings.source, specs, good),
        Records(good, Store(str(tmp_path / "state" / "applied.jsonl"))),
    )
    executor, host = Notes(tmp_path / "state" / "specs.jsonl"), EmptyHost()
    plan_object = planner._plan_object

    def noted(ref: Ref, look: Look) -> ObjectPlan:
        executor.planned.append(ref)
        return plan_object(ref, look)

    monkeypatch.setattr(planner, "_plan_object", noted)
    reconciler = Reconciler(settings, host, sources, executor, lambda *_told: None)  # type: ignore[arg-type]
    return reconciler, executor, host


def test_new_machines_are_begun_while_others_are_planned(made: tuple[Reconciler, Notes, EmptyHost]) -> None:
    """Definitions alone; a start waits for the plans of all. Each is given out once, and all are in the report."""
    reconciler, executor, _ = made
    report = reconciler.cycle()
    assert [job.steps[0].ref.name for job in executor.jobs] == ["b", "c", "d", "a"]
    assert executor.when == [2, 3, 4, 4]
    assert sorted(step.ref for step in report.dispatched) == sorted(step.ref for step in report.plan.steps)
    assert all(reconciler.memory.of(step.ref).busy for step in report.dispatched)


def test_specs_are_on_disk_before_the_first_act(made: tuple[Reconciler, Notes, EmptyHost]) -> None:
    reconciler, executor, _ = made
    reconciler.cycle()
    assert all(f"VirtualMachine/{name}" in text for text in executor.stored for name in "abcd")


def test_nothing_is_begun_where_specs_cannot_be_kept(
    made: tuple[Reconciler, Notes, EmptyHost], monkeypatch: pytest.MonkeyPatch
) -> None:
    reconciler, executor, _ = made

    def full(*_arguments: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    report = reconciler.cycle()
    assert len(report.plan.steps) == 4 and not executor.jobs and not report.dispatched


def _begun(report: Report, executor: Notes) -> tuple[int, int]:
    return len(report.dispatched), len(executor.jobs)


def test_planning_alone_begins_nothing(made: tuple[Reconciler, Notes, EmptyHost]) -> None:
    reconciler, executor, _ = made
    assert _begun(reconciler.cycle(act=False), executor) == (0, 0)


def test_nothing_is_begun_on_incomplete_facts(made: tuple[Reconciler, Notes, EmptyHost]) -> None:
    reconciler, executor, host = made
    host.missing = frozenset({"libvirt"})
    assert _begun(reconciler.cycle(), executor) == (0, 0)


def test_no_more_is_begun_than_there_is_room_for(made: tuple[Reconciler, Notes, EmptyHost]) -> None:
    reconciler, executor, _ = made
    executor.room = 2
    assert _begun(reconciler.cycle(), executor) == (2, 2)


def test_after_a_cycle_that_broke_off_everything_is_planned(
    made: tuple[Reconciler, Notes, EmptyHost], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What had changed was noted before the plan broke off: it would not be looked at again."""
    reconciler, _, _ = made
    plan_object = planner._plan_object

    def trips(ref: Ref, look: Look) -> ObjectPlan:
        if ref.name == "c":
            raise RuntimeError("odd")
        return plan_object(ref, look)

    with monkeypatch.context() as patch:
        patch.setattr(planner, "_plan_object", trips)
        with pytest.raises(RuntimeError):
            reconciler.cycle()
    reconciler.start_afresh()
    report = reconciler.cycle()
    assert sorted(ref.name for ref in report.plan.objects) == ["a", "b", "c", "d"]
    assert {"c", "d"} <= {step.ref.name for step in report.dispatched}
