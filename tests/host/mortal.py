"""A child of the test that dies by SIGKILL before its Nth effect: a batch, an ioctl, or what makes a file durable."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

from kvmd.host.links.rtnetlink import Failure, Request, RouteSocket


class Counted:
    """Counts effects and dies before the one that is *last*; of a batch as many requests as are *left* still go."""

    def __init__(self, last: int) -> None:
        self.left = last

    def step(self, count: int = 1) -> int:
        """How many of *count* effects may still be."""
        allowed = min(count, self.left)
        self.left -= count
        return allowed

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, or the end."""

        def counted(*words: Any, **more: Any) -> Any:
            if self.step() == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*words, **more)

        return counted


def dies_before(last: int, act: Callable[[], object], parts: bool = False) -> bool:
    """Run *act* in a child that dies before its effect number *last*; True where it did, False where it ended.

    With *parts* each request of a batch is an effect: more than can happen, since a batch is one system call.
    """
    child = os.fork()
    if child == 0:
        try:
            _arm(Counted(last), parts)
            act()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed"
    return os.WIFSIGNALED(status)


def _arm(counted: Counted, parts: bool) -> None:
    send = RouteSocket.batch

    def batch(self: RouteSocket, requests: Sequence[Request]) -> list[Failure | None]:
        allowed = counted.step(len(requests) if parts else 1)
        if parts and allowed < len(requests):
            send(self, requests[:allowed])
        if counted.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return send(self, requests)

    RouteSocket.batch = batch  # type: ignore[method-assign]
    for module, name in ((fcntl, "ioctl"), (os, "fsync"), (os, "replace"), (os, "unlink")):
        setattr(module, name, counted.around(getattr(module, name)))
