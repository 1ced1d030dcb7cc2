"""Vlan: what ip link add link eno1 name eno1.100 type vlan id 100 does, kept so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import model_validator

from kvmd import ops
from kvmd.api.quantity import Integer, InterfaceAddress, LinkName
from kvmd.api.resource import Claim, Ref, Reference, SpecModel
from kvmd.api.schema import Update, leaf
from kvmd.observed import Key
from kvmd.plan.difference import LEAVE, Leave, at
from kvmd.plan.links import alias_for, link_of, same_kind_or_refuse
from kvmd.plan.look import Look
from kvmd.plan.model import Draft
from kvmd.plan.stacked import Wish, own_addresses, parent_of, plan_stacked, refuse_unknown_kind, remove_stacked

KIND = "Vlan"
PLURAL = "vlans"
SHORT = "vlan"

_IN_USE = "Replug while it is a port or carries addresses"


class Spec(SpecModel):
    """A VLAN (802.1Q) on a link of the host."""

    name_on_host: LinkName | None = leaf(
        None, about="Name of the link; default metadata.name.", example="eno1.100", update=Update.IMMUTABLE
    )
    parent: LinkName = leaf(about="Link of the host that carries the tagged frames.", example="eno1", unless=_IN_USE)
    id: Integer = leaf(about="VLAN id.", example=100, ge=1, le=4094, unless=_IN_USE)
    bridge: str | None = leaf(
        None, about="Bridge that it is a port of; write it here or among that Bridge's uplinks.", example="br0"
    )
    mtu: Integer | None = leaf(
        None, about="MTU in bytes, at most the parent's; null leaves the parent's.", example=1500, ge=68, le=65535
    )
    addresses: tuple[InterfaceAddress, ...] = leaf((), about="Addresses in CIDR form.", example=["10.1.0.1/24"])
    deletion_policy: Literal["Delete", "Orphan"] = leaf(
        "Delete", about="When the spec goes: delete the VLAN, or only take the mark off.", example="Delete"
    )

    @model_validator(mode="after")
    def _agree(self) -> Spec:
        if self.bridge and self.addresses:
            raise ValueError("a port of a bridge has no addresses of its own; write them at the Bridge")
        return self


@dataclass(frozen=True, slots=True)
class State:
    """A VLAN as it is or should be."""

    parent: str = field(metadata=at("parent"))
    id: int = field(metadata=at("id"))
    bridge: str = field(metadata=at("bridge"))
    mtu: int | Leave = field(metadata=at("mtu"))
    addresses: tuple[str, ...] = field(metadata=at("addresses"))


def host_key(ref: Ref, spec: Spec | None, look: Look | None = None) -> Key:
    """The link that this VLAN is."""
    return Key("link", (spec.name_on_host if spec else None) or ref.name)


def references(ref: Ref, spec: Spec) -> tuple[Reference, ...]:
    """Its bridge; the parent is a link of the host."""
    return (Reference(ref, Ref("Bridge", spec.bridge)),) if spec.bridge else ()


def claims(ref: Ref, spec: Spec) -> tuple[Claim, ...]:
    """Its name, its id on the parent, its place on a bridge and its addresses."""
    name = host_key(ref, spec).name
    return (
        Claim("link", name),
        Claim("VLAN", f"{spec.id} on {spec.parent}"),
        *((Claim("uplink", name),) if spec.bridge else ()),
        *(Claim("address", cidr.split("/")[0]) for cidr in spec.addresses),
    )


def files(spec: Spec) -> tuple[str, ...]:
    """None."""
    return ()


def usable(ref: Ref, look: Look) -> bool:
    """True where the VLAN is there."""
    link = link_of(look, look.key(ref))
    return link is not None and link.kind == "vlan"


def plan(ref: Ref, look: Look) -> Draft:
    """Create it on its parent, or change what differs."""
    resource = look.spec(ref)
    assert resource is not None and isinstance(resource.spec, Spec)
    spec, key = resource.spec, look.key(ref)
    refuse_unknown_kind(ref, "vlan", look)
    link = link_of(look, key)
    same_kind_or_refuse(ref, link, "vlan")
    parent_of(ref, spec.parent, look)
    master = look.key(Ref("Bridge", spec.bridge)).name if spec.bridge else ""
    addresses = tuple(sorted(spec.addresses))
    want = State(spec.parent, spec.id, master, LEAVE if spec.mtu is None else spec.mtu, addresses)
    seen = None
    if link is not None:
        number = link.stacked.id if link.stacked else 0
        seen = State(link.parent, number, link.master, link.mtu, own_addresses(link, ref, addresses, look))
    create = ops.VlanCreate(key.name, alias_for(resource, link, look), spec.parent, spec.id, mtu=spec.mtu)
    wish = Wish(create, want, seen, ("parent", "id"), spec.addresses, spec.bridge)
    return plan_stacked(resource, link, wish, look)


def remove(ref: Ref, key: Key, look: Look) -> Draft:
    """Delete it, unless it is somebody else's port."""
    return remove_stacked(ref, key, look)
