"""Says when links change: a wake-up, never the state itself."""

from __future__ import annotations

import contextlib
import errno
import logging
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Final

from kvmd.errors import KvmdError
from kvmd.host.links.facts import LINK_DUMP, MAIN_TABLE, name_of
from kvmd.host.links.rtnetlink import (
    DELADDR,
    DELLINK,
    DELROUTE,
    GETLINK,
    NEWADDR,
    NEWLINK,
    NEWROUTE,
    Message,
    Namespace,
    RouteSocket,
    attributes,
    messages,
    open_socket,
)

_GROUPS: Final = sum(1 << (group - 1) for group in (1, 5, 7, 9, 11))  # link, addresses and routes of IPv4 and 6
_BURST_SECONDS: Final = 0.010
_RETRY_SECONDS: Final = 1.0
_DATAGRAMS_PER_BURST: Final = 4096
_LARGEST_DATAGRAM: Final = 1 << 16
_AF_BRIDGE: Final = 7
_OUTGOING_LINK: Final = 4  # RTA_OIF

_log = logging.getLogger(__name__)


class LinkMonitor(threading.Thread):
    """Calls back, in its own thread, with the names of links that were touched.

    None instead of names means that anything may have changed: events were lost, which *overflows* counts.
    """

    def __init__(
        self,
        callback: Callable[[frozenset[str] | None], None],
        namespace: str | None = None,
        receive_bytes: int = 8 << 20,
    ) -> None:
        super().__init__(name="kvmd-link-monitor", daemon=True)
        self.overflows = 0
        self._callback = callback
        self._namespace = Namespace(namespace)
        self._receive_bytes = receive_bytes
        self._names: dict[int, str] = {}
        self._stopping = threading.Event()
        self._wake, self._waker = socket.socketpair()
        self._socket = self._subscribe()  # here: no event after it is missed

    def stop(self) -> None:
        """End the thread and wait up to 2 s for it."""
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._waker.send(b"x")
        if self.is_alive() and threading.current_thread() is not self:
            self.join(2.0)

    def run(self) -> None:
        """Listen until stopped."""
        while not self._stopping.is_set():
            try:
                self._learn_names()
                self._listen()
            except (OSError, KvmdError) as error:
                _log.warning("listening for link changes failed: %s; listening anew", error)
                self._tell(None)
                if not self._stopping.wait(_RETRY_SECONDS):
                    self._reopen()
        for closeable in (self._socket, self._wake, self._waker, self._namespace):
            closeable.close()

    def _subscribe(self) -> socket.socket:
        subscribed = open_socket(self._namespace, _GROUPS, self._receive_bytes)
        subscribed.setblocking(False)  # with a timeout Python waits for it even under MSG_DONTWAIT
        return subscribed

    def _reopen(self) -> None:
        self._socket.close()
        with contextlib.suppress(OSError, KvmdError):  # a closed socket fails in the next turn
            self._socket = self._subscribe()

    def _learn_names(self) -> None:
        """Addresses and routes say only the index of their link."""
        requests = RouteSocket(self._namespace)
        try:
            links = map(name_of, requests.dump(GETLINK, LINK_DUMP).bodies)
            self._names = dict(link for link in links if link is not None)
        finally:
            requests.close()

    def _listen(self) -> None:
        if self._socket.fileno() < 0:
            raise OSError(errno.EBADF, "the socket could not be opened again")
        poll = select.poll()  # not select(): a daemon with many guests has descriptors above 1023
        for source in (self._socket, self._wake):
            poll.register(source, select.POLLIN)
        while not self._stopping.is_set():
            poll.poll()
            touched = self._read_burst(poll)
            if touched is None:
                self._learn_names()
                self._tell(None)
            elif touched:
                self._tell(frozenset(touched))

    def _read_burst(self, poll: select.poll) -> set[str] | None:
        """Read what comes within 10 ms, so that one change of many messages is one call."""
        deadline = time.monotonic() + _BURST_SECONDS
        touched: set[str] | None = set()
        for _ in range(_DATAGRAMS_PER_BURST):
            touched = self._read(touched)
            left = deadline - time.monotonic()
            if left <= 0 or self._stopping.is_set() or not poll.poll(left * 1000):
                break
        return touched

    def _read(self, touched: set[str] | None) -> set[str] | None:
        """Read one datagram and add the names of its links; None once anything may have changed."""
        try:
            data = self._socket.recv(_LARGEST_DATAGRAM)
        except BlockingIOError:
            return touched
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self.overflows += 1  # said once; the socket goes on
            return None
        for message in messages(data):
            names = self._names_of(message)
            touched = None if touched is None or names is None else touched | names
        return touched

    def _names_of(self, message: Message) -> set[str] | None:
        if message.type in (NEWLINK, DELLINK):
            return self._names_of_link(message)
        index = 0
        if message.type in (NEWADDR, DELADDR) and len(message.body) >= 8:
            index = struct.unpack_from("=I", message.body, 4)[0]
        elif message.type in (NEWROUTE, DELROUTE) and len(message.body) >= 12:
            if message.body[4] != MAIN_TABLE:
                return set()
            for kind, value in attributes(message.body, 12):
                if kind == _OUTGOING_LINK and len(value) == 4:
                    index = struct.unpack("=I", value)[0]
        else:
            return set()
        if index == 0:  # a route of several links, or of none: not a fact of any
            return set()
        return {self._names[index]} if index in self._names else None

    def _names_of_link(self, message: Message) -> set[str] | None:
        """The name of a link, and the one it had before."""
        link = name_of(message.body)
        if link is None:
            return None
        index, name = link
        names = {name, self._names.get(index, name)}
        if message.type == NEWLINK:
            self._names[index] = name
        elif message.body[0] != _AF_BRIDGE:  # for that family it means: left the bridge
            self._names.pop(index, None)
        return names

    def _tell(self, names: frozenset[str] | None) -> None:
        try:
            self._callback(names)
        except Exception:
            _log.exception("a listener for link changes failed; kvmd looks at everything at its next resync")
