"""Moving addresses and routes from one link to another within a batch: the kernel's own messages, readdressed.

Replayed with only the link changed, a message keeps what nobody here has to know of: metric, protocol, scope,
lifetimes, preferred source (what ``ip addr save`` and ``ip addr restore`` do).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from kvmd.errors import Refused, Stale
from kvmd.host.links import messages as encode
from kvmd.host.links.batch import Batch, Phase
from kvmd.host.links.checks import Presence
from kvmd.host.links.facts import parse_address, parse_route
from kvmd.host.links.rtnetlink import (
    APPEND,
    CREATE,
    DELADDR,
    DELROUTE,
    NEWADDR,
    NEWNEIGH,
    NEWROUTE,
    REPLACE,
    Request,
    attribute,
)
from kvmd.host.links.rtnetlink import attributes as walk
from kvmd.ops import AddressesMove

ALL_NEIGHBOURS: Final = struct.pack("=BxxxiHBB", 0, 0, 0, 0, 0)
ALL_ROUTES: Final = struct.pack("=BBBBBBBBI", 0, 0, 0, 0, 0, 0, 0, 0, 0)  # of every table
ALL_RULES: Final = struct.pack("=BBBBBBBBI", 0, 0, 0, 0, 0, 0, 0, 0, 0)
LOCAL_TABLE: Final = 255
LOCAL_ROUTES: Final = struct.pack("=BBBBBBBBI", socket.AF_INET6, 0, 0, 0, LOCAL_TABLE, 0, 0, 0, 0)
KERNEL: Final = 2  # RTPROT_KERNEL

_ADDRESS, _LOCAL, _LABEL, _CACHEINFO, _FLAGS, _PROTOCOL = 1, 2, 3, 6, 8, 11  # IFA_*
_DESTINATION, _INDEX, _GATEWAY, _METRIC, _MULTIPATH, _ROUTE_CACHEINFO, _TABLE = 1, 4, 5, 6, 9, 12, 15  # RTA_*
_NEXTHOP = 30  # RTA_NH_ID
_RULE_IN, _RULE_OUT = 3, 17  # FRA_IIFNAME, FRA_OIFNAME
_LINK_SCOPE, _KERNEL_LINK_LOCAL, _NO_DUPLICATE_DETECTION, _CLONED = 253, 3, 0x02, 0x200
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_STALE: Final = 0x04  # NUD_*
_USABLE: Final = 0x02 | _STALE | 0x08 | 0x10 | 0x80  # reachable, stale, delay, probe, permanent
_NOT_THERE: Final = frozenset({errno.EADDRNOTAVAIL})
NOTHING_NEW: Final = frozenset({errno.EEXIST})
_ANY: Final = frozenset(range(1, 256))


class Way(NamedTuple):
    """What makes two routes the same to the kernel, whichever link they lead through."""

    family: int
    table: int
    destination: bytes
    length: int
    tos: int
    metric: bytes


# ------------------------------------------------------------------------------------------ addresses


def address_link(body: bytes) -> int:
    """The index of the link that an address message is about."""
    return int(struct.unpack_from("=I", body, 4)[0])


def is_kernels(body: bytes, macs: Mapping[int, str]) -> bool:
    """True for a link-local address of IPv6 that the kernel made: each link has its own, and none is moved."""
    if body[0] != socket.AF_INET6 or body[3] != _LINK_SCOPE:
        return False
    parts = dict(walk(body, 8))
    if parts.get(_PROTOCOL, b"\0")[:1] == bytes([_KERNEL_LINK_LOCAL]):
        return True
    return parts.get(_ADDRESS, b"")[8:] == _eui64(macs.get(address_link(body), ""))


def _eui64(mac: str) -> bytes:
    octets = bytes.fromhex(mac.replace(":", ""))
    return bytes([octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]]) if len(octets) == 6 else b"-"


def movable_addresses(bodies: Iterable[bytes], index: int, macs: Mapping[int, str]) -> list[bytes]:
    """The messages of those addresses of a link that go where it goes."""
    return [b for b in bodies if b[0] in _FAMILIES and address_link(b) == index and not is_kernels(b, macs)]


def in_order_of_adding(bodies: Sequence[bytes]) -> list[bytes]:
    """So that they stand in the same order again: the kernel puts a new address of IPv6 before those that it has."""
    six = [body for body in bodies if body[0] == socket.AF_INET6]
    return [body for body in bodies if body[0] != socket.AF_INET6] + six[::-1]


def add_address(body: bytes) -> list[Request]:
    """Add an address as a message says, those of IPv6 without a second of silence for duplicate detection."""
    whole = Request(NEWADDR, CREATE | REPLACE, body)
    if body[0] == socket.AF_INET:
        return [whole]
    parts = [(kind, value) for kind, value in walk(body, 8) if kind != _FLAGS]
    flags = int.from_bytes(dict(walk(body, 8)).get(_FLAGS, bytes([body[2]])), "little") | _NO_DUPLICATE_DETECTION
    head = body[:2] + bytes([flags & 0xFF]) + body[3:8]
    silent = head + _packed([*parts, (_FLAGS, struct.pack("=I", flags))])
    # The second message takes the flag off again: the address is then what it was.
    return [Request(NEWADDR, CREATE | REPLACE, silent), whole]


def delete_address(body: bytes) -> Request:
    """Remove the address that a message shows."""
    kept = [(kind, value) for kind, value in walk(body, 8) if kind in (_ADDRESS, _LOCAL)]
    return Request(DELADDR, 0, body[:8] + _packed(kept))


def readdressed(body: bytes, index: int, names: tuple[str, str]) -> bytes:
    """The same address on another link; a label that begins with the old name begins with the new one."""
    old, new = names
    parts = []
    for kind, value in walk(body, 8):
        if kind == _LABEL:
            label = value.rstrip(b"\0").decode()
            label = new + label.removeprefix(old) if label.startswith(old) else label
            value = (label if len(label) < 16 else new).encode() + b"\0"
        parts.append((kind, value))
    return body[:4] + struct.pack("=I", index) + _packed(parts)


def address_identity(body: bytes) -> bytes:
    """All that matters of an address message: not when it was made, nor what its detection is at."""
    parts = dict(walk(body, 8))
    lifetimes = struct.unpack("=II", parts[_CACHEINFO][:8]) if _CACHEINFO in parts else (0, 0)
    for_ever = bytes(lifetime == 0xFFFFFFFF for lifetime in lifetimes)
    flags = int.from_bytes(parts.get(_FLAGS, bytes([body[2]])), "little") & (0x80 | 0x200 | 0x100)
    kept = [(kind, value) for kind, value in sorted(parts.items()) if kind not in (_CACHEINFO, _FLAGS)]
    return bytes([body[0], body[1], body[3]]) + body[4:8] + _packed(kept) + struct.pack("=I", flags) + for_ever


def aged(body: bytes, seconds: float) -> bytes:
    """The same address *seconds* later: what is left of its lifetimes."""
    parts = []
    for kind, value in walk(body, 8):
        if kind == _CACHEINFO:
            lives = [n if n == 0xFFFFFFFF else max(0, n - int(seconds)) for n in struct.unpack("=II", value[:8])]
            lives[1] = max(1, lives[1])  # the kernel takes no address with a valid lifetime of 0
            value = struct.pack("=II", *lives) + value[8:]
        parts.append((kind, value))
    return body[:8] + _packed(parts)


def lives(body: bytes, seconds: float) -> bool:
    """Is an address still valid *seconds* after it was seen like that?"""
    value = dict(walk(body, 8)).get(_CACHEINFO)
    valid = struct.unpack("=II", value[:8])[1] if value else 0xFFFFFFFF
    return valid == 0xFFFFFFFF or valid > seconds


def _packed(parts: Iterable[tuple[int, bytes]]) -> bytes:
    return b"".join(attribute(kind, value) for kind, value in parts)


# --------------------------------------------------------------------------------------------- routes


def route_link(body: bytes) -> int:
    """The index of the link that a route leads through; 0 for none or several."""
    value = dict(walk(body, 12)).get(_INDEX)
    return int(struct.unpack("=I", value)[0]) if value else 0


def movable_routes(bodies: Iterable[bytes], index: int) -> list[bytes]:
    """The routes through a link, those that lead to what is on it first."""
    found = [b for b in bodies if _counts(b) and route_link(b) == index]
    return sorted(found, key=lambda body: _GATEWAY in dict(walk(body, 12)) or 18 in dict(walk(body, 12)))


def _counts(body: bytes) -> bool:
    """False for what the kernel keeps by itself: local addresses, its cache, and fe80::/64 of each link."""
    if body[0] not in _FAMILIES or struct.unpack_from("=I", body, 8)[0] & _CLONED:
        return False
    parts = dict(walk(body, 12))
    link_local = body[0] == socket.AF_INET6 and parts.get(_DESTINATION, b"").startswith(b"\xfe\x80")
    return way_of(body).table != LOCAL_TABLE and not (link_local and body[5] == KERNEL)


def way_of(body: bytes) -> Way:
    """The kernel's key of a route."""
    parts = dict(walk(body, 12))
    table = int.from_bytes(parts[_TABLE], "little") if _TABLE in parts else body[4]
    return Way(body[0], table, parts.get(_DESTINATION, b""), body[1], body[3], parts.get(_METRIC, b""))


def add_route(body: bytes) -> Request:
    """Add a route beside what is there: never in the place of somebody else's."""
    request = encode.replay_route(body)
    return Request(NEWROUTE, CREATE | APPEND, request.body)


def delete_route(body: bytes) -> Request:
    """Remove the very route that a message shows."""
    return Request(DELROUTE, 0, encode.replay_route(body).body)


def route_through(body: bytes, index: int) -> bytes:
    """The same route through another link."""
    parts = [(k, struct.pack("=I", index) if k == _INDEX else v) for k, v in walk(body, 12) if k != _ROUTE_CACHEINFO]
    return body[:12] + _packed(parts)


def route_identity(body: bytes) -> bytes:
    """All that matters of a route message."""
    parts = [(kind, value) for kind, value in sorted(walk(body, 12)) if kind != _ROUTE_CACHEINFO]
    return body[:8] + _packed(parts)


def check_rules(operation: AddressesMove, rules: Iterable[bytes]) -> None:
    """Raise Refused where a routing rule names the source: it would name a mere port afterwards."""
    for body in rules:
        for kind, value in walk(body, 12):
            if kind in (_RULE_IN, _RULE_OUT) and value.rstrip(b"\0").decode("utf-8", "replace") == operation.source:
                word = "iif" if kind == _RULE_IN else "oif"
                raise Refused(
                    f"cannot {operation.describe()}: a routing rule says {word} {operation.source}, and it does not "
                    "move with it",
                    hint=f"let the rule name {operation.name}, or addresses; to look: ip rule; ip -6 rule",
                )


def check_movable(operation: AddressesMove, source: int, bodies: Iterable[bytes]) -> None:
    """Raise Refused where a move would take a route of somebody else's with it, or leave one behind."""
    bodies = list(bodies)
    ways = {way_of(body) for body in movable_routes(bodies, source)}
    for body in bodies:
        parts = dict(walk(body, 12))
        if _MULTIPATH in parts or _NEXTHOP in parts:
            if struct.pack("=i", source) in parts.get(_MULTIPATH, b"") or _NEXTHOP in parts:
                raise Refused(
                    f"cannot {operation.describe()}: a route with several next hops, or one of its own, may lead "
                    f"through {operation.source}",
                    hint="replace it by plain routes; to look: ip route show table all; ip nexthop",
                )
        elif _counts(body) and way_of(body) in ways and route_link(body) != source:
            to = parse_route(body)
            raise Refused(
                f"cannot {operation.describe()}: {to[1].to if to else 'a route of it'} is reached through another "
                "link too, with the same metric, and which of them counts would change",
                hint="give one of them another metric; to look: ip route show table all",
            )


# ----------------------------------------------------------------------------------------- in a batch


def compile_move(batch: Batch, position: int, operation: AddressesMove) -> None:
    """Give the batch the whole move: new before old, and routes twice.

    Removing an address from one link takes the routes with it that prefer it as their source, through whichever
    link they lead; hence the second time.
    """
    batch.before.must_be_complete(operation)
    source = batch.target(operation.source, operation.source_index)
    target = batch.target(operation.name, operation.index)
    macs = {link.index: link.mac for link in batch.before.by_index.values()}
    addresses = movable_addresses(batch.before.address_bodies, source, macs)
    _check_as_planned(operation, addresses)
    check_rules(operation, batch.rules)
    check_movable(operation, source, batch.all_routes)
    olds = movable_routes(batch.all_routes, source)
    news, through = _on_target(operation, target, addresses, olds)
    # What leaves a bridge sends around it from the moment on that the kernel begins to take it out, for some 2 ms.
    back = batch.before.by_index.get(target)
    first = Phase.MOVE_BACK if back is not None and back.master_index == source else Phase.ADDRESS_ADD
    for request in _neighbours(batch.neighbours, source, target):
        batch.add(first, position, request, target, tolerated=_ANY)
    for request in (request for body in news for request in add_address(body)):
        batch.add(first, position, request, target)
    batch.awaited |= {(target, found) for body in news if (found := _local_of(body))}
    for body in through:
        if body[5] != KERNEL:
            batch.add(first, position, add_route(body), target, tolerated=_ANY)
    for body in olds:
        batch.add(first, position, delete_route(body), source, tolerated=_ANY)
    for body in reversed(addresses):
        batch.add(Phase.ADDRESS_DELETE, position, delete_address(body), source, tolerated=_NOT_THERE)
    for body in through:
        batch.add(Phase.ROUTE_ADD, position, add_route(body), target, tolerated=NOTHING_NEW)
    _expect(batch, position, (source, target), news, through)


def _on_target(
    operation: AddressesMove, target: int, addresses: list[bytes], routes: list[bytes]
) -> tuple[list[bytes], list[bytes]]:
    """The addresses and the routes that the target gets."""
    if not operation.instead:
        names = (operation.source, operation.name)
        moved = [readdressed(body, target, names) for body in in_order_of_adding(addresses)]
        return moved, [route_through(body, target) for body in routes]
    kept = [body for body in routes if body[5] != KERNEL and not (operation.gateway and _is_default(body, operation))]
    through = [route_through(body, target) for body in kept]
    if operation.gateway:
        through.append(encode.add_route(target, "default", operation.gateway, 0).body)
    return [encode.add_address(target, cidr).body for cidr in operation.instead], through


def _neighbours(bodies: Iterable[bytes], source: int, target: int) -> list[Request]:
    """What is known of the neighbours.

    A question from a port would be answered to the bridge. A new bridge does not ask by IPv6 before its own
    link-local address is proven, which takes a second or two, and what is sent meanwhile waits for the answer.
    """
    requests = []
    for body in bodies:
        where, state = struct.unpack_from("=iH", body, 4)
        parts = [(kind, value) for kind, value in walk(body, 12) if kind in (1, 2)]
        if where == source and len(parts) == 2 and state & _USABLE:
            head = struct.pack("=BxxxiHBB", body[0], target, _STALE, 0, 0)
            requests.append(Request(NEWNEIGH, CREATE | REPLACE, head + _packed(parts)))
    return requests


def _local_of(body: bytes) -> bytes:
    """The address of IPv6 that a message shows; empty for IPv4, whose local route comes with it."""
    parts = dict(walk(body, 8))
    return parts.get(_LOCAL) or parts.get(_ADDRESS, b"") if body[0] == socket.AF_INET6 else b""


def local_routes(bodies: Iterable[bytes]) -> set[tuple[int, bytes]]:
    """Link and address of each local route."""
    return {(route_link(body), dict(walk(body, 12)).get(_DESTINATION, b"")) for body in bodies}


def _is_default(body: bytes, operation: AddressesMove) -> bool:
    family = socket.AF_INET6 if ":" in operation.gateway else socket.AF_INET
    return body[1] == 0 and body[0] == family


def _check_as_planned(operation: AddressesMove, addresses: list[bytes]) -> None:
    parsed = [pair[1] for body in addresses if (pair := parse_address(body))]
    # Of link-local addresses planning does not know who made them; a move takes those along that people made.
    found = sorted(a.cidr for a in parsed if not (a.scope == "link" and ":" in a.cidr))
    if found != sorted(operation.cidrs):
        raise Stale(
            f"cannot {operation.describe()}: it now carries {', '.join(found) or 'no address'}",
            hint="kvmd plans again",
        )


def _expect(batch: Batch, position: int, links: tuple[int, int], addresses: list[bytes], routes: list[bytes]) -> None:
    source, target = links
    for body in addresses:
        if parsed := parse_address(body):
            batch.expect_presence(position, target, Presence(True, parsed[1].cidr))
            batch.expect_presence(position, source, Presence(False, parsed[1].cidr))
    for body in routes:
        if route := parse_route(body):
            batch.expect_presence(position, target, Presence(True, "", route[1].to, route[1].via, route[1].metric))
