"""Metrics, log lines, events and sd_notify, each read back by somebody else's parser."""

from __future__ import annotations

import io
import json
import logging
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from front_doors import BRIDGE, DATABASE, WEB, some_plan
from prometheus_client.parser import text_string_to_metric_families

from kvmd.api.resource import Ref
from kvmd.api.status import Condition
from kvmd.plan.model import ObjectPlan, Plan
from kvmd.settings import Log
from kvmd.telemetry import log
from kvmd.telemetry.events import Events
from kvmd.telemetry.metrics import Metrics
from kvmd.telemetry.notify import Notify

STATS = {
    "state.state": 1,
    "cpu.time": 2_500_000_000,
    "balloon.current": 1024,
    "balloon.maximum": 2048,
    "balloon.available": 1000,
    "balloon.usable": 250,
    "vcpu.current": 1,
    "vcpu.maximum": 1,
    "vcpu.0.state": 1,
    "vcpu.0.time": 1_000_000_000,
    "net.count": 1,
    "net.0.name": "vnet0",
    "net.0.rx.bytes": 7,
    "block.count": 2,
    "block.0.name": "vda",
    "block.0.path": '/srv/a"b.qcow2',
    "block.0.rd.bytes": 5,
    "block.1.name": "vda",
    "block.1.rd.bytes": 99,
}


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
    }


def value(metrics: Metrics, metric: str, /, **labels: str) -> float | None:
    return samples(metrics).get((metric, frozenset(labels.items())))


def test_what_never_happened_is_zero_and_not_absent() -> None:
    metrics = Metrics(kinds=("Tap",))
    assert value(metrics, "kvmd_drift_corrected_total", kind="Tap") == 0
    assert value(metrics, "kvmd_reconcile_total", kind="Tap", result="Blocked") == 0
    assert value(metrics, "kvmd_operations_total", operation="DomainStart", result="ok") == 0
    assert value(metrics, "kvmd_resources", kind="Tap", condition="Ready") == 0
    assert value(metrics, "kvmd_forced_stops_total") == 0
    assert value(metrics, "kvmd_propagation_seconds_count") == 0
    assert value(metrics, "kvmd_build_info", version="0.1.0") == 1


def test_every_metric_of_the_contract_is_there_with_its_labels() -> None:
    metrics = Metrics(kinds=("Tap",))
    metrics.observe_plan(some_plan())
    metrics.observe_cycle(0.02)
    metrics.propagated(0.4)
    metrics.reconciled("Tap", "success")
    metrics.drift_corrected("Tap")
    metrics.operation("LinkSet", "success")
    metrics.forced_stop()
    metrics.libvirt_call("defineXML", "write", "success")
    metrics.libvirt_up(True)
    metrics.source(2, "abc", 1_700_000_000.0)
    found = samples(metrics)
    have = {(name, frozenset(label for label, _ in labels)) for name, labels in found}
    contract = {
        "kvmd_build_info": "version",
        "kvmd_libvirt_up": "",
        "kvmd_source_revision_info": "revision",
        "kvmd_resources": "kind condition",
        "kvmd_resource_ready": "kind name",
        "kvmd_resource_pending_changes": "kind name",
        "kvmd_prune_held": "",
        "kvmd_reconcile_total": "kind result",
        "kvmd_drift_corrected_total": "kind",
        "kvmd_operations_total": "operation result",
        "kvmd_forced_stops_total": "",
        "kvmd_reconcile_duration_seconds_count": "",
        "kvmd_propagation_seconds_count": "",
        "kvmd_libvirt_calls_total": "call mode result",
        "kvmd_source_invalid_files": "",
        "kvmd_source_last_success_timestamp_seconds": "",
    }
    assert {(name, frozenset(labels.split())) for name, labels in contract.items()} <= have
    assert value(metrics, "kvmd_resource_pending_changes", kind="VirtualMachine", name="web") == 1
    assert value(metrics, "kvmd_resources", kind="VirtualMachine", condition="Blocked") == 1
    assert value(metrics, "kvmd_resources", kind="VirtualMachine", condition="Ready") == 1
    assert value(metrics, "kvmd_prune_held") == 1


def test_series_go_with_their_objects() -> None:
    metrics = Metrics()
    plan = some_plan()
    metrics.observe_plan(plan)
    left = {ref: item for ref, item in plan.objects.items() if ref != WEB}
    left[DATABASE] = replace(left[DATABASE], ready=True, conditions=())
    metrics.observe_plan(Plan(left))
    assert value(metrics, "kvmd_resource_ready", kind="VirtualMachine", name="web") is None
    assert value(metrics, "kvmd_resource_ready", kind="VirtualMachine", name="db") == 1
    assert value(metrics, "kvmd_resources", kind="VirtualMachine", condition="Ready") == 1
    assert value(metrics, "kvmd_resources", kind="VirtualMachine", condition="Blocked") == 0
    assert value(metrics, "kvmd_prune_held") == 0
    metrics.source(0, "one", None)
    metrics.source(0, "two", None)
    assert value(metrics, "kvmd_source_revision_info", revision="one") is None
    assert value(metrics, "kvmd_source_revision_info", revision="two") == 1


def test_a_plan_of_a_thousand_objects_costs_little_where_few_changed() -> None:
    def item(number: int, ready: bool) -> ObjectPlan:
        condition = Condition("Ready", ready, "Applied" if ready else "Waiting")
        return ObjectPlan(Ref("VirtualMachine", f"vm{number}"), conditions=(condition,), ready=ready)

    metrics = Metrics()
    objects = {made.ref: made for made in (item(number, True) for number in range(1000))}
    metrics.observe_plan(Plan(objects))
    durations = []
    for turn in range(10):
        changed = {made.ref: made for made in (item(number, bool(turn % 2)) for number in range(5))}
        started = time.process_time()
        metrics.observe_plan(Plan(objects | changed))
        durations.append(time.process_time() - started)
    assert min(durations) < 0.005


def test_names_and_types_follow_the_rules_of_promtool() -> None:
    metrics = Metrics(kinds=("Tap",))
    metrics.observe_plan(some_plan())
    metrics.libvirt_call("defineXML", "write", "success")
    metrics.domains([("web", STATS)])
    families = list(text_string_to_metric_families(metrics.exposition().decode()))
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert re.fullmatch(r"(kvmd|libvirt)_[a-z0-9_]+", family.name)
        assert family.documentation
        assert not re.search(r"_(ms|milliseconds|kb|kib|minutes|hours)(_|$)|counter|gauge|metric", family.name)
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)
        else:
            assert not family.name.endswith(("_total", "_count", "_bucket", "_sum"))


def test_domains_have_the_names_of_the_maintained_exporters() -> None:
    metrics = Metrics()
    metrics.domains([("web", STATS)])
    disk = {"domain": "web", "target_device": "vda"}
    assert value(metrics, "libvirt_domain_info_cpu_time_seconds_total", domain="web") == 2.5
    assert value(metrics, "libvirt_domain_info_memory_usage_bytes", domain="web") == 1048576
    assert value(metrics, "libvirt_domain_info_state", domain="web", state_desc="the domain is running") == 1
    assert value(metrics, "libvirt_domain_memory_stats_used_percent", domain="web") == 75
    assert value(metrics, "libvirt_domain_block_stats_read_bytes_total", **disk) == 5
    assert value(metrics, "libvirt_domain_block_stats_info", source_file='/srv/a"b.qcow2', **disk) == 1
    assert value(metrics, "libvirt_domain_vcpu_time_seconds_total", domain="web", vcpu="0") == 1
    interface = {"domain": "web", "target_device": "vnet0"}
    assert value(metrics, "libvirt_domain_interface_stats_receive_bytes_total", **interface) == 7


# ---------------------------------------------------------------------------------------------------- events


def test_equal_events_are_counted_and_move_to_the_end() -> None:
    clock = iter(range(100))
    events = Events(limit=3, clock=lambda: float(next(clock)))
    events.add("Tap/a", "Created", "made")
    events.add("Tap/b", "Created", "made", warning=True)
    again = events.add("Tap/a", "Created", "made")
    assert (again.sequence, again.time, again.count) == (3, 2.0, 2)
    assert [(event.object, event.type, event.count) for event in events.after()] == [
        ("Tap/b", "Warning", 1),
        ("Tap/a", "Normal", 2),
    ]
    assert [event.object for event in events.after(2)] == ["Tap/a"]
    for name in "cde":
        events.add(f"Tap/{name}", "Created", "made")
    assert [event.object for event in events.after()] == ["Tap/c", "Tap/d", "Tap/e"]
    assert events.last == 6


# ------------------------------------------------------------------------------------------------------- log


@pytest.fixture
def restored() -> Iterator[None]:
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    yield
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.usefixtures("restored")
def test_lines_are_json_and_below_the_level_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    stream = io.StringIO()
    log.configure(Log(), stream)
    logger = log.get("engine")
    logger.debug("hidden")
    logger.info("two\nlines", object="VirtualMachine/über", path=Path("/x"))
    try:
        raise ValueError("boom")
    except ValueError:
        logger.exception("failed")
    logging.getLogger("uvicorn.error").error("from %s", "elsewhere")
    first, second, third = lines(stream)
    assert (first["event"], first["object"], first["level"], first["part"]) == (
        "two\nlines",
        "VirtualMachine/über",
        "info",
        "engine",
    )
    assert first["timestamp"].endswith("Z")
    assert list(first)[:4] == ["timestamp", "level", "part", "event"]
    assert "ValueError: boom" in second["exception"]
    assert (third["event"], third["level"]) == ("from elsewhere", "error")


@pytest.mark.usefixtures("restored")
def test_the_journal_gets_priorities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1234")
    stream = io.StringIO()
    log.configure(Log(level="debug"), stream)
    logger = log.get("engine")
    for method in ("debug", "info", "warning", "error", "critical"):
        getattr(logger, method)("x")
    logging.getLogger("other").warning("y")
    priorities = re.findall(r"^<(\d)>\{.*\}$", stream.getvalue(), re.MULTILINE)
    assert priorities == ["7", "6", "4", "3", "2", "4"]


@pytest.mark.usefixtures("restored")
def test_the_console_format_is_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    log.configure(Log(format="console"), stream)
    log.get("engine").warning("careful", object="Tap/a")
    assert "careful" in stream.getvalue()
    assert "\x1b[" not in stream.getvalue()
    with pytest.raises(json.JSONDecodeError):
        json.loads(stream.getvalue())


def test_the_daemons_logging_and_serving_load_no_rich() -> None:
    program = (
        "import sys; from kvmd.telemetry import log; from kvmd.settings import Log; log.configure(Log());"
        "import kvmd.server, kvmd.telemetry.metrics; log.get('x').info('y');"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('rich', 'libvirt')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


# ---------------------------------------------------------------------------------------------------- notify


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(tmp_path: Path, abstract: bool) -> None:
    name = f"@{tmp_path.name}-kvmd" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + name[1:] if abstract else name)
        receiver.settimeout(2)
        notify = Notify({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "60000000"})
        assert notify.active
        assert notify.watchdog_seconds == 60
        notify.ready("12 objects")
        assert receiver.recv(500) == b"READY=1\nSTATUS=12 objects"
        notify.reloading()
        assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", receiver.recv(500))
        notify.watchdog()
        assert receiver.recv(500) == b"WATCHDOG=1"
        notify.status("two\nlines")
        assert receiver.recv(500) == b"STATUS=two lines"
        notify.stopping()
        assert receiver.recv(500) == b"STOPPING=1"


def test_without_systemd_nothing_happens(tmp_path: Path) -> None:
    Notify({}).ready()
    Notify({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()
    assert Notify({"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}).watchdog_seconds is None
    assert Notify({"WATCHDOG_USEC": "many"}).watchdog_seconds is None


def test_bridge_is_counted_once() -> None:
    metrics = Metrics()
    plan = some_plan()
    for _ in range(3):
        metrics.observe_plan(plan)
    assert value(metrics, "kvmd_resource_ready", kind=BRIDGE.kind, name=BRIDGE.name) == 0
