"""Tun: a persistent layer 3 device with addresses and routes; it cannot be the other end of a guest's NIC."""

from __future__ import annotations

import ipaddress
from typing import Literal

from pydantic import field_validator, model_validator

from kvmd import ops
from kvmd.api.quantity import AccountNumber, Address, Integer, InterfaceAddresses, LinkName, Text
from kvmd.api.resource import Claim, Ref, Reference, SpecModel
from kvmd.api.schema import Update, branch, leaf
from kvmd.api.status import Pending
from kvmd.errors import Blocked
from kvmd.observed import Key, Link, Observed
from kvmd.plan.difference import Change
from kvmd.plan.links import (
    KERNEL_MTU,
    above,
    account,
    address_claims,
    address_operations,
    addresses_of,
    alias_for,
    let_go,
    link_key,
    link_of,
    link_status,
    normal_addresses,
    owned_paths,
    ports_of,
    refuse_below_others,
    refuse_strangers_addresses,
    renamed,
    same_kind_or_refuse,
    waits_for,
)
from kvmd.plan.look import Look
from kvmd.plan.model import Draft
from kvmd.plan.wording import Described

KIND = "Tun"
PLURAL = "tuns"
SHORT = "tun"

host_key = link_key


class Route(SpecModel):
    """A route through the TUN."""

    to: Text = leaf(about="Destination in CIDR form.", example="10.20.0.0/16")
    via: Address | None = leaf(None, about="Next hop; null for a route on the link itself.", example="10.9.0.2")
    metric: Integer = leaf(0, about="Metric; the kernel prefers the lower one.", example=100, ge=0, le=2**32 - 1)

    @field_validator("to")
    @classmethod
    def _is_network(cls, value: str) -> str:
        network = str(ipaddress.ip_network(value))
        if network in ("0.0.0.0/0", "::/0"):
            raise ValueError("a default route through a TUN would take the host's own; write narrower destinations")
        return network


class Spec(SpecModel):
    """A persistent TUN."""

    name_on_host: LinkName | None = leaf(
        None, about="Name of the link; default metadata.name.", example="tun0", update=Update.IMMUTABLE
    )
    owner: Text | AccountNumber | None = leaf(
        None,
        about="User (name or number) who may attach; null is root only.",
        example="root",
        unless="Replug while a process holds the TUN",
    )
    group: Text | AccountNumber | None = leaf(
        None, about="Group whose members may attach.", example="kvm", unless="Replug while a process holds the TUN"
    )
    mtu: Integer | None = leaf(
        None, about="MTU in bytes; null leaves the kernel's 1500.", example=1400, ge=68, le=65535
    )
    addresses: InterfaceAddresses = leaf((), about="Addresses in CIDR form.", example=["10.9.0.1/30"])
    routes: tuple[Route, ...] = branch((), about="Routes through it.")
    deletion_policy: Literal["Delete", "Orphan"] = leaf(
        "Delete", about="When the spec goes: delete the TUN, or only take the mark off.", example="Delete"
    )

    @model_validator(mode="after")
    def _agree(self) -> Spec:
        found: set[tuple[str, int]] = set()
        for route in self.routes:
            way = (route.to, route.metric or _metric_unsaid(route.to))
            if way in found:
                raise ValueError(f"two routes to {route.to} have the same metric; the kernel keeps one of them")
            found.add(way)
        return self


def describe(key: Key, observed: Observed) -> Described | None:
    """A TUN that stays without a holder, with the addresses and routes that somebody gave it."""
    link = observed.facts.get(key)
    if not isinstance(link, Link) or link.tun_mode != "tun" or not link.persistent:
        return None
    given = [route for route in link.routes if route.protocol != "kernel" and route.to != "default"]
    routes = [{"to": r.to, "metric": r.metric} | ({"via": r.via} if r.via else {}) for r in given]
    found = {"owner": link.owner, "group": link.group, "mtu": link.mtu, "routes": routes}
    unsaid = ("the default route through it",) if any(route.to == "default" for route in link.routes) else ()
    spec = {name: value for name, value in found.items() if value not in (None, [])}
    return Described(spec | {"addresses": list(addresses_of(link))}, unsaid)


def references(ref: Ref, spec: Spec) -> tuple[Reference, ...]:
    """None."""
    return ()


def claims(ref: Ref, spec: Spec) -> tuple[Claim, ...]:
    """Its name and its addresses."""
    return (Claim("link", host_key(ref, spec).name), *address_claims(spec.addresses))


def files(spec: Spec) -> tuple[str, ...]:
    """None."""
    return ()


def usable(ref: Ref, look: Look) -> bool:
    """True where the TUN is there."""
    link = link_of(look, look.key(ref))
    return link is not None and link.tun_mode == "tun"


def plan(ref: Ref, look: Look) -> Draft:
    """Create it, or change what differs; addresses and routes of others stay."""
    resource = look.spec(ref)
    assert resource is not None and isinstance(resource.spec, Spec)
    spec, name = resource.spec, look.key(ref).name
    link = link_of(look, look.key(ref))
    same_kind_or_refuse(ref, link, "tun", "tun")
    if (back := renamed(resource, link, "tun", look, "tun")) is not None:
        return back
    owner, group = account("user", spec.owner, look), account("group", spec.group, look)
    alias = alias_for(resource, link, look)
    if link is None:
        operations: list[ops.Op] = [
            ops.TapCreate(name, alias, "tun", owner, group),
            ops.LinkSet(name, mtu=spec.mtu, up=True),
        ]
        operations += address_operations(None, name, spec.addresses, ())[0]
        operations += [ops.RouteAdd(name, 0, route.to, route.via or "", route.metric) for route in spec.routes]
        return Draft(tuple(operations), status=link_status(None))
    applied, owned = look.applied(ref), owned_paths(resource, look)
    former = applied.written if applied else {}
    on_top = above(ports_of(look, link.name))
    held = link.carrier or bool(on_top)
    operations, changes, pending = _attributes(link, spec, (owner, group), owned, alias, held)
    if not held and any(change.path in ("owner", "group") and change.after is None for change in changes):
        # The kernel takes no owner off a TUN that is there: it goes, the next look makes it anew.
        again = ops.LinkDelete(link.name, link.index, alias=link.alias)
        return Draft((again,), tuple(changes), status=link_status(link))
    more, _ = address_operations(link, name, spec.addresses, former.get("addresses", ()))
    if more:
        ours = {*spec.addresses, *normal_addresses(former.get("addresses", ()))}
        have = set(addresses_of(link, ours)) & ours
        changes.append(Change("addresses", tuple(sorted(have)), tuple(sorted(spec.addresses))))
    routes, before = _route_operations(link, spec, former.get("routes", ()))
    if routes:
        changes.append(Change("routes", before, tuple(sorted(route.to for route in spec.routes))))
    noticed = waits_for(on_top) if pending and on_top else ""
    done = (*operations, *more, *routes)
    return Draft(done, tuple(changes), tuple(pending), status=link_status(link), noticed=noticed)


def remove(ref: Ref, key: Key, look: Look) -> Draft:
    """Delete it once no process holds it."""
    link, applied = link_of(look, key), look.applied(ref)
    if link is None:
        return Draft()
    if applied is not None and applied.written.get("deletionPolicy") == "Orphan":
        return let_go(link)
    if link.carrier:
        raise Blocked(
            f"{ref}: a process holds TUN {link.name}", hint="stop that process first: fuser -v /dev/net/tun"
        )
    refuse_below_others(ref, link, look)
    if applied is not None and applied.known:
        refuse_strangers_addresses(ref, link, applied.written.get("addresses", ()))
    return Draft((ops.LinkDelete(link.name, link.index, alias=link.alias),))


def _attributes(
    link: Link, spec: Spec, account_of: tuple[int | None, int | None], owned: frozenset[str], alias: str, held: bool
) -> tuple[list[ops.Op], list[Change], list[Pending]]:
    changes: list[Change] = []
    wanted = KERNEL_MTU if spec.mtu is None else spec.mtu
    if "mtu" in owned and wanted != link.mtu:
        changes.append(Change("mtu", link.mtu, wanted))
    operations: list[ops.Op] = []
    alias_change = alias if link.alias != alias else None
    mtu = wanted if changes else None
    up = None if link.up else True
    if alias_change is not None or mtu is not None or up is not None:
        operations.append(ops.LinkSet(link.name, link.index, alias=alias_change, mtu=mtu, up=up))
    found = [
        Change(path, before, after)
        for path, before, after in (("owner", link.owner, account_of[0]), ("group", link.group, account_of[1]))
        if before != after and path in owned
    ]
    changes += found
    if not found:
        return operations, changes, []
    if held:
        return operations, changes, [Pending(f"spec.{c.path}", c.before, c.after, Update.REPLUG) for c in found]
    operations.append(ops.TapOwner(link.name, link.index, "tun", account_of[0], account_of[1], link.multi_queue))
    return operations, changes, []


def _route_operations(
    link: Link, spec: Spec, former: tuple[dict[str, object], ...]
) -> tuple[list[ops.Op], tuple[str, ...]]:
    """Add missing routes, remove those that were ours and are no longer asked for; and which of ours there are."""
    have = {(route.to, route.via, route.metric) for route in link.routes}
    want = {_triple(route) for route in spec.routes}
    known = have | {(to, via, 0) for to, via, metric in have if metric == _metric_unsaid(to)}
    then = {_triple(Route.model_validate(item)) for item in former}
    operations: list[ops.Op] = [ops.RouteAdd(link.name, link.index, *route) for route in sorted(want - known)]
    # That of an address of the link goes with the address, though the spec may have named it.
    given = {(route.to, route.via, route.metric) for route in link.routes if route.protocol == "kernel"}
    then -= given - want
    gone = sorted((then - want) & known)
    operations += [ops.RouteDelete(link.name, link.index, *route) for route in gone]
    return operations, tuple(sorted(to for to, _, _ in (then | want) & known))


def _metric_unsaid(to: str) -> int:
    """The kernel gives every IPv6 route without a metric the metric 1024 (IP6_RT_PRIO_USER)."""
    return 1024 if ":" in to else 0


def _triple(route: Route) -> tuple[str, str, int]:
    return (route.to, route.via or "", route.metric)
