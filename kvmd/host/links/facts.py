"""From the kernel's messages to facts: links, addresses and routes as ``kvmd.observed`` names them.

Numbers and units are those of linux/if_link.h and linux/rtnetlink.h. Nothing here trusts a length.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, Generic, NamedTuple, TypeVar

from kvmd.api.mark import Mark
from kvmd.host.links.bridge_attributes import read_bridge, read_port
from kvmd.host.links.rtnetlink import attributes, spans
from kvmd.observed import Address, BridgePort, Route, Stacked

MAIN_TABLE: Final = 254

# RTEXT_FILTER_SKIP_STATS spares the counters of IPv6; those of packets come all the same.
LINK_DUMP: Final = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + struct.pack("=HHI", 8, 29, 1 << 3)
ADDRESS_DUMP: Final = struct.pack("=BBBBI", 0, 0, 0, 0, 0)
ROUTE_DUMP: Final = struct.pack("=BBBBBBBBI", 0, 0, 0, 0, MAIN_TABLE, 0, 0, 1, 0)

_MAC, _NAME, _MTU, _MASTER, _OPERSTATE, _LINK_INFO, _ALIAS, _CARRIER = 1, 3, 4, 10, 16, 18, 20, 33
_PROPERTIES, _ALTNAME = 52, 53
_PARENT, _PARENT_NAMESPACE = 5, 37
_STACKED = ("vlan", "vxlan", "macvtap", "macvlan", "ipvlan", "ipvtap", "macsec")  # the kernel deletes them with it
_OF_LINK = frozenset(
    {_PARENT, _PARENT_NAMESPACE, _MAC, _NAME, _MTU, _MASTER, _OPERSTATE, _LINK_INFO, _ALIAS, _CARRIER, _PROPERTIES}
)
_COUNTERS = frozenset({7, 23})  # IFLA_STATS, IFLA_STATS64
_OF_LINK_OR_COUNTERS = _OF_LINK | _COUNTERS
_OF_INFO = frozenset({1, 2, 4, 5})  # kind and data, of itself and as a port
_TIMERS = ((1, 2, frozenset({16, 17, 18, 19})), (4, 5, frozenset({20, 21, 22})))  # of a bridge, of a port of one
_INDEX = struct.Struct("=i")

_OPERSTATES = ("unknown", "notpresent", "down", "lowerlayerdown", "testing", "dormant", "up")
_PORT_STATES = ("disabled", "listening", "learning", "forwarding", "blocking")
_TUN_MODES = {1: "tun", 2: "tap"}
_SCOPES = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}
_PROTOCOLS = {
    0: "unspec", 1: "redirect", 2: "kernel", 3: "boot", 4: "static", 9: "ra", 11: "zebra", 12: "bird",
    16: "dhcp", 42: "babel", 186: "bgp", 187: "isis", 188: "ospf", 189: "rip", 192: "eigrp",
}  # fmt: skip
_PERMANENT = 0x80  # IFA_F_PERMANENT
_CLONED = 0x200  # RTM_F_CLONED: a cache entry of IPv6, no route

T = TypeVar("T")


class Memo(Generic[T]):
    """Parses each distinct message once: what reads as before yields the very same value."""

    def __init__(self, parse: Callable[[bytes], T | None]) -> None:
        self._parse = parse
        self._known: dict[bytes, T | None] = {}

    def read(self, bodies: Sequence[bytes]) -> list[T]:
        """Parse all of one dump; what is not in it is forgotten."""
        before, now = self._known, {}
        for body in bodies:
            now[body] = before[body] if body in before else self._parse(body)
        self._known = now
        return [value for body in bodies if (value := now[body]) is not None]


def _number(value: bytes) -> int:
    return int.from_bytes(value, sys.byteorder)


def _text(value: bytes) -> str:
    return value.split(b"\0", 1)[0].decode("utf-8", "replace")


def name_of(body: bytes) -> tuple[int, str] | None:
    """Index and name of an RTM_NEWLINK or RTM_DELLINK: the kernel says the name first."""
    if len(body) < 16:
        return None
    name = next((_text(value) for kind, value in attributes(body, 16) if kind == _NAME), "")
    return (_INDEX.unpack_from(body, 4)[0], name) if name else None


def _parse_link(body: bytes, places: Mapping[int, tuple[int, int]]) -> dict[str, Any] | None:
    index, flags = struct.unpack_from("=iI", body, 4)
    found = {kind: body[start:end] for kind, (start, end) in places.items()}
    name, alias = _text(found.get(_NAME, b"")), _text(found.get(_ALIAS, b""))
    if not name:
        return None
    mac, state = found.get(_MAC, b""), _number(found.get(_OPERSTATE, b""))
    link: dict[str, Any] = {
        "name": name,
        "index": index,
        "kind": "",
        "mac": mac.hex(":") if len(mac) == 6 else "",
        "mtu": _number(found.get(_MTU, b"")),
        "up": bool(flags & 1),
        "carrier": bool(_number(found.get(_CARRIER, b""))),
        "operstate": _OPERSTATES[state] if state < len(_OPERSTATES) else "unknown",
        "master_index": _number(found.get(_MASTER, b"")),
        "alias": alias,
        "mark": Mark.from_alias(alias),
    }
    if _PROPERTIES in found:
        names = [_text(value) for kind, value in attributes(found[_PROPERTIES]) if kind == _ALTNAME]
        link["alternative_names"] = tuple(sorted(names))
    if _LINK_INFO in found:
        _read_link_info(found[_LINK_INFO], link)
    if link["kind"] in _STACKED and _PARENT in found and _PARENT_NAMESPACE not in found:
        link["parent_index"] = _number(found[_PARENT])  # of a veth it would be the peer
    return link


class _Known(NamedTuple):
    """A link message that was parsed: what of it is compared, how that read, and what it said."""

    compared: tuple[slice, ...]
    text: bytes
    link: dict[str, Any]


class LinkMemo:
    """Parses a link message only where it differs, counters of packets and timers aside, from the one before."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}

    def read(self, bodies: Sequence[bytes]) -> list[dict[str, Any]]:
        """Parse all of one dump; what is not in it is forgotten."""
        now: dict[int, _Known] = {}
        for body in bodies:
            if len(body) < 16:
                continue
            index = _INDEX.unpack_from(body, 4)[0]
            known = self._known.get(index)
            if known is None or known.text != _joined(body, known.compared):
                places = spans(body, 16, _OF_LINK_OR_COUNTERS)
                link = _parse_link(body, places)
                if link is None:
                    continue
                compared = _compared(body, places)
                known = _Known(compared, _joined(body, compared), link)
            now[index] = known
        self._known = now
        return [known.link for known in now.values()]


def _joined(body: bytes, compared: tuple[slice, ...]) -> bytes:
    return b"".join([body[part] for part in compared])


def _compared(body: bytes, places: Mapping[int, tuple[int, int]]) -> tuple[slice, ...]:
    """All of a message but its counters and timers, which never stand still.

    Their headers stay: where all else is equal, what is left out is the same attributes.
    """
    cuts = [places[kind] for kind in _COUNTERS if kind in places]
    if _LINK_INFO in places:
        start, end = places[_LINK_INFO]
        parts = spans(body[:end], start, _OF_INFO)
        for kind, data, timers in _TIMERS:
            if kind in parts and data in parts and body[slice(*parts[kind])].startswith(b"bridge\0"):
                cuts += spans(body[: parts[data][1]], parts[data][0], timers).values()
    ends = sorted(cuts)
    return tuple(map(slice, (0, *(end for _, end in ends)), (*(start for start, _ in ends), None)))


def _read_link_info(info: bytes, link: dict[str, Any]) -> None:
    """Read IFLA_LINKINFO: kind, own data, and what the link is as a port."""
    parts = {kind: info[start:end] for kind, (start, end) in spans(info, 0, _OF_INFO).items()}
    link["kind"] = _text(parts.get(1, b""))
    data = parts.get(2, b"")
    if link["kind"] == "bridge":
        link["settings"], link["root"] = read_bridge(data)
    elif link["kind"] == "tun":
        link.update(_tun(data))
    elif link["kind"] == "vlan":
        link["stacked"] = Stacked(_number(dict(attributes(data)).get(1, b"")))
    elif link["kind"] == "vxlan":
        _read_vxlan(data, link)
    if parts.get(4, b"").startswith(b"bridge\0"):
        state, settings = read_port(parts.get(5, b""))
        link["port"] = BridgePort(_PORT_STATES[state] if state < len(_PORT_STATES) else _PORT_STATES[0], settings)


def _read_vxlan(data: bytes, link: dict[str, Any]) -> None:
    parts = dict(attributes(data))
    remote, local = (parts.get(old) or parts.get(new, b"") for old, new in ((2, 16), (4, 17)))
    port = int.from_bytes(parts.get(15, b""), "big")
    link["stacked"] = Stacked(_number(parts.get(1, b"")), ip_text(local), ip_text(remote), port)
    if 3 in parts:
        link["parent_index"] = _number(parts[3])


@lru_cache(maxsize=1024)
def _tun(data: bytes) -> Mapping[str, Any]:
    """What IFLA_INFO_DATA says of a TAP or TUN; hundreds of them say the same."""
    parts = dict(attributes(data))
    return {
        "owner": _number(parts[1]) if 1 in parts else None,
        "group": _number(parts[2]) if 2 in parts else None,
        "tun_mode": _TUN_MODES.get(_number(parts.get(3, b"")), ""),
        "vnet_hdr": bool(_number(parts.get(5, b""))),
        "persistent": bool(_number(parts.get(6, b""))),
        "multi_queue": bool(_number(parts.get(7, b""))),
    }


def ip_text(packed: bytes) -> str:
    """The text of an IPv4 or IPv6 address; empty for anything else."""
    if len(packed) == 4:
        return socket.inet_ntop(socket.AF_INET, packed)
    if len(packed) != 16:
        return ""
    text = socket.inet_ntop(socket.AF_INET6, packed)
    # The C library and Python differ in how they write IPv6 addresses that hold one of IPv4; specs have Python's.
    return str(ipaddress.IPv6Address(packed)) if "." in text else text


def parse_address(body: bytes) -> tuple[int, Address] | None:
    """Read an RTM_NEWADDR: index of the link, and the address."""
    if len(body) < 8:
        return None
    family, length, flags, scope, index = struct.unpack_from("=BBBBI", body)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    parts = dict(attributes(body, 8))
    text = ip_text(parts.get(2) or parts.get(1, b""))  # IFA_LOCAL; IFA_ADDRESS may be the peer's
    if not text:
        return None
    flags = _number(parts[8]) if 8 in parts else flags
    permanent = bool(flags & _PERMANENT)
    scope_word = _SCOPES.get(scope, str(scope))
    return index, Address(f"{text}/{length}", scope=scope_word, permanent=permanent, dynamic=not permanent)


def parse_route(body: bytes) -> tuple[int, Route] | None:
    """Read an RTM_NEWROUTE: index of the link, and the route where it is a unicast one of the main table."""
    if len(body) < 12:
        return None
    family, length, _, _, table, protocol, _, kind, flags = struct.unpack_from("=BBBBBBBBI", body)
    if family not in (socket.AF_INET, socket.AF_INET6) or kind != 1 or flags & _CLONED:
        return None
    parts = dict(attributes(body, 12))
    if (_number(parts[15]) if 15 in parts else table) != MAIN_TABLE or 4 not in parts:
        return None
    via = ip_text(parts.get(5, b"")) or ip_text(parts.get(18, b"")[2:])  # RTA_VIA: family, then address
    to = "default" if length == 0 else f"{ip_text(parts.get(1, b''))}/{length}"
    metric = _number(parts.get(6, b""))
    return _number(parts[4]), Route(to, via, metric, _PROTOCOLS.get(protocol, str(protocol)))
