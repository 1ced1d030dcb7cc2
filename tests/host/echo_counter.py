"""Count ICMP echoes at two TAPs: what left one guest, and what did not reach the other; told on each line of input.

A guest that is slow because the machine is busy loses nothing, and pings by its own clock would say that it did.
"""

from __future__ import annotations

import select
import socket
import sys
import time

ICMP, REQUEST, REPLY = 1, 8, 0
SETTLE_SECONDS = 0.3  # a packet may be between the two TAPs when the count is asked for


def echo_in(frame: bytes) -> tuple[int, bytes] | None:
    """The type and the identity (identifier and sequence) of an ICMP echo over IPv4."""
    if frame[12:14] != b"\x08\x00" or frame[23] != ICMP:
        return None
    start = 14 + (frame[14] & 15) * 4
    return (frame[start], frame[start + 4 : start + 8]) if frame[start] in (REQUEST, REPLY) else None


def main(first: str, second: str) -> None:
    """Two sockets; of each echo that comes in from a guest, when; of each that goes out to the other, that it did."""
    sockets = {}
    for name in (first, second):
        listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        listener.bind((name, 0))
        sockets[listener] = name
    sent: dict[tuple[str, int, bytes], float] = {}
    arrived: set[tuple[str, int, bytes]] = set()
    print("ready", flush=True)
    while True:
        ready = select.select([*sockets, sys.stdin], [], [])[0]
        for source in ready:
            if source is sys.stdin and len(ready) > 1:
                continue  # first everything that came before the question
            if source is sys.stdin:
                if not sys.stdin.readline():
                    return
                late = time.monotonic() - SETTLE_SECONDS
                counted = [key for key, at in sent.items() if at < late]
                print(len(counted), sum(key not in arrived for key in counted), flush=True)
                continue
            frame, address = source.recvfrom(2048)
            echo = echo_in(frame)
            if echo is None:
                continue
            name = sockets[source]
            if address[2] == socket.PACKET_OUTGOING:
                arrived.add((second if name == first else first, *echo))
            else:
                sent.setdefault((name, *echo), time.monotonic())


if __name__ == "__main__":
    main(*sys.argv[1:])
