"""Tap: what tunctl -p -t tap1 and brctl addif do: a persistent layer 2 device, marked as it is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import model_validator

from kvmd import ops
from kvmd.api.bridge_settings import PORT, Numbers
from kvmd.api.mark import derived_port_mac
from kvmd.api.quantity import AccountNumber, Boolean, Integer, LinkName, Mac, Text
from kvmd.api.resource import Claim, Ref, Reference, Resource, SpecModel
from kvmd.api.schema import Update, branch, leaf
from kvmd.api.status import Pending
from kvmd.errors import Blocked
from kvmd.observed import Key, Link, Observed
from kvmd.plan.bridge_settings import (
    PortDifference,
    PortSettings,
    of_port,
    port_difference,
    said,
    wished,
)
from kvmd.plan.difference import LEAVE, Change, Leave, at, differences, is_owned
from kvmd.plan.links import (
    KERNEL_MTU,
    above,
    account,
    alias_for,
    let_go,
    link_key,
    link_of,
    link_status,
    owned_paths,
    ports_of,
    refuse_below_others,
    renamed,
    same_kind_or_refuse,
    waits_for,
)
from kvmd.plan.look import Look
from kvmd.plan.model import Draft
from kvmd.plan.wording import Described

KIND = "Tap"
PLURAL = "taps"
SHORT = "tap"

host_key = link_key

_UNHELD = ("owner", "group", "multiQueue", "vnetHdr")  # what the kernel changes of a TAP that nobody holds


class Spec(SpecModel):
    """A persistent TAP."""

    name_on_host: LinkName | None = leaf(
        None, about="Name of the link; default metadata.name.", example="tap1", update=Update.IMMUTABLE
    )
    owner: Text | AccountNumber | None = leaf(
        None,
        about="User (name or number) who may attach; null is root only.",
        example="libvirt-qemu",
        unless="Replug while a guest holds the TAP",
    )
    group: Text | AccountNumber | None = leaf(
        None,
        about="Group (name or number) whose members may attach.",
        example="kvm",
        unless="Replug while a guest holds the TAP",
    )
    bridge: Text | None = leaf(None, about="Bridge that it is a port of.", example="br0")
    multi_queue: Boolean = leaf(
        False, about="Several queues, for a program that attaches more than one.", example=False, update=Update.REPLUG
    )
    vnet_hdr: Boolean = leaf(
        True,
        about="Frames carry a virtio header (offloads). Whoever attaches decides anew; this is what is there before.",
        example=True,
    )
    mtu: Integer | None = leaf(
        None, about="MTU in bytes; null leaves the kernel's 1500.", example=1500, ge=68, le=65521
    )
    mac: Mac | None = leaf(
        None,
        about="MAC of the host's side; null gives it one that no bridge takes for its own.",
        example="fe:54:00:00:00:01",
    )
    port: PortSettings = branch(factory=PortSettings, about="What the bridge does with this port.")
    deletion_policy: Literal["Delete", "Orphan"] = leaf(
        "Delete", about="When the spec goes: delete the TAP, or only take the mark off.", example="Delete"
    )

    @model_validator(mode="after")
    def _agree(self) -> Spec:
        if self.port != PortSettings() and not self.bridge:
            raise ValueError("settings of a port are written, but no bridge; write `bridge`")
        return self


@dataclass(frozen=True, slots=True)
class State:
    """A TAP as it is or should be."""

    owner: int | Leave | None = field(metadata=at("owner"))
    group: int | Leave | None = field(metadata=at("group"))
    bridge: str | Leave = field(metadata=at("bridge"))
    multi_queue: bool = field(metadata=at("multiQueue"))
    vnet_hdr: bool | Leave = field(metadata=at("vnetHdr"))
    mtu: int = field(metadata=at("mtu"))
    mac: str | Leave = field(metadata=at("mac"))


def describe(key: Key, observed: Observed) -> Described | None:
    """A TAP that stays without a holder; the others are those of a program, and go with it."""
    link = observed.facts.get(key)
    if not isinstance(link, Link) or link.tun_mode != "tap" or not link.persistent:
        return None
    spec: dict[str, Any] = {"multiQueue": link.multi_queue, "mtu": link.mtu}
    if not link.carrier:  # a holder's is its own
        spec["vnetHdr"] = link.vnet_hdr
    found: dict[str, Any] = {"owner": link.owner, "group": link.group, "bridge": link.master or None}
    found["port"] = said(PORT, link.port.settings) or None if link.port else None
    return Described(spec | {name: value for name, value in found.items() if value is not None})


def references(ref: Ref, spec: Spec) -> tuple[Reference, ...]:
    """Its bridge."""
    return (Reference(ref, Ref("Bridge", spec.bridge)),) if spec.bridge else ()


def claims(ref: Ref, spec: Spec) -> tuple[Claim, ...]:
    """Its name."""
    return (Claim("link", host_key(ref, spec).name),)


def files(spec: Spec) -> tuple[str, ...]:
    """None."""
    return ()


def usable(ref: Ref, look: Look) -> bool:
    """True where the TAP is there; one that gets another owner or other queues is held by nobody before."""
    link, resource = link_of(look, look.key(ref)), look.spec(ref)
    if link is None or link.tun_mode != "tap":
        return False
    if resource is None or link.carrier or link.mark is None or ports_of(look, link.name).above:
        return True
    try:
        _, changes = _compare(resource, link, look)
    except Blocked:
        return True
    return not any(change.path in _UNHELD for change in changes)


def plan(ref: Ref, look: Look) -> Draft:
    """Create it on its bridge, or change what differs."""
    resource = look.spec(ref)
    assert resource is not None and isinstance(resource.spec, Spec)
    spec, name = resource.spec, look.key(ref).name
    link = link_of(look, look.key(ref))
    same_kind_or_refuse(ref, link, "tun", "tap")
    if (back := renamed(resource, link, "tun", look, "tap")) is not None:
        return back
    needs = (Ref("Bridge", spec.bridge),) if spec.bridge else ()
    alias = alias_for(resource, link, look)
    if link is None:
        want = _wanted(resource, None, look)
        holder = _number(want.owner), _number(want.group)
        create = ops.TapCreate(name, alias, "tap", *holder, spec.multi_queue, spec.vnet_hdr)
        port = wished(PORT, of_port(resource.written.get("port"), None))
        mac = spec.mac or _own_mac(ref, look)
        master = str(want.bridge) or None
        join = ops.LinkSet(name, mtu=spec.mtu, mac=mac, master=master, port_settings=port, up=True)
        return Draft((create, join), needs=needs, status=link_status(None))
    want, changes = _compare(resource, link, look)
    of_the_port = _port(resource, link, want, look)
    changes += of_the_port.changes
    if spec.bridge and link.master and not look.usable(Ref("Bridge", spec.bridge)):
        # Where it is it stays until the bridge is there: somebody may just have renamed that.
        changes = tuple(change for change in changes if change.path != "bridge")
    on_top = above(ports_of(look, link.name))
    operations, pending = _change(link, want, changes, alias, of_the_port.numbers, link.carrier or bool(on_top))
    status = link_status(link, multiQueue=link.multi_queue)
    noticed = waits_for(on_top) if pending and on_top else ""
    return Draft(tuple(operations), changes, pending, needs=needs, status=status, noticed=noticed)


def remove(ref: Ref, key: Key, look: Look) -> Draft:
    """Delete it once no guest holds it."""
    link, applied = link_of(look, key), look.applied(ref)
    if link is None:
        return Draft()
    if applied is not None and applied.written.get("deletionPolicy") == "Orphan":
        return let_go(link)
    if link.carrier and not look.departing_names(ref):
        raise Blocked(f"{ref}: a process holds TAP {link.name}", hint="stop the guest that uses it: kvmd topology")
    refuse_below_others(ref, link, look)
    return Draft((ops.LinkDelete(link.name, link.index, alias=link.alias),))


def _own_mac(ref: Ref, look: Look) -> str:
    """The MAC of a TAP for which nobody wrote one."""
    return derived_port_mac(look.host().machine_id, look.rules.owner, ref, "tap")


def _wanted(resource: Resource, link: Link | None, look: Look) -> State:
    spec = resource.spec
    assert isinstance(spec, Spec)
    return State(
        owner=account("user", spec.owner, look),
        group=account("group", spec.group, look),
        bridge=look.key(Ref("Bridge", spec.bridge)).name if spec.bridge else "",
        multi_queue=spec.multi_queue,
        vnet_hdr=LEAVE if link is not None and link.carrier else spec.vnet_hdr,
        mtu=KERNEL_MTU if spec.mtu is None else spec.mtu,  # compared where somebody wrote it, now or before
        mac=spec.mac or _own_mac(resource.ref, look),  # the same
    )


def _compare(resource: Resource, link: Link, look: Look) -> tuple[State, tuple[Change, ...]]:
    """What is wanted, and what of it that is ours differs."""
    want = _wanted(resource, link, look)
    seen = State(link.owner, link.group, link.master, link.multi_queue, link.vnet_hdr, link.mtu, link.mac)
    owned = owned_paths(resource, look)
    return want, tuple(change for change in differences(seen, want) if is_owned(change.path, owned))


def _number(account_of: int | Leave | None) -> int | None:
    return account_of if isinstance(account_of, int) else None


def _port(resource: Resource, link: Link, want: State, look: Look) -> PortDifference:
    applied = look.applied(resource.ref)
    written = of_port(resource.written.get("port"), applied.written.get("port") if applied else None)
    return port_difference(written, link, str(want.bridge), "port.")


def _change(
    link: Link, want: State, changes: tuple[Change, ...], alias: str, port: Numbers, held: bool
) -> tuple[list[ops.Op], tuple[Pending, ...]]:
    """Live changes as operations; owner and queues of a TAP in use wait until it is unused."""
    paths = {change.path for change in changes}
    moved: Any = want.bridge if "bridge" in paths else None
    attributes: dict[str, Any] = {
        "alias": alias if link.alias != alias else None,
        "mtu": want.mtu if "mtu" in paths else None,
        "mac": want.mac if "mac" in paths else None,
        "master": moved,
        "up": None if link.up else True,
    }
    waits = [change for change in changes if change.path in _UNHELD]
    operations: list[ops.Op] = []
    if moved and link.master:
        operations.append(ops.LinkSet(link.name, link.index, master=""))
    if port or any(value is not None for value in attributes.values()):
        operations.append(ops.LinkSet(link.name, link.index, port_settings=port, **attributes))
    if not waits:
        return operations, ()
    if held:
        return operations, tuple(
            Pending(f"spec.{change.path}", change.before, change.after, Update.REPLUG) for change in waits
        )
    cleared = any(change.after is None for change in waits)
    if "multiQueue" in paths or cleared:
        # The kernel changes neither the number of queues of a TAP that is there nor takes an owner off: it goes, the
        # next look makes it anew.
        return [ops.LinkDelete(link.name, link.index, alias=link.alias)], ()
    holder = _number(want.owner), _number(want.group)
    vnet_hdr = link.vnet_hdr if want.vnet_hdr is LEAVE else bool(want.vnet_hdr)
    operations.append(ops.TapOwner(link.name, link.index, "tap", *holder, link.multi_queue, vnet_hdr))
    return operations, ()
