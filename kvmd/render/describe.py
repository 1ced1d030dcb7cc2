"""All that is known of one object, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvmd.render.style import PLAIN, Style
from kvmd.render.tables import columns, events_table
from kvmd.render.topology import interface_lines
from kvmd.render.values import as_text, to_yaml

_SHOWN_ELSEWHERE = frozenset(
    {"conditions", "pendingChanges", "interfaces", "generation", "observedGeneration", "source"}
)
_LAST_EVENTS = 20


def describe(item: Mapping[str, Any], events: Sequence[Mapping[str, Any]], now: float, style: Style = PLAIN) -> str:
    """Render one object of the API with its last events."""
    metadata, status = item["metadata"], item.get("status", {})
    head = [
        ("Name", metadata["name"]),
        ("Kind", item["kind"]),
        ("Labels", _pairs(metadata.get("labels"))),
        ("Annotations", _pairs(metadata.get("annotations"))),
        ("Source", status.get("source") or "(none)"),
        ("Generation", f"{status.get('generation', 0)} (observed {status.get('observedGeneration', 0)})"),
    ]
    head += [(_title(key), as_text(value)) for key, value in status.items() if key not in _SHOWN_ELSEWHERE]
    width = max(len(name) for name, _ in head) + 1
    parts = ["".join(f"{style.paint(f'{name}:', 'bold')}{' ' * (width - len(name))}{text}\n" for name, text in head)]
    parts.append(_section("Conditions", _conditions(status.get("conditions", ())), style))
    parts.append(_section("Pending changes", _pending(status.get("pendingChanges", ())), style))
    if status.get("interfaces"):
        lines = [line for interface in status["interfaces"] for line in interface_lines(interface, style)]
        parts.append(_section("Interfaces", "\n".join(lines) + "\n", style))
    parts.append(_section("Spec", to_yaml(item.get("spec", {})), style))
    shown = events_table(events[-_LAST_EVENTS:], now, style=style) if events else ""
    parts.append(_section("Events", shown, style))
    return "".join(parts)


def _title(key: str) -> str:
    words = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in key)
    return words[:1].upper() + words[1:]


def _pairs(values: Mapping[str, str] | None) -> str:
    return ", ".join(f"{key}={value}" for key, value in (values or {}).items()) or "(none)"


def _section(title: str, text: str, style: Style) -> str:
    body = "".join(f"  {line}\n" for line in text.splitlines())
    return f"{style.paint(f'{title}:', 'bold')}{chr(10) + body if body else '  (none)' + chr(10)}"


def _conditions(conditions: Sequence[Mapping[str, Any]]) -> str:
    if not conditions:
        return ""
    rows = [["TYPE", "STATUS", "REASON", "MESSAGE"]]
    rows += [[item["type"], item["status"], item["reason"], item.get("message", "")] for item in conditions]
    return columns(rows)


def _pending(pending: Sequence[Mapping[str, Any]]) -> str:
    if not pending:
        return ""
    rows = [["PATH", "CURRENT", "DESIRED", "EFFECT"]]
    rows += [
        [item["path"], as_text(item["currentValue"]), as_text(item["desiredValue"]), item["effect"]]
        for item in pending
    ]
    return columns(rows)
