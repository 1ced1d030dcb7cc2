"""Count ICMP echoes at links: what came in from a guest or from outside, and did not go out again; told when asked.

A guest that is slow because the machine is busy loses nothing, and pings by its own clock would say that it did.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
import time

ICMP, REQUEST, REPLY = 1, 8, 0
SETTLE_SECONDS = 2.0  # between two links a packet may wait for a slow guest to say its address


def echo_in(frame: bytes) -> tuple[bytes, ...] | None:
    """What names an ICMP echo wherever it is seen: NAT changes where a request comes from and a reply goes to."""
    if frame[12:14] != b"\x08\x00" or frame[23] != ICMP:
        return None
    start = 14 + (frame[14] & 15) * 4
    kind, number = frame[start], frame[start + 4 : start + 8]
    if kind not in (REQUEST, REPLY):
        return None
    return frame[start : start + 1], number, frame[30:34] if kind == REQUEST else frame[26:30]


def main(*names: str) -> None:
    """A socket a link; each line of input is answered by how many came in, and where those that were lost."""
    sockets: dict[socket.socket, str] = {}
    for name in names:
        listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        listener.bind((name, 0))
        sockets[listener] = name
    # To listen at a link takes the kernel as long as some echoes: one that came in before may have gone out unheard.
    for listener in sockets:
        with contextlib.suppress(BlockingIOError):
            while listener.recv(2048, socket.MSG_DONTWAIT):
                pass
    sent: dict[tuple[bytes, ...], tuple[float, str]] = {}
    arrived: set[tuple[bytes, ...]] = set()
    print("ready", flush=True)
    while True:
        ready = select.select([*sockets, sys.stdin], [], [])[0]
        if ready == [sys.stdin]:  # so everything that came before the question has been seen
            if not sys.stdin.readline():
                return
            late = time.monotonic() - SETTLE_SECONDS
            counted = [echo for echo, (at, _) in sent.items() if at < late]
            lost = [f"{sent[echo][1]}:type{echo[0][0]}" for echo in counted if echo not in arrived]
            print(len(counted), *lost, flush=True)
            continue
        for source in ready:
            if source is sys.stdin:
                continue
            frame, address = source.recvfrom(2048)
            echo = echo_in(frame)
            if echo is None:
                continue
            if address[2] == socket.PACKET_OUTGOING:
                arrived.add(echo)
            else:
                sent.setdefault(echo, (time.monotonic(), sockets[source]))


if __name__ == "__main__":
    main(*sys.argv[1:])
