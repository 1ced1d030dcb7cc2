"""A small rtnetlink layer: a socket, a batch of requests, a dump, and the attributes in between.

The formats are those of linux/netlink.h and linux/rtnetlink.h (man 7 netlink, man 7 rtnetlink).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, TypeVar

from kvmd.errors import BackendUnavailable, Retry, Unknown, Unsupported

NEWLINK, DELLINK, GETLINK = 16, 17, 18
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWNEIGH, GETNEIGH = 28, 30
GETRULE = 34
NEWLINKPROP, DELLINKPROP = 108, 109

CREATE, EXCLUSIVE, REPLACE, APPEND = 0x400, 0x200, 0x100, 0x800

TIMEOUT_SECONDS: Final = 5.0
DUMP_ATTEMPTS: Final = 5
# An even number: a batch starts with pairs (create, mark), and a pair must not be torn apart.
MESSAGES_PER_SEND: Final = 4096

_REQUEST, _ACK, _DUMP, _DUMP_INTERRUPTED, _CAPPED, _ACK_TLVS = 0x1, 0x4, 0x300, 0x10, 0x100, 0x200
_REQUEST_ACK = _REQUEST | _ACK
_ERROR, _DONE, _OVERRUN = 2, 3, 4
_SOL_NETLINK, _CAP_ACK, _EXT_ACK, _STRICT_CHECK = 270, 10, 11, 12
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_CLONE_NEWNET = 0x40000000
_ERROR_TEXT = 1  # NLMSGERR_ATTR_MSG
_BUFFER_BYTES = 16 << 20  # 4096 errors, each charged with up to 2.3 KB of socket buffer

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ERRNO = struct.Struct("=i")

T = TypeVar("T")


class Message(NamedTuple):
    """A netlink message as it came in; *body* follows the header."""

    type: int
    flags: int
    sequence: int
    body: bytes


class Request(NamedTuple):
    """A message to send; request and ack flags are added by the socket."""

    type: int
    flags: int
    body: bytes


class Failure(NamedTuple):
    """Why the kernel refused one request; *text* is its extended ack."""

    errno: int
    text: str


class Dump(NamedTuple):
    """The answers to a dump; not *complete* where it was interrupted in every attempt."""

    bodies: list[bytes]
    complete: bool


# -------------------------------------------------------------------------------------------- messages


def attribute(kind: int, payload: bytes) -> bytes:
    """Encode one attribute, padded to 4 bytes."""
    return _ATTRIBUTE.pack(len(payload) + 4, kind) + payload + b"\0" * (-len(payload) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """Encode attributes within an attribute."""
    return attribute(kind | 0x8000, b"".join(attributes))


def attributes(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Walk the attributes of *data* from *offset*; it ends at the first that is cut off."""
    unpack, end = _ATTRIBUTE.unpack_from, len(data)
    while offset + 4 <= end:
        length, kind = unpack(data, offset)
        if length < 4 or offset + length > end:
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def spans(data: bytes, offset: int, wanted: frozenset[int]) -> dict[int, tuple[int, int]]:
    """Where the payloads of the *wanted* attributes are: thrice as fast as reading all of them."""
    unpack, end = _ATTRIBUTE.unpack_from, len(data)
    found: dict[int, tuple[int, int]] = {}
    while offset + 4 <= end:
        length, kind = unpack(data, offset)
        if length < 4 or offset + length > end:
            break
        kind &= 0x3FFF
        if kind in wanted:
            found[kind] = offset + 4, offset + length
        offset += (length + 3) & ~3
    return found


def messages(data: bytes) -> Iterator[Message]:
    """Walk the messages of one datagram; it ends at the first that is cut off."""
    offset, end = 0, len(data)
    while offset + 16 <= end:
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < 16 or offset + length > end:
            return
        yield Message(kind, flags, sequence, data[offset + 16 : offset + length])
        offset += (length + 3) & ~3


def failure_of(message: Message) -> Failure | None:
    """Read an NLMSG_ERROR (or the status in an NLMSG_DONE); None is an acknowledgement."""
    if len(message.body) < 4:
        return Failure(errno.EPROTO, "a truncated answer") if message.type == _ERROR else None
    code = -_ERRNO.unpack_from(message.body)[0]
    if code == 0:
        return None
    text = ""
    if message.flags & _ACK_TLVS:
        offset = 4
        if message.type == _ERROR:  # the header of the request comes first, and its body where not capped
            length = int.from_bytes(message.body[4:8], sys.byteorder)
            offset += 16 if message.flags & _CAPPED else max(16, (length + 3) & ~3)
        for kind, value in attributes(message.body, offset):
            if kind == _ERROR_TEXT:
                text = value.rstrip(b"\0").decode("utf-8", "replace")
    return Failure(code, text)


# ------------------------------------------------------------------------------------------ namespaces


class Namespace:
    """A network namespace, held open: None is that of the calling thread.

    *where* is a name as in ``ip netns`` or, with a slash, a path. Nothing is ever created.
    """

    def __init__(self, where: str | None = None) -> None:
        self._descriptor = -1
        if where is None:
            return
        path = where if "/" in where else f"/run/netns/{where}"
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BackendUnavailable(
                f"network namespace {where} cannot be opened: {error.strerror}", hint="see 'ip netns list'"
            ) from error

    def call(self, function: Callable[[], T]) -> T:
        """Call *function* in the namespace, in a thread of its own so that no other thread moves."""
        if self._descriptor < 0:
            return function()
        outcome: list[T | BaseException] = []

        def enter_and_call() -> None:
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(self._descriptor, _CLONE_NEWNET) != 0:
                    code = ctypes.get_errno()
                    raise OSError(code, f"setns: {os.strerror(code)}")
                outcome.append(function())
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=enter_and_call, name="kvmd-netns", daemon=True)
        thread.start()
        thread.join(TIMEOUT_SECONDS)
        if not outcome:
            raise Unknown(f"a call in a network namespace took more than {TIMEOUT_SECONDS:.0f} s")
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]

    def close(self) -> None:
        """Let go of the namespace; sockets opened in it stay in it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


# --------------------------------------------------------------------------------------------- sockets


def open_socket(namespace: Namespace, groups: int = 0, receive_bytes: int = _BUFFER_BYTES) -> socket.socket:
    """Open a bound rtnetlink socket, which stays in *namespace* whoever uses it."""

    def create() -> socket.socket:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)

    try:
        opened = namespace.call(create)
    except OSError as error:
        raise Unsupported(
            f"this process cannot open a netlink socket: {error.strerror}",
            hint="allow AF_NETLINK (RestrictAddressFamilies=) in its unit, then: systemctl restart kvmd",
        ) from error
    for option, size in ((_SO_RCVBUFFORCE, receive_bytes), (_SO_SNDBUFFORCE, _BUFFER_BYTES)):
        with contextlib.suppress(OSError):  # without CAP_NET_ADMIN the default size has to do
            opened.setsockopt(socket.SOL_SOCKET, option, size)
    for option in (_CAP_ACK, _EXT_ACK, _STRICT_CHECK):
        with contextlib.suppress(OSError):  # before Linux 4.20
            opened.setsockopt(_SOL_NETLINK, option, 1)
    opened.settimeout(TIMEOUT_SECONDS)
    opened.bind((0, groups))
    return opened


class RouteSocket:
    """Requests and their answers; to be used by one thread at a time."""

    def __init__(self, namespace: Namespace) -> None:
        self._socket = open_socket(namespace)
        self._buffer = bytearray(1 << 17)
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def batch(self, requests: Sequence[Request]) -> list[Failure | None]:
        """Carry out *requests* in order, in one system call: the kernel goes on after an error.

        It tells of every error unasked, so only the last request asks for an answer.
        Raises Unknown where the kernel does not answer. The call itself waits for the kernel's network lock.
        """
        outcome: list[Failure | None] = []
        for start in range(0, len(requests), MESSAGES_PER_SEND):
            outcome += self._send_batch(requests[start : start + MESSAGES_PER_SEND])
        return outcome

    def _send_batch(self, requests: Sequence[Request]) -> list[Failure | None]:
        first = self._sequence + 1
        self._sequence += len(requests)
        last = self._sequence
        data = b"".join(
            _HEADER.pack(len(body) + 16, kind, flags | (_REQUEST_ACK if at == last else _REQUEST), at, 0)
            + body
            + b"\0" * (-len(body) % 4)
            for at, (kind, flags, body) in enumerate(requests, first)
        )
        answers: dict[int, Failure | None] = {}
        try:
            self._socket.send(data)
            while last not in answers:
                for message in messages(self._receive()[0]):
                    if message.type == _ERROR and first <= message.sequence <= last:
                        answers[message.sequence] = failure_of(message)
        except OSError as error:
            raise Unknown(
                f"the kernel did not say what became of {len(requests)} network requests: {error}",
                hint="kvmd looks again by itself; see 'ip -d link'",
            ) from error
        return [answers.get(at) for at in range(first, last + 1)]

    def dump(self, kind: int, body: bytes) -> Dump:
        """List all objects; asked anew, up to 5 times, where the list changed while it was read.

        Raises BackendUnavailable where the kernel does not answer within 5 s.
        """
        bodies: list[bytes] = []
        for _ in range(DUMP_ATTEMPTS):
            try:
                bodies, complete = self._dump_once(kind, body)
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    continue
                raise BackendUnavailable(
                    f"the kernel did not answer a netlink dump: {error}", hint="see 'ip -d link'"
                ) from error
            if complete:
                return Dump(bodies, True)
        return Dump(bodies, False)

    def _dump_once(self, kind: int, body: bytes) -> Dump:
        self._sequence += 1
        wanted, sequence = kind - 2, self._sequence  # RTM_NEWx is RTM_GETx - 2
        self._socket.send(_HEADER.pack(len(body) + 16, kind, _REQUEST | _DUMP, sequence, 0) + body)
        bodies: list[bytes] = []
        complete = True
        while True:
            data, whole = self._receive()
            complete = complete and whole
            for message in messages(data):
                if message.sequence != sequence:
                    continue
                if message.flags & _DUMP_INTERRUPTED or message.type == _OVERRUN:
                    complete = False
                if message.type == wanted:
                    bodies.append(message.body)
                elif message.type in (_DONE, _ERROR):
                    failure = failure_of(message)
                    if failure is not None and failure.errno == errno.EINTR:
                        complete = False
                    elif failure is not None:
                        raise Retry(
                            f"the kernel refused a netlink dump: {os.strerror(failure.errno)} {failure.text}",
                            hint="see 'ip -d link'",
                        )
                    return Dump(bodies, complete)

    def _receive(self) -> tuple[bytes, bool]:
        """One datagram, and whether all of it fitted."""
        length = self._socket.recv_into(self._buffer, 0, socket.MSG_TRUNC)
        whole = length <= len(self._buffer)
        data = bytes(memoryview(self._buffer)[:length])
        if not whole:
            self._buffer = bytearray(length * 2)
        return data, whole
