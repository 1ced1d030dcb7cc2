"""NICs that are a macvtap on a link of the host: which link, and what keeps one from being plugged in now."""

from __future__ import annotations

from typing import Any

from kvmd import ops
from kvmd.api.resource import Claim, Ref, Reference
from kvmd.errors import Refused
from kvmd.kinds.virtual_machine.domain import ALIAS_NIC
from kvmd.kinds.virtual_machine.nic import Direct, Interface
from kvmd.kinds.virtual_machine.path import link_of, state_of, ways_out
from kvmd.kinds.virtual_machine.spec import Spec
from kvmd.observed import Key, Link
from kvmd.plan.links import addresses_of
from kvmd.plan.look import Look
from kvmd.plan.stacked import refuse_unknown_kind

OBJECTS = ("Vlan", "Vxlan", "Bridge")


def device_of(direct: Direct, look: Look) -> str:
    """The link on the host: what an object of that name is there, else the link of that name."""
    for kind in OBJECTS:
        ref = Ref(kind, direct.device)
        if look.spec(ref) is not None or look.marked(ref):  # one that is to go stays while the guest names it
            return look.key(ref).name
    return direct.device


def references_of(nic: Interface, ref: Ref) -> tuple[Reference, ...]:
    """The object that the link may be: it stays as long as a guest names it."""
    if nic.direct is None:
        return ()
    return tuple(Reference(ref, Ref(kind, nic.direct.device), perhaps=True) for kind in OBJECTS)


def attachment_of(nic: Interface, ref: Ref, look: Look) -> str:
    """``direct:eno1/bridge``; raises where this host cannot or must not."""
    assert nic.direct is not None
    refuse_unknown_kind(ref, "macvtap", look)
    device = device_of(nic.direct, look)
    allowed, link = look.rules.uplinks, look.fact(Key("link", device))
    ours = isinstance(link, Link) and link.mark is not None
    if allowed != "*" and device not in allowed and not ours:
        raise Refused(
            f"{ref}: link {device} of interface {nic.name} is not among the uplinks that this host allows",
            hint="policy.uplinks in kvmd.yaml",
        )
    return f"direct:{device}/{nic.direct.mode}"


def claims_of(nic: Interface) -> tuple[Claim, ...]:
    """In mode passthrough the guest has the link alone, as a Bridge has its uplink."""
    if nic.direct is None or nic.direct.mode != "passthrough":
        return ()
    return (Claim("uplink", nic.direct.device),)


def ready(spec: Spec, look: Look) -> bool:
    """True where every link that the guest needs could take its macvtap now."""
    return not any(nic.direct is not None and _why_not(nic.direct, look) for nic in spec.interfaces)


def unready(operation: ops.Op, spec: Spec, look: Look) -> tuple[str, ...]:
    """Why the links that an operation would put a macvtap on cannot take one now."""
    if not isinstance(operation, ops.DomainStart | ops.DomainAttach):
        return ()
    nics = [nic for nic in spec.interfaces if nic.direct is not None]
    if isinstance(operation, ops.DomainAttach):
        nics = [nic for nic in nics if operation.alias == ALIAS_NIC + nic.name]
    found = (_why_not(nic.direct, look) for nic in nics if nic.direct is not None)
    return tuple(why for why in found if why)


def _why_not(direct: Direct, look: Look) -> str:
    name = device_of(direct, look)
    link = look.fact(Key("link", name))
    if not isinstance(link, Link):
        return f"link {name}, which the host does not have (see: ip link)"
    if not link.up:
        return f"link {name}, which is down (ip link set {name} up)"
    if link.master:
        return f"link {name}, which is a port of {link.master} (attach the NIC to that bridge instead)"
    carried = addresses_of(link) if direct.mode == "passthrough" else ()
    if carried:
        return f"link {name}, which carries {', '.join(carried)}: passthrough would cut that off (take mode bridge)"
    return ""


def path_of(target: str, running: str, look: Look) -> list[dict[str, Any]]:
    """The hops behind the NIC: the macvtap, and the link that it stands on."""
    device = target.partition("/")[0]
    state, below = state_of(link_of(look, running)), link_of(look, device)
    hop = {"hop": "macvtap", "name": running, "state": state, "broken": state != "up"}
    if below is None:
        return [hop, {"hop": "uplink", "name": device, "state": "missing", "broken": True}]
    return [hop, *ways_out([below], look)]
