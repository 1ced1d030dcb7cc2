"""The documentation says what the code does: links, commands, examples, settings, metrics, alerts, tables."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from shown import NOT_SHOWN, shown

from kvmd.api.schema import Update, leaves
from kvmd.api.status import CONDITION_TYPES
from kvmd.kinds import CONTROLLERS
from kvmd.settings import Settings, Source, parse_size
from kvmd.sources.decode import decode_file
from kvmd.telemetry import domains
from kvmd.telemetry.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
OPERATIONS = (DOCS / "operations.md").read_text(encoding="utf-8")
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yaml"
DASHBOARD = ROOT / "deploy" / "grafana" / "kvmd.json"
WRITTEN_BY_OTHERS = {DOCS / "performance.md"}  # measured and written elsewhere; may come later than what links to it

page = pytest.mark.parametrize("file", PAGES, ids=lambda file: str(file.relative_to(ROOT)))


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def section(text: str, heading: str) -> str:
    """The part of a page below a heading, up to the next one of its level or above."""
    level = heading.split(" ")[0]
    match = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", text, re.DOTALL | re.MULTILINE)
    assert match, f"there is no heading '{heading}'"
    return match[1]


def rows(text: str) -> list[list[str]]:
    """The cells of every table row but headings."""
    found = [line.strip().strip("|") for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in found]
    return [
        row for number, row in enumerate(cells) if not (set("".join(row)) <= set("-: ") or _is_heading(cells, number))
    ]


def _is_heading(cells: list[list[str]], number: int) -> bool:
    return number + 1 < len(cells) and set("".join(cells[number + 1])) <= set("-: ")


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


def fenced(text: str, language: str) -> Iterator[str]:
    yield from re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


# ----------------------------------------------------------------------------------------------- links


@page
def test_relative_links_resolve(file: Path) -> None:
    text = without_code(file.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        if target in WRITTEN_BY_OTHERS:
            continue
        assert target.exists(), f"{file.name} links to {link}"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{file.name} links to {link}"


@page
def test_pages_name_no_machine_and_no_index(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    here = re.escape(str(Path(__file__).resolve().parents[2]))  # no path of the machine that it was written on
    assert not re.search(rf"{here}|/home/\w|/root/|index[-]url", text)


def test_every_decision_is_listed() -> None:
    index = (DOCS / "adr" / "README.md").read_text(encoding="utf-8")
    for file in DOCS.glob("adr/[0-9]*.md"):
        assert f"]({file.name})" in index
        text = file.read_text(encoding="utf-8")
        for heading in ("Context", "Decision", "Alternatives", "Consequences"):
            section(text, f"## {heading}")


# -------------------------------------------------------------------------------------------- commands


def commands() -> set[str]:
    from kvmd.cli.main import _COMMANDS

    return set(_COMMANDS)


@page
def test_every_command_named_exists(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    code = [*re.findall(r"`([^`\n]+)`", without_code(text)), *(block for block in fenced(text, "sh"))]
    named = {word for part in code for word in re.findall(r"(?:^|\s)kvmd ([a-z]+)\b", part)}
    assert named <= commands() | {"https"}, f"{file.name} names {sorted(named - commands())}"


def test_every_command_has_its_section() -> None:
    text = (DOCS / "commands.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^### kvmd (\w+)$", text, re.MULTILINE)) == commands()
    assert set(re.findall(r"<!-- generated: help (\w+) -->", text)) == commands()
    readme = section((ROOT / "README.md").read_text(encoding="utf-8"), "## Commands")
    assert set(re.findall(r"`kvmd (\w+)`", readme)) == commands()


@pytest.mark.parametrize("name", ["language.md", "commands.md", "fields.md"])
def test_generated_parts_are_up_to_date(name: str) -> None:
    location = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert location is not None and location.loader is not None
    generate = importlib.util.module_from_spec(location)
    location.loader.exec_module(generate)
    text = (DOCS / name).read_text(encoding="utf-8")
    # words, not lines: the versions of click wrap their help differently
    assert generate.generated(text).split() == text.split(), (
        f"docs/{name} is out of date; type: python docs/generate.py"
    )


def test_every_field_is_shown_by_a_test_and_every_marker_names_a_field() -> None:
    fields = {
        (kind, leaf.path.removeprefix("spec."))
        for kind, controller in CONTROLLERS.items()
        for leaf in leaves(controller.Spec)
        if leaf.leaf
    }
    tests = shown()
    assert tests.keys() <= fields, f"marked in {[tests[field] for field in tests.keys() - fields]} and no field"
    unshown = fields - tests.keys() - NOT_SHOWN.keys()
    assert not unshown, f"no test below tests/host is marked as showing {sorted(unshown)}: see tests/shown.py"
    assert not NOT_SHOWN.keys() & tests.keys(), "shown by now; take it out of NOT_SHOWN"
    for (kind, leaf), (case, _) in NOT_SHOWN.items():
        text = (ROOT / "tests" / "cases" / kind / case / "desired.yaml").read_text(encoding="utf-8")
        assert (kind, leaf) in fields and leaf.rpartition(".")[2].removesuffix("[]") in text, (kind, leaf, case)


# -------------------------------------------------------------------------------------------- examples


@page
def test_examples_of_specs_are_valid(file: Path) -> None:
    specs = {kind: controller.Spec for kind, controller in CONTROLLERS.items()}
    for block in fenced(file.read_text(encoding="utf-8"), "yaml"):
        assert "apiVersion:" in block, f"a yaml block of {file.name} is no spec; fence it as text"
        decoded = decode_file(block.encode(), file.name, Source(), specs)
        assert decoded.problems == ()
        assert decoded.resources


def test_the_readme_has_every_kind_and_no_other() -> None:
    table = rows(section((ROOT / "README.md").read_text(encoding="utf-8"), "## Kinds"))
    assert {row[0].strip("`") for row in table} == set(CONTROLLERS)


# -------------------------------------------------------------------------------- language and meanings


def test_conditions_and_update_classes_are_explained() -> None:
    text = (DOCS / "language.md").read_text(encoding="utf-8")
    assert [row[0].strip("`") for row in rows(section(text, "## Status"))] == list(CONDITION_TYPES)
    assert [row[0].strip("`") for row in rows(section(text, "## Update classes"))] == [
        update.value for update in Update
    ]


def test_every_reason_of_a_hold_has_its_row() -> None:
    source = (ROOT / "kvmd" / "plan" / "safety.py").read_text(encoding="utf-8")
    reasons = set(re.findall(r'(?:return |Hold\(ref, )"([A-Z]\w+)"', source))
    reasons |= set(re.findall(r'^[A-Z_]+ = "([A-Z]\w+)"$', source, re.MULTILINE))
    table = rows(section(OPERATIONS, "## What each hold means"))
    assert reasons and reasons == {reason for row in table for reason in re.findall(r"`(\w+)`", row[0])}


def test_every_reason_of_a_condition_has_its_row() -> None:
    found: set[str] = set()
    for file in [*ROOT.glob("kvmd/kinds/**/*.py"), ROOT / "kvmd" / "plan" / "planner.py"]:
        text = file.read_text(encoding="utf-8")
        found |= set(re.findall(r'Condition\(\s*[\w.]+,\s*True,\s*"(\w+)"', text))
    explained = section(OPERATIONS, "## What each condition means")
    missing = {reason for reason in found - {"Pruning"} if f"`{reason}`" not in explained}
    assert found and not missing, f"docs/operations.md does not explain {sorted(missing)}"


# ---------------------------------------------------------------------------------------- settings


def settings_keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        path = f"{prefix}{field.alias or name}"
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from settings_keys(inner, f"{path}.")
        else:
            yield path, "computed" if field.default_factory else field.default


def as_seconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(ms|s|m|h)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit]


def test_every_setting_stands_with_its_default() -> None:
    table = {row[0].strip("`"): row[1].strip("`") for row in rows(section(OPERATIONS, "## Settings"))}
    expected = dict(settings_keys(Settings))
    assert set(table) == set(expected)
    for key, default in expected.items():
        text = table[key]
        if isinstance(default, float) and re.fullmatch(r"[\d.]+(ms|s|m|h)", text):
            assert as_seconds(text) == pytest.approx(default), key
        elif re.fullmatch(r"\d+Mi", text):
            assert parse_size(text) == default, key
        elif isinstance(default, tuple):
            assert text == f"[{', '.join(default)}]", key
        elif default is None or isinstance(default, bool):
            assert text == {None: "null", True: "true", False: "false"}[default], key
        else:
            assert text == str(default), key


# ----------------------------------------------------------------------------------------- metrics


def kvmd_metrics() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Every metric of kvmd's own registry: its type and labels, by the name that people type."""
    found = {}
    for collector in Metrics(CONTROLLERS).registry._collector_to_names:
        family = next(iter(collector.describe()))
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = (family.type, tuple(collector._labelnames))  # type: ignore[attr-defined]
    return found


def domain_metrics() -> set[str]:
    groups = (domains._DOMAIN, domains._BLOCK, domains._INTERFACE, domains._VCPU)
    names = {family.name for group in groups for family in group}
    return {
        f"libvirt_domain_{name}" for name in names | {"info_state", "memory_stats_used_percent", "block_stats_info"}
    }


def test_every_metric_stands_with_type_and_labels() -> None:
    text = section(OPERATIONS, "## Metrics")
    documented = {}
    for row in rows(text):
        match = re.fullmatch(r"`(kvmd_\w+)(?:\{([\w,]+)\})?`", row[0])
        if match:
            documented[match[1]] = (row[1], tuple(match[2].split(",")) if match[2] else ())
    assert documented == kvmd_metrics()
    assert set(re.findall(r"`(libvirt_domain_\w+)`", text)) == domain_metrics()


def test_alerts_use_metrics_that_exist_and_have_a_runbook() -> None:
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    known = {name: set(labels) for name, (_, labels) in kvmd_metrics().items()}
    for rule in rules:
        used = set(re.findall(r"\bkvmd_\w+", rule["expr"]))
        assert used <= set(known), rule["alert"]
        allowed = {"instance", "job"}.union(*(known[name] for name in used))
        selected = set(re.findall(r"[{,]\s*(\w+)\s*=~?", rule["expr"]))
        shown = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        assert selected | shown <= allowed, rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        path, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert anchor == rule["alert"].lower() and anchor in anchors((ROOT / path).read_text(encoding="utf-8"))
    sections = set(re.findall(r"^### (\w+)$", section(OPERATIONS, "## Alerts"), re.MULTILINE))
    assert sections == {rule["alert"] for rule in rules}


def test_alerts_on_conditions_name_conditions_that_exist() -> None:
    for match in re.findall(r'condition=~?"([\w|]+)"', ALERTS.read_text(encoding="utf-8")):
        assert set(match.split("|")) <= set(CONDITION_TYPES)


def test_the_dashboard_shows_metrics_labels_and_conditions_that_exist() -> None:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    shown = [target["expr"] for panel in panels for target in panel["targets"]]
    known = {name: set(labels) for name, (_, labels) in kvmd_metrics().items()}
    for expression in shown:
        used = {name.removesuffix("_bucket") for name in re.findall(r"\b(?:kvmd|libvirt_domain)_\w+", expression)}
        assert used and used <= set(known) | domain_metrics(), expression
        selected = set(re.findall(r"[{,]\s*(\w+)\s*(?:!=|=~?)", expression))
        assert selected <= {"instance"}.union(*(known.get(name, set()) for name in used)), expression
        for conditions in re.findall(r'condition=~?"([\w|]+)"', expression):
            assert set(conditions.split("|")) <= set(CONDITION_TYPES)
