"""What was moved to a bridge and is no longer there, since somebody deleted the bridge or switched it off."""

from __future__ import annotations

from kvmd import ops
from kvmd.api.resource import Resource
from kvmd.kinds.bridge.spec import Spec
from kvmd.observed import Key, Link, Moved, Route
from kvmd.plan.look import Look

_OF_OTHERS = ("kernel", "ra", "redirect")  # protocols of routes that come and go by themselves


def put_back(resource: Resource, link: Link | None, name: str, look: Look) -> list[ops.Op]:
    """Give the bridge back what it had: nothing is taken away, so this needs no checkpoint.

    What has a lifetime is renewed by somebody else: it comes back with the bridge alone, with what is left of it.
    """
    spec, moved = resource.spec, look.fact(Key("moved", str(resource.ref)))
    assert isinstance(spec, Spec)
    if not isinstance(moved, Moved) or spec.addresses.from_ == "None":
        return []
    present = {address.cidr for address in link.addresses} if link else set()
    mine = moved.addresses if spec.addresses.from_ == "Uplink" else ()
    lost = [
        (address.cidr, body)
        for address, body in mine
        if address.cidr not in present and (link is None or address.permanent)
    ]
    routes = [(route, body) for route, body in moved.routes if not _replaced(route, spec)]
    ways = [route for route, _ in routes if route is not None and _is_lost(route, link)]
    if not lost and not ways:
        return []
    index = link.index if link else 0
    cidrs, bodies = tuple(cidr for cidr, _ in lost), tuple(body for _, body in lost)
    # An address that goes takes routes of every table with it: those that are there are not added again.
    back = tuple(body for route, body in routes if route is None or route.protocol not in _OF_OTHERS)
    return [ops.AddressesRestore(name, index, bodies, back, moved.taken_at, cidrs, tuple(way.to for way in ways))]


def _replaced(route: Route | None, spec: Spec) -> bool:
    """Does the spec name another gateway in the place of this route?"""
    gateway = spec.addresses.gateway
    return (
        bool(gateway) and route is not None and route.to == "default" and (":" in route.via) == (":" in str(gateway))
    )


def _is_lost(route: Route, link: Link | None) -> bool:
    """Is no route of that destination and metric there, whoever made it?"""
    if route.protocol in _OF_OTHERS:
        return False
    six = ":" in f"{route.to}{route.via}"
    return link is None or not any(
        (other.to, other.metric, ":" in f"{other.to}{other.via}") == (route.to, route.metric, six)
        for other in link.routes
    )
