"""The words that people use for kinds and objects: Kind, plural, short; ``KIND/NAME`` or ``KIND NAME``."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from kvmd.api.resource import Ref


def kind_of(word: str) -> str | None:
    """Return the kind that *word* means, in any case, or None."""
    from kvmd.kinds import kind_called

    return kind_called(word)


def kind_names() -> list[str]:
    """Every kind, with its plural and its short name: ``VirtualMachine (virtualmachines, vm)``."""
    from kvmd.kinds import CONTROLLERS

    return [f"{kind} ({item.PLURAL}, {item.SHORT})" for kind, item in CONTROLLERS.items()]


def plural_of(kind: str) -> str:
    """Return the plural of a kind as URLs spell it."""
    from kvmd.kinds import CONTROLLERS

    return CONTROLLERS[kind].PLURAL


def suggestion(word: str, choices: Sequence[str] | None = None) -> str:
    """Return ``did you mean 'x'?`` for the nearest word (of a kind, unless told), or an empty text."""
    if choices is None:
        from kvmd.kinds import CONTROLLERS

        words = [word for kind, item in CONTROLLERS.items() for word in (kind.lower(), item.PLURAL, item.SHORT)]
    else:
        words = list(choices)
    by_folded = {choice.lower(): choice for choice in words}
    near = difflib.get_close_matches(word.lower(), by_folded, n=1)
    return f"did you mean '{by_folded[near[0]]}'?" if near else ""


def ref_of(text: str) -> Ref | None:
    """Read ``KIND/NAME`` with any word for the kind; None where the kind is unknown or a part is missing."""
    word, slash, name = text.partition("/")
    kind = kind_of(word)
    return Ref(kind, name) if kind and slash and name else None
