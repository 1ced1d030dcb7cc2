"""Traffic between two namespaces, and what became of it: numbered datagrams, and a stream of TCP."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Self

from netns import NetNamespace

from kvmd.host.links.rtnetlink import Namespace

A_SECOND = 1000  # probes, and pieces of a stream
_SO_RCVBUFFORCE = 33
_PIECE = struct.Struct("=d1016x")  # when it was sent, and ballast


class _Traffic:
    """Two ends, each with a thread of its own while the block lasts; the receiver ends last."""

    def __init__(self, sender: socket.socket, receiver: socket.socket, *works: Callable[[], None]) -> None:
        self._sender, self._receiver = sender, receiver
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=work) for work in works]
        self.sent = 0

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in reversed(self._threads):
            thread.join(10)
        self._sender.close()
        self._receiver.close()

    def _each_millisecond(self) -> Iterator[None]:
        """Until the block ends; late ones follow at once."""
        begun = time.monotonic()
        while not self._stop.is_set():
            yield
            self.sent += 1
            time.sleep(max(0.0, begun + self.sent / A_SECOND - time.monotonic()))


class Probes(_Traffic):
    """Datagrams each millisecond from one namespace to another, numbered; what is lost, and the longest gap."""

    def __init__(self, source: NetNamespace, target: NetNamespace, address: str) -> None:
        receiver = _socket(target, address, socket.SOCK_DGRAM)
        receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)  # a busy machine is no loss
        receiver.settimeout(0.5)
        super().__init__(_socket(source, address, socket.SOCK_DGRAM), receiver, self._receive, self._send)
        self._to = (address, receiver.getsockname()[1])
        self.received: list[tuple[int, float]] = []

    def _send(self) -> None:
        for _ in self._each_millisecond():
            with contextlib.suppress(OSError):  # no route for an instant: it counts as lost
                self._sender.sendto(self.sent.to_bytes(8, "big"), self._to)

    def _receive(self) -> None:
        while True:
            try:
                self.received.append((int.from_bytes(self._receiver.recv(16), "big"), time.monotonic()))
            except TimeoutError:
                if self._stop.is_set():
                    return

    @property
    def lost(self) -> int:
        """How many never came."""
        return self.sent - len({number for number, _ in self.received})

    @property
    def gap(self) -> float:
        """The longest row of lost ones, in seconds."""
        numbers = sorted({-1, *(number for number, _ in self.received), self.sent})
        return max(b - a - 1 for a, b in itertools.pairwise(numbers)) / A_SECOND


class Stream(_Traffic):
    """A TCP connection with a kilobyte each millisecond: whether it broke, and how late the latest piece came."""

    def __init__(self, source: NetNamespace, target: NetNamespace, address: str) -> None:
        with _socket(target, address, socket.SOCK_STREAM) as listener:
            listener.listen(1)
            sender = _socket(source, address, socket.SOCK_STREAM)
            sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sender.settimeout(5)
            sender.connect((address, listener.getsockname()[1]))
            receiver = listener.accept()[0]
        receiver.settimeout(5)
        works = [partial(self._guarded, work) for work in (self._read, self._write)]
        super().__init__(sender, receiver, *works)
        self.received, self.latest, self.broken = 0, 0.0, ""

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            self.broken = self.broken or f"{type(error).__name__}: {error}"

    def _write(self) -> None:
        for _ in self._each_millisecond():
            self._sender.sendall(_PIECE.pack(time.monotonic()))
        self._sender.shutdown(socket.SHUT_WR)

    def _read(self) -> None:
        with self._receiver.makefile("rb") as pieces:
            while len(piece := pieces.read(_PIECE.size)) == _PIECE.size:
                self.latest = max(self.latest, time.monotonic() - _PIECE.unpack(piece)[0])
                self.received += 1


def _socket(net: NetNamespace, address: str, kind: int) -> socket.socket:
    """A socket in a namespace, of the family of that address, with a port of its own."""
    place = Namespace(net.path)
    try:
        opened = place.call(lambda: socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind))
    finally:
        place.close()
    opened.bind(("", 0))
    return opened
