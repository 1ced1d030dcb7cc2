"""The ledger: one-shot acts and last stops, in an append-only file that is fsynced before it counts."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import replace

from kvmd import ops
from kvmd.api.resource import Ref
from kvmd.errors import Retry
from kvmd.journal import Journal
from kvmd.observed import Fact, Key, Ledger

# The file is rewritten with only what counts once it holds that many lines more than it needs.
COMPACT_LINES = 4096
HOUR_SECONDS = 3600.0


class LedgerFile:
    """``<state>/ledger``; each line is one entry of one object, the last one of its kind counts."""

    def __init__(self, directory: str) -> None:
        self._journal = Journal(os.path.join(directory, "ledger"))
        self._lock = threading.Lock()
        self._entries: dict[Ref, Ledger] = {}
        self._removals: dict[Ref, float] = {}  # what the brake must count after a restart too, and its time of day
        self._lines = 0
        self.facts: Mapping[Key, Fact] = {}
        self._load()

    def _load(self) -> None:
        for line in self._journal.lines():
            self._lines += 1
            self._take(line)
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
        elif entry == "restarting":
            self._entries[ref] = replace(known, restarting=value == "true")
        elif entry == "once":
            self._entries[ref] = replace(known, once=value)
        elif entry == "install":
            self._entries[ref] = replace(known, install=value)
        elif entry == "last_stop":
            self._entries[ref] = replace(known, last_stop=value)
        elif entry == "balloon":
            self._entries[ref] = replace(known, balloon=value)
        elif entry == "restore":
            self._entries[ref] = replace(known, restore=value)
        elif entry == "removed":
            self._removals[ref] = float(value)
        elif entry == "forget":
            self._entries.pop(ref, None)
            if known.restore:  # a file that goes and comes again is no second restore
                self._entries[ref] = Ledger(ref, restore=known.restore)

    def removals(self) -> list[tuple[float, Ref]]:
        """What was removed within the last hour, and how many seconds ago; a clock put back makes it now."""
        now = time.time()
        ages = {ref: max(0.0, now - when) for ref, when in list(self._removals.items())}
        return [(age, ref) for ref, age in ages.items() if age < HOUR_SECONDS]

    def _publish(self) -> None:
        self.facts = {Key("ledger", str(ref)): entry for ref, entry in self._entries.items()}

    def write(self, operation: ops.LedgerWrite) -> None:
        """Append one entry, durable when this returns; the operation's name is ``Kind/name``. Raises Retry."""
        with self._lock:
            self._write(operation)

    def _write(self, operation: ops.LedgerWrite) -> None:
        ref = Ref.parse(operation.name)
        known = self._entries.get(ref)
        if operation.entry == "forget" and (known is None or known == Ledger(ref, restore=known.restore)):
            return
        try:
            self._journal.append([_line(operation.name, operation.entry, operation.value)])
        except OSError as error:
            message = f"{operation.describe()}: {self._journal.path} cannot be written: {error.strerror}"
            raise Retry(message, hint="make room there, or mend its permissions") from error
        self._lines += 1
        self._set(ref, operation.entry, operation.value)
        self._publish()
        if self._lines > COMPACT_LINES + 4 * len(self._entries):
            self._compact()

    def _compact(self) -> None:
        """Write anew only what counts; where that fails, the long file says the same."""
        self._removals = {ref: time.time() - age for age, ref in self.removals()}
        lines = [
            _line(str(ref), name, value) for ref, entry in self._entries.items() for name, value in _values(entry)
        ]
        lines += [_line(str(ref), "removed", str(when)) for ref, when in self._removals.items()]
        with contextlib.suppress(OSError):
            self._journal.rewrite(lines)
        self._lines = len(lines)  # after a failure, too: it is not tried at each line


def _line(name: str, entry: str, value: str) -> str:
    return json.dumps({"object": name, "entry": entry, "value": value})


def _values(entry: Ledger) -> list[tuple[str, str]]:
    suspended, restarting = ("true" if flag else "" for flag in (entry.suspended, entry.restarting))
    values = {"once": entry.once, "last_stop": entry.last_stop, "balloon": entry.balloon, "install": entry.install}
    values |= {"restore": entry.restore}
    values |= {"suspended": suspended, "restarting": restarting}
    return [(name, value) for name, value in values.items() if value]
