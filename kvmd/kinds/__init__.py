"""The kinds: one module each, pure, found by looking into this directory."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

from kvmd.plan.model import Controller


def _find() -> Mapping[str, Controller]:
    found: dict[str, Controller] = {}
    for module in pkgutil.iter_modules(__path__):
        controller = cast(Controller, importlib.import_module(f"{__name__}.{module.name}"))
        found[controller.KIND] = controller
    return MappingProxyType(dict(sorted(found.items())))


CONTROLLERS: Mapping[str, Controller] = _find()


def kind_called(word: str) -> str | None:
    """The kind that a person means by its name, plural or short name in any case; None for no kind."""
    folded = word.casefold()
    for kind, controller in CONTROLLERS.items():
        if folded in (kind.casefold(), controller.PLURAL.casefold(), controller.SHORT.casefold()):
            return kind
    return None
