"""Which fact a path of the host is, and under which names specs know one and the same file."""

from __future__ import annotations

from collections.abc import Mapping

from kvmd.identity import changed
from kvmd.observed import Fact, File, Image, Key, Pool, Volume


class Places:
    """Two tables over the facts, kept up by what changed; replaced, never changed in place."""

    def __init__(self) -> None:
        self._facts: Mapping[Key, Fact] = {}
        self.stored: dict[str, Key] = {}  # what lies at a path: a pool at its directory, a volume or an image
        self.spellings: dict[str, tuple[str, ...]] = {}  # the names in specs that lead to a path

    def take(self, facts: Mapping[Key, Fact]) -> None:
        """Follow the facts."""
        stored, spellings = self.stored, self.spellings
        before, self._facts = self._facts, facts
        for key in changed(before, facts):
            old, new = before.get(key), facts.get(key)
            if isinstance(old, Pool | Volume | Image) or isinstance(new, Pool | Volume | Image):
                stored = stored.copy() if stored is self.stored else stored
                _store(stored, key, old, new)
            elif (was := _leads_to(old)) != (leads := _leads_to(new)):
                spellings = spellings.copy() if spellings is self.spellings else spellings
                _spell(spellings, key.name, was, leads)
        self.stored, self.spellings = stored, spellings


def _store(table: dict[str, Key], key: Key, old: Fact | None, new: Fact | None) -> None:
    for path in _paths_of(old):
        if table.get(path) == key:
            del table[path]
    for path in _paths_of(new):
        table[path] = key


def _paths_of(fact: Fact | None) -> tuple[str, ...]:
    if isinstance(fact, Volume):
        return tuple(path for path in (fact.path, fact.real) if path)
    return (fact.path.rstrip("/"),) if isinstance(fact, Pool | Image) and fact.path else ()


def _leads_to(fact: Fact | None) -> str:
    return (fact.real or fact.path) if isinstance(fact, File) else ""


def _spell(table: dict[str, tuple[str, ...]], path: str, was: str, leads: str) -> None:
    if was:
        left = tuple(name for name in table.get(was, ()) if name != path)
        if left:
            table[was] = left
        else:
            table.pop(was, None)
    if leads:
        table[leads] = tuple(sorted({*table.get(leads, ()), path}))
