"""The settings of bridges and their ports in the kernel's messages (IFLA_BR_*, IFLA_BRPORT_* of linux/if_link.h)."""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping
from typing import Final, NamedTuple

from kvmd.api.bridge_settings import Numbers
from kvmd.host.links.rtnetlink import attribute, nested, spans


class _Attribute(NamedTuple):
    number: int
    format: str


_BRIDGE: Final = {
    "forward_delay": _Attribute(1, "=I"),
    "hello_time": _Attribute(2, "=I"),
    "max_age": _Attribute(3, "=I"),
    "ageing_time": _Attribute(4, "=I"),
    "stp_state": _Attribute(5, "=I"),
    "priority": _Attribute(6, "=H"),
    "vlan_filtering": _Attribute(7, "=B"),
    "group_fwd_mask": _Attribute(9, "=H"),
    "mcast_snooping": _Attribute(23, "=B"),
    "mcast_querier": _Attribute(25, "=B"),
    "vlan_default_pvid": _Attribute(39, "=H"),
}
_PORT: Final = {
    "priority": _Attribute(2, "=H"),
    "cost": _Attribute(3, "=I"),
    "hairpin": _Attribute(4, "=B"),
    "guard": _Attribute(5, "=B"),
    "root_block": _Attribute(6, "=B"),
    "fastleave": _Attribute(7, "=B"),
    "learning": _Attribute(8, "=B"),
    "flood": _Attribute(9, "=B"),
    "mcast_flood": _Attribute(27, "=B"),
    "bcast_flood": _Attribute(30, "=B"),
    "isolated": _Attribute(33, "=B"),
}
_ROOT_ID, _BRIDGE_ID, _TOPOLOGY_CHANGE, _PORT_STATE = 10, 11, 14, 1
_OF_BRIDGE = frozenset({item.number for item in _BRIDGE.values()} | {_ROOT_ID, _BRIDGE_ID, _TOPOLOGY_CHANGE})
_OF_PORT = frozenset({item.number for item in _PORT.values()} | {_PORT_STATE})
_FROM_ROOT = frozenset({"forward_delay", "hello_time", "max_age"})
_LINK_INFO, _KIND, _DATA, _PORT_KIND, _PORT_DATA = 18, 1, 2, 4, 5


def read_bridge(data: bytes) -> tuple[Numbers, str]:
    """The settings of a bridge, and the root of its spanning tree where that is another.

    The kernel shows what counts now. While another bridge is the root these times are the root's, and while the
    topology changes the ageing time is twice the forward delay: then they are nobody's wish, and are not there.
    """
    parts = {kind: data[start:end] for kind, (start, end) in spans(data, 0, _OF_BRIDGE).items()}
    root, own = parts.get(_ROOT_ID, b""), parts.get(_BRIDGE_ID, b"")
    foreign = root != own
    passing = _FROM_ROOT if foreign else frozenset()
    if any(parts.get(_TOPOLOGY_CHANGE, b"")):
        passing |= {"ageing_time"}
    return _numbers(_BRIDGE, parts, passing), f"{root[:2].hex()}.{root[2:].hex(':')}" if foreign else ""


def read_port(data: bytes) -> tuple[int, Numbers]:
    """The state of a port of a bridge, and its settings."""
    parts = {kind: data[start:end] for kind, (start, end) in spans(data, 0, _OF_PORT).items()}
    return int.from_bytes(parts.get(_PORT_STATE, b""), sys.byteorder), _numbers(_PORT, parts)


def _numbers(
    table: Mapping[str, _Attribute], parts: Mapping[int, bytes], passing: frozenset[str] = frozenset()
) -> Numbers:
    return tuple(
        (name, min(number, 1) if name == "stp_state" else number)  # 2: by a program in the user space
        for name, item in table.items()
        if item.number in parts and name not in passing
        for number in (int.from_bytes(parts[item.number], sys.byteorder),)
    )


def bridge_info(name: str, number: int) -> bytes:
    """One setting of a bridge as IFLA_LINKINFO."""
    return nested(_LINK_INFO, attribute(_KIND, b"bridge"), nested(_DATA, _one(_BRIDGE, name, number)))


def port_info(name: str, number: int) -> bytes:
    """One setting of a port as IFLA_LINKINFO."""
    return nested(_LINK_INFO, attribute(_PORT_KIND, b"bridge"), nested(_PORT_DATA, _one(_PORT, name, number)))


def _one(table: Mapping[str, _Attribute], name: str, number: int) -> bytes:
    item = table[name]
    return attribute(item.number, struct.pack(item.format, number))
