"""uvicorn's HTTP/1.1 protocol, which also knows the peer and does not wait for ever for a request."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from kvmd.server.peer import Peer

REQUEST_SECONDS = 10.0


class BoundedProtocol(H11Protocol):
    """Closes a connection that brings no whole request or takes no answer for a while: uvicorn itself never does."""

    _watch: asyncio.TimerHandle | None = None
    _left: int = -1  # bytes of an answer that nobody had taken yet at the last check

    def connection_made(self, transport: Any) -> None:
        """Note who connected, and when."""
        connection = transport.get_extra_info("socket")
        peer = Peer.of(connection) if connection is not None else None
        self.app_state = {**self.app_state, "peer": peer}
        super().connection_made(transport)
        self._watch = self.loop.call_later(REQUEST_SECONDS, self._check, object())

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def _check(self, last: object) -> None:
        """Close where nothing has been asked since the last check and no answer is under way.

        A closed connection stays until its answer was taken: who takes nothing of it any more is cut off.
        """
        left = self.transport.get_write_buffer_size()
        if self.transport.is_closing() and left == self._left:
            self.transport.abort()
            return
        idle = self.cycle is None or self.cycle.response_complete
        if idle and (self.cycle is last or self.cycle is None):
            self.transport.close()
        self._left = left
        self._watch = self.loop.call_later(REQUEST_SECONDS, self._check, self.cycle)
