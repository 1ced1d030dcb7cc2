"""Commands that need neither daemon nor host: their exit codes and their streams."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvmd.cli.main import _COMMANDS, cli

TAP = """\
apiVersion: kvmd.dev/v1alpha1
kind: Tap
metadata: {name: tap1}
spec: {bridge: br0}
"""
HEAVY = (
    "libvirt",
    "rich",
    "structlog",
    "prometheus_client",
    "starlette",
    "uvicorn",
    "pydantic",
    "yaml",
    "watchfiles",
)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli(list(arguments))
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


@pytest.fixture
def specs(tmp_path: Path) -> Path:
    folder = tmp_path / "specs"
    folder.mkdir()
    (folder / "tap.yaml").write_text(TAP)
    return folder


def python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, **options)


def test_help_loads_nothing_heavy_and_lists_every_command() -> None:
    result = python("-X", "importtime", "-m", "kvmd", "--help")
    assert result.returncode == 0
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in result.stderr.splitlines() if "|" in line}
    assert loaded.isdisjoint(HEAVY)
    assert all(f"  {name} " in result.stdout for name in _COMMANDS)


def test_validate_works_where_libvirt_is_not_installed(specs: Path) -> None:
    program = (
        "import sys; sys.modules['libvirt'] = None; sys.modules['rich'] = None\n"
        "from kvmd.cli.main import cli; cli(['validate', sys.argv[1]])"
    )
    result = python("-c", program, str(specs))
    assert (result.returncode, result.stdout) == (0, "") or "dangling" in result.stdout
    assert result.returncode == 0


@pytest.mark.parametrize("command", sorted(_COMMANDS))
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, err = run(capsys, command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: kvmd {command}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["aply"], "Did you mean 'apply'?"),
        (["get", "--wide"], "No such option"),
        (["get", "vmm"], "did you mean 'vm'?"),
        (["describe", "web"], "write KIND/NAME"),
        (["describe", "vm/"], "write KIND/NAME"),
        (["wait", "--for=ready"], "condition=Ready"),
        (["wait", "--for=condition=Redy"], "did you mean 'Ready'?"),
        (["wait", "--timeout=soon"], "is not a duration"),
        (["get", "vm,br", "web"], "KIND/NAME"),
        (["get", "-l", "app"], "KEY=VALUE"),
        (["validate"], "PATH"),
        (["plan", "-o", "xml"], "xml"),
    ],
)
def test_usage_is_64_and_on_stderr(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (64, "")
    assert words in err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version")[:2] == (0, "kvmd, version 0.1.0\n")


# -------------------------------------------------------------------------------------------------- settings


def test_without_a_daemon_the_way_to_start_it_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "kvmd.yaml"
    config.write_text(f"paths: {{run: {tmp_path}}}\n")
    code, out, err = run(capsys, "--config", str(config), "get", "vm")
    assert (code, out) == (4, "")
    assert f"no kvmd answers on {tmp_path}/kvmd.sock" in err
    assert "sudo systemctl start kvmd" in err
    assert "sudo kvmd run" in err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("paths: {rnu: /x}", "kvmd.yaml:1:9"),
        ("a: &b 1", "kvmd.yaml:1:4"),
        ("source: {settle: 1s, rescan: 2s}", "source.rescan"),
        ("{}\n---\n{}", "one document"),
    ],
)
def test_faults_of_the_settings_are_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "kvmd.yaml").write_text(text)
    code, _, err = run(capsys, "--config", str(tmp_path / "kvmd.yaml"), "get")
    assert code == 1
    assert words in err


def test_settings_that_were_named_must_exist(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "--config", "/nowhere/kvmd.yaml", "get")
    assert code == 1
    assert "/nowhere/kvmd.yaml: the settings file does not exist" in err


# -------------------------------------------------------------------------------------------------- validate


def test_valid_files(capsys: pytest.CaptureFixture[str], specs: Path) -> None:
    (specs / "bridge.yaml").write_text(
        TAP.replace("Tap", "Bridge").replace("tap1", "br0").replace("{bridge: br0}", "{}")
    )
    (specs / ".hidden.yaml").write_text("not: [a spec")
    assert run(capsys, "validate", str(specs)) == (0, "", "2 files, valid\n")


def test_every_fault_at_once_on_stdout(capsys: pytest.CaptureFixture[str], specs: Path) -> None:
    (specs / "bad.yaml").write_text(TAP.replace("bridge:", "brige:"))
    (specs / "worse.yaml").write_text("a: [\n")
    code, out, err = run(capsys, "validate", str(specs))
    assert code == 1
    assert f"{specs}/bad.yaml:4:8: error[unknown-field]" in out
    assert "did you mean" in out
    assert f"{specs}/worse.yaml" in out
    assert "3 files, 2 errors, 1 warning" in err
    assert "\x1b[" not in out + err


def test_faults_between_files(capsys: pytest.CaptureFixture[str], specs: Path) -> None:
    (specs / "again.yaml").write_text(TAP)
    code, out, _ = run(capsys, "validate", "-o", "json", str(specs))
    rules = {(problem["rule"], problem["severity"]) for problem in json.loads(out)["problems"]}
    assert code == 1
    assert {("duplicate-object", "error"), ("dangling-reference", "warning")} <= rules


def test_two_objects_with_one_name_on_the_host_are_a_warning(capsys: pytest.CaptureFixture[str], specs: Path) -> None:
    text = TAP.replace("name: tap1", "name: other").replace("bridge: br0", "nameOnHost: tap1")
    (specs / "other.yaml").write_text(text)
    code, out, _ = run(capsys, "validate", str(specs))
    assert code == 0
    assert "warning[conflict]" in out


def test_a_path_that_is_not_there_is_3(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.yaml", tmp_path):
        code, out, err = run(capsys, "validate", str(path))
        assert (code, out) == (3, "")
        assert str(path) in err


def test_standard_input(specs: Path) -> None:
    result = python("-m", "kvmd", "validate", "-o", "github", "-", input=TAP.replace("spec:", "spce:"))
    assert result.returncode == 1
    assert "::error file=<stdin>,line=" in result.stdout


# -------------------------------------------------------------------------------------------------- language


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "explain", "vm.memory.guest")
    assert code == 0
    assert "spec.memory.guest" in out
    assert "Live" in out
    code, _, err = run(capsys, "explain", "vm.memroy")
    assert code == 3
    assert "did you mean kvmd explain vm.memory?" in err
    assert "VirtualMachine (virtualmachines, vm)" in run(capsys, "explain")[1]
    assert json.loads(run(capsys, "explain", "tap", "-o", "json")[1])


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    schema = json.loads(run(capsys, "schema")[1])
    assert {"VirtualMachine", "Network", "Bridge", "Tap", "Tun"} <= set(schema["properties"]["kind"]["enum"])
    assert json.loads(run(capsys, "schema", "br")[1])["properties"]["kind"]["enum"] == ["Bridge"]


# --------------------------------------------------------------------------------------------------- colours


def on_a_terminal(arguments: list[str], **environment: str) -> str:
    """Run kvmd with stdout and stderr on a pseudo-terminal and return what it shows."""
    outer, inner = pty.openpty()
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    process = subprocess.Popen(
        [sys.executable, "-m", "kvmd", *arguments],
        stdout=inner,
        stderr=inner,
        stdin=subprocess.DEVNULL,
        env={**plain, "TERM": "xterm", "LC_ALL": "C.UTF-8", **environment},
    )
    os.close(inner)
    shown = b""
    try:
        while part := os.read(outer, 4096):
            shown += part
    except OSError:  # the other end is closed
        pass
    os.close(outer)
    process.wait(10)
    return shown.decode()


def test_colours_only_for_terminals_that_want_them(specs: Path) -> None:
    arguments = ["validate", str(specs)]
    assert "\x1b[" in on_a_terminal(arguments)
    assert "\x1b[" not in on_a_terminal(arguments, NO_COLOR="1")
    assert "\x1b[" not in on_a_terminal(arguments, TERM="dumb")


@pytest.mark.parametrize(("words", "code"), [(["--version"], 0), (["explain", "Nothing"], 64)])
def test_a_command_ends_its_process_without_taking_the_interpreter_apart(words: list[str], code: int) -> None:
    """What libvirt's event loop calls meanwhile would crash it after everything was said."""
    text = f"import atexit, sys; atexit.register(print, 'taken apart'); sys.argv = {['kvmd', *words]}"
    text += "; from kvmd.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert done.returncode == code and done.stdout + done.stderr
    assert "taken apart" not in done.stdout


@pytest.mark.parametrize(("words", "code"), [("--version", 0), ("explain Nothing", 64)])
def test_a_command_keeps_its_code_where_its_output_is_closed(words: str, code: int) -> None:
    done = subprocess.run(f"{sys.executable} -m kvmd {words} >&- 2>&-", shell=True)
    assert done.returncode == code
