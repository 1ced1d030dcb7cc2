"""plan, diff, apply, run and render: what they make of the outcomes that kvmd.daemon may have."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from front_doors import BRIDGE, WEB, StaticAgent, condition, make_object, make_settings, resource, serving, some_plan

from kvmd.api.problem import Position, Problem
from kvmd.cli.main import cli
from kvmd.engine.facade import Answer, Event
from kvmd.errors import BackendUnavailable, Refused
from kvmd.plan.model import ObjectPlan, Plan

Run = Callable[..., tuple[int, str, str]]


@dataclass
class Daemon:
    """The part of kvmd.daemon that commands use, with outcomes that a test sets."""

    planned: Plan = field(default_factory=some_plan)
    left: Plan = field(default_factory=lambda: Plan({}))
    faults: tuple[Problem, ...] = ()
    locked: bool = False
    digest: str = "d1"
    error: Exception | None = None
    applied: list[dict[str, Any]] = field(default_factory=list)
    seen: list[Any] = field(default_factory=list)

    def module(self) -> ModuleType:
        daemon = self

        class Session:
            def __init__(self, settings: Any) -> None:
                daemon.seen.append(settings)
                if daemon.error is not None:
                    raise daemon.error

            def __enter__(self) -> Session:
                return self

            def __exit__(self, *details: object) -> None:
                return None

            def plan(self) -> Plan:
                return daemon.planned

            def problems(self) -> tuple[Problem, ...]:
                return daemon.faults

            def source(self) -> dict[str, Any]:
                return {"digest": daemon.digest}

            def apply(self, plan: Plan, *, prune: bool, progress: Callable[[Event], None], timeout: float) -> Plan:
                daemon.applied.append({"prune": prune, "timeout": timeout})
                progress(Event(1, 0.0, "Bridge/br0", "Normal", "Created", "create bridge br0"))
                return daemon.left

        module = ModuleType("kvmd.daemon")
        vars(module).update(
            Session=Session,
            daemon_holds_lock=lambda settings: daemon.locked,
            run_daemon=lambda settings, *, once, reload: daemon.seen.append((settings, once)) or 7,
            render_object=lambda settings, ref: f"<{ref}/>",
        )
        return module


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    daemon = Daemon()
    monkeypatch.setitem(sys.modules, "kvmd.daemon", daemon.module())
    return daemon


@pytest.fixture
def kvmd(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    config = tmp_path / "kvmd.yaml"
    config.write_text(json.dumps({"paths": {"run": str(tmp_path / "run")}, "source": {"path": "/specs"}}))

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli(["--config", str(config), *arguments])
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


FAULT = Problem(Position("/specs/x.yaml", 1, 1), "unknown-field", "bad")


def test_plan(daemon: Daemon, kvmd: Run) -> None:
    code, out, err = kvmd("plan", "--specs", "/other", "--connect", "test:///default")
    assert (code, err) == (0, "")
    assert out.endswith("Plan: 1 to create, 1 to change, 1 to remove; impact: none.\n")
    assert (daemon.seen[0].source.path, daemon.seen[0].libvirt.uri) == ("/other", "test:///default")
    assert json.loads(kvmd("plan", "-o", "json")[1])["summary"]["create"] == 1


def test_detailed_exit_codes(daemon: Daemon, kvmd: Run) -> None:
    assert kvmd("plan", "--detailed-exitcode")[0] == 2
    daemon.planned = Plan({})
    assert kvmd("plan", "--detailed-exitcode")[0] == 0
    daemon.faults = (FAULT,)
    code, _, err = kvmd("plan", "--detailed-exitcode")
    assert code == 1
    assert "/specs/x.yaml:1:1: error[unknown-field] bad" in err
    daemon.error = BackendUnavailable("libvirt is away", hint="kvmd check")
    assert kvmd("plan")[0] == 1


def test_diff(daemon: Daemon, kvmd: Run) -> None:
    code, out, _ = kvmd("diff")
    assert code == 1
    assert "+    guest: 2Gi" in out
    daemon.planned = Plan({})
    assert kvmd("diff") == (0, "", "")
    daemon.faults = (FAULT,)
    assert kvmd("diff")[0] == 2
    daemon.error = BackendUnavailable("libvirt is away", hint="kvmd check")
    code, _, err = kvmd("diff")
    assert code == 2
    assert "kvmd check" in err


def test_apply_asks_and_without_a_terminal_wants_yes(daemon: Daemon, kvmd: Run) -> None:
    code, out, err = kvmd("apply")
    assert code == 64
    assert "+ Bridge/br0" in out
    assert "add --yes" in err
    assert daemon.applied == []


def test_apply_acts_and_shows_progress(daemon: Daemon, kvmd: Run) -> None:
    code, _, err = kvmd("apply", "--yes", "--no-prune", "--timeout", "90s")
    assert code == 0
    assert daemon.applied == [{"prune": False, "timeout": 90.0}]
    assert "Bridge/br0  Created: create bridge br0" in err
    assert "Done." in err


def test_apply_with_nothing_to_do(daemon: Daemon, kvmd: Run) -> None:
    daemon.planned = Plan({})
    code, out, _ = kvmd("apply")
    assert (code, out) == (0, "No changes. The host agrees with the specs.\n")
    daemon.planned = Plan({WEB: ObjectPlan(WEB, resource(WEB, {}))})
    code, _, err = kvmd("apply")
    assert code == 1
    assert "VirtualMachine/web is not ready" in err


def test_what_is_left_after_an_apply_is_shown(daemon: Daemon, kvmd: Run) -> None:
    daemon.left = some_plan()
    code, out, err = kvmd("apply", "-y")
    assert code == 1
    assert "Not everything could be done" in err
    assert out.count("+ Bridge/br0") == 2


def test_a_plan_file_is_carried_out_while_it_is_fresh(daemon: Daemon, kvmd: Run, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    code, _, err = kvmd("plan", "--specs", "/other", "--out", str(file))
    assert code == 0
    assert f"kvmd apply {file}" in err
    assert file.stat().st_mode & 0o777 == 0o600
    assert kvmd("apply", str(file), "--yes")[0] == 0
    assert daemon.seen[-1].source.path == "/other"
    daemon.planned = replace(some_plan(), steps=some_plan().steps[:1])
    code, _, err = kvmd("apply", str(file), "--yes")
    assert code == 6
    assert "is stale" in err
    daemon.planned, daemon.digest = some_plan(), "d2"  # other specs of which a plan says the same
    assert kvmd("apply", str(file), "--yes")[0] == 6
    assert len(daemon.applied) == 1


def test_plan_files_that_are_none(daemon: Daemon, kvmd: Run, tmp_path: Path) -> None:
    assert kvmd("apply", str(tmp_path / "none"))[0] == 3
    (tmp_path / "list").write_text("[]")
    assert kvmd("apply", str(tmp_path / "list"))[0] == 1
    (tmp_path / "text").write_text("hello")
    assert kvmd("apply", str(tmp_path / "text"))[0] == 1


def test_errors_have_their_exit_codes(daemon: Daemon, kvmd: Run) -> None:
    daemon.error = Refused("not allowed", hint="ask somebody")
    code, _, err = kvmd("plan")
    assert code == 6
    assert "ask somebody" in err


def test_run_and_render(daemon: Daemon, kvmd: Run) -> None:
    assert kvmd("run", "--once", "--listen", "127.0.0.1:0", "--specs", "/s")[0] == 7
    settings, once = daemon.seen[-1]
    assert (settings.http.listen, settings.source.path, once) == ("127.0.0.1:0", "/s", True)
    assert kvmd("render", "vm/web") == (0, "<VirtualMachine/web/>\n", "")


# ------------------------------------------------------------------------------------ while a daemon is running


class BusyAgent(StaticAgent):
    """An agent that has done everything as soon as it is told to apply."""

    def act(self, verb: str, reference: str, options: dict[str, Any]) -> Answer:
        self.items = [make_object(BRIDGE, condition("Ready"))]
        return super().act(verb, reference, options)


def test_the_daemon_gets_digest_and_confirmation(daemon: Daemon, kvmd: Run, tmp_path: Path) -> None:
    daemon.locked = True
    agent = BusyAgent()
    with serving(agent, make_settings(tmp_path, http={"listen": None})):
        code, _, err = kvmd("apply", "--yes")
    assert code == 0
    assert "Done." in err
    ((verb, _, options),) = agent.acts
    assert (verb, options["digest"], options["confirm"], options["prune"]) == ("apply", "d1", True, True)
    assert daemon.applied == []


def test_what_the_daemon_cannot_finish_is_named(
    daemon: Daemon, kvmd: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.locked = True
    monkeypatch.setattr("kvmd.cli.follow._READ_SECONDS", 0.0)
    agent = StaticAgent()
    with serving(agent, make_settings(tmp_path, http={"listen": None})):
        code, _, err = kvmd("apply", "--yes")
        assert code == 1
        assert "VirtualMachine/db is not ready (Blocked: waits for Network/lab)" in err
        agent.items = [make_object(WEB, condition("Ready", False, "Starting"))]
        assert kvmd("apply", "--yes", "--timeout", "0.1")[0] == 5
        agent.tree["digest"] = "other"
        code, _, err = kvmd("apply", "--yes")
        assert code == 6
        assert "other specs" in err
        code, _, err = kvmd("apply", "--yes", "--specs", "/elsewhere")
        assert code == 6
        assert "/elsewhere" in err
    assert kvmd("apply", "--yes")[0] == 4


def test_following_ends_where_only_people_can_bring_it_further(
    daemon: Daemon, kvmd: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is held back is no failure, as in a run without the daemon; what is left alone is not waited for."""
    daemon.locked = True
    agent = StaticAgent()
    held = make_object(WEB, condition("PruneHeld", True, "ConfirmationRequired", "its spec said confirm"))
    agent.items, agent.planned = [held, make_object(BRIDGE, condition("Ready"))], Plan({})
    with serving(agent, make_settings(tmp_path, http={"listen": None})):
        code, _, err = kvmd("apply", "--yes")
        assert code == 0 and "Done, but for 1 held removals." in err
        for reason in ("Suspended", "Drifted"):
            agent.items = [held, make_object(BRIDGE, condition("Ready", False, reason, "left alone"))]
            code, _, err = kvmd("apply", "--yes")
            assert code == 1 and "Bridge/br0 is not ready (NotReady: left alone)" in err
