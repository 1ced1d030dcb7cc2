"""What a Bridge reports beside conditions of planning: its ports, its root, and MTUs that do not fit."""

from __future__ import annotations

from typing import Any

from kvmd.api.status import DEGRADED, Condition
from kvmd.kinds.bridge.spec import Spec
from kvmd.observed import Key, Link
from kvmd.plan.links import link_of, link_status, ports_of
from kvmd.plan.look import Look


def status_of(link: Link | None, look: Look, name: str) -> Any:
    """The kind's part of the status."""
    found = ports_of(look, name)
    guests = dict(found.taps)
    ports = [
        {"name": member, "guest": guests.get(member), "state": port.port.state if port and port.port else None}
        for member in found.members
        for port in (link_of(look, Key("link", member)),)
    ]
    stp, root = (link.stp, link.root or None) if link else (None, None)
    return link_status(link, stp=stp, root=root, ports=ports)


def mtu_conditions(spec: Spec, look: Look, name: str) -> tuple[Condition, ...]:
    """Ports that drop what the bridge takes."""
    members = (link_of(look, Key("link", member)) for member in ports_of(look, name).members)
    small = [f"{port.name} ({port.mtu})" for port in members if port is not None and spec.mtu and port.mtu < spec.mtu]
    if not small:
        return ()
    text = f"ports with an MTU below the bridge's {spec.mtu}: {', '.join(small)}; larger frames are dropped there"
    return (Condition(DEGRADED, True, "MtuMismatch", text),)
