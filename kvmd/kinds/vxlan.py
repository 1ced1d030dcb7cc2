"""Vxlan: what ip link add vx0 type vxlan id 42 remote … does, kept so: layer 2 between hosts, over their network."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Any

from pydantic import model_validator

from kvmd import ops
from kvmd.api.mark import derived_port_mac
from kvmd.api.quantity import Address, Integer, LinkName
from kvmd.api.resource import Ref
from kvmd.api.schema import leaf
from kvmd.observed import Key, Link, Observed
from kvmd.plan.difference import LEAVE, Leave, at
from kvmd.plan.links import KERNEL_MTU, alias_for, link_key, link_of
from kvmd.plan.look import Look
from kvmd.plan.model import Draft
from kvmd.plan.stacked import (
    IN_USE,
    StackedSpec,
    Wish,
    described,
    is_there,
    overhead,
    own_addresses,
    parent_of,
    plan_stacked,
    present,
    remove_stacked,
    stacked_claims,
    stacked_references,
)
from kvmd.plan.wording import Described

KIND = "Vxlan"
PLURAL = "vxlans"
SHORT = "vxlan"

host_key, references, claims, remove = link_key, stacked_references, stacked_claims, remove_stacked

_FIXED = ("id", "parent", "local", "remote", "group", "port")


class Spec(StackedSpec):
    """A VXLAN: layer 2 between hosts, in UDP over their network."""

    id: Integer = leaf(about="VXLAN network identifier.", example=42, ge=1, le=0xFFFFFF, unless=IN_USE)
    remote: Address | None = leaf(None, about="The other host's address.", example="10.0.0.2", unless=IN_USE)
    group: Address | None = leaf(
        None,
        about="Multicast group of all hosts of this VXLAN; needs `parent`.",
        example="239.1.1.42",
        unless=IN_USE,
    )
    local: Address | None = leaf(None, about="This host's address to send from.", example="10.0.0.1", unless=IN_USE)
    port: Integer = leaf(4789, about="UDP port (IANA: 4789).", example=4789, ge=1, le=65535, unless=IN_USE)
    parent: LinkName | None = leaf(
        None, about="Link of the host to send through; null lets routes decide.", example="eno1", unless=IN_USE
    )
    mtu: Integer | None = leaf(
        None,
        about="MTU in bytes; null is the kernel's: 1500, or with `parent` what that leaves (50 less, 70 over IPv6).",
        example=1450,
        ge=68,
        le=65535,
    )

    @model_validator(mode="after")
    def _ends_agree(self) -> Spec:
        if self.remote and self.group:
            raise ValueError("write one of `remote` (one other host) and `group` (many), not both")
        if self.remote and ipaddress.ip_address(self.remote).is_multicast:
            raise ValueError(f"{self.remote} is a multicast address; write it as `group`")
        if self.group and not ipaddress.ip_address(self.group).is_multicast:
            raise ValueError(f"{self.group} is no multicast address; write it as `remote`")
        if self.group and not self.parent:
            raise ValueError("a group is joined on a link; write `parent`")
        ends = {ipaddress.ip_address(end).version for end in (self.local, self.remote or self.group) if end}
        if len(ends) > 1:
            raise ValueError("local and the other end must both be IPv4 or both IPv6")
        return self


@dataclass(frozen=True, slots=True)
class State:
    """A VXLAN as it is or should be."""

    id: int = field(metadata=at("id"))
    parent: str = field(metadata=at("parent"))
    local: str = field(metadata=at("local"))
    remote: str = field(metadata=at("remote"))
    group: str = field(metadata=at("group"))
    port: int = field(metadata=at("port"))
    bridge: str = field(metadata=at("bridge"))
    mtu: int | Leave = field(metadata=at("mtu"))
    addresses: tuple[str, ...] = field(metadata=at("addresses"))


def describe(key: Key, observed: Observed) -> Described | None:
    """A VXLAN that somebody made."""
    found = described(key, "vxlan", observed)
    if found is None:
        return None
    ends = _ends(found[0])
    return Described(found[1] | {name: value for name, value in ends.items() if value})


def files(spec: Spec) -> tuple[str, ...]:
    """None."""
    return ()


def usable(ref: Ref, look: Look) -> bool:
    """True where the VXLAN is there."""
    return is_there(ref, "vxlan", look)


def plan(ref: Ref, look: Look) -> Draft:
    """Create it on its bridge, or change what differs."""
    resource = look.spec(ref)
    assert resource is not None and isinstance(resource.spec, Spec)
    spec, key = resource.spec, look.key(ref)
    link, back = present(resource, "vxlan", look)
    if back is not None:
        return back
    if spec.parent:
        parent_of(ref, spec.parent, look)
    want = _wanted(spec, look)
    seen = _seen(link, own_addresses(link, ref, want.addresses, look)) if link is not None else None
    create = ops.VxlanCreate(
        key.name,
        alias_for(resource, link, look),
        spec.id,
        want.parent,
        want.local,
        want.remote or want.group,
        spec.port,
        derived_port_mac(look.host().machine_id, look.rules.owner, ref, "vxlan"),
        spec.mtu,
    )
    return plan_stacked(resource, link, Wish(create, want, seen, _FIXED, spec.addresses, spec.bridge), look)


def _wanted(spec: Spec, look: Look) -> State:
    return State(
        id=spec.id,
        parent=spec.parent or "",
        local=spec.local or "",
        remote=spec.remote or "",
        group=spec.group or "",
        port=spec.port,
        bridge=look.key(Ref("Bridge", spec.bridge)).name if spec.bridge else "",
        mtu=_kernel_mtu(spec, look) if spec.mtu is None else spec.mtu,
        addresses=tuple(sorted(spec.addresses)),
    )


def _kernel_mtu(spec: Spec, look: Look) -> int | Leave:
    """What it has where nobody says another; compared where somebody wrote one, now or before."""
    if not spec.parent:
        return KERNEL_MTU
    parent = link_of(look, Key("link", spec.parent))
    return LEAVE if parent is None else parent.mtu - overhead(spec.local or spec.remote or spec.group or "")


def _ends(link: Link) -> dict[str, Any]:
    """Where it leads to, in the words of the spec."""
    tunnel = link.stacked
    assert tunnel is not None
    many = bool(tunnel.remote) and ipaddress.ip_address(tunnel.remote).is_multicast
    remote, group = ("", tunnel.remote) if many else (tunnel.remote, "")
    return {"local": tunnel.local, "remote": remote, "group": group, "port": tunnel.port}


def _seen(link: Link, addresses: tuple[str, ...]) -> State:
    assert link.stacked is not None
    return State(
        id=link.stacked.id,
        parent=link.parent,
        **_ends(link),
        bridge=link.master,
        mtu=link.mtu,
        addresses=addresses,
    )
