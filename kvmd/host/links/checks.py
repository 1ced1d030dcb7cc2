"""What must hold before a link operation, and what must hold after it."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from kvmd.errors import KvmdError, Refused, Retry, Stale
from kvmd.host.links.errors import exists, in_use
from kvmd.host.links.facts import parse_address, parse_route
from kvmd.host.links.messages import IPV6_DEFAULT_METRIC
from kvmd.observed import Link, Route
from kvmd.ops import (
    AddressAdd,
    AddressDelete,
    BridgeCreate,
    LinkDelete,
    LinkOp,
    LinkSet,
    RouteAdd,
    RouteDelete,
    StackedCreate,
    TapCreate,
    TapOwner,
)

PORT_MARK_PREFIX: Final = "kvmd.port."  # of the altname on a port that kvmd enslaved but does not own

_LONGEST_ALIAS = 255  # IFALIASZ - 1
_LONGEST_NAME = 15  # IFNAMSIZ - 1


class Snapshot(NamedTuple):
    """All links of one moment; not *complete* where they changed while they were read."""

    links: Mapping[str, Link]
    by_index: Mapping[int, Link]
    address_bodies: Sequence[bytes]
    route_bodies: Sequence[bytes]
    complete: bool

    def must_be_complete(self, operation: LinkOp) -> None:
        """Raise Retry: nothing is removed on the ground of an interrupted dump."""
        if not self.complete:
            raise Retry(
                f"cannot {operation.describe()} yet: the links changed while they were listed",
                hint="kvmd looks again; to see what changes them: ip monitor link",
            )

    def address_body(self, index: int, cidr: str) -> bytes | None:
        """The message that showed an address."""
        wanted = _interface(cidr)
        for body in self.address_bodies:
            found = parse_address(body)
            if found and found[0] == index and found[1].cidr == wanted:
                return body
        return None

    def static_routes(self, index: int) -> list[bytes]:
        """The messages that showed the IPv4 routes of a link which its addresses do not bring by themselves."""
        found = []
        for body in self.route_bodies:
            route = parse_route(body)
            if route and route[0] == index and body[0] == 2 and route[1].protocol != "kernel":
                found.append(body)
        # What is on the link comes before the gateways that are reached through it.
        return sorted(found, key=lambda body: -body[6])


class Presence(NamedTuple):
    """An address (*to* is empty) or a route that shall be on a link, or shall not."""

    wanted: bool
    cidr: str = ""
    to: str = ""
    via: str = ""
    metric: int = 0

    def holds_on(self, link: Link) -> bool:
        """True where it is there."""
        if self.to:
            return find_route(link, self.to, self.via, self.metric)
        wanted = _interface(self.cidr)
        return any(address.cidr == wanted for address in link.addresses)


class Expectation(NamedTuple):
    """A property that a link must have after the batch."""

    position: int
    link: int  # its index
    what: str
    value: object


def _interface(cidr: str) -> str:
    return str(ipaddress.ip_interface(cidr))


def same_subnet(cidr: str, other: str) -> bool:
    """True for IPv4 addresses of which one is the primary of the other (same network, same length)."""
    first, second = ipaddress.ip_interface(cidr), ipaddress.ip_interface(other)
    return first.version == 4 and first != second and first.network == second.network


def same_address(cidr: str, other: str) -> bool:
    """True for IPv6 where both are one address with another prefix length: a link has it with one of them only."""
    return ":" in cidr and cidr != other and cidr.partition("/")[0] == other.partition("/")[0]


def find_route(link: Link, to: str, via: str, metric: int) -> bool:
    """True where *link* has that very route."""
    hop = str(ipaddress.ip_address(via)) if via else ""
    return any(route.via == hop for route in _same_way(link, to, via, metric))


def _same_way(link: Link, to: str, via: str, metric: int) -> list[Route]:
    """The routes of *link* of that family, destination and metric: of such the kernel replaces one by another."""
    wanted = to if to == "default" else str(ipaddress.ip_network(to, strict=False))
    asked = ":" in to or ":" in via
    found = []
    for route in link.routes:
        six = ":" in route.to or ":" in route.via
        metrics = (metric, IPV6_DEFAULT_METRIC) if six and metric == 0 else (metric,)
        if route.to == wanted and (six == asked or to != "default") and route.metric in metrics:
            found.append(route)
    return found


def check_way(operation: RouteAdd, index: int, before: Snapshot, operations: Sequence[LinkOp]) -> bool:
    """True where the route takes the place of another of ours. Raises Refused where it would take somebody's."""
    to, via, metric = operation.to, operation.via, operation.metric
    given_up = {(o.name, o.to, o.metric) for o in operations if isinstance(o, RouteDelete)}
    others = [link for link in before.by_index.values() if _same_way(link, to, via, metric)]
    for link in others:
        if link.index != index and (link.name, to, metric) not in given_up:
            raise Refused(
                f"cannot {operation.describe()}: it is reached through {link.name} already, with the same metric",
                hint=f"give the route another metric; to look: ip route show {to}",
            )
    return bool(others)


# --------------------------------------------------------------------------------------------- before


def check_free(operation: BridgeCreate | TapCreate | StackedCreate, before: Snapshot) -> None:
    """Raise where the name cannot be given to a new link."""
    name = operation.name
    if (
        not 0 < len(name.encode()) <= _LONGEST_NAME
        or name in (".", "..")
        or any(c in "/:" or c.isspace() for c in name)
    ):
        raise Refused(
            f"cannot {operation.describe()}: not a name for a link (1 to 15 bytes)", hint="change nameOnHost"
        )
    if not 0 < len(operation.alias.encode()) <= _LONGEST_ALIAS:
        raise Refused(
            f"cannot {operation.describe()}: its mark has not 1 to {_LONGEST_ALIAS} bytes",
            hint="choose a shorter name or owner",
        )
    present = before.links.get(name)
    if present is None:
        for link in before.links.values():
            if name in link.alternative_names:
                raise exists(operation, f"that altname of {link.name}")
        return
    if present.alias == operation.alias:
        raise Stale(f"cannot {operation.describe()}: it exists already", hint="kvmd plans again")
    if present.mark is not None:
        raise Refused(
            f"cannot {operation.describe()}: that link belongs to {present.mark.ref} of {present.mark.owner}",
            hint=f"choose another nameOnHost; to look: ip -d link show {name}",
        )
    raise exists(operation, f"a {present.kind or 'physical'} link of that name")


def check_master(operation: LinkSet, link: Link | None, master: int, released: bool) -> None:
    """Raise where the port belongs to another bridge: the kernel would steal it without a word."""
    if link is None or link.master_index in (0, master) or released:
        return
    raise Refused(
        f"cannot {operation.describe()}: it is a port of {link.master or link.master_index}",
        hint=f"release it first: ip link set {operation.name} nomaster",
    )


def check_removable(operation: LinkDelete, now: Snapshot) -> None:
    """Raise unless the link is the one that was planned, marked as planned, and unused."""
    now.must_be_complete(operation)
    link = now.by_index.get(operation.index)
    if link is None or link.name != operation.name:
        raise Stale(
            f"cannot {operation.describe()}: link {operation.index} is no longer {operation.name}",
            hint="kvmd plans again",
        )
    left_behind = not operation.alias and not link.alias and link.mac == operation.mac
    if link.alias != operation.alias or not (operation.alias or left_behind):
        raise Stale(
            f"cannot {operation.describe()}: its mark is now {link.alias!r}",
            hint=f"kvmd plans again; to look: ip -d link show {link.name}",
        )
    if link.kind == "tun" and link.carrier:
        raise in_use(operation)
    above = sorted(other.name for other in now.links.values() if other.parent == link.name)
    if above:
        raise Refused(
            f"cannot {operation.describe()}: {', '.join(above)} would go with it",
            hint=f"stop the guest or take away the link that stands on it; to look: ip -d link show {above[0]}",
        )


def check_without_ports(operation: LinkDelete, now: Snapshot) -> None:
    """Raise where the bridge still has ports: they would lose their network without a word."""
    ports = sorted(link.name for link in now.links.values() if link.master_index == operation.index)
    if ports:
        raise Refused(
            f"cannot {operation.describe()}: it still has ports: {', '.join(ports)}",
            hint=f"release them first: ip link set {ports[0]} nomaster",
        )


def check_tap_owner(operation: TapOwner, before: Snapshot) -> None:
    """Raise where the TAP is in use or may be."""
    before.must_be_complete(operation)
    link = before.links.get(operation.name)
    if link is None or link.kind != "tun":
        raise Stale(f"cannot {operation.describe()}: it is no TAP or TUN", hint="kvmd plans again")
    if link.carrier:
        raise in_use(operation)


def held_by_failed_addition(
    operation: LinkOp, operations: Sequence[LinkOp], errors: Sequence[KvmdError | None]
) -> Retry | None:
    """The error of a removal whose counterpart, the same address or route elsewhere, is not added."""
    if not isinstance(operation, AddressDelete | RouteDelete):
        return None
    for other, error in zip(operations, errors, strict=True):
        if error is None:
            continue
        match operation, other:
            case AddressDelete(cidr=old), AddressAdd(cidr=new):
                moved = old.partition("/")[0] == new.partition("/")[0]
            case RouteDelete(to=old), RouteAdd(to=new):
                moved = old == new
            case _:
                moved = False
        if moved:
            return Retry(
                f"{operation.describe()} waits: cannot {other.describe()}", hint=f"first solve: {error.message}"
            )
    return None


# ---------------------------------------------------------------------------------------------- after


def what_is_missing(expectation: Expectation, after: Snapshot) -> str:
    """Say in words what is not as it should be; empty where it is."""
    what, value = expectation.what, expectation.value
    link = after.by_index.get(expectation.link)
    if what == "absent":
        return f"{link.name} is still there" if link else ""
    if link is None:
        return f"link {expectation.link} is gone"
    if isinstance(value, Presence):
        present = value.holds_on(link)
        return "" if present == value.wanted else f"{what} is {'still' if present else 'not'} there"
    if what == "port_mark":
        names = link.alternative_names
        held = value in names if value else not any(name.startswith(PORT_MARK_PREFIX) for name in names)
        return "" if held else f"its altnames are {', '.join(names) or 'none'}"
    where, _, name = what.partition(" ")
    if name:
        settings = link.settings if where == "bridge" else link.port.settings if link.port else ()
        actual = dict(settings).get(name, value)  # what is not there now counts later: bridge_attributes
        return "" if actual == value else f"{name} is {actual} instead of {value}"
    actual = getattr(link, what)
    return "" if actual == value else f"{what} is {actual!r} instead of {value!r}"
