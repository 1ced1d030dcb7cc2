"""Who is on each bridge, and what stands on each link: what the kernel and running guests say of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kvmd.identity import kept
from kvmd.observed import Key, Link, Ports

# By Key("ports", bridge) TAPs, by Key("macvtaps", parent) macvtaps, each with its guest.
Plugged = Mapping[Key, tuple[tuple[str, str], ...]]


def ports_of(links: Iterable[Link], plugged: Plugged, known: Mapping[Key, Ports]) -> dict[Key, Ports]:
    """One fact for each link that has ports, guests or links on it; what is as *known* stays that very object."""
    members: dict[str, list[str]] = {}
    above: dict[str, list[str]] = {}
    for link in links:
        if link.master:
            members.setdefault(link.master, []).append(link.name)
        if link.parent:
            above.setdefault(link.parent, []).append(link.name)
    found: dict[Key, Ports] = {}
    for name in members.keys() | above.keys() | {key.name for key in plugged if key.type == "ports"}:
        guests = dict(plugged.get(Key("macvtaps", name), ()))
        ports = Ports(
            name,
            plugged.get(Key("ports", name), ()),
            tuple(sorted(members.get(name, ()))),
            tuple((own, guests.get(own, "")) for own in sorted(above.get(name, ()))),
        )
        found[Key("ports", name)] = kept(known.get(Key("ports", name)), ports)
    return found
