"""A bridge as its spec asks for it and as it is: what is compared, and what of it is ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kvmd.api.bridge_settings import BRIDGE, Numbers
from kvmd.api.mark import derived_mac
from kvmd.api.resource import Ref, Resource
from kvmd.kinds.bridge.spec import Spec
from kvmd.observed import Key, Link, Ports
from kvmd.plan.bridge_settings import Written, changes_of, differing, numbers_of, of_port, port_difference
from kvmd.plan.difference import LEAVE, Change, Leave, at, differences, is_owned
from kvmd.plan.links import KERNEL_MTU, addresses_of, link_of, normal_addresses, owned_paths
from kvmd.plan.look import Look


@dataclass(frozen=True, slots=True)
class State:
    """A bridge as it is or should be, but for the kernel's settings of it and of its ports."""

    up: bool
    mac: str | Leave = field(metadata=at("mac"))
    mtu: int | Leave = field(metadata=at("mtu"))
    addresses: tuple[str, ...] = field(metadata=at("addresses.static"))
    uplinks: tuple[str, ...] = field(metadata=at("uplinks"))
    gateway: str | Leave | None = field(default=LEAVE, metadata=at("addresses.gateway"))


class Difference(NamedTuple):
    """What of a bridge that is ours is not as its spec asks: in the spec's words, and settings in the kernel's."""

    changes: tuple[Change, ...] = ()
    settings: Numbers = ()
    port_settings: Mapping[str, Numbers] = {}


def written_before(ref: Ref, look: Look) -> Mapping[str, Any]:
    """The spec as it was last applied."""
    applied = look.applied(ref)
    return applied.written if applied else {}


def ports_of(look: Look, name: str) -> Ports:
    """Who is on that bridge."""
    fact = look.fact(Key("ports", name))
    return fact if isinstance(fact, Ports) else Ports(name)


def has_gateway(link: Link, gateway: str | Leave | None) -> bool:
    """True where the bridge has the default route through it."""
    return any(route.to == "default" and route.via == gateway for route in link.routes)


def default_mac(ref: Ref, uplinks: list[Link], carrier: Link | None, look: Look) -> str:
    """The MAC of a bridge for which nobody wrote one."""
    if uplinks:
        return (carrier or uplinks[0]).mac
    return derived_mac(look.host().machine_id, look.rules.owner, ref, "bridge")


def wanted(resource: Resource, uplinks: list[Link], carrier: Link | None, look: Look) -> State:
    """As its spec asks."""
    spec = resource.spec
    assert isinstance(spec, Spec)
    mac: str | Leave = spec.mac or LEAVE
    if spec.mac is None and written_before(resource.ref, look).get("mac"):
        mac = default_mac(resource.ref, uplinks, carrier, look)
    return State(
        up=True,
        mac=mac,
        mtu=_kernel_mtu(resource, look) if spec.mtu is None else spec.mtu,
        addresses=tuple(sorted(set(spec.addresses.static))),
        uplinks=tuple(sorted(uplink.name for uplink in uplinks)),
        gateway=spec.addresses.gateway or LEAVE,
    )


def _kernel_mtu(resource: Resource, look: Look) -> int | Leave:
    """What the kernel would choose, where the MTU is ours: it chooses no more once somebody has set one."""
    if "mtu" not in owned_paths(resource, look):
        return LEAVE
    members = ports_of(look, look.key(resource.ref).name).members
    return min((port.mtu for name in members if (port := link_of(look, Key("link", name)))), default=KERNEL_MTU)


def difference(resource: Resource, link: Link, want: State, look: Look) -> Difference:
    """Compare it with what is, cut down to what is or was ours."""
    before, owned = written_before(resource.ref, look), owned_paths(resource, look)
    seen = _seen(link, want, before, look)
    changes = [change for change in differences(seen, want) if is_owned(change.path, owned)]
    settings = list(differing(BRIDGE, Written(resource.written, before), link.settings))
    changes += changes_of(settings)
    port_settings: dict[str, Numbers] = {}
    earlier = {str(item.get("name")): item for item in before.get("uplinks", ())}
    for item in resource.written.get("uplinks", ()):
        port = link_of(look, Key("link", str(item["name"])))
        if port is not None:
            written = of_port(item, earlier.get(port.name))
            found = port_difference(written, port, link.name, f"uplinks[{port.name}].")
            changes += found.changes
            port_settings[port.name] = found.numbers
    return Difference(tuple(changes), numbers_of(settings), port_settings)


def _seen(link: Link, want: State, before: Mapping[str, Any], look: Look) -> State:
    """The bridge as it is, cut down to what is or was ours: foreign addresses and ports are no difference."""
    addresses = {*want.addresses, *normal_addresses(before.get("addresses", {}).get("static", ()))}
    uplinks = {*want.uplinks, *(str(item.get("name")) for item in before.get("uplinks", ()))}
    return State(
        up=link.up,
        mac=link.mac,
        mtu=link.mtu,
        addresses=tuple(sorted(set(addresses_of(link, addresses)) & addresses)),
        uplinks=tuple(sorted(set(ports_of(look, link.name).members) & uplinks)),
        gateway=want.gateway if has_gateway(link, want.gateway) else None,
    )
