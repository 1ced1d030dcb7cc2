"""Maintenance windows as intervals: planning knows no clock, so what it reads of them is monotonic seconds."""

from __future__ import annotations

import datetime
import zoneinfo
from collections.abc import Iterator

from cronsim import CronSim

from kvmd.api.resource import Ref, Resource
from kvmd.kinds import CONTROLLERS
from kvmd.plan.model import Window, WindowUser

JUMP_SECONDS = 1.0  # the time of day was set: intervals are reckoned anew
Interval = tuple[float, float]
_WINDOW_USERS = {kind: each for kind, each in CONTROLLERS.items() if isinstance(each, WindowUser)}


class Windows:
    """The open or next interval of every object that has a window; reckoned again once it is over."""

    def __init__(self) -> None:
        self._windows: dict[Ref, Window] = {}
        self._known: dict[Ref, Interval | None] = {}
        self._offset: float | None = None

    def take(self, ref: Ref, resource: Resource | None) -> None:
        """Note the window of a new spec; None where the spec is gone."""
        controller = _WINDOW_USERS.get(ref.kind)
        found = controller.window(resource.spec) if resource and controller is not None else None
        if found == self._windows.get(ref):
            return
        self._windows.pop(ref, None)
        self._known.pop(ref, None)
        if found is not None:
            self._windows[ref] = found
        else:
            self._known[ref] = None  # to be told once

    def news(self, now: float, time_of_day: float) -> Iterator[tuple[Ref, Interval | None]]:
        """Every interval that is another than before."""
        offset = time_of_day - now
        jumped = self._offset is None or abs(offset - self._offset) > JUMP_SECONDS
        if jumped:
            self._offset = offset
        for ref, known in list(self._known.items()):
            if known is None:
                del self._known[ref]
                yield ref, None
        for ref, window in self._windows.items():
            known = self._known.get(ref)
            if known is None or jumped or now >= known[1]:
                opens, closes = interval(window, time_of_day)
                self._known[ref] = (opens - offset, closes - offset)
                yield ref, self._known[ref]


def interval(window: Window, time_of_day: float) -> Interval:
    """The window that is open at that time of day, or the next one, in UNIX seconds."""
    zone = zoneinfo.ZoneInfo(window.time_zone)
    begin = datetime.datetime.fromtimestamp(time_of_day - window.seconds, zone)
    opens = next(CronSim(window.schedule, begin)).timestamp()
    return opens, opens + window.seconds
