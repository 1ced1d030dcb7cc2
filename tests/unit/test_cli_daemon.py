"""Commands that ask the daemon, against a real server on a real UNIX socket."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import yaml
from front_doors import DATABASE, WEB, StaticAgent, condition, make_object, make_settings, serving, some_objects

from kvmd.cli.main import cli
from kvmd.engine.facade import Answer

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def shared_agent() -> StaticAgent:
    return StaticAgent()


@pytest.fixture
def agent(shared_agent: StaticAgent) -> StaticAgent:
    vars(shared_agent).update(vars(StaticAgent()))
    return shared_agent


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, shared_agent: StaticAgent) -> Iterator[Path]:
    # the daemon logs to stdout; here it shares a process with the command
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(io.StringIO()))
    folder = tmp_path_factory.mktemp("daemon")
    settings = make_settings(folder, http={"listen": None})
    file = folder / "kvmd.yaml"
    file.write_text(json.dumps({"paths": {"run": settings.paths.run}}))
    with serving(shared_agent, settings):
        yield file
    structlog.reset_defaults()


@pytest.fixture
def kvmd(config: Path, agent: StaticAgent, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli(["--config", str(config), *arguments])
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


@pytest.mark.parametrize("words", [["vm/web"], ["vm", "web"], ["VirtualMachines", "web"], ["virtualmachine/web"]])
def test_get_knows_every_word_for_an_object(kvmd: Run, words: list[str]) -> None:
    code, out, err = kvmd("get", *words, "-o", "json")
    assert (code, err) == (0, "")
    assert json.loads(out) == some_objects()[0]


def test_get_in_every_form(kvmd: Run) -> None:
    assert kvmd("get", "vm", "-o", "name") == (0, "VirtualMachine/db\nVirtualMachine/web\n", "")
    assert [item["kind"] for item in yaml.safe_load(kvmd("get", "-o", "yaml")[1])["items"]] == [
        "Bridge",
        "VirtualMachine",
        "VirtualMachine",
    ]
    table = kvmd("get", "vm")[1].splitlines()
    assert table[0].startswith("NAME") and len(table) == 3
    assert len(kvmd("get", "vm", "--no-headers")[1].splitlines()) == 2
    assert "SOURCE" in kvmd("get", "br,vm", "-o", "wide")[1]
    assert kvmd("get", "-l", "app=web", "-o", "name")[1] == "VirtualMachine/web\n"


def test_nothing_and_nobody(kvmd: Run) -> None:
    assert kvmd("get", "tap") == (0, "", "No objects found.\n")
    code, out, err = kvmd("get", "vm", "web", "nobody")
    assert code == 3
    assert "web" in out
    assert "there is no VirtualMachine/nobody" in err
    assert kvmd("describe", "vm/nobody")[0] == 3
    assert kvmd("topology", "nobody")[0] == 3


def test_describe_and_events(kvmd: Run) -> None:
    out = kvmd("describe", "vm/db")[1]
    assert "waits for Network/lab" in out
    assert "breaks at bridge br0" in out
    assert "start domain web" not in out
    assert "start domain web" in kvmd("events")[1]
    assert [item["sequence"] for item in json.loads(kvmd("events", "vm", "db", "-o", "json")[1])["items"]] == [2]
    assert kvmd("events", "br/br0") == (0, "", "No events.\n")


def test_topology(kvmd: Run) -> None:
    assert "breaks at bridge br0: down" in kvmd("topology")[1]
    assert json.loads(kvmd("topology", "web", "-o", "json")[1])["items"][0]["interfaces"][0]["brokenAt"] is None
    assert kvmd("topology", "vm/web", "-o", "dot")[1].startswith("digraph")


def test_wait(kvmd: Run, agent: StaticAgent) -> None:
    assert kvmd("wait", "vm/web", "--timeout=1")[0] == 0
    assert kvmd("wait", "vm/db", "--for=condition=Blocked", "--timeout=1")[0] == 0
    assert kvmd("wait", "vm/db", "--for=condition=ready=False", "--timeout=1")[0] == 0
    assert kvmd("wait", "vm/nobody", "--for=delete", "--timeout=1")[0] == 0
    code, out, err = kvmd("wait", "--timeout=100ms")
    assert (code, out) == (5, "")
    assert "VirtualMachine/db Ready=True (waits for Network/lab)" in err
    assert kvmd("wait", "vm/nobody", "--timeout=0")[0] == 3

    def mend() -> None:
        time.sleep(0.3)
        agent.items = [make_object(DATABASE, condition("Ready"))]

    threading.Thread(target=mend).start()
    assert kvmd("wait", "vm/db", "--timeout=5")[0] == 0


def test_watching_prints_what_changes(config: Path, agent: StaticAgent) -> None:
    command = [sys.executable, "-m", "kvmd", "--config", str(config), "get", "vm", "-w"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = [process.stdout.readline() for _ in range(3)]
        assert first[0].startswith("NAME")
        agent.items = [make_object(WEB, condition("Ready"), power="shutoff")]
        changed = [process.stdout.readline() for _ in range(2)]
        process.terminate()
    assert "shutoff" in changed[0]
    assert changed[1] == "VirtualMachine/db   removed\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["start", "web"], ("start", "VirtualMachine/web")),
        (["stop", "vm/web"], ("stop", "VirtualMachine/web")),
        (["restart", "vm", "web"], ("restart", "VirtualMachine/web")),
        (["suspend", "br/br0"], ("suspend", "Bridge/br0")),
        (["resume", "br", "br0"], ("resume", "Bridge/br0")),
        (["reconcile"], ("reconcile", "")),
        (["reconcile", "vm/web"], ("reconcile", "VirtualMachine/web")),
        (["approve", "net/lab"], ("approve", "Network/lab")),
    ],
)
def test_acts_reach_the_agent(kvmd: Run, agent: StaticAgent, arguments: list[str], expected: Any) -> None:
    assert kvmd(*arguments) == (0, "", "done\n")
    assert agent.acts[0][:2] == expected


@pytest.mark.parametrize("code", [1, 3, 6])
def test_a_refused_act_says_why_and_what_next(kvmd: Run, agent: StaticAgent, code: int) -> None:
    agent.answer = Answer(code, "its runStrategy is Always", "set runStrategy: Halted")
    found, out, err = kvmd("stop", "web")
    assert (found, out) == (code, "")
    assert "its runStrategy is Always" in err
    assert "set runStrategy: Halted" in err


def test_approving_removals_shows_them_and_carries_their_digest(kvmd: Run, agent: StaticAgent) -> None:
    assert kvmd("approve", "prune")[0] == 0
    assert agent.acts == []
    agent.tree["held"] = ["VirtualMachine/old: too many at once"]
    agent.tree["pruneDigest"] = "abc"
    code, _, err = kvmd("approve", "prune")
    assert code == 64
    assert "VirtualMachine/old: too many at once" in err
    assert "add --yes" in err
    assert kvmd("approve", "prune", "--yes")[0] == 0
    ((verb, reference, options),) = agent.acts
    assert (verb, reference, options["digest"]) == ("approve", "prune", "abc")
