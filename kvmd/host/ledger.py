"""The ledger: one-shot acts and last stops, in an append-only file that is fsynced before it counts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace

from kvmd import ops
from kvmd.api.resource import Ref
from kvmd.observed import Fact, Key, Ledger

# The file is rewritten with only what counts once it holds this many lines.
COMPACT_LINES = 4096


class LedgerFile:
    """``<state>/ledger``; each line is one entry of one object, the last one of its kind counts."""

    def __init__(self, directory: str) -> None:
        self._path = os.path.join(directory, "ledger")
        self._entries: dict[Ref, Ledger] = {}
        self._lines = 0
        self.facts: Mapping[Key, Fact] = {}
        self._load()

    def _load(self) -> None:
        try:
            with open(self._path, encoding="utf-8") as file:
                for line in file:
                    self._lines += 1
                    self._take(line)
        except FileNotFoundError:
            return
        self._publish()

    def _take(self, line: str) -> None:
        """A torn last line (the machine died while it was written) is no entry."""
        try:
            data = json.loads(line)
            self._set(Ref.parse(data["object"]), data["entry"], data["value"])
        except (ValueError, KeyError, TypeError):
            return

    def _set(self, ref: Ref, entry: str, value: str) -> None:
        known = self._entries.get(ref, Ledger(ref))
        if entry == "suspended":
            self._entries[ref] = replace(known, suspended=value == "true")
        elif entry == "once":
            self._entries[ref] = replace(known, once=value)
        elif entry == "last_stop":
            self._entries[ref] = replace(known, last_stop=value)
        elif entry == "forget":
            self._entries.pop(ref, None)

    def _publish(self) -> None:
        self.facts = {Key("ledger", str(ref)): entry for ref, entry in self._entries.items()}

    def write(self, operation: ops.LedgerWrite) -> None:
        """Append one entry, durable when this returns; the operation's name is ``Kind/name``."""
        line = json.dumps({"object": operation.name, "entry": operation.entry, "value": operation.value}) + "\n"
        os.makedirs(os.path.dirname(self._path), mode=0o750, exist_ok=True)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, line.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._lines += 1
        self._set(Ref.parse(operation.name), operation.entry, operation.value)
        self._publish()
        if self._lines > COMPACT_LINES:
            self._compact()

    def _compact(self) -> None:
        temporary = f"{self._path}.new"
        with open(temporary, "w", encoding="utf-8") as file:
            for ref, entry in self._entries.items():
                values = {"once": entry.once, "last_stop": entry.last_stop}
                values["suspended"] = "true" if entry.suspended else ""
                for name, value in values.items():
                    if value:
                        file.write(json.dumps({"object": str(ref), "entry": name, "value": value}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._path)
        self._lines = 2 * len(self._entries)
