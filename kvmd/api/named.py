"""Lists of a spec whose items have names: by these they are known, whatever their order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def is_named_list(value: Any) -> bool:
    """True for a list that holds something, each with a name."""
    return isinstance(value, list | tuple) and bool(value) and all(_is_named(item) for item in value)


def _is_named(item: Any) -> bool:
    return isinstance(item, Mapping) and isinstance(item.get("name"), str)
