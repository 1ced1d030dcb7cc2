"""Work that no operation waits for: an operation starts it, facts show how far it is, and why it failed.

A guest whose medium takes an hour to come is not busy for an hour: its other changes go on beside it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from kvmd.errors import KvmdError, Refused, Retry, Unsupported
from kvmd.observed import Key, Transfer
from kvmd.settings import Backoff

TELL_EVERY_SECONDS = 0.5
MOST_FAILURES = 1024


class Errands:
    """What is under way, and what failed and why; *wake* is called when either changes."""

    def __init__(self, backoff: Backoff, wake: Callable[[], None]) -> None:
        self._backoff, self._wake = backoff, wake
        self._lock = threading.Lock()
        self._under_way: dict[str, Transfer] = {}
        self._failures: dict[str, Transfer] = {}
        self._told = 0.0

    def facts(self) -> Mapping[Key, Transfer]:
        """One fact for each; equal facts are the same object."""
        with self._lock:
            found = {**self._failures, **self._under_way}
        return {Key("transfer", name): transfer for name, transfer in found.items()}

    def start(self, name: str, act: Callable[[], None]) -> None:
        """Do it in a thread of its own, unless that is under way already."""
        with self._lock:
            if name in self._under_way:
                return
            self._under_way[name] = Transfer(name)
        threading.Thread(target=self._run, args=(name, act), name=f"errand-{name}", daemon=True).start()

    def progress(self, name: str, done: int, total: int) -> None:
        """It has come so far; called by the thread that does it."""
        with self._lock:
            self._under_way[name] = Transfer(name, done, total)
            if time.monotonic() - self._told < TELL_EVERY_SECONDS:
                return
            self._told = time.monotonic()
        self._wake()

    def ended(self, name: str, error: KvmdError | None = None) -> None:
        """It has ended, well or not."""
        with self._lock:
            last = self._under_way.pop(name, Transfer(name))
            before = self._failures.pop(name, None)
            if error is not None:
                self._failures[name] = self._failure(last, before, error)
            if len(self._failures) > MOST_FAILURES:
                self._failures.pop(next(iter(self._failures)))
        self._wake()

    def forget_failures(self) -> None:
        """Somebody asked to look again: what failed may be tried at once."""
        with self._lock:
            self._failures.clear()

    def _failure(self, last: Transfer, before: Transfer | None, error: KvmdError) -> Transfer:
        attempts = before.attempts + 1 if before is not None else 1
        delay: float = min(self._backoff.limit, self._backoff.first * 2.0 ** min(attempts - 1, 30))
        final = isinstance(error, Refused | Unsupported)
        again_at = time.monotonic() + (self._backoff.limit if final else delay)
        return replace(last, problem=str(error), attempts=attempts, again_at=again_at, final=final)

    def _run(self, name: str, act: Callable[[], None]) -> None:
        error: KvmdError | None = None
        try:
            act()
        except KvmdError as failure:
            error = failure
        except Exception as failure:
            error = Retry(f"{name}: {type(failure).__name__}: {failure}", hint="please report this as a bug")
        self.ended(name, error)
