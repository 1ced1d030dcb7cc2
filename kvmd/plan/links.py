"""What the kinds that are kernel links share: marks, addresses, routes, status."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from kvmd import ops
from kvmd.api.mark import Mark
from kvmd.api.resource import Claim, Ref, Resource
from kvmd.errors import Blocked, Refused
from kvmd.observed import Key, Link, Ports
from kvmd.plan.difference import plain
from kvmd.plan.look import Look
from kvmd.plan.model import Draft

KERNEL_MTU = 1500  # of a new TAP or TUN


def link_of(look: Look, key: Key) -> Link | None:
    """The link under a key, or None."""
    fact = look.fact(key)
    return fact if isinstance(fact, Link) else None


def link_key(ref: Ref, spec: Any, look: Look | None = None) -> Key:
    """The link that an object is: its name on the host, else its own."""
    return Key("link", (spec.name_on_host if spec else None) or ref.name)


def address_claims(cidrs: Iterable[str]) -> tuple[Claim, ...]:
    """An address belongs to one object, whatever its network."""
    return tuple(Claim("address", cidr.split("/")[0]) for cidr in cidrs)


def renamed(resource: Resource, link: Link | None, kind: str, look: Look, mode: str = "") -> Draft | None:
    """The way back to its name of a link of ours that somebody renamed; everything else follows after it."""
    if link is not None:
        return None
    name = look.key(resource.ref).name
    marked = (link_of(look, key) for key in look.marked(resource.ref))
    found = [other for other in marked if other is not None and other.kind == kind and other.tun_mode == mode]
    if len(found) != 1:  # nobody knows which of several it was
        return None
    operation = ops.LinkSet(found[0].name, found[0].index, rename=name)
    return Draft((operation,), status=link_status(None), reason=f"somebody renamed {name} to {found[0].name}")


def owned_paths(resource: Resource, look: Look) -> frozenset[str]:
    """The leaves that are ours: those that the spec writes, and those that the one applied last wrote."""
    applied = look.applied(resource.ref)
    return resource.owned | (applied.owned if applied else frozenset())


def changed_alias(resource: Resource, link: Link, look: Look) -> str | None:
    """The mark to write where it is not there yet, or of another generation."""
    alias = alias_for(resource, link, look)
    return alias if link.alias != alias else None


def alias_for(resource: Resource, link: Link | None, look: Look) -> str:
    """The ``ifalias`` that this spec asks for; the generation rises with the meaning of the spec."""
    before = link.mark if link is not None and link.mark is not None and link.mark.ref == resource.ref else None
    generation = 1
    if before is not None:
        same = resource.spec_hash.startswith(before.spec_hash)
        generation = before.generation + (not same)
    mark = Mark(look.rules.owner, resource.ref, resource.spec_hash, generation)
    return mark.as_alias()


def same_kind_or_refuse(ref: Ref, link: Link | None, kind: str, mode: str = "") -> None:
    """Refuse to touch a link of another kind under the name of ours."""
    if link is not None and (link.kind != kind or (mode and link.tun_mode != mode)):
        found = link.tun_mode or link.kind or "physical"
        raise Refused(
            f"{ref}: the host's link '{link.name}' is a {found} link, not a {mode or kind}",
            hint="choose another spec.nameOnHost or remove that link by hand: ip link del " + link.name,
        )


def addresses_of(link: Link, ours: Iterable[str] = ()) -> tuple[str, ...]:
    """The addresses that can be owned.

    Link-local ones of IPv6 (but for *ours*) and non-permanent ones are the kernel's.
    """
    said = frozenset(ours)
    return tuple(
        address.cidr
        for address in link.addresses
        if address.permanent and (address.cidr in said or not (address.scope == "link" and ":" in address.cidr))
    )


def address_operations(
    link: Link | None, name: str, wanted: Iterable[str], before: Iterable[str]
) -> tuple[list[ops.Op], tuple[str, ...]]:
    """Add what is missing, then remove what *before* (last applied) had and *wanted* has not; new before old."""
    want, former = normal_addresses(wanted), normal_addresses(before)
    have = addresses_of(link, (*want, *former)) if link is not None else ()
    index = link.index if link is not None else 0
    gone = tuple(cidr for cidr in have if cidr in former and cidr not in want)
    keep = tuple(cidr for cidr in (*have, *want) if cidr not in gone)
    operations: list[ops.Op] = [ops.AddressAdd(name, index, cidr) for cidr in want if cidr not in have]
    operations += [ops.AddressDelete(name, index, cidr, tuple(dict.fromkeys(keep))) for cidr in gone]
    return operations, tuple(cidr for cidr in have if cidr not in gone)


def normal_addresses(cidrs: Iterable[str]) -> tuple[str, ...]:
    """Each once, as the kernel writes it: what a user wrote before may be in capitals or padded."""
    return tuple(dict.fromkeys(str(ipaddress.ip_interface(cidr)) for cidr in cidrs))


def ports_of(look: Look, name: str) -> Ports:
    """Who is on that link."""
    fact = look.fact(Key("ports", name))
    return fact if isinstance(fact, Ports) else Ports(name)


def above(ports: Ports, leaving: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """What the kernel deletes with a link, but for what belongs to guests that leave first: ``macvtap0 (web)``."""
    return tuple(f"{name} ({guest})" if guest else name for name, guest in ports.above if guest not in leaving)


def waits_for(on_top: Iterable[str]) -> str:
    """What is said of a change that would take these away for good."""
    return f"waits until {', '.join(on_top)} is gone, which the kernel would delete with it"


def refuse_below_others(ref: Ref, link: Link, look: Look) -> None:
    """Raise Blocked while something stands on a link that is to go: the kernel would delete that, too."""
    found = above(ports_of(look, link.name), look.departing_names(ref))
    if found:
        raise Blocked(
            f"{ref}: {', '.join(found)} on {link.name} would go with it",
            hint=f"stop that guest or take that link away first; to look: ip -d link show {found[0].split(' ')[0]}",
        )


def refuse_strangers_addresses(ref: Ref, link: Link, ours: Iterable[str]) -> None:
    """Raise Blocked where a link that is to go carries addresses that no spec of ours gave it."""
    known = normal_addresses(ours)
    strange = [cidr for cidr in addresses_of(link) if cidr not in known]
    if strange:
        raise Blocked(
            f"{ref}: {link.name} carries {', '.join(strange)}, not given by its spec; that would go with it",
            hint=f"take that away first: ip addr del {strange[0]} dev {link.name}",
        )


def link_status(link: Link | None, **more: Any) -> Mapping[str, Any]:
    """The status that every link has."""
    if link is None:
        return MappingProxyType({"present": False, **more})
    return MappingProxyType(
        {
            "present": True,
            "nameOnHost": link.name,
            "index": link.index,
            "mac": link.mac,
            "mtu": link.mtu,
            "up": link.up,
            "carrier": link.carrier,
            "operState": link.operstate,
            "bridge": link.master or None,
            "addresses": [address.cidr for address in link.addresses],
            **{name: plain(value) for name, value in more.items()},
        }
    )


def let_go(link: Link) -> Draft:
    """Take the mark off and leave everything else as it is."""
    return Draft((ops.LinkSet(link.name, link.index, alias=""),), reason="let go of, as its deletionPolicy asks")


def account(what: str, wanted: str | int | None, look: Look) -> int | None:
    """The number of a user or group; a name that the host does not know is waited for."""
    if wanted is None or isinstance(wanted, int):
        return wanted
    host = look.host()
    known = dict(host.users if what == "user" else host.groups)
    if wanted in known:
        return known[wanted]
    raise Blocked(f"the host has no {what} '{wanted}'", hint=f"see: getent {'passwd' if what == 'user' else 'group'}")
