"""A few daemon threads that do what must not hold up the event loop."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")


class Overloaded(Exception):
    """More work is waiting than will ever be done in time."""


class Workers:
    """Runs functions on daemon threads; a ThreadPoolExecutor would keep the interpreter behind a hung call."""

    def __init__(self, threads: int = 4, backlog: int = 64) -> None:
        self._queue: queue.Queue[tuple[Future[Any], Callable[[], Any]] | None] = queue.Queue(backlog)
        self._threads = [
            threading.Thread(target=self._run, name=f"http-worker-{index}", daemon=True) for index in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    async def call(self, function: Callable[[], ResultT], timeout: float) -> ResultT:
        """Run *function* and return what it returns; TimeoutError after *timeout* seconds."""
        future: Future[ResultT] = Future()
        try:
            self._queue.put_nowait((future, function))
        except queue.Full:
            raise Overloaded from None
        return await asyncio.wait_for(asyncio.wrap_future(future), timeout)

    def stop(self) -> None:
        """Let idle threads end; one that hangs stays behind as a daemon."""
        for _ in self._threads:
            try:
                self._queue.put_nowait(None)
            except queue.Full:
                return

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            future, function = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except BaseException as error:  # the caller raises it
                future.set_exception(error)
