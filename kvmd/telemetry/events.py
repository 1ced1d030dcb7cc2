"""The last events of all objects: a ring, in which equal events are counted and not repeated."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from kvmd.engine.facade import Event

LIMIT = 1_000


class Events:
    """A ring of events, oldest first; safe to use from any thread."""

    def __init__(self, limit: int = LIMIT, clock: Callable[[], float] = time.time) -> None:
        self._limit = limit
        self._clock = clock
        self._sequence = 0
        self._ring: OrderedDict[tuple[str, str, str], Event] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, object_: str, reason: str, message: str, *, warning: bool = False) -> Event:
        """Record an event; an equal one (object, reason, message) moves to the end and counts one more."""
        key = (object_, reason, message)
        with self._lock:
            self._sequence += 1
            known = self._ring.pop(key, None)
            event = Event(
                sequence=self._sequence,
                time=self._clock(),
                object=object_,
                type="Warning" if warning else "Normal",
                reason=reason,
                message=message,
            )
            if known is not None:
                event = replace(event, count=known.count + 1)
            self._ring[key] = event
            while len(self._ring) > self._limit:
                self._ring.popitem(last=False)
            return event

    def after(self, sequence: int = 0) -> list[Event]:
        """Events above *sequence*, oldest first; an event that was counted again is among them."""
        found: list[Event] = []
        with self._lock:
            for event in reversed(self._ring.values()):
                if event.sequence <= sequence:
                    break
                found.append(event)
        found.reverse()
        return found

    @property
    def last(self) -> int:
        """The sequence of the newest event."""
        return self._sequence
