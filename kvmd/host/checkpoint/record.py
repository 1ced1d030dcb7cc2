"""The exact state of a few links: recorded before a change, and brought back from wherever the change got to."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from kvmd.api.bridge_settings import Numbers
from kvmd.errors import Stale
from kvmd.host.checkpoint.move import (
    add_address,
    add_route,
    address_identity,
    address_link,
    aged,
    delete_address,
    delete_route,
    in_order_of_adding,
    movable_addresses,
    movable_routes,
    route_identity,
    route_link,
    route_through,
)
from kvmd.host.links import messages as encode
from kvmd.host.links.checks import PORT_MARK_PREFIX, Snapshot
from kvmd.host.links.rtnetlink import Failure, Request
from kvmd.observed import Link

ROUNDS: Final = 5  # putting one thing back may take another with it, which the next look shows


@dataclass(frozen=True, slots=True)
class LinkState:
    """What of one link can be put back."""

    name: str
    index: int
    up: bool
    mtu: int
    master_index: int
    alias: str
    port_marks: tuple[str, ...]
    settings: Numbers
    port_settings: Numbers

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> LinkState:
        """Read the JSON form."""
        pairs = {name: tuple((str(k), int(v)) for k, v in data[name]) for name in ("settings", "port_settings")}
        return cls(**{**data, **pairs, "port_marks": tuple(data["port_marks"])})


@dataclass(frozen=True, slots=True)
class Record:
    """Links with their addresses and routes as the kernel's messages; *created* did not exist then."""

    links: tuple[LinkState, ...]
    addresses: tuple[bytes, ...]
    routes: tuple[bytes, ...]
    created: tuple[tuple[str, str], ...]  # name and mark
    taken_at: float  # seconds since the boot, sleep included

    def as_data(self) -> dict[str, Any]:
        """The JSON form."""
        data = asdict(self)
        return data | {name: [body.hex() for body in data[name]] for name in ("addresses", "routes")}

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Record:
        """Read the JSON form; raises KeyError, TypeError or ValueError where it is none."""
        return cls(
            tuple(LinkState.from_data(link) for link in data["links"]),
            tuple(bytes.fromhex(body) for body in data["addresses"]),
            tuple(bytes.fromhex(body) for body in data["routes"]),
            tuple((name, alias) for name, alias in data["created"]),
            float(data["taken_at"]),
        )


@dataclass(frozen=True, slots=True)
class Restored:
    """What putting back came to: whether anything had to be, and what could not be."""

    changed: bool
    left: tuple[str, ...] = ()


def boot_seconds() -> float:
    """Seconds since the boot, sleep included: the one clock that another process reads the same."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def record_of(
    now: Snapshot, routes: Sequence[bytes], names: Sequence[str], created: Sequence[tuple[str, str]]
) -> Record:
    """Record the links of those names that are there. Raises Stale after an interrupted look."""
    if not now.complete:
        raise Stale("the links changed while they were listed", hint="kvmd looks again; to look: ip monitor link")
    links = [now.links[name] for name in dict.fromkeys(names) if name in now.links]
    macs = {link.index: link.mac for link in now.by_index.values()}
    return Record(
        tuple(_state_of(link) for link in links),
        tuple(body for link in links for body in movable_addresses(now.address_bodies, link.index, macs)),
        tuple(body for link in links for body in movable_routes(routes, link.index)),
        tuple(created),
        boot_seconds(),
    )


def _state_of(link: Link) -> LinkState:
    marks = tuple(name for name in link.alternative_names if name.startswith(PORT_MARK_PREFIX))
    return LinkState(
        link.name,
        link.index,
        link.up,
        link.mtu,
        link.master_index,
        link.alias,
        marks,
        link.settings,
        link.port.settings if link.port else (),
    )


def restore(
    record: Record,
    look: Callable[[], tuple[Snapshot, Sequence[bytes]]],
    send: Callable[[Sequence[Request]], list[Failure | None]],
    begin: Callable[[], object],
) -> Restored:
    """Look, send what is missing, look again, until nothing is; whatever can be put back is."""
    changed = False
    requests: list[Request] = []
    failures: list[str] = []
    for _ in range(ROUNDS):
        now, routes = look()
        requests = requests_towards(record, now, routes)
        if not requests:
            break
        if not changed:
            begin()
        changed = True
        failures = [failure.text or f"errno {failure.errno}" for failure in send(requests) if failure]
    gone = [link.name for link in record.links if now.by_index.get(link.index) is None]
    left = [f"{name} is gone" for name in gone] + ([*failures, f"{len(requests)} changes"] if requests else [])
    return Restored(changed, tuple(left))


def requests_towards(record: Record, now: Snapshot, routes: Sequence[bytes]) -> list[Request]:
    """What leads from *now* to the record: old comes back before new goes."""
    there = [(state, link) for state in record.links if (link := now.by_index.get(state.index)) is not None]
    indexes = {link.index for _, link in there}
    macs = {link.index: link.mac for link in now.by_index.values()}
    requests = [request for state, link in there for request in _link_requests(state, link, now)]
    have = [body for index in indexes for body in movable_addresses(now.address_bodies, index, macs)]
    missing, extra = _compare(record.addresses, have, address_identity)
    age = boot_seconds() - record.taken_at
    missing = [body for body in in_order_of_adding(missing) if address_link(body) in indexes]
    requests += [request for body in missing for request in add_address(aged(body, age))]
    ways = [body for index in indexes for body in movable_routes(routes, index)]
    lost, more = _compare(record.routes, ways, route_identity)
    requests += [add_route(route_through(body, route_link(body))) for body in lost]
    requests += [delete_route(body) for body in more]
    requests += [delete_address(body) for body in reversed(extra)]
    for name, alias in record.created:
        made = now.links.get(name)
        if made is not None and made.alias == alias and made.index not in indexes:
            requests.append(encode.delete_link(made.index))
    requests += [encode.set_up(link.index, False) for state, link in there if link.up and not state.up]
    return requests


def _compare(
    wanted: Sequence[bytes], present: Sequence[bytes], identity: Callable[[bytes], bytes]
) -> tuple[list[bytes], list[bytes]]:
    """What is missing, and what is too much."""
    want, have = {identity(body) for body in wanted}, {identity(body) for body in present}
    missing = [body for body in wanted if identity(body) not in have]
    return missing, [body for body in present if identity(body) not in want]


def _differing(wanted: Numbers, present: Numbers) -> Numbers:
    """What of the recorded settings is otherwise now; what the kernel does not show now is left."""
    now = dict(present)
    return tuple((name, number) for name, number in wanted if now.get(name, number) != number)


def _link_requests(state: LinkState, link: Link, now: Snapshot) -> list[Request]:
    index = link.index
    requests: list[Request] = []
    if link.master_index != state.master_index and state.master_index in (0, *now.by_index):
        requests.append(encode.set_master(index, state.master_index))
    if link.alias != state.alias:
        requests.append(encode.set_alias(index, state.alias))
    if link.mtu != state.mtu:
        requests.append(encode.set_mtu(index, state.mtu))
    requests += [encode.set_bridge(index, *pair) for pair in _differing(state.settings, link.settings)]
    if link.master_index == state.master_index and link.port is not None:
        requests += [encode.set_port(index, *pair) for pair in _differing(state.port_settings, link.port.settings)]
    marks = {name for name in link.alternative_names if name.startswith(PORT_MARK_PREFIX)}
    requests += [encode.remove_altname(index, name) for name in sorted(marks - set(state.port_marks))]
    requests += [encode.add_altname(index, name) for name in state.port_marks if name not in marks]
    if state.up and not link.up:
        requests.append(encode.set_up(index, True))
    return requests
