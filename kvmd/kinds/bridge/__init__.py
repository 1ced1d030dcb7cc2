"""Bridge: what brctl addbr, brctl addif and ifconfig up do, kept so."""

from __future__ import annotations

from typing import Any

from kvmd import ops
from kvmd.api.bridge_settings import BRIDGE, PORT
from kvmd.api.resource import Claim, Ref, Reference
from kvmd.errors import Blocked, Refused
from kvmd.kinds.bridge.acts import change, create, former_uplinks, returning
from kvmd.kinds.bridge.spec import Spec
from kvmd.kinds.bridge.state import Difference, difference, ports_of, wanted
from kvmd.kinds.bridge.status import mtu_conditions, status_of
from kvmd.kinds.bridge.uplink import Addresses
from kvmd.observed import Key, Link, Network, Observed
from kvmd.plan.bridge_settings import Written, refuse_lacking, said
from kvmd.plan.links import address_claims, addresses_of, let_go, link_key, link_of, renamed, same_kind_or_refuse
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

host_key = link_key


def describe(key: Key, observed: Observed) -> Described | None:
    """A bridge of the host; that of a libvirt network belongs to the network."""
    link = observed.facts.get(key)
    networks = (fact for fact in observed.facts.values() if isinstance(fact, Network))
    if not isinstance(link, Link) or link.kind != "bridge" or link.name in {fact.bridge for fact in networks}:
        return None
    links = [fact for fact in observed.facts.values() if isinstance(fact, Link) and fact.master == link.name]
    spec: dict[str, Any] = said(BRIDGE, link.settings)
    uplinks = [
        {"name": port.name} | (said(PORT, port.port.settings) if port.port else {}) for port in links if not port.kind
    ]
    if uplinks:
        spec["uplinks"] = uplinks
    if addresses := addresses_of(link):
        spec["addresses"] = {"from": "Static", "static": list(addresses)}
    unsaid = [f"port {port.name}" for port in links if port.kind]
    unsaid += [f"route to {route.to}" for route in link.routes if route.protocol != "kernel"]
    unsaid += [f"address {item.cidr}, which is not permanent" for item in link.addresses if not item.permanent]
    return Described(spec, tuple(unsaid))


def references(ref: Ref, spec: Spec) -> tuple[Reference, ...]:
    """A bridge names no other object: uplinks are links of the host, and ports name the bridge."""
    return ()


def claims(ref: Ref, spec: Spec) -> tuple[Claim, ...]:
    """Its name, its uplinks and its addresses."""
    return (
        Claim("link", host_key(ref, spec).name),
        *(Claim("uplink", uplink.name) for uplink in spec.uplinks),
        *address_claims(spec.addresses.static),
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
    if (back := renamed(resource, link, "bridge", look)) is not None:
        return back
    refuse_lacking(ref, Written(resource.written, {}), link.settings if link else None, look)
    status = status_of(link, look, key.name)
    stalled = rejected(ref, resource.spec_hash, look)
    if stalled is not None:
        return Draft(conditions=(stalled,), status=status, settled=False)
    uplinks = [_uplink(ref, uplink.name, spec.addresses, key.name, look) for uplink in spec.uplinks]
    found, taps = Difference(), returning(key.name, look)
    if link is None:
        operations = create(resource, uplinks, taps, look)
    else:
        carrier = carrier_of(ref, uplinks) if spec.addresses.from_ != "None" else None
        want = wanted(resource, uplinks, carrier, look)
        found = difference(resource, link, want, look)
        operations = change(resource, link, want, found, taps, look)
    reason = ""
    if taps and link is not None and not found.changes:  # no leaf differs, and still something is done
        reason = f"ports {', '.join(tap.name for tap in taps)} go back"
    if is_risky(operations, link, [*uplinks, *former_uplinks(resource, look)]):
        reason = reason if found.changes else reason or operations[0].describe()
        operations = [_guard(str(ref), resource.spec_hash, spec).over(key.name, operations)]
    conditions = mtu_conditions(spec, look, key.name)
    return Draft(tuple(operations), found.changes, conditions=conditions, status=status, reason=reason)


def remove(ref: Ref, key: Key, look: Look) -> Draft:
    """Release what we enslaved and delete the bridge; a bridge with ports of others stays."""
    link, applied = link_of(look, key), look.applied(ref)
    if link is None:
        return Draft()
    written = applied.written if applied else {}
    if written.get("deletionPolicy") == "Orphan":
        return let_go(link)
    ours = {str(item.get("name")) for item in written.get("uplinks", ())}
    members = ports_of(look, key.name).members
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
        guard = _guard(str(ref), f"removal of {applied.spec_hash}", Spec.model_validate(written))
        stalled = rejected(ref, guard.spec_hash, look)
        if stalled is not None:
            return Draft(conditions=(stalled,))
        operations.append(ops.AddressesMove(home.name, home.index, link.name, link.index, carried(link)))
        operations = [guard.over(link.name, operations)]
    operations.append(ops.LinkDelete(link.name, link.index, alias=link.alias))
    return Draft(tuple(operations))


def _guard(name: str, spec_hash: str, spec: Spec) -> Guard:
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
