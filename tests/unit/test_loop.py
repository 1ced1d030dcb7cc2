"""The loop goes on: after a fault of kvmd's own, with hung workers, and without acts that nobody waits for."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from front_doors import make_settings

from kvmd.daemon.loop import MOST_REST_SECONDS, Daemon
from kvmd.daemon.request import Request
from kvmd.engine.executor import SlowCall
from kvmd.engine.facade import Answer
from kvmd.errors import Refused
from kvmd.telemetry.events import Events
from kvmd.telemetry.metrics import Metrics

REPORT = SimpleNamespace(wake_at=0.0, seconds=0.0)


class Reconciler:
    """Breaks its cycle off as often as it is told to."""

    def __init__(self, failures: int) -> None:
        self.failures, self.afresh = failures, 0
        self.memory = SimpleNamespace(note_overdue=lambda *_: False)

    def cycle(self) -> Any:
        if self.failures:
            self.failures -= 1
            raise AttributeError("odd")
        return REPORT

    def start_afresh(self) -> None:
        self.afresh += 1


class Log:
    """What was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def exception(self, message: str, **_more: Any) -> None:
        self.told.append(message)

    warning = exception


class Patience(threading.Event):
    """Notes how long somebody would wait, and does not."""

    def __init__(self) -> None:
        super().__init__()
        self.rests: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.rests.append(timeout or 0.0)
        return False


def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int = 0, **more: Any) -> tuple[Daemon, Log]:
    told = Log()
    assembly = SimpleNamespace(
        settings=make_settings(tmp_path, http={"listen": None}, backoff={"jitter": 0.0}),
        metrics=Metrics(),
        events=Events(),
        wake=threading.Event(),
        heard=SimpleNamespace(doubt=lambda: None),
        host=SimpleNamespace(),
        executor=SimpleNamespace(idle=True, slow=list),
        reconciler=Reconciler(failures),
    )
    vars(assembly).update(more)
    monkeypatch.setattr(Daemon, "_tell", lambda _self, _report: None)
    daemon = Daemon(assembly, SimpleNamespace(renew=lambda: None), told)  # type: ignore[arg-type]
    monkeypatch.setattr(daemon, "_stopping", Patience())
    monkeypatch.setattr(daemon, "_server", SimpleNamespace(renew=lambda: None))
    return daemon, told


def test_a_cycle_that_breaks_off_is_told_and_tried_again_later_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon, told = made(tmp_path, monkeypatch, failures=6)
    assert [daemon._turn() for _ in range(6)] == [False] * 6
    assert daemon._stopping.rests == [1.0, 2.0, 4.0, 8.0, MOST_REST_SECONDS, MOST_REST_SECONDS]
    assert told.told == ["a cycle broke off: AttributeError: odd"] * 6
    (event,) = daemon._assembly.events.after()
    assert (event.reason, event.count) == ("CycleFailed", 6)
    assert daemon._agent.healthy()[1]["lastCycleFailed"] == told.told[0]
    assert daemon._assembly.reconciler.afresh == 6
    assert daemon._turn()
    assert "lastCycleFailed" not in daemon._agent.healthy()[1]


def test_who_lost_the_lock_to_another_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> None:
        raise Refused("another kvmd")

    daemon, _ = made(tmp_path, monkeypatch)
    monkeypatch.setattr(daemon._lock, "renew", lost)
    with pytest.raises(Refused):
        daemon._turn()


def test_hung_workers_are_replaced_however_busy_the_loop_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While each cycle ends with the next one asked for already, nobody waits and looks."""
    looks: list[int] = []

    def slow() -> list[SlowCall]:
        looks.append(1)
        return []

    wake = threading.Event()
    daemon, _ = made(tmp_path, monkeypatch, executor=SimpleNamespace(idle=False, slow=slow), wake=wake)
    monkeypatch.setattr(Daemon, "_tell", lambda _self, _report: wake.set())
    assert [daemon._turn() for _ in range(3)] == [True] * 3
    assert len(looks) == 3


def test_an_act_that_was_answered_as_not_done_is_not_done_later() -> None:
    done: list[str] = []

    def act() -> Answer:
        done.append("stopped")
        return Answer(0, "ok")

    given_up = Request(act)
    assert given_up.answer(0.01).code == 5
    given_up.serve()
    assert done == []
    served = Request(act)
    served.serve()
    assert (served.answer(0.01).code, done) == (0, ["stopped"])


def test_an_act_that_has_begun_is_waited_for() -> None:
    begun, end = threading.Event(), threading.Event()

    def act() -> Answer:
        begun.set()
        end.wait(10.0)
        raise ValueError("odd")

    request = Request(act)
    worker = threading.Thread(target=request.serve)
    worker.start()
    assert begun.wait(10.0)
    assert "at it" in request.answer(0.01).message
    end.set()
    worker.join()
    assert request.answer(0.01) == Answer(1, "ValueError: odd")


def test_to_look_again_at_what_is_no_object_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon, _ = made(tmp_path, monkeypatch)
    assert daemon._agent._reconcile("VirtualMachine/none", {}).code == 3
