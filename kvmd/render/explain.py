"""The language explained from its one schema: ``kvmd explain vm.memory``."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from kvmd.api.resource import API_VERSION, Metadata
from kvmd.api.schema import Leaf, leaves
from kvmd.render.style import PLAIN, Style
from kvmd.render.values import as_text

_WIDTH = 100


@dataclass(frozen=True, slots=True)
class UnknownField(Exception):
    """There is no such field; *near* is the most similar one that exists."""

    path: str
    near: str


def explain(
    kind: str, spec: type[BaseModel], field: str = "", *, recursive: bool = False, style: Style = PLAIN
) -> str:
    """Explain a kind or one of its fields; *field* may leave out ``spec.`` and the ``[]`` of lists."""
    nodes = [*leaves(Metadata, "metadata"), *leaves(spec)]
    lines = [f"{style.paint('KIND:', 'bold')}     {kind}", f"{style.paint('VERSION:', 'bold')}  {API_VERSION}"]
    if field in ("", "spec", "metadata"):
        about = (spec.__doc__ or "").strip()
        lines += ["", *textwrap.wrap(" ".join(about.split()), _WIDTH)] if about else []
        under = field or "spec"
        return "\n".join([*lines, "", *_fields(nodes, under, recursive, style)]) + "\n"
    node = _find(nodes, field)
    lines += [f"{style.paint('FIELD:', 'bold')}    {node.path}", "", *_facts(node)]
    below = _fields(nodes, node.path, recursive, style)
    return "\n".join([*lines, *([""] if below else []), *below]) + "\n"


def explain_data(spec: type[BaseModel], field: str = "") -> list[dict[str, Any]]:
    """The same as data: every node at or below *field*."""
    nodes = [*leaves(Metadata, "metadata"), *leaves(spec)]
    root = field if field in ("", "spec", "metadata") else _find(nodes, field).path
    return [
        {
            "path": node.path,
            "type": node.type,
            "description": node.about,
            "required": node.required,
            "default": node.default,
            "example": node.example,
            "update": node.update.value if node.update else None,
            "unless": node.unless,
        }
        for node in nodes
        if not root or node.path == root or node.path.startswith((f"{root}.", f"{root}[]"))
    ]


def _bare(path: str) -> str:
    return path.replace("[]", "").lower()


def _find(nodes: Sequence[Leaf], field: str) -> Leaf:
    wanted = _bare(field)
    by_name = {_bare(node.path): node for node in nodes}
    found = by_name.get(wanted) or by_name.get(f"spec.{wanted}")
    if found is not None:
        return found
    full = wanted if wanted.startswith(("spec.", "metadata.")) else f"spec.{wanted}"
    near = difflib.get_close_matches(full, by_name, n=1)
    raise UnknownField(field, by_name[near[0]].path if near else "")


def _facts(node: Leaf) -> list[str]:
    lines = [f"  type:     {node.type}{'  (required)' if node.required else ''}"]
    if node.leaf and not node.required:
        lines.append(f"  default:  {as_text(node.default)}")
    if node.example is not None:
        lines.append(f"  example:  {as_text(node.example)}")
    if node.update is not None:
        unless = f" (but: {node.unless})" if node.unless else ""
        lines += textwrap.wrap(f"  change:   {node.update.value}{unless}", _WIDTH, subsequent_indent=" " * 12)
    if node.about:
        lines += ["", *textwrap.wrap(node.about, _WIDTH, initial_indent="  ", subsequent_indent="  ")]
    return lines


def _fields(nodes: Sequence[Leaf], root: str, recursive: bool, style: Style) -> list[str]:
    """List what lies below *root*: its children, or, recursively, everything."""
    lines: list[str] = []
    for node in nodes:
        below = node.path.removeprefix(root).removeprefix("[]")
        if below == node.path or not below.startswith("."):
            continue
        depth = below.count(".")
        if depth > 1 and not recursive:
            continue
        indent = "  " * depth
        name = style.paint(node.path.rsplit(".", 1)[-1], "cyan")
        change = f"  {style.paint(node.update.value, 'yellow')}" if node.update else ""
        required = "  (required)" if node.required else ""
        lines.append(f"{indent}{name}  <{node.type}>{change}{required}")
        if node.about and not recursive:
            lines += textwrap.wrap(
                node.about, _WIDTH, initial_indent=indent + "    ", subsequent_indent=indent + "    "
            )
    return [style.paint("FIELDS:", "bold"), *lines] if lines else []
