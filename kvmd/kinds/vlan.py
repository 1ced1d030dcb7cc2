"""Vlan: what ip link add link eno1 name eno1.100 type vlan id 100 does, kept so."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvmd import ops
from kvmd.api.quantity import Integer, LinkName
from kvmd.api.resource import Claim, Ref
from kvmd.api.schema import leaf
from kvmd.observed import Key, Observed
from kvmd.plan.difference import at
from kvmd.plan.links import alias_for, link_key
from kvmd.plan.look import Look
from kvmd.plan.model import Draft
from kvmd.plan.stacked import (
    IN_USE,
    StackedSpec,
    Wish,
    described,
    is_there,
    own_addresses,
    parent_of,
    plan_stacked,
    present,
    remove_stacked,
    stacked_claims,
    stacked_references,
)
from kvmd.plan.wording import Described

KIND = "Vlan"
PLURAL = "vlans"
SHORT = "vlan"

host_key, references, remove = link_key, stacked_references, remove_stacked


class Spec(StackedSpec):
    """A VLAN (802.1Q) on a link of the host."""

    parent: LinkName = leaf(about="Link of the host that carries the tagged frames.", example="eno1", unless=IN_USE)
    id: Integer = leaf(about="VLAN id.", example=100, ge=1, le=4094, unless=IN_USE)
    mtu: Integer | None = leaf(
        None, about="MTU in bytes, at most the parent's; null is the parent's.", example=1500, ge=68, le=65535
    )


@dataclass(frozen=True, slots=True)
class State:
    """A VLAN as it is or should be."""

    parent: str = field(metadata=at("parent"))
    id: int = field(metadata=at("id"))
    bridge: str = field(metadata=at("bridge"))
    mtu: int = field(metadata=at("mtu"))
    addresses: tuple[str, ...] = field(metadata=at("addresses"))


def describe(key: Key, observed: Observed) -> Described | None:
    """A VLAN that somebody made; its parent in another namespace cannot be said."""
    found = described(key, "vlan", observed)
    return Described(found[1]) if found is not None and found[0].parent else None


def claims(ref: Ref, spec: Spec) -> tuple[Claim, ...]:
    """Its id on the parent beside what each such link claims."""
    return (Claim("VLAN", f"{spec.id} on {spec.parent}"), *stacked_claims(ref, spec))


def files(spec: Spec) -> tuple[str, ...]:
    """None."""
    return ()


def usable(ref: Ref, look: Look) -> bool:
    """True where the VLAN is there."""
    return is_there(ref, "vlan", look)


def plan(ref: Ref, look: Look) -> Draft:
    """Create it on its parent, or change what differs."""
    resource = look.spec(ref)
    assert resource is not None and isinstance(resource.spec, Spec)
    spec, key = resource.spec, look.key(ref)
    link, back = present(resource, "vlan", look)
    if back is not None:
        return back
    parent = parent_of(ref, spec.parent, look)
    master = look.key(Ref("Bridge", spec.bridge)).name if spec.bridge else ""
    addresses = tuple(sorted(spec.addresses))
    want = State(spec.parent, spec.id, master, parent.mtu if spec.mtu is None else spec.mtu, addresses)
    seen = None
    if link is not None:
        number = link.stacked.id if link.stacked else 0
        seen = State(link.parent, number, link.master, link.mtu, own_addresses(link, ref, addresses, look))
    create = ops.VlanCreate(key.name, alias_for(resource, link, look), spec.parent, spec.id, mtu=spec.mtu)
    wish = Wish(create, want, seen, ("parent", "id"), spec.addresses, spec.bridge)
    return plan_stacked(resource, link, wish, look)
