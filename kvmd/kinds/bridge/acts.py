"""What is done to make a bridge, to change it, and to keep who belongs on it there."""

from __future__ import annotations

from typing import Any

from kvmd import ops
from kvmd.api.bridge_settings import BRIDGE, PORT, Numbers
from kvmd.api.resource import Resource
from kvmd.kinds.bridge.moved import put_back
from kvmd.kinds.bridge.spec import Spec
from kvmd.kinds.bridge.state import (
    Difference,
    State,
    default_mac,
    has_gateway,
    ports_of,
    written_before,
)
from kvmd.observed import Key, Link
from kvmd.plan.bridge_settings import Written, of_port, wished
from kvmd.plan.links import address_operations, alias_for, changed_alias, link_of, normal_addresses
from kvmd.plan.look import Look
from kvmd.plan.uplinks import carried, carrier_of, home_of


def create(resource: Resource, uplinks: list[Link], taps: list[Link], look: Look) -> list[ops.Op]:
    """Ports first, then up: a bridge that is up before its first port was measured to lose 0.9 s of traffic."""
    spec, name = resource.spec, look.key(resource.ref).name
    assert isinstance(spec, Spec)
    carrier = carrier_of(resource.ref, uplinks)
    mac = spec.mac or default_mac(resource.ref, uplinks, carrier, look)
    settings = wished(BRIDGE, Written(resource.written, {}))
    operations: list[ops.Op] = [
        ops.BridgeCreate(name, alias_for(resource, None, look), mac, spec.mtu, settings),
        *(_enslave(uplink, name, _wished(resource, uplink.name)) for uplink in uplinks),
        *_back(taps, name),
        ops.LinkSet(name, up=True),
    ]
    if carrier:
        return operations + _move(carrier, name, 0, spec)
    operations += _addresses(None, name, spec, ())
    return operations + put_back(resource, None, name, look)


def change(
    resource: Resource, link: Link, want: State, found: Difference, taps: list[Link], look: Look
) -> list[ops.Op]:
    """What differs becomes as it should; new before old."""
    spec, before = resource.spec, written_before(resource.ref, look)
    assert isinstance(spec, Spec)
    present = [port for name in want.uplinks if (port := link_of(look, Key("link", name))) is not None]
    operations = _ports(link, present, found) + _attributes(resource, link, want, found, look)
    former = before.get("addresses", {})
    carrier = carrier_of(resource.ref, present) if spec.addresses.from_ != "None" else None
    if carrier is not None:
        operations += _move(carrier, link.name, link.index, spec)
    else:
        operations += _addresses(link, link.name, spec, former.get("static", ()))
        operations += put_back(resource, link, link.name, look)
    operations += _release(resource, link, want, look)
    old = former.get("gateway")
    if old and old != spec.addresses.gateway and has_gateway(link, old):
        operations.append(ops.RouteDelete(link.name, link.index, "default", old))
    return operations + _back(taps, link.name)


def _back(taps: list[Link], bridge: str) -> list[ops.Op]:
    return [ops.LinkSet(tap.name, tap.index, master=bridge, up=True) for tap in taps]


def returning(name: str, look: Look) -> list[Link]:
    """The TAPs that live guests say are on this bridge and that have no master now, or are down."""
    taps = (link_of(look, Key("link", tap)) for tap, _ in ports_of(look, name).taps)
    return [
        tap
        for tap in taps
        if tap is not None and not tap.persistent and (not tap.master or (tap.master == name and not tap.up))
    ]


def former_uplinks(resource: Resource, look: Look) -> list[Link]:
    """The uplinks that were applied before."""
    names = [str(item.get("name")) for item in written_before(resource.ref, look).get("uplinks", ())]
    return [link for name in names if (link := link_of(look, Key("link", name))) is not None]


def _ports(link: Link, present: list[Link], found: Difference) -> list[ops.Op]:
    """Uplinks that are no port become one; those that are get their settings back, and are up."""
    operations: list[ops.Op] = []
    for port in present:
        settings = found.port_settings.get(port.name, ())
        if port.master != link.name:
            operations.append(_enslave(port, link.name, settings))
        elif settings or not port.up:
            up = None if port.up else True
            operations.append(ops.LinkSet(port.name, port.index, port_settings=settings, up=up))
    return operations


def _attributes(resource: Resource, link: Link, want: State, found: Difference, look: Look) -> list[ops.Op]:
    paths = {item.path for item in found.changes}
    attributes: dict[str, Any] = {
        "alias": changed_alias(resource, link, look),
        "mac": want.mac if "mac" in paths else None,
        "mtu": want.mtu if "mtu" in paths else None,
        "up": None if link.up else True,
    }
    if not found.settings and all(value is None for value in attributes.values()):
        return []
    return [ops.LinkSet(link.name, link.index, settings=found.settings, **attributes)]


def _release(resource: Resource, link: Link, want: State, look: Look) -> list[ops.Op]:
    """Uplinks that are none any more; with the last of them goes what the bridge carries."""
    spec = resource.spec
    assert isinstance(spec, Spec)
    released = [
        port for port in former_uplinks(resource, look) if port.name not in want.uplinks and port.master == link.name
    ]
    operations: list[ops.Op] = [ops.LinkSet(port.name, port.index, master="", port_mark="") for port in released]
    home = home_of(link, written_before(resource.ref, look), [port.name for port in released], look)
    if home is not None and not want.uplinks and spec.addresses.from_ != "Static":
        operations.append(ops.AddressesMove(home.name, home.index, link.name, link.index, carried(link)))
    return operations


def _move(carrier: Link, name: str, index: int, spec: Spec) -> list[ops.Op]:
    """What the carrier has goes to the bridge, or gives way to what the spec says."""
    static, gateway = normal_addresses(spec.addresses.static), spec.addresses.gateway or ""
    return [ops.AddressesMove(name, index, carrier.name, carrier.index, carried(carrier), static, gateway)]


def _addresses(link: Link | None, name: str, spec: Spec, before: Any) -> list[ops.Op]:
    """Add what is missing, then remove what was ours and is not asked for."""
    operations = address_operations(link, name, spec.addresses.static, before)[0]
    gateway = spec.addresses.gateway
    if gateway and (link is None or not has_gateway(link, gateway)):
        operations.append(ops.RouteAdd(name, link.index if link else 0, "default", gateway))
    return operations


def _wished(resource: Resource, name: str) -> Numbers:
    """The settings that an uplink gets with its place on the bridge."""
    said = next((item for item in resource.written.get("uplinks", ()) if item["name"] == name), None)
    return wished(PORT, of_port(said, None))


def _enslave(uplink: Link, bridge: str, settings: Numbers) -> ops.Op:
    mark = f"kvmd.port.{uplink.index}.{bridge}"
    return ops.LinkSet(uplink.name, uplink.index, master=bridge, up=True, port_mark=mark, port_settings=settings)
