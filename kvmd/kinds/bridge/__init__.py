"""Bridge: what brctl addbr, brctl addif and ifconfig up do, kept so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from kvmd import ops
from kvmd.api.mark import derived_mac
from kvmd.api.quantity import Boolean, Integer, LinkName
from kvmd.api.resource import Claim, Ref, Reference, Resource, SpecModel
from kvmd.api.schema import Update, branch, leaf
from kvmd.api.status import DEGRADED, Condition
from kvmd.errors import Blocked, Refused
from kvmd.kinds.bridge.uplink import Addresses, Safety, Uplink
from kvmd.observed import Key, Link, Network, Observed, Ports
from kvmd.plan.difference import LEAVE, Change, Leave, at, differences, is_owned
from kvmd.plan.links import (
    address_operations,
    addresses_of,
    alias_for,
    let_go,
    link_of,
    link_status,
    normal_addresses,
    same_kind_or_refuse,
)
from kvmd.plan.look import Look
from kvmd.plan.model import Draft
from kvmd.plan.uplinks import (
    KERNEL_DELAY_SECONDS,
    Guard,
    carried,
    carrier_of,
    carries,
    check_carrier,
    home_of,
    is_risky,
    rejected,
)
from kvmd.plan.wording import Described

KIND = "Bridge"
PLURAL = "bridges"
SHORT = "br"


class Spec(SpecModel):
    """A Linux bridge."""

    name_on_host: LinkName | None = leaf(
        None, about="Name of the link; default metadata.name.", example="br0", update=Update.IMMUTABLE
    )
    uplinks: tuple[Uplink, ...] = branch(
        (), about="NICs that kvmd makes ports; ports that others put there are left alone."
    )
    stp: Boolean = leaf(False, about="Spanning tree protocol.", example=False)
    forward_delay_seconds: Integer | None = leaf(
        None, about="Forward delay in seconds, 2 to 30 (IEEE 802.1D), used while STP is on.", example=15, ge=2, le=30
    )
    mtu: Integer | None = leaf(
        None,
        about="MTU in bytes; null leaves the kernel's choice, the smallest of its ports.",
        example=1500,
        ge=68,
        le=65535,
    )
    addresses: Addresses = branch(factory=Addresses, about="The bridge's own addresses.")
    safety: Safety = branch(factory=Safety, about="Proof and rollback of changes that could cut the host off.")
    deletion_policy: Literal["Delete", "Orphan"] = leaf(
        "Delete", about="When the spec goes: delete the bridge, or only take the mark off.", example="Delete"
    )


@dataclass(frozen=True, slots=True)
class State:
    """A bridge as it is or should be."""

    up: bool
    stp: bool | None = field(metadata=at("stp"))
    forward_delay_seconds: float | Leave | None = field(metadata=at("forwardDelaySeconds"))
    mtu: int | Leave = field(metadata=at("mtu"))
    addresses: tuple[str, ...] = field(metadata=at("addresses.static"))
    uplinks: tuple[str, ...] = field(metadata=at("uplinks"))
    gateway: str | Leave | None = field(default=LEAVE, metadata=at("addresses.gateway"))


def describe(key: Key, observed: Observed) -> Described | None:
    """A bridge of the host; that of a libvirt network belongs to the network."""
    link = observed.facts.get(key)
    networks = (fact for fact in observed.facts.values() if isinstance(fact, Network))
    if not isinstance(link, Link) or link.kind != "bridge" or link.name in {fact.bridge for fact in networks}:
        return None
    links = [fact for fact in observed.facts.values() if isinstance(fact, Link) and fact.master == link.name]
    spec: dict[str, Any] = {"stp": bool(link.stp)}
    if uplinks := [{"name": port.name} for port in links if not port.kind]:
        spec["uplinks"] = uplinks
    if addresses := addresses_of(link):
        spec["addresses"] = {"from": "Static", "static": list(addresses)}
    unsaid = [f"port {port.name}" for port in links if port.kind]
    unsaid += [f"route to {route.to}" for route in link.routes if route.protocol != "kernel"]
    unsaid += [f"address {item.cidr}, which is not permanent" for item in link.addresses if not item.permanent]
    return Described(spec, tuple(unsaid))


def host_key(ref: Ref, spec: Spec | None, look: Look | None = None) -> Key:
    """The link that this bridge is."""
    return Key("link", (spec.name_on_host if spec else None) or ref.name)


def references(ref: Ref, spec: Spec) -> tuple[Reference, ...]:
    """A bridge names no other object: uplinks are links of the host, and ports name the bridge."""
    return ()


def claims(ref: Ref, spec: Spec) -> tuple[Claim, ...]:
    """Its name, its uplinks and its addresses."""
    return (
        Claim("link", host_key(ref, spec).name),
        *(Claim("uplink", uplink.name) for uplink in spec.uplinks),
        *(Claim("address", cidr.split("/")[0]) for cidr in spec.addresses.static),
    )


def files(spec: Spec) -> tuple[str, ...]:
    """None."""
    return ()


def usable(ref: Ref, look: Look) -> bool:
    """True where the bridge is there."""
    link = link_of(look, look.key(ref))
    return link is not None and link.kind == "bridge"


def plan(ref: Ref, look: Look) -> Draft:
    """Create it with its ports in, or change what differs."""
    resource = look.spec(ref)
    assert resource is not None and isinstance(resource.spec, Spec)
    spec, key = resource.spec, look.key(ref)
    link = link_of(look, key)
    same_kind_or_refuse(ref, link, "bridge")
    stalled = rejected(ref, resource.spec_hash, look)
    if stalled is not None:
        return Draft(conditions=(stalled,), status=_status(link, look, key.name), settled=False)
    uplinks = [_uplink(ref, uplink.name, spec.addresses, key.name, look) for uplink in spec.uplinks]
    want = _wanted(spec, link, uplinks)
    seen = _seen(link, want, look, ref)
    changes = _owned(differences(seen, want), resource, look) if seen else ()
    operations = (
        _create(resource, link, uplinks, look) if link is None else _change(resource, link, want, changes, look)
    )
    ports = _returning(key.name, look)
    if link is not None:
        operations += [ops.LinkSet(port.name, port.index, master=key.name, up=True) for port in ports]
    else:
        operations[1:1] = [ops.LinkSet(port.name, port.index, master=key.name, up=True) for port in ports]
    reason = f"ports {', '.join(port.name for port in ports)} go back" if ports and not changes and link else ""
    if is_risky(operations, link, [*uplinks, *_former(resource, look)]):
        reason = reason if changes else reason or operations[0].describe()
        operations = [_guard(resource).over(key.name, operations)]
    return Draft(
        tuple(operations),
        changes,
        conditions=_mtu_conditions(spec, look, key.name),
        status=_status(link, look, key.name),
        reason=reason,
    )


def remove(ref: Ref, key: Key, look: Look) -> Draft:
    """Release what we enslaved and delete the bridge; a bridge with ports of others stays."""
    link, applied = link_of(look, key), look.applied(ref)
    if link is None:
        return Draft()
    written = applied.written if applied else {}
    if written.get("deletionPolicy") == "Orphan":
        return let_go(link)
    ours = {str(item.get("name")) for item in written.get("uplinks", ())}
    members = _ports(look, key.name).members
    leaving = look.departing_names(ref)
    foreign = [name for name in members if name not in ours and name not in leaving]
    if foreign:
        raise Blocked(
            f"{ref}: bridge {link.name} still has ports: {', '.join(foreign)}",
            hint=f"see: bridge link show master {link.name}",
        )
    operations: list[ops.Op] = []
    for name in members:
        port = link_of(look, Key("link", name))
        if port is not None and name not in leaving:
            operations.append(ops.LinkSet(name, port.index, master="", port_mark=""))
    home = home_of(link, written, [name for name in members if name in ours], look)
    if home is not None and applied is not None:
        guard = _guard_of(str(ref), f"removal of {applied.spec_hash}", Spec.model_validate(written))
        stalled = rejected(ref, guard.spec_hash, look)
        if stalled is not None:
            return Draft(conditions=(stalled,))
        operations.append(ops.AddressesMove(home.name, home.index, link.name, link.index, carried(link)))
        operations = [guard.over(link.name, operations)]
    operations.append(ops.LinkDelete(link.name, link.index, alias=link.alias))
    return Draft(tuple(operations))


def _former(resource: Resource, look: Look) -> list[Link]:
    """The uplinks that were applied before."""
    names = [str(item.get("name")) for item in _written(resource.ref, look).get("uplinks", ())]
    return [link for name in names if (link := link_of(look, Key("link", name))) is not None]


def _guard(resource: Resource) -> Guard:
    assert isinstance(resource.spec, Spec)
    return _guard_of(str(resource.ref), resource.spec_hash, resource.spec)


def _guard_of(name: str, spec_hash: str, spec: Spec) -> Guard:
    probe, delay = spec.safety.probe, spec.forward_delay_seconds or KERNEL_DELAY_SECONDS
    blocking = 2.0 * delay if spec.stp else 0.0  # listening, then learning
    after = float(spec.safety.rollback_after_seconds)
    return Guard(name, spec_hash, probe.default_gateway, probe.addresses, after, blocking)


def _uplink(ref: Ref, name: str, addresses: Addresses, bridge: str, look: Look) -> Link:
    """The uplink's fact, or the reason why it cannot be one."""
    allowed = look.rules.uplinks
    if allowed != "*" and name not in allowed:
        raise Refused(
            f"{ref}: uplink {name} is not among the uplinks that this host allows", hint="policy.uplinks in kvmd.yaml"
        )
    link = link_of(look, Key("link", name))
    if link is None:
        raise Blocked(f"{ref}: waits for link {name}, which the host does not have", hint="see: ip link")
    if link.master not in ("", bridge):
        raise Refused(
            f"{ref}: uplink {name} is a port of {link.master}", hint=f"release it first: ip link set {name} nomaster"
        )
    move = addresses.from_ != "None"
    if carries(link) and (move or not link.master):
        check_carrier(ref, link, move, addresses.dynamic == "Move" or addresses.from_ == "Static", look)
    return link


def _wanted(spec: Spec, link: Link | None, uplinks: list[Link]) -> State:
    return State(
        up=True,
        stp=spec.stp,
        forward_delay_seconds=LEAVE
        if spec.forward_delay_seconds is None or not spec.stp
        else float(spec.forward_delay_seconds),
        mtu=LEAVE if spec.mtu is None else spec.mtu,
        addresses=tuple(sorted(set(spec.addresses.static))),
        uplinks=tuple(sorted(uplink.name for uplink in uplinks)),
        gateway=spec.addresses.gateway or LEAVE,
    )


def _seen(link: Link | None, want: State, look: Look, ref: Ref) -> State | None:
    """The bridge as it is, cut down to what is or was ours: foreign addresses and ports are no difference."""
    if link is None:
        return None
    written = _written(ref, look)
    addresses = {*want.addresses, *normal_addresses(written.get("addresses", {}).get("static", ()))}
    uplinks = {*want.uplinks, *(str(item.get("name")) for item in written.get("uplinks", ()))}
    return State(
        up=link.up,
        stp=link.stp,
        forward_delay_seconds=link.forward_delay_seconds,
        mtu=link.mtu,
        addresses=tuple(sorted(set(addresses_of(link, addresses)) & addresses)),
        uplinks=tuple(sorted(set(_ports(look, link.name).members) & uplinks)),
        gateway=want.gateway if _has_gateway(link, want.gateway) else None,
    )


def _has_gateway(link: Link, gateway: str | Leave | None) -> bool:
    return any(route.to == "default" and route.via == gateway for route in link.routes)


def _written(ref: Ref, look: Look) -> Mapping[str, Any]:
    """The spec as it was last applied."""
    applied = look.applied(ref)
    return applied.written if applied else {}


def _owned(found: Any, resource: Resource, look: Look) -> tuple[Change, ...]:
    applied = look.applied(resource.ref)
    owned = resource.owned | (applied.owned if applied else frozenset())
    return tuple(change for change in found if is_owned(change.path, owned))


def _create(resource: Resource, link: Link | None, uplinks: list[Link], look: Look) -> list[ops.Op]:
    """Ports first, then up: a bridge that is up before its first port was measured to lose 0.9 s of traffic."""
    spec, name = resource.spec, look.key(resource.ref).name
    assert isinstance(spec, Spec)
    machine = look.host().machine_id
    carrier = carrier_of(resource.ref, uplinks)
    mac = (carrier or uplinks[0]).mac if uplinks else derived_mac(machine, look.rules.owner, resource.ref, "bridge")
    delay = None if spec.forward_delay_seconds is None else float(spec.forward_delay_seconds)
    operations: list[ops.Op] = [
        ops.BridgeCreate(name, alias_for(resource, None, look), mac, spec.mtu, spec.stp, delay)
    ]
    operations += [_enslave(uplink, name) for uplink in uplinks]
    operations.append(ops.LinkSet(name, up=True))
    return operations + (_move(carrier, name, 0, spec) if carrier else _addresses(None, name, spec, ()))


def _move(carrier: Link, name: str, index: int, spec: Spec) -> list[ops.Op]:
    """What the carrier has goes to the bridge, or gives way to what the spec says."""
    static, gateway = normal_addresses(spec.addresses.static), spec.addresses.gateway or ""
    return [ops.AddressesMove(name, index, carrier.name, carrier.index, carried(carrier), static, gateway)]


def _addresses(link: Link | None, name: str, spec: Spec, before: Any) -> list[ops.Op]:
    """Add what is missing, then remove what was ours and is not asked for."""
    operations = address_operations(link, name, spec.addresses.static, before)[0]
    gateway = spec.addresses.gateway
    if gateway and (link is None or not _has_gateway(link, gateway)):
        operations.append(ops.RouteAdd(name, link.index if link else 0, "default", gateway))
    return operations


def _enslave(uplink: Link, bridge: str) -> ops.Op:
    return ops.LinkSet(
        uplink.name, uplink.index, master=bridge, up=True, port_mark=f"kvmd.port.{uplink.index}.{bridge}"
    )


def _change(resource: Resource, link: Link, want: State, changes: tuple[Change, ...], look: Look) -> list[ops.Op]:
    spec, written = resource.spec, _written(resource.ref, look)
    assert isinstance(spec, Spec)
    paths = {change.path for change in changes}
    alias = alias_for(resource, link, look)
    attributes: dict[str, Any] = {
        "alias": alias if link.alias != alias else None,
        "stp": want.stp if "stp" in paths else None,
        "forward_delay_seconds": want.forward_delay_seconds if "forwardDelaySeconds" in paths else None,
        "mtu": want.mtu if "mtu" in paths else None,
        "up": None if link.up else True,
    }
    operations: list[ops.Op] = []
    members = _ports(look, link.name).members
    for name in want.uplinks:
        port = link_of(look, Key("link", name))
        if name not in members and port is not None:
            operations.append(_enslave(port, link.name))
    if any(value is not None for value in attributes.values()):
        operations.append(ops.LinkSet(link.name, link.index, **attributes))
    former = written.get("addresses", {})
    present = [port for name in want.uplinks if (port := link_of(look, Key("link", name))) is not None]
    carrier = carrier_of(resource.ref, present) if spec.addresses.from_ != "None" else None
    if carrier is not None:
        operations += _move(carrier, link.name, link.index, spec)
    else:
        operations += _addresses(link, link.name, spec, former.get("static", ()))
    released = [p for p in _former(resource, look) if p.name not in want.uplinks and p.master == link.name]
    operations += [ops.LinkSet(port.name, port.index, master="", port_mark="") for port in released]
    home = home_of(link, written, [port.name for port in released], look)
    if home is not None and not want.uplinks and spec.addresses.from_ != "Static":
        operations.append(ops.AddressesMove(home.name, home.index, link.name, link.index, carried(link)))
    old = former.get("gateway")
    if old and old != spec.addresses.gateway and _has_gateway(link, old):
        operations.append(ops.RouteDelete(link.name, link.index, "default", old))
    return operations


def _ports(look: Look, name: str) -> Ports:
    fact = look.fact(Key("ports", name))
    return fact if isinstance(fact, Ports) else Ports(name)


def _returning(name: str, look: Look) -> list[Link]:
    """The TAPs that live guests say are on this bridge and that have no master now."""
    taps = (link_of(look, Key("link", tap)) for tap, _ in _ports(look, name).taps)
    return [tap for tap in taps if tap is not None and not tap.master and not tap.persistent]


def _mtu_conditions(spec: Spec, look: Look, name: str) -> tuple[Condition, ...]:
    members = (link_of(look, Key("link", member)) for member in _ports(look, name).members)
    small = [f"{port.name} ({port.mtu})" for port in members if port is not None and spec.mtu and port.mtu < spec.mtu]
    if not small:
        return ()
    text = f"ports with an MTU below the bridge's {spec.mtu}: {', '.join(small)}; larger frames are dropped there"
    return (Condition(DEGRADED, True, "MtuMismatch", text),)


def _status(link: Link | None, look: Look, name: str) -> Any:
    guests = dict(_ports(look, name).taps)
    ports = [
        {"name": member, "guest": guests.get(member), "state": port.port.state if port and port.port else None}
        for member in _ports(look, name).members
        for port in (link_of(look, Key("link", member)),)
    ]
    return link_status(link, stp=link.stp if link else None, ports=ports)
