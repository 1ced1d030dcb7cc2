"""Network: a libvirt network with its bridge, NAT, DHCP and DNS; changed in place under running guests."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from typing import Any

from kvmd import ops, xmlmap
from kvmd.api.mark import Mark, derived_uuid, put_into
from kvmd.api.resource import Claim, Ref, Reference, Resource, hash_of
from kvmd.errors import Blocked, Refused
from kvmd.kinds.network.describe import describe
from kvmd.kinds.network.document import ROUTED, State, overlay
from kvmd.kinds.network.health import health
from kvmd.kinds.network.in_place import KERNEL
from kvmd.kinds.network.live import left_behind, plugged_into, refuse_a_strangers_bridge, running
from kvmd.kinds.network.spec import Spec
from kvmd.kinds.network.subnet import Subnet
from kvmd.kinds.network.want import reservations, unserved, wanted
from kvmd.observed import File, Key
from kvmd.observed import Network as Fact
from kvmd.plan import leaving
from kvmd.plan.difference import LEAVE, Leave, differences, is_owned
from kvmd.plan.leases import leases_on
from kvmd.plan.look import Look
from kvmd.plan.model import Draft
from kvmd.plan.paths import refuse_outside

KIND = "Network"
PLURAL = "networks"
SHORT = "net"

__all__ = ["KIND", "PLURAL", "SHORT", "Spec", "describe"]


def host_key(ref: Ref, spec: Spec | None, look: Look | None = None) -> Key:
    """The network of libvirt."""
    return Key("network", (spec.name_on_host if spec else None) or ref.name)


def references(ref: Ref, spec: Spec) -> tuple[Reference, ...]:
    """In mode bridge the Bridge that it uses."""
    return tuple(Reference(ref, target) for target in _needs(spec))


def _needs(spec: Spec) -> tuple[Ref, ...]:
    uses = spec.forward.mode == "bridge" and spec.bridge.name
    return (Ref("Bridge", uses),) if uses else ()


def claims(ref: Ref, spec: Spec) -> tuple[Claim, ...]:
    """Its name, its bridge and its addresses."""
    own = spec.bridge.name if spec.forward.mode != "bridge" else None
    bridge = (Claim("link", own),) if own else ()
    addresses = tuple(Claim("address", ip.address.split("/")[0]) for ip in spec.ips)
    return (Claim("network", host_key(ref, spec).name), *bridge, *addresses)


def files(spec: Spec) -> tuple[str, ...]:
    """The folders that it serves by TFTP."""
    return tuple(ip.tftp for ip in spec.ips if ip.tftp)


def usable(ref: Ref, look: Look) -> bool:
    """True where the network is active and its bridge is there."""
    fact = look.fact(look.key(ref))
    if not isinstance(fact, Fact) or not fact.active:
        return False
    return not fact.bridge or look.fact(Key("link", fact.bridge)) is not None


def plan(ref: Ref, look: Look) -> Draft:
    """Define and start it; change DHCP in place; let what guests would notice wait, as its policy says."""
    resource = look.spec(ref)
    assert resource is not None and isinstance(resource.spec, Spec)
    fact = look.fact(look.key(ref))
    network = fact if isinstance(fact, Fact) else None
    _served_folders(ref, resource.spec, look)
    want = wanted(resource, look, network is not None and network.config is not None)
    applied = look.applied(ref)
    owned = resource.owned | (applied.owned if applied else frozenset())
    if network is None or network.config is None:
        _has_subnet(ref, want.forward, want.subnets)
        return _create(resource, want, look)
    config = xmlmap.read(State, xmlmap.parse(network.config))
    forward = want.forward if is_owned("forward.mode", owned) else config.forward
    _has_subnet(ref, forward, config.subnets if want.subnets is LEAVE else want.subnets)
    changes = tuple(c for c in differences(config, want) if is_owned(c.path, owned))
    told = tuple(c for c in changes if c.path not in KERNEL or not network.active)
    operations: list[ops.Op] = []
    reserved = hash_of(reservations(ref, look))
    resolved = {"reservations": reserved, **leaving.note(network.run, network.mark, resource, applied)}
    mark = Mark.of(resource, look.rules.owner, network.uuid, network.mark).with_resolved(resolved)
    elsewhere = network.mark is not None and network.mark.resolved.get("reservations") != reserved
    if changes or network.mark is None or not network.mark.says_the_same_as(mark) or network.mark.ref != ref:
        xml = overlay(network.config, want, mark, {change.path for change in changes})
        operations.append(ops.NetworkDefine(network.name, network.uuid, xml, network.config))
    if network.autostart:
        operations.append(ops.NetworkSetAutostart(network.name, network.uuid, False))
    owned |= leaving.to_leave(network.start_mark, network.mark, network.run)
    acts, pending, found = running(network, want, owned, resource, look)
    operations += acts
    poor, repairs = health(network, resource.spec.forward.repair, look) if network.active else ((), ())
    operations += repairs
    status = _status(network, look)
    return Draft(
        tuple(operations),
        tuple({change.path: change for change in (*told, *found)}.values()),
        pending,
        (*unserved(want, ref, look), *poor),
        _needs(resource.spec) if forward == "bridge" else (),
        status=status,
        reason=_why(network, look) or ("somebody took away what its packets need" if repairs else ""),
        asked_elsewhere=elsewhere,
        noticed=_blip(network, look) if pending else "",
    )


def _blip(network: Fact, look: Look) -> str:
    guests = tuple(sorted({guest for _, guest in plugged_into(network, look).taps}))
    return ops.blip_of(guests) if guests else ""


def remove(ref: Ref, key: Key, look: Look) -> Draft:
    """Stop and undefine it once no guest is on it."""
    network, applied = look.fact(key), look.applied(ref)
    if not isinstance(network, Fact):
        return Draft()
    if applied is not None and applied.written.get("deletionPolicy") == "Orphan":
        root = xmlmap.parse(network.config or network.live or "<network/>")
        put_into(root, None)
        orphan = ops.NetworkDefine(network.name, network.uuid, xmlmap.serialise(root), network.config or "")
        return Draft((orphan,), reason="let go of, as its deletionPolicy asks")
    ports = plugged_into(network, look)
    guests = sorted({guest for _, guest in ports.taps} - look.departing_names(ref))
    if guests:
        raise Blocked(f"{ref}: used by {', '.join(guests)}", hint="shut those guests down or move their NICs first")
    others = sorted(set(ports.members) - {tap for tap, _ in ports.taps})
    if network.active and others:
        hint = f"take them off first: ip link set {others[0]} nomaster"
        raise Blocked(f"{ref}: {', '.join(others)} are ports of its bridge {network.bridge}", hint=hint)
    stop = (ops.NetworkStop(network.name, network.uuid),) if network.active else left_behind(network, look)
    return Draft((*stop, ops.NetworkUndefine(network.name, network.uuid)))


def _has_subnet(ref: Ref, mode: str, subnets: tuple[Subnet, ...] | Leave) -> None:
    """Refuse what libvirt refuses: a way out for guests that have no addresses."""
    if mode in ROUTED and not subnets:
        raise Refused(
            f"{ref}: forward mode {mode} needs a subnet", hint="write `ips`, or `forward: {mode: isolated}`"
        )


def _served_folders(ref: Ref, spec: Spec, look: Look) -> None:
    """dnsmasq does not start without the folder that it is to serve."""
    refuse_outside(ref, files(spec), look)
    for path in files(spec):
        fact = look.fact(Key("file", path))
        if isinstance(fact, File) and fact.kind != "directory":
            raise Blocked(f"{ref}: waits for the folder {path}, which it serves by TFTP", hint=f"mkdir -p {path}")


def _create(resource: Resource, want: State, look: Look) -> Draft:
    name = look.key(resource.ref).name
    uuid = derived_uuid(look.host().machine_id, look.rules.owner, resource.ref)
    root = ElementTree.Element("network")
    ElementTree.SubElement(root, "name").text = name
    ElementTree.SubElement(root, "uuid").text = uuid
    applied = look.applied(resource.ref)
    mark = Mark.of(resource, look.rules.owner, uuid)
    if applied is not None and applied.generation:
        mark = Mark.of(
            resource,
            look.rules.owner,
            uuid,
            Mark(look.rules.owner, resource.ref, applied.spec_hash, applied.generation),
        )
    mark = mark.with_resolved({"reservations": hash_of(reservations(resource.ref, look))})
    xml = overlay(xmlmap.serialise(root), want, mark, None)
    bridge = want.bridge if isinstance(want.bridge, str) else ""
    refuse_a_strangers_bridge(resource, want.forward, bridge, look)
    define = ops.NetworkDefine(name, uuid, xml, creates=True)
    start = ops.NetworkStart(name, uuid, bridge)
    assert isinstance(resource.spec, Spec)
    return Draft(
        (define, start),
        conditions=unserved(want, resource.ref, look),
        needs=_needs(resource.spec),
        status={"active": False},
    )


def _why(network: Fact, look: Look) -> str:
    if not network.active:
        return "it is not active"
    if network.bridge and look.fact(Key("link", network.bridge)) is None:
        return f"its bridge {network.bridge} is gone"
    return ""


def _status(network: Fact, look: Look) -> Mapping[str, Any]:
    ports = plugged_into(network, look)
    return {
        "nameOnHost": network.name,
        "uuid": network.uuid,
        "active": network.active,
        "bridge": network.bridge,
        "attachedInterfaces": [{"tap": tap, "guest": guest} for tap, guest in ports.taps],
        "leases": [lease._asdict() for lease in leases_on(network.bridge, look)],
    }
