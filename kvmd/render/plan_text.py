"""A plan as people read it: one block per object, then what waits, what is held, and one line of summary."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvmd.api.status import WHEN_LET_THROUGH
from kvmd.render.style import PLAIN, Style
from kvmd.render.unfold import unfold
from kvmd.render.values import as_text

_SIGNS = {"create": ("+", "green"), "change": ("~", "yellow"), "remove": ("-", "red")}
_IMPACT_COLOURS = {"none": "dim", "blip": "yellow", "restart": "red", "data loss": "red"}
NO_CHANGES = "No changes. The host agrees with the specs."
_TOLD_ELSEWHERE = frozenset({"PruneHeld", "RestartRequired"})
_NOT_WAITING = _TOLD_ELSEWHERE | {"Degraded"}


def plan_text(data: Mapping[str, Any], style: Style = PLAIN) -> str:
    """Render the data of a plan (``Plan.as_data()``)."""
    blocks = [_step(step, style) for step in data["steps"]]
    blocks += [_pending(data["pendingChanges"], data["conditions"], style)] if data["pendingChanges"] else []
    blocks += [_held(data["held"], style)] if data["held"] else []
    conditions = [item for item in data["conditions"] if item["type"] not in _TOLD_ELSEWHERE]
    blocks += [_conditions(conditions, style)] if conditions else []
    blocks.append([summary(data, style)])
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def summary(data: Mapping[str, Any], style: Style = PLAIN) -> str:
    """Return the last line of a plan."""
    if data["steps"]:
        counts = data["summary"]
        text = ", ".join(f"{counts.get(action, 0)} to {action}" for action in ("create", "change", "remove"))
        impact = data["impact"]
        return f"{style.paint('Plan:', 'bold')} {text}; impact: {style.paint(impact, _IMPACT_COLOURS[impact])}."
    waiting = {item["object"] for item in data["conditions"] if item["type"] not in _NOT_WAITING}
    counts = (
        (len(data["pendingChanges"]), "pending"),
        (len(data["held"]), "held"),
        (len(waiting), "waiting for something"),
    )
    waits = [f"{count} {word}" for count, word in counts if count]
    return f"No changes to make now: {', '.join(waits)}." if waits else NO_CHANGES


def _step(step: Mapping[str, Any], style: Style) -> list[str]:
    sign, colour = _SIGNS[step["action"]]
    reason = f": {step['reason']}" if step["reason"] else ""
    lines = [f"{style.paint(sign, colour)} {style.paint(step['object'], 'bold')}  {step['cause']}{reason}"]
    lines += _changes(step, style)
    for operation in step["operations"]:
        cost = "" if operation["impact"] == "none" else f"  [{operation['impact']}]"
        lines.append(f"    {style.glyph('dot')} {operation['does']}{style.paint(cost, 'red')}")
    for operation in step.get("later", ()):
        cost = "" if operation["impact"] == "none" else f"  [{operation['impact']}]"
        lines.append(f"    {style.glyph('dot')} then: {operation['does']}{style.paint(cost, 'red')}")
    if step["after"]:
        lines.append(style.paint(f"    after {', '.join(step['after'])}", "dim"))
    impact = step["impact"]
    lines.append(f"    impact: {style.paint(impact, _IMPACT_COLOURS[impact])}")
    return lines


def _changes(step: Mapping[str, Any], style: Style) -> Iterator[str]:
    changes = [part for item in step["changes"] for part in unfold(item["path"], item["from"], item["to"])]
    width = max((len(path) for path, _, _ in changes), default=0)
    for path, before, after in changes:
        if step["action"] == "create" and before is None:
            text = as_text(after)
        else:
            text = f"{style.paint(as_text(before), 'red')}{style.glyph('into')}{style.paint(as_text(after), 'green')}"
        yield f"    {path:<{width}}  {text}"


def _pending(
    pending: Sequence[Mapping[str, Any]], conditions: Sequence[Mapping[str, Any]], style: Style
) -> list[str]:
    lines = [style.paint("Pending (written down, not yet in the running object):", "bold")]
    last = ""
    for item in pending:
        if item["object"] != last:
            last = item["object"]
            lines.append(f"  {last}{_way_out(last, pending)}{_who_notices(last, conditions)}")
        for path, now, wanted in unfold(item["path"], item["currentValue"], item["desiredValue"]):
            change = f"{as_text(now)}{style.glyph('into')}{as_text(wanted)}"
            lines.append(f"      {path}  {change}  {style.paint(item['effect'], 'yellow')}")
    return lines


def _who_notices(reference: str, conditions: Sequence[Mapping[str, Any]]) -> str:
    said = (
        item["message"] for item in conditions if (item["object"], item["type"]) == (reference, "RestartRequired")
    )
    cost = next(said, "").partition(WHEN_LET_THROUGH)[2]
    return f"  {cost}" if cost else ""


def _way_out(reference: str, pending: Sequence[Mapping[str, Any]]) -> str:
    kind, _, name = reference.partition("/")
    effects = {item["effect"] for item in pending if item["object"] == reference}
    if "Replug" in effects and kind == "Network":
        return f"  (now: kvmd approve {reference})"
    if kind == "VirtualMachine" and "NextBoot" in effects:
        return f"  (now: kvmd restart {name})"
    return ""


def _held(held: Sequence[Mapping[str, Any]], style: Style) -> list[str]:
    lines = [style.paint("Held (their specs are gone, the objects stay):", "bold")]
    for (reason, text), group in itertools.groupby(held, key=lambda item: (item["reason"], item["message"])):
        lines += [f"  {style.paint('-', 'red')} {item['object']}" for item in group]
        lines.append(f"    {reason}: {text}")
    commands = dict.fromkeys(item["approve"] for item in held if item["approve"])
    lines += [f"  to remove: {style.paint(command, 'cyan')}" for command in commands]
    return lines


def _conditions(conditions: Sequence[Mapping[str, Any]], style: Style) -> list[str]:
    lines = [style.paint("Needs attention:", "bold")]
    for item in conditions:
        kind = style.paint(item["type"], "yellow")
        message = f": {item['message']}" if item["message"] else ""
        lines.append(f"  {item['object']}  {kind} ({item['reason']}){message}")
    return lines
