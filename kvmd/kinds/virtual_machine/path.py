"""The way of a guest's frames behind its bridge: VLANs, VXLANs, the NICs below them, and the MTU along all of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from kvmd.observed import Key, Link
from kvmd.plan.look import Look

Hop = dict[str, Any]
_DEEPEST = 8  # links upon links; a limit against a loop that no kernel makes
_STACKED = ("vlan", "vxlan")


def link_of(look: Look, name: str) -> Link | None:
    """The link of that name, or None."""
    fact = look.fact(Key("link", name)) if name else None
    return fact if isinstance(fact, Link) else None


def state_of(link: Link | None) -> str:
    """A link in words: administratively, by carrier, and as a port."""
    if link is None:
        return "missing"
    if not link.up:
        return "down"
    port = f", {link.port.state}" if link.port else ""
    return ("up" if link.carrier else "no carrier") + port


def blocked_by_stp(link: Link) -> bool:
    """True where the bridge lets no frame of this port through, or not yet."""
    return link.port is not None and link.up and link.carrier and link.port.state != "forwarding"


def ways_out(uplinks: Sequence[Link], look: Look) -> list[Hop]:
    """Every way that leads out: what stands upon another link, then that link; *behind* names the hops before it.

    Of several uplinks spanning tree may well have blocked some; a single one that is blocked is where it breaks.
    """
    alone = len(uplinks) == 1
    found: dict[str, Hop] = {}
    for uplink in uplinks:
        link: Link | None = uplink
        before = ""
        for _ in range(_DEEPEST):
            if link is None:
                break
            kind = link.kind if link.kind in _STACKED else "uplink"
            broken = not link.up or not link.carrier or (alone and blocked_by_stp(link))
            hop: Hop = {"hop": kind, "name": link.name, "state": state_of(link), "broken": broken}
            # What two stand upon comes after both.
            found[link.name] = hop | {"behind": [*found.pop(link.name, {}).get("behind", ()), before]}
            before, link = link.name, link_of(look, link.parent) if kind in _STACKED else None
    return list(found.values())


def sized(path: Iterable[Hop], look: Look) -> list[Hop]:
    """Each hop with the MTU of its link; the first one that is too small for what comes to it says so."""
    found: list[Hop] = []
    widest, where, told = 0, "", False
    for hop in path:
        link = link_of(look, str(hop["name"])) if hop["hop"] not in ("nic", "network", "user") else None
        if link is None:
            found.append(hop)
            continue
        hop = hop | {"mtu": link.mtu}
        if widest and link.mtu < widest and not told:
            told = True
            hop["narrows"] = f"MTU {link.mtu} is below the {widest} of {where}: larger frames are dropped here"
        if not widest:
            widest, where = link.mtu, link.name
        found.append(hop)
    return found
