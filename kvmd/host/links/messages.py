"""From wishes to the kernel's messages: one function a request, all by index."""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import Final

from kvmd.host.links.bridge_attributes import bridge_info, port_info
from kvmd.host.links.facts import MAIN_TABLE
from kvmd.host.links.rtnetlink import (
    APPEND,
    CREATE,
    DELADDR,
    DELLINK,
    DELLINKPROP,
    DELROUTE,
    EXCLUSIVE,
    NEWADDR,
    NEWLINK,
    NEWLINKPROP,
    NEWROUTE,
    REPLACE,
    Request,
    attribute,
    nested,
)
from kvmd.ops import VlanCreate, VxlanCreate

_ADDRESS, _NAME, _MTU, _MASTER, _LINK_INFO, _ALIAS, _PROPERTIES, _ALTNAME = 1, 3, 4, 10, 18, 20, 52, 53
_INFO_KIND, _INFO_DATA = 1, 2
_PARENT = 5
_UP, _NO_DUPLICATE_DETECTION = 1, 0x02
_STATIC, _UNICAST = 4, 1
_UNIVERSE, _LINK, _HOST, _NOWHERE = 0, 253, 254, 255
IPV6_DEFAULT_METRIC: Final = 1024  # IP6_RT_PRIO_USER: what the kernel makes of 0
_ROUTE_FLAGS_KEPT: Final = 0x4  # RTNH_F_ONLINK; the kernel refuses a request that says DEAD or LINKDOWN


def _link_head(index: int, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("=BxHiII", 0, 0, index, flags, change)


def _link(index: int, *parts: bytes) -> Request:
    return Request(NEWLINK, 0, _link_head(index) + b"".join(parts))


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def create_bridge(index: int, name: str, mac: str = "", mtu: int | None = None) -> Request:
    """Create a bridge, down, under an *index* of our choice: a taken name fails without side effects."""
    size = _u32(_MTU, mtu) if mtu is not None else b""
    return _create(index, name, mac, size, bridge_info("stp_state", 0))


def create_vlan(index: int, operation: VlanCreate, parent: int) -> Request:
    """Create a VLAN (IFLA_LINK is its parent, IFLA_VLAN_ID its number), down."""
    data = nested(_INFO_DATA, attribute(1, struct.pack("=H", operation.id)))
    info = nested(_LINK_INFO, attribute(_INFO_KIND, b"vlan"), data)
    return _create(index, operation.name, operation.mac, _u32(_PARENT, parent), info)


def create_vxlan(index: int, operation: VxlanCreate, parent: int) -> Request:
    """Create a VXLAN, down."""
    parts = [_u32(1, operation.id), attribute(15, struct.pack(">H", operation.port))]
    if parent:
        parts.append(_u32(3, parent))
    for text, old, new in ((operation.local, 4, 17), (operation.remote, 2, 16)):  # IPv4 and IPv6 have their own
        if text:
            address = ipaddress.ip_address(text)
            parts.append(attribute(old if address.version == 4 else new, address.packed))
    info = nested(_LINK_INFO, attribute(_INFO_KIND, b"vxlan"), nested(_INFO_DATA, *parts))
    return _create(index, operation.name, operation.mac, info)


def _create(index: int, name: str, mac: str, *parts: bytes) -> Request:
    body = _link_head(index) + attribute(_NAME, name.encode() + b"\0")
    if mac:
        body += attribute(_ADDRESS, bytes.fromhex(mac.replace(":", "")))
    return Request(NEWLINK, CREATE | EXCLUSIVE, body + b"".join(parts))


def set_alias(index: int, alias: str) -> Request:
    """Write (empty: take off) the alias; in a create message the kernel would ignore it."""
    return _link(index, attribute(_ALIAS, alias.encode()))


def add_altname(index: int, name: str) -> Request:
    """Give the link one more name."""
    body = _link_head(index) + nested(_PROPERTIES, attribute(_ALTNAME, name.encode() + b"\0"))
    return Request(NEWLINKPROP, CREATE | EXCLUSIVE | APPEND, body)


def remove_altname(index: int, name: str) -> Request:
    """Take one further name off the link."""
    body = _link_head(index) + nested(_PROPERTIES, attribute(_ALTNAME, name.encode() + b"\0"))
    return Request(DELLINKPROP, 0, body)


def set_master(index: int, master: int) -> Request:
    """Put the link into a bridge; 0 takes it out."""
    return _link(index, _u32(_MASTER, master))


def set_mtu(index: int, mtu: int) -> Request:
    """Set the MTU."""
    return _link(index, _u32(_MTU, mtu))


def set_mac(index: int, mac: str) -> Request:
    """Set the MAC address."""
    return _link(index, attribute(_ADDRESS, bytes.fromhex(mac.replace(":", ""))))


def set_bridge(index: int, name: str, number: int) -> Request:
    """Change one setting of a bridge."""
    return _link(index, bridge_info(name, number))


def set_port(index: int, name: str, number: int) -> Request:
    """Change one setting of a port of a bridge."""
    return _link(index, port_info(name, number))


def rename(index: int, name: str) -> Request:
    """Give the link another name."""
    return _link(index, attribute(_NAME, name.encode() + b"\0"))


def set_up(index: int, up: bool) -> Request:
    """Switch the link on or off."""
    return Request(NEWLINK, 0, _link_head(index, _UP if up else 0, _UP))


def delete_link(index: int) -> Request:
    """Delete the link."""
    return Request(DELLINK, 0, _link_head(index))


def _address_body(index: int, cidr: str, flags: int) -> bytes:
    interface = ipaddress.ip_interface(cidr)
    family = socket.AF_INET if interface.version == 4 else socket.AF_INET6
    scope = _HOST if interface.version == 4 and interface.ip.is_loopback else _UNIVERSE
    head = struct.pack("=BBBBI", family, interface.network.prefixlen, flags, scope, index)
    return head + attribute(2, interface.ip.packed) + attribute(1, interface.ip.packed)


def add_address(index: int, cidr: str) -> Request:
    """Add a permanent address; IPv6 without duplicate detection, which would cost a second of silence."""
    flags = _NO_DUPLICATE_DETECTION if ":" in cidr else 0
    return Request(NEWADDR, CREATE | REPLACE, _address_body(index, cidr, flags))


def delete_address(index: int, cidr: str) -> Request:
    """Remove an address."""
    return Request(DELADDR, 0, _address_body(index, cidr, 0))


def replay_address(body: bytes) -> Request:
    """Put back an address as a dump showed it: label, scope and lifetimes included."""
    return Request(NEWADDR, CREATE | REPLACE, body)


def replay_route(body: bytes) -> Request:
    """Put back a route as a dump showed it."""
    flags = struct.unpack_from("=I", body, 8)[0] & _ROUTE_FLAGS_KEPT
    return Request(NEWROUTE, CREATE | REPLACE, body[:8] + struct.pack("=I", flags) + body[12:])


def route_version(to: str, via: str) -> int:
    """4 or 6: that of the target, else that of the gateway, else 4."""
    if to != "default":
        return ipaddress.ip_network(to, strict=False).version
    return ipaddress.ip_address(via).version if via else 4


def _route_attributes(index: int, to: str, via: str, metric: int) -> tuple[int, int, bytes]:
    """Family, length of the prefix, and attributes."""
    version = route_version(to, via)
    length, parts = 0, _u32(4, index)
    if to != "default":
        network = ipaddress.ip_network(to, strict=False)
        length = network.prefixlen
        parts += attribute(1, network.network_address.packed) if length else b""
    if via:
        gateway = ipaddress.ip_address(via)
        family = socket.AF_INET if gateway.version == 4 else socket.AF_INET6
        same = gateway.version == version
        parts += attribute(5, gateway.packed) if same else attribute(18, struct.pack("=H", family) + gateway.packed)
    if metric:
        parts += _u32(6, metric)
    return (socket.AF_INET if version == 4 else socket.AF_INET6), length, parts


def add_route(index: int, to: str, via: str, metric: int, replace: bool = False) -> Request:
    """Add a unicast route of the main table; without *replace* only where there is none of that metric."""
    family, length, parts = _route_attributes(index, to, via, metric)
    scope = _UNIVERSE if via or family == socket.AF_INET6 else _LINK
    head = struct.pack("=BBBBBBBBI", family, length, 0, 0, MAIN_TABLE, _STATIC, scope, _UNICAST, 0)
    return Request(NEWROUTE, CREATE | (REPLACE if replace else EXCLUSIVE), head + parts)


def delete_route(index: int, to: str, via: str, metric: int) -> Request:
    """Remove a route of the main table; of IPv6 without a metric the kernel would take the first of any."""
    if metric == 0 and route_version(to, via) == 6:
        metric = IPV6_DEFAULT_METRIC
    family, length, parts = _route_attributes(index, to, via, metric)
    head = struct.pack("=BBBBBBBBI", family, length, 0, 0, MAIN_TABLE, 0, _NOWHERE, 0, 0)
    return Request(DELROUTE, 0, head + parts)
