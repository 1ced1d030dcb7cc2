"""What the kinds share that are bridges or ports: the settings that a spec says, compared in the kernel's units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kvmd.api.bridge_settings import PORT, Numbers, Setting
from kvmd.api.quantity import Boolean, Integer
from kvmd.api.resource import Ref, SpecModel
from kvmd.api.schema import leaf
from kvmd.errors import Unsupported
from kvmd.observed import Link
from kvmd.plan.difference import Change
from kvmd.plan.look import Look

NO_VLAN_FILTERING = "bridge-vlan"  # among the links that a kernel was found to lack


class PortSettings(SpecModel):
    """What a bridge does with one port; what nobody writes is left as the kernel made it."""

    cost: Integer | None = leaf(
        None,
        about="Path cost in the spanning tree, 1 to 65535; the kernel takes it from the speed of the link. Taken out "
        "it stays as it is.",
        example=100,
        ge=1,
        le=65535,
    )
    priority: Integer | None = leaf(
        None, about="Priority of the port in the spanning tree, 0 to 63; the kernel's is 32.", example=32, ge=0, le=63
    )
    learning: Boolean | None = leaf(None, about="Learn the MACs that are seen on it.", example=True)
    flood: Boolean | None = leaf(None, about="Send frames for unknown MACs to it.", example=True)
    multicast_flood: Boolean | None = leaf(
        None, about="Send multicast to it where nobody is known to listen.", example=True
    )
    broadcast_flood: Boolean | None = leaf(None, about="Send broadcasts to it.", example=True)
    isolated: Boolean | None = leaf(
        None, about="Isolated ports reach only ports that are not isolated.", example=False
    )
    hairpin: Boolean | None = leaf(None, about="Send frames back to the port that they came from.", example=False)
    bpdu_guard: Boolean | None = leaf(
        None, about="Close the port when a spanning tree frame (BPDU) arrives on it.", example=False
    )
    root_guard: Boolean | None = leaf(
        None, about="Never let the root of the spanning tree be behind this port.", example=False
    )
    fast_leave: Boolean | None = leaf(
        None, about="End a multicast group with the first leave message, without asking again.", example=False
    )


class Written(NamedTuple):
    """Settings as a spec says them now, and as the one that was applied last did."""

    now: Mapping[str, Any]  # by leaf; null is said, too
    before: Mapping[str, Any]

    def number(self, setting: Setting) -> int | None:
        """What the kernel should have; None where it is not ours, or where nobody knows its default."""
        value = self.now.get(setting.leaf)
        if value is not None:
            return setting.number(value)
        return setting.default if setting.leaf in self.now or setting.leaf in self.before else None


def wished(table: Sequence[Setting], written: Written) -> Numbers:
    """The settings that a new bridge or port gets."""
    return tuple(
        (setting.kernel, setting.number(value))
        for setting in table
        if (value := written.now.get(setting.leaf)) is not None
    )


def differing(table: Sequence[Setting], written: Written, seen: Numbers) -> Iterator[tuple[Setting, int, int]]:
    """Each setting of ours that is otherwise, what it is and what it should be.

    What the kernel does not show now is no difference (kvmd.host.links.bridge_attributes says when).
    """
    found = dict(seen)
    for setting in table:
        number, have = written.number(setting), found.get(setting.kernel)
        if number is not None and have is not None and have != number:
            yield setting, have, number


def changes_of(found: Sequence[tuple[Setting, int, int]], prefix: str = "") -> tuple[Change, ...]:
    """The same in the words of the spec."""
    return tuple(Change(f"{prefix}{s.leaf}", s.value(have), s.value(number)) for s, have, number in found)


def numbers_of(found: Sequence[tuple[Setting, int, int]]) -> Numbers:
    """The same in the kernel's."""
    return tuple((setting.kernel, number) for setting, _, number in found)


def said(table: Sequence[Setting], seen: Numbers) -> dict[str, Any]:
    """What is not as the kernel makes it, as a spec would say it."""
    found = dict(seen)
    return {
        setting.leaf: setting.value(number)
        for setting in table
        if (number := found.get(setting.kernel)) is not None and setting.default not in (None, number)
    }


def of_port(values: Any, before: Any) -> Written:
    """The settings of a port in a spec as written (*values*, *before*: its mapping, or None)."""
    return Written(*({k: v for k, v in (each or {}).items() if k in _PORT_LEAVES} for each in (values, before)))


class PortDifference(NamedTuple):
    """What of a port's settings is otherwise: in the words of the spec, and in the kernel's."""

    changes: tuple[Change, ...] = ()
    numbers: Numbers = ()


def port_difference(written: Written, link: Link, bridge: str, prefix: str) -> PortDifference:
    """Compare; what is about to become a port of *bridge* gets all that its spec says."""
    if not bridge:
        return PortDifference()
    if link.port is None or link.master != bridge:
        return PortDifference((), wished(PORT, written))
    found = list(differing(PORT, written, link.port.settings))
    return PortDifference(changes_of(found, prefix), numbers_of(found))


_PORT_LEAVES = frozenset(setting.leaf for setting in PORT)


def refuse_lacking(ref: Ref, written: Written, seen: Numbers | None, look: Look) -> None:
    """Raise Unsupported where this kernel was built without what the spec asks of a bridge."""
    lacks_vlans = NO_VLAN_FILTERING in look.host().lacking_links
    if lacks_vlans and (written.now.get("vlanFiltering") or written.now.get("defaultPvid") is not None):
        raise Unsupported(
            f"{ref}: this kernel's bridges cannot filter VLANs",
            hint="take vlanFiltering and defaultPvid out, or use a kernel with CONFIG_BRIDGE_VLAN_FILTERING",
        )
    asked = [name for name in ("multicastSnooping", "multicastQuerier") if written.now.get(name)]
    if seen and asked and "mcast_snooping" not in dict(seen):
        raise Unsupported(
            f"{ref}: this kernel's bridges know nothing of multicast groups",
            hint=f"take {' and '.join(asked)} out, or use a kernel with CONFIG_BRIDGE_IGMP_SNOOPING",
        )
