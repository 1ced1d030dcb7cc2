"""Reading a file by TFTP: RFC 1350 with the options of RFC 2347, 2348 (blksize) and 2349 (tsize), under limits."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from typing import IO

READ, DATA, ACK, ERROR, OPTIONS = 1, 3, 4, 5, 6
BLOCK_BYTES = 1428  # one Ethernet frame
PLAIN_BYTES = 512  # of a server that knows no options
WAIT_SECONDS = 1.0
TRIES = 6
MOST_BYTES = 1 << 40

Progress = Callable[[int, int], None]


class TftpError(OSError):
    """The server says no, says nonsense, or nothing."""


def fetch(host: str, port: int, path: str, target: IO[bytes], progress: Progress) -> int:
    """Read a file to its end; how many bytes came. Raises OSError."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as connection:
        connection.settimeout(WAIT_SECONDS)
        done, total = 0, 0
        for data, total in _blocks(connection, address, path):
            target.write(data)
            done += len(data)
            progress(done, total)
            if done > MOST_BYTES:
                raise TftpError(f"more than {MOST_BYTES} bytes came")
    if total and done != total:
        raise TftpError(f"{done} bytes came, the server spoke of {total}")
    return done


def _blocks(connection: socket.socket, address: tuple[object, ...], path: str) -> Iterator[tuple[bytes, int]]:
    """The blocks in order, each once; block numbers wrap, so that a file may be of any length."""
    options = ("octet", "blksize", str(BLOCK_BYTES), "tsize", "0")
    request = struct.pack("!H", READ) + b"".join(word.encode() + b"\0" for word in (path, *options))
    code, body, peer = _ask(connection, request, address, lambda code, body: code == OPTIONS or _number(body) == 1)
    size, total, number = PLAIN_BYTES, 0, 0
    if code == OPTIONS:
        size, total = _agreed(body)
        code, body, _ = _next(connection, number, peer)
    while True:
        number = _number(body)
        yield body[2:], total
        if len(body) - 2 < size:
            # Nobody answers this one; a server that does not hear it only sends the last block again.
            connection.sendto(struct.pack("!HH", ACK, number), peer)
            return
        code, body, _ = _next(connection, number, peer)


def _next(connection: socket.socket, number: int, peer: tuple[object, ...]) -> tuple[int, bytes, tuple[object, ...]]:
    wanted = (number + 1) % 65536
    return _ask(
        connection,
        struct.pack("!HH", ACK, number),
        peer,
        lambda code, body: code == DATA and _number(body) == wanted,
        peer,
    )


def _ask(
    connection: socket.socket,
    packet: bytes,
    address: tuple[object, ...],
    good: Callable[[int, bytes], bool],
    peer: tuple[object, ...] | None = None,
) -> tuple[int, bytes, tuple[object, ...]]:
    """Send until the right answer comes; what comes from elsewhere or twice is passed over, within bounds."""
    for _ in range(TRIES):
        connection.sendto(packet, address)
        for _ in range(64):
            try:
                data, source = connection.recvfrom(65536)
            except TimeoutError:
                break
            if len(data) < 4 or source[0] != address[0] or (peer is not None and source != peer):
                continue
            code, body = struct.unpack("!H", data[:2])[0], data[2:]
            if code == ERROR:
                said = body[2:].split(b"\0")[0][:200].decode("utf-8", "replace")
                raise TftpError(f"the server says: {said or 'error'} ({_number(body)})")
            if code in (DATA, OPTIONS) and good(code, body):
                return code, body, source
    raise TftpError(f"no answer within {TRIES * WAIT_SECONDS:g} s")


def _number(body: bytes) -> int:
    return int.from_bytes(body[:2], "big")


def _agreed(body: bytes) -> tuple[int, int]:
    """Block size and length of the file that the server agrees to; 0 where it does not say."""
    words = body.split(b"\0")
    said = {name.lower(): value for name, value in zip(words[::2], words[1::2], strict=False)}
    size, total = said.get(b"blksize", b"512"), said.get(b"tsize", b"0")
    if not size.isdigit() or not total.isdigit() or not 8 <= int(size) <= BLOCK_BYTES:
        raise TftpError("the server agrees to options that were not asked for")
    return int(size), int(total)
