"""Single values as people read them, and whole structures as JSON and YAML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from typing import Any

from kvmd.api.quantity import MEBIBYTE, format_quantity

_WIDEST = 72


def plain_data(value: Any) -> Any:
    """Reduce mappings, sequences and enums to what JSON and YAML know."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain_data(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


def as_text(value: Any) -> str:
    """One value on one line, short; whole MiB are written as sizes, since no other number is that large."""
    if value is None or value == "":
        return "(none)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value >= MEBIBYTE and value % MEBIBYTE == 0:
        return format_quantity(value)
    if isinstance(value, str):
        first, *rest = value.splitlines() or [""]
        text = f"{first} … ({len(rest) + 1} lines)" if rest else first
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(f"{key}: {as_text(item)}" for key, item in value.items()) + "}"
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(as_text(item) for item in value) + "]"
    else:
        text = str(value)
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"


def sized(value: Any) -> Any:
    """The same data with byte counts of whole MiB written as sizes."""
    if isinstance(value, Mapping):
        return {key: sized(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [sized(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and value >= MEBIBYTE:
        return format_quantity(value)
    return value


def to_json(value: Any) -> str:
    """Indented JSON with a final newline."""
    return json.dumps(plain_data(value), indent=2, ensure_ascii=False) + "\n"


def to_yaml(value: Any) -> str:
    """Block-style YAML; keys keep their order and longer texts become literal blocks."""
    import yaml

    base: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

    class Dumper(base):  # type: ignore[misc]
        pass

    def text(dumper: Any, data: str) -> Any:
        style = "|" if "\n" in data else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    Dumper.add_representer(str, text)
    result = yaml.dump(
        plain_data(value), Dumper=Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=100
    )
    return str(result)


def to_yaml_documents(values: list[Any]) -> str:
    """Several YAML documents in one text."""
    return "---\n".join(to_yaml(value) for value in values)


def listing(items: list[Any]) -> dict[str, Any]:
    """The envelope of several objects, as kubectl writes it."""
    return {"apiVersion": "kvmd.dev/v1alpha1", "kind": "List", "items": items}
