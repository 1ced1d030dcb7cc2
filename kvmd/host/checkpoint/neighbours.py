"""Who answers: next hops by ARP and neighbour discovery, which the kernel does for us, others by ICMP echo."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from typing import Final

from kvmd.host.checkpoint.move import ALL_ROUTES, route_link, way_of
from kvmd.host.links.facts import MAIN_TABLE, ip_text
from kvmd.host.links.rtnetlink import (
    CREATE,
    GETNEIGH,
    GETROUTE,
    NEWNEIGH,
    REPLACE,
    Namespace,
    Request,
    RouteSocket,
    attribute,
)
from kvmd.host.links.rtnetlink import attributes as walk

_DESTINATION, _HARDWARE = 1, 2  # NDA_*
_REACHABLE, _PROBE, _FAILED, _NOARP, _PERMANENT = 0x02, 0x10, 0x20, 0x40, 0x80  # NUD_*
_USE = 0x01  # NTF_USE: ask now
_ANSWERED: Final = _REACHABLE | _NOARP | _PERMANENT
_GATEWAY, _VIA = 5, 18  # RTA_*
LOOK_SECONDS: Final = 0.02
ECHO_SECONDS: Final = 1.0


class Neighbours:
    """The neighbours of one namespace; to be closed."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._socket = RouteSocket(namespace)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def gateways(self) -> dict[str, int]:
        """The gateways of the default routes of the main table, and the index of the link to each."""
        found: dict[str, int] = {}
        for body in self._socket.dump(GETROUTE, ALL_ROUTES).bodies:
            if body[0] not in (socket.AF_INET, socket.AF_INET6):
                continue
            way, parts = way_of(body), dict(walk(body, 12))
            via = ip_text(parts.get(_GATEWAY, b"")) or ip_text(parts.get(_VIA, b"")[2:])
            if way.table == MAIN_TABLE and way.length == 0 and via and route_link(body):
                found.setdefault(via, route_link(body))
        return found

    def answers(self, address: str, index: int, seconds: float) -> bool:
        """True where the neighbour on that link answers within *seconds*, asked anew."""
        deadline = time.monotonic() + seconds
        self._ask(address, index)
        while True:
            state = self._state(address, index)[0]
            if state & _ANSWERED:
                return True
            if time.monotonic() >= deadline:
                return False
            if state in (0, _FAILED):
                self._ask(address, index)
            time.sleep(LOOK_SECONDS)

    def _ask(self, address: str, index: int) -> None:
        """Have the kernel ask; what answered a while ago is asked again, at once."""
        packed = ipaddress.ip_address(address).packed
        family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
        state, hardware = self._state(address, index)
        if hardware and not state & (_FAILED | _NOARP | _PERMANENT):
            head = struct.pack("=BxxxiHBB", family, index, _PROBE, 0, 0)
            body = head + attribute(_DESTINATION, packed) + attribute(_HARDWARE, hardware)
        elif not state & _ANSWERED:
            body = struct.pack("=BxxxiHBB", family, index, 0, _USE, 0) + attribute(_DESTINATION, packed)
        else:
            return
        self._socket.batch([Request(NEWNEIGH, CREATE | REPLACE, body)])

    def _state(self, address: str, index: int) -> tuple[int, bytes]:
        packed = ipaddress.ip_address(address).packed
        family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
        for body in self._socket.dump(GETNEIGH, struct.pack("=BxxxiHBB", family, 0, 0, 0, 0)).bodies:
            _, where, state = struct.unpack_from("=BxxxiH", body)
            if where == index:
                parts = dict(walk(body, 12))
                if parts.get(_DESTINATION) == packed:
                    return state, parts.get(_HARDWARE, b"")
        return 0, b""

    def echoes(self, addresses: Sequence[str], seconds: float) -> list[str]:
        """Those of the addresses that do not answer an ICMP echo within *seconds*. Raises OSError."""
        deadline = time.monotonic() + seconds
        silent = list(addresses)
        while silent:
            silent = [address for address in silent if not self._echo(address)]
            if time.monotonic() >= deadline:
                break
        return silent

    def _echo(self, address: str) -> bool:
        six = ":" in address
        family = socket.AF_INET6 if six else socket.AF_INET
        protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
        token = os.urandom(8)
        with self._namespace.call(lambda: _echo_socket(family, protocol)) as opened:
            try:
                opened.sendto(_echo_request(six, token), (address, 0))
            except OSError:
                time.sleep(LOOK_SECONDS)
                return False
            deadline = time.monotonic() + ECHO_SECONDS
            while (left := deadline - time.monotonic()) > 0:
                if select.select([opened], [], [], left)[0]:
                    with contextlib.suppress(OSError):
                        answer = opened.recv(256)
                        # Our own request comes back too where the address is on this host.
                        if token in answer and _kind(answer, six) in (0, 129):
                            return True
        return False


def _echo_socket(family: int, protocol: int) -> socket.socket:
    """A ping socket where the host lets us (net.ipv4.ping_group_range), else a raw one."""
    try:
        return socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, protocol)
    except OSError:
        return socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)


def _kind(answer: bytes, six: bool) -> int:
    """The ICMP type; a raw socket of IPv4 gives the header before it."""
    return answer[(answer[0] & 0xF) * 4] if not six and answer[0] >> 4 == 4 else answer[0]


def _echo_request(six: bool, token: bytes) -> bytes:
    head = struct.pack("!BBHHH", 128 if six else 8, 0, 0, os.getpid() & 0xFFFF, 1)
    words = struct.unpack(f"!{len(head + token) // 2}H", head + token)
    total = sum(words)
    total = (total >> 16) + (total & 0xFFFF)
    total += total >> 16
    checksum = 0 if six else ~total & 0xFFFF  # of IPv6 the kernel makes it
    return struct.pack("!BBHHH", 128 if six else 8, 0, checksum, os.getpid() & 0xFFFF, 1) + token
