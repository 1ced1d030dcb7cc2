"""What the kinds share that stand on another link of the host: which they may, how they change, when they go."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from pydantic import model_validator

from kvmd import ops
from kvmd.api.quantity import InterfaceAddresses, LinkName, Text
from kvmd.api.resource import Claim, Ref, Reference, Resource, SpecModel
from kvmd.api.schema import Update, leaf
from kvmd.api.status import BLOCKED, DEGRADED, Condition, Pending
from kvmd.errors import Blocked, Refused, Unsupported
from kvmd.observed import Key, Link, Observed
from kvmd.plan.difference import Change, differences, is_owned, plain
from kvmd.plan.links import (
    above,
    address_claims,
    address_operations,
    addresses_of,
    changed_alias,
    let_go,
    link_key,
    link_of,
    link_status,
    normal_addresses,
    owned_paths,
    ports_of,
    refuse_below_others,
    refuse_strangers_addresses,
    renamed,
    same_kind_or_refuse,
    waits_for,
)
from kvmd.plan.look import Look
from kvmd.plan.model import Draft

# What the kernel changes only by making the link anew.
IN_USE = "Replug while it is a port, carries addresses or routes, or is below another link"
MODULES = {"vlan": "8021q", "vxlan": "vxlan", "macvtap": "macvtap"}


class StackedSpec(SpecModel):
    """What each of them says of itself."""

    name_on_host: LinkName | None = leaf(
        None, about="Name of the link; default metadata.name.", example="eno1.100", update=Update.IMMUTABLE
    )
    bridge: Text | None = leaf(
        None, about="Bridge that it is a port of; write it here or among that Bridge's uplinks.", example="br0"
    )
    addresses: InterfaceAddresses = leaf((), about="Addresses in CIDR form.", example=["10.1.0.1/24"])
    deletion_policy: Literal["Delete", "Orphan"] = leaf(
        "Delete", about="When the spec goes: delete the link, or only take the mark off.", example="Delete"
    )

    @model_validator(mode="after")
    def _agree(self) -> StackedSpec:
        if self.bridge and self.addresses:
            raise ValueError("a port of a bridge has no addresses of its own; write them at the Bridge")
        return self


def stacked_references(ref: Ref, spec: StackedSpec) -> tuple[Reference, ...]:
    """Its bridge; the parent is a link of the host."""
    return (Reference(ref, Ref("Bridge", spec.bridge)),) if spec.bridge else ()


def stacked_claims(ref: Ref, spec: StackedSpec) -> tuple[Claim, ...]:
    """Its name, its place on a bridge and its addresses."""
    name = link_key(ref, spec).name
    uplink = (Claim("uplink", name),) if spec.bridge else ()
    return (Claim("link", name), *uplink, *address_claims(spec.addresses))


def described(key: Key, kind: str, observed: Observed) -> tuple[Link, dict[str, Any]] | None:
    """A link of that kind on the host, and what a spec says of each such link; None where it is none."""
    link = observed.facts.get(key)
    if not isinstance(link, Link) or link.kind != kind or link.stacked is None:
        return None
    said = {"parent": link.parent, "bridge": link.master, "addresses": list(addresses_of(link)), "mtu": link.mtu}
    return link, {"id": link.stacked.id} | {name: value for name, value in said.items() if value}


class Wish(NamedTuple):
    """One such link as its spec asks for it."""

    create: ops.StackedCreate
    want: Any  # the kind's State
    seen: Any  # the same as it is; None where there is no link
    fixed: tuple[str, ...]  # leaves that the kernel changes only by making the link anew
    addresses: tuple[str, ...]
    bridge: str | None  # the Bridge that the spec names


def is_there(ref: Ref, kind: str, look: Look) -> bool:
    """True where the host has that link, of that kind."""
    link = link_of(look, look.key(ref))
    return link is not None and link.kind == kind


def present(resource: Resource, kind: str, look: Look) -> tuple[Link | None, Draft | None]:
    """The link as it is, and the draft that gives it its name back. Refused or Unsupported where none can be."""
    refuse_unknown_kind(resource.ref, kind, look)
    link = link_of(look, look.key(resource.ref))
    same_kind_or_refuse(resource.ref, link, kind)
    return link, renamed(resource, link, kind, look)


def refuse_unknown_kind(ref: Ref, kind: str, look: Look) -> None:
    """Raise Unsupported where this kernel was found not to know that kind of link."""
    if kind in look.host().lacking_links:
        module = MODULES[kind]
        raise Unsupported(
            f"{ref}: this kernel has no '{kind}' links",
            hint=f"modprobe {module}, then: systemctl restart kvmd; if there is no such module, another kernel",
        )


def parent_of(ref: Ref, name: str, look: Look) -> Link:
    """The link below, which must be there, up, and allowed by this host's policy where it is nobody's object."""
    link = link_of(look, Key("link", name))
    if link is None:
        raise Blocked(f"{ref}: waits for link {name}, which the host does not have", hint="see: ip link")
    allowed = look.rules.uplinks
    if allowed != "*" and name not in allowed and link.mark is None:
        raise Refused(
            f"{ref}: link {name} is not among the uplinks that this host allows", hint="policy.uplinks in kvmd.yaml"
        )
    if not link.up:
        raise Blocked(f"{ref}: waits for link {name}, which is down", hint=f"ip link set {name} up")
    return link


def plan_stacked(resource: Resource, link: Link | None, wish: Wish, look: Look) -> Draft:
    """Create it, change what can be changed, and make it anew where nobody uses it (or somebody approved).

    Not even then while another link stands on it: the kernel deletes that, and nobody could bring it back.
    """
    name = wish.create.name
    needs = (Ref("Bridge", wish.bridge),) if wish.bridge else ()
    if link is None:
        operations: list[ops.Op] = [wish.create, ops.LinkSet(name, master=wish.want.bridge or None, up=True)]
        operations += address_operations(None, name, wish.addresses, ())[0]
        return Draft(tuple(operations), needs=needs, status=link_status(None))
    applied, owned = look.applied(resource.ref), owned_paths(resource, look)
    changes = tuple(c for c in differences(wish.seen, wish.want) if is_owned(c.path, owned))
    if needs and link.master and not look.usable(needs[0]):
        # Where it is it stays until the bridge is there: somebody may just have renamed that.
        changes = tuple(change for change in changes if change.path != "bridge")
    fixed = tuple(change for change in changes if change.path in wish.fixed)
    status, conditions = _status(link), _too_big(link, look)
    on_top = above(ports_of(look, link.name))
    approved = look.memory(resource.ref).approved_hash == resource.spec_hash
    if fixed and on_top and approved:
        conditions += (Condition(BLOCKED, True, "InUse", f"{waits_for(on_top)}; then it is made anew"),)
    elif fixed and (approved or not _users(link)) and not on_top:
        again = ops.LinkDelete(link.name, link.index, alias=link.alias)
        reason = "the kernel changes this only by making the link anew"
        return Draft((again,), changes, status=status, reason=reason)
    operations = _attributes(resource, link, wish, changes, look)
    former = applied.written.get("addresses", ()) if applied else ()
    operations += address_operations(link, name, wish.addresses, former)[0]
    pending = tuple(Pending(f"spec.{c.path}", plain(c.before), plain(c.after), Update.REPLUG) for c in fixed)
    done = tuple(change for change in changes if change not in fixed)
    noticed = waits_for(on_top) if pending and on_top else ""
    return Draft(tuple(operations), done, pending, conditions, needs, status, noticed=noticed)


def remove_stacked(ref: Ref, key: Key, look: Look) -> Draft:
    """Delete it, unless it is a port that somebody else made one."""
    link, applied = link_of(look, key), look.applied(ref)
    if link is None:
        return Draft()
    written = applied.written if applied else {}
    if written.get("deletionPolicy") == "Orphan":
        return let_go(link)
    bridge = written.get("bridge")
    if link.master and not (bridge and look.key(Ref("Bridge", str(bridge))).name == link.master):
        raise Blocked(
            f"{ref}: {link.name} is a port of {link.master}",
            hint=f"take it out of spec.uplinks of that Bridge, or: ip link set {link.name} nomaster",
        )
    refuse_below_others(ref, link, look)
    if applied is not None and applied.known:
        refuse_strangers_addresses(ref, link, written.get("addresses", ()))
    return Draft((ops.LinkDelete(link.name, link.index, alias=link.alias),))


def own_addresses(link: Link, ref: Ref, wanted: Iterable[str], look: Look) -> tuple[str, ...]:
    """Those of a link's addresses that are ours: wanted now, or by the spec that was last applied."""
    applied = look.applied(ref)
    ours = {*wanted, *normal_addresses(applied.written.get("addresses", ()) if applied else ())}
    return tuple(sorted(set(addresses_of(link, ours)) & ours))


def _attributes(resource: Resource, link: Link, wish: Wish, changes: tuple[Change, ...], look: Look) -> list[ops.Op]:
    paths = {change.path for change in changes}
    attributes: dict[str, Any] = {
        "alias": changed_alias(resource, link, look),
        "mtu": wish.want.mtu if "mtu" in paths else None,
        "master": wish.want.bridge if "bridge" in paths else None,
        "up": None if link.up else True,
    }
    operations: list[ops.Op] = []
    if attributes["master"] and link.master:
        operations.append(ops.LinkSet(link.name, link.index, master=""))
    if any(value is not None for value in attributes.values()):
        operations.append(ops.LinkSet(link.name, link.index, **attributes))
    return operations


def _users(link: Link) -> tuple[str, ...]:
    """Who would notice that it goes for a moment."""
    routes = tuple(route.to for route in link.routes if route.protocol != "kernel")
    return (link.master,) * bool(link.master) + addresses_of(link) + routes


def overhead(end: str) -> int:
    """The bytes that a VXLAN to or from that address adds to a frame."""
    return 70 if ":" in end else 50


def _too_big(link: Link, look: Look) -> tuple[Condition, ...]:
    parent = link_of(look, Key("link", link.parent)) if link.parent else None
    if parent is None or link.kind != "vxlan":
        return ()
    room = parent.mtu - (overhead(f"{link.stacked.local}{link.stacked.remote}") if link.stacked else 0)
    if link.mtu <= room:
        return ()
    text = f"its MTU {link.mtu} is above what {parent.name} leaves of its own {parent.mtu}: {room}; write mtu: {room}"
    return (Condition(DEGRADED, True, "MtuMismatch", text),)


def _status(link: Link) -> Any:
    stacked = link.stacked
    return link_status(
        link,
        parent=link.parent or None,
        id=stacked.id if stacked else None,
        remote=(stacked.remote or None) if stacked else None,
    )
