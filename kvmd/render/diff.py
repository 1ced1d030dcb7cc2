"""What is and what shall be, as a unified diff of YAML, like ``kubectl diff``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kvmd.api.secrecy import shown
from kvmd.kinds import CONTROLLERS
from kvmd.plan.difference import Change, plain
from kvmd.plan.model import Plan, Step
from kvmd.render.style import PLAIN, Style
from kvmd.render.values import plain_data, sized, to_yaml

_SEGMENT = re.compile(r"([^.\[\]]+)|\[([^\]]*)\]")
_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


def diff_text(plan: Plan, style: Style = PLAIN) -> str:
    """Return the differences of every step; empty where the host agrees."""
    return "".join(f"{style.paint(line, *_codes(line))}\n" for step in plan.steps for line in _step(plan, step))


def _codes(line: str) -> tuple[str, ...]:
    if line.startswith(("--- ", "+++ ", "diff ")):
        return ("bold",)
    colour = _COLOURS.get(line[:1])
    return (colour,) if colour else ()


def _step(plan: Plan, step: Step) -> Iterator[str]:
    before, after = _sides(plan, step)
    yield f"diff {step.ref} ({step.cause.value}{f': {step.reason}' if step.reason else ''})"
    yield from difflib.unified_diff(
        before, after, f"host/{step.ref}", f"specs/{step.ref}", lineterm="", n=max(len(before), len(after))
    )
    if before == after:
        # a step without a changed leaf (a start, a mark) still has something to say
        for operation in step.operations:
            yield f"+ # {operation.describe()}"


def _sides(plan: Plan, step: Step) -> tuple[list[str], list[str]]:
    item = plan.objects.get(step.ref)
    if step.action == "create" and item is not None and item.resource is not None:
        return [], _lines(plain_data(shown(type(item.resource.spec), item.resource.written)))
    if step.action == "remove":
        written = item.applied.written if item is not None and item.applied is not None else {}
        written = shown(CONTROLLERS[step.ref.kind].Spec, written)
        return _lines(plain_data(written)) or [f"# {step.ref}"], []
    return _lines(_tree(step.changes, "before")), _lines(_tree(step.changes, "after"))


def _lines(spec: Any) -> list[str]:
    return to_yaml({"spec": sized(spec)}).splitlines() if spec else []


def _tree(changes: Iterable[Change], side: str) -> Any:
    """Nest the values of one side of *changes* by their paths; a value that is not there leaves no line."""
    root: dict[tuple[str, str], Any] = {}
    for change in changes:
        value = plain(getattr(change, side))
        other = plain(getattr(change, "after" if side == "before" else "before"))
        if value is None and other is not None:
            continue
        keys = [("key", key) if key else ("item", name) for key, name in _SEGMENT.findall(change.path)]
        _descend(root, keys[:-1])[keys[-1]] = value
    return _unfold(root)


def _descend(root: dict[tuple[str, str], Any], keys: list[tuple[str, str]]) -> dict[tuple[str, str], Any]:
    node = root
    for key in keys:
        below = node.get(key)
        if not isinstance(below, dict) or not all(isinstance(part, tuple) for part in below):
            node[key] = below = {}
        node = below
    return node


def _unfold(node: Any) -> Any:
    """Turn paths back into mappings and lists of named items."""
    if not isinstance(node, Mapping) or not all(isinstance(key, tuple) for key in node):
        return node
    if node and all(kind == "item" for kind, _ in node):
        return [_named(name, _unfold(value)) for (_, name), value in node.items()]
    return {name: _unfold(value) for (_, name), value in node.items()}


def _named(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {"name": name, **{key: item for key, item in value.items() if key != "name"}}
    return {"name": name} if value in (None, {}) else value
