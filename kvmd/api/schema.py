"""One declaration for each leaf: description, default, example and update class.

The JSON Schema, ``kvmd explain``, the docs and the plan are all made from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

from pydantic import BaseModel, Field


class Update(StrEnum):
    """How a change of a leaf lands; the words of API.md."""

    LIVE = "Live"
    NEXT_BOOT = "NextBoot"
    REPLUG = "Replug"
    IMMUTABLE = "Immutable"


def leaf(
    default: Any = ...,
    *,
    about: str,
    example: Any,
    update: Update = Update.LIVE,
    unless: str = "",
    sensitive: bool = False,
    **constraints: Any,
) -> Any:
    """Declare a leaf of a spec.

    *about* is its description, *update* its best class, *unless* the circumstances that take it away; a *sensitive*
    one is shown to nobody.
    """
    extra: dict[str, Any] = {"x-kvmd-update": update.value} | ({"x-kvmd-unless": unless} if unless else {})
    extra |= {"x-kvmd-sensitive": True} if sensitive else {}
    return Field(default, description=about, examples=[example], json_schema_extra=extra, **constraints)


def branch(default: Any = ..., *, about: str, factory: Any = None, **constraints: Any) -> Any:
    """Declare an inner node of a spec: it has a description, its leaves have the rest."""
    if factory is not None:
        # Specs are frozen: all that leave the branch out have the same one.
        return Field(default_factory=cache(factory), description=about, **constraints)
    return Field(default, description=about, **constraints)


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf as people read it: its path has ``[]`` where a named list is."""

    path: str
    type: str
    about: str
    default: Any
    required: bool
    example: Any
    update: Update | None
    unless: str
    leaf: bool


def leaves(model: type[BaseModel], path: str = "spec") -> Iterator[Leaf]:
    """Yield every node of a spec in the order in which it was declared, inner nodes first."""
    yield from _walk(model.model_json_schema(by_alias=True), path)


def _walk(schema: dict[str, Any], path: str) -> Iterator[Leaf]:
    definitions = schema.get("$defs", {})

    def visit(node: dict[str, Any], path: str) -> Iterator[Leaf]:
        required = node.get("required", ())
        for name, child in node.get("properties", {}).items():
            where = f"{path}.{name}"
            inner, is_list = _resolve(child, definitions)
            # Some versions of pydantic drop what stands beside a reference; the model's own words serve then.
            about = child.get("description") or (inner or {}).get("description", "")
            update = child.get("x-kvmd-update")
            yield Leaf(
                path=where,
                type=_type_of(child, definitions),
                about=about,
                default=child.get("default"),
                required=name in required,
                example=(child.get("examples") or [None])[0],
                update=Update(update) if update else None,
                unless=child.get("x-kvmd-unless", ""),
                leaf=inner is None or update is not None,
            )
            if inner is not None:
                yield from visit(inner, f"{where}[]" if is_list else where)

    yield from visit(schema, path)


def _resolve(node: dict[str, Any], definitions: dict[str, Any]) -> tuple[dict[str, Any] | None, bool]:
    """Return the object schema below a node (None for a plain leaf) and whether a list lies between."""
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[-1]]
        return (target, False) if "properties" in target else (None, False)
    for option in node.get("anyOf", ()):
        found, is_list = _resolve(option, definitions)
        if found is not None:
            return found, is_list
    if node.get("type") == "array":
        found, _ = _resolve(node.get("items", {}), definitions)
        return found, True
    return (node, False) if "properties" in node else (None, False)


def _type_of(node: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "enum" in node:
        return " | ".join(str(value) for value in node["enum"])
    if "const" in node:
        return str(node["const"])
    if "$ref" in node:
        return _type_of(definitions[node["$ref"].rsplit("/", 1)[-1]], definitions)
    if "anyOf" in node:
        return " | ".join(dict.fromkeys(_type_of(option, definitions) for option in node["anyOf"]))
    if node.get("type") == "array":
        return f"[]{_type_of(node.get('items', {}), definitions)}"
    return str(node.get("type", "any"))
