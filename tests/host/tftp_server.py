"""A TFTP server for tests: ``tftp_server.py FOLDER PORT``.

A name that begins with ``plain-`` is served without options (RFC 1350); of one with ``lossy-`` every 50th
block is lost once.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
from pathlib import Path

FOLDER, PORT = Path(sys.argv[1]), int(sys.argv[2])


def answered(connection: socket.socket, packet: bytes, peer: tuple[str, int], number: int, lose: bool) -> None:
    """Send a block until it is acknowledged."""
    for attempt in range(8):
        if not (lose and attempt == 0):
            connection.sendto(packet, peer)
        try:
            while True:
                data, _ = connection.recvfrom(1024)
                if data[:4] == struct.pack("!HH", 4, number):
                    return
        except TimeoutError:
            continue
    raise TimeoutError


def serve(words: list[bytes], peer: tuple[str, int]) -> None:
    """One transfer, from a port of its own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.bind(("127.0.0.1", 0))
        connection.settimeout(0.3)
        file = FOLDER / words[0].decode()
        if not file.is_file():
            connection.sendto(struct.pack("!HH", 5, 1) + b"File not found\0", peer)
            return
        data, size = file.read_bytes(), 512
        said = dict(zip(words[2::2], words[3::2], strict=False))
        if b"blksize" in said and not file.name.startswith("plain-"):
            size = int(said[b"blksize"])
            agreed = b"\0".join((b"blksize", said[b"blksize"], b"tsize", str(len(data)).encode(), b""))
            answered(connection, struct.pack("!H", 6) + agreed, peer, 0, False)
        for number in range(1, len(data) // size + 2):
            packet = struct.pack("!HH", 3, number % 65536) + data[(number - 1) * size : number * size]
            lose = file.name.startswith("lossy-") and number % 50 == 0
            answered(connection, packet, peer, number % 65536, lose)


with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
    listening.bind(("127.0.0.1", PORT))
    while True:
        request, client = listening.recvfrom(1024)
        threading.Thread(target=serve, args=(request[2:].split(b"\0"), client), daemon=True).start()
