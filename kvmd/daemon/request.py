"""What a person asked of the loop: done once, and not any more after the person was told that it was not."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from kvmd.engine.facade import Answer

PATIENCE_SECONDS = 10.0


class Request:
    """One act, carried out on the loop's own thread while another waits for its answer."""

    def __init__(self, act: Callable[[], Answer]) -> None:
        self._act = act
        self._answer: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._decided = threading.Lock()  # taken by who is first: the loop that begins it, or who gives it up

    def serve(self) -> None:
        """Carry it out, unless it was given up; whatever somebody asks for, the loop goes on."""
        if not self._decided.acquire(blocking=False):
            return
        try:
            self._answer.put(self._act())
        except Exception as error:
            self._answer.put(Answer(1, f"{type(error).__name__}: {error}"))

    def answer(self, patience: float) -> Answer:
        """Wait for the answer; what has not begun by then is not done."""
        hint = "look at its log: journalctl -u kvmd"
        try:
            return self._answer.get(timeout=patience)
        except queue.Empty:
            if self._decided.acquire(blocking=False):
                return Answer(5, "the daemon's loop did not answer in time; nothing was done", hint)
        try:
            return self._answer.get(timeout=patience)
        except queue.Empty:
            return Answer(5, "the daemon's loop is at it and did not answer in time", hint)
