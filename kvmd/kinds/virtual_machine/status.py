"""What a VirtualMachine reports beside conditions: power, sizes, and the path of every NIC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvmd.api.quantity import format_quantity
from kvmd.api.resource import Resource
from kvmd.kinds.virtual_machine.direct import path_of
from kvmd.kinds.virtual_machine.domain import Known, NicState, State
from kvmd.kinds.virtual_machine.path import blocked_by_stp, link_of, sized, state_of, ways_out
from kvmd.observed import Domain, Key, Network, Ports
from kvmd.plan.leases import addresses_of
from kvmd.plan.look import Look


def status_of(
    resource: Resource, domain: Domain | None, live: State | None, want: State, known: Known, look: Look
) -> Mapping[str, Any]:
    """The kind's part of the status."""
    shown = live or want
    found: dict[str, Any] = {
        "power": domain.state if domain else "absent",
        "powerReason": domain.reason if domain else "",
        "nameOnHost": look.key(resource.ref).name,
        "uuid": domain.uuid if domain else None,
        "accelerator": shown.accelerator,
        "machine": shown.machine,
        "vcpus": shown.vcpus,
        "memory": format_quantity(shown.memory),
        "interfaces": [_interface(nic, live, look) for nic in want.interfaces],
    }
    return found


def _interface(nic: NicState, live: State | None, look: Look) -> dict[str, Any]:
    running = next((item for item in live.interfaces if item.name == nic.name), None) if live else None
    kind, _, target = nic.attachment.partition(":")
    tap = running.target if running else ""
    now, _, where = (running or nic).attachment.partition(":")  # another one may wait for the next boot
    return {
        "name": nic.name,
        "mac": (running or nic).mac,
        "attachment": {kind: target or True},
        "tap": tap or None,
        "addresses": addresses_of((running or nic).mac, _bridge_of(now, where, look), look) if running else [],
        "path": sized(_path(nic, running, now, where, look), look),
    }


def _path(nic: NicState, running: NicState | None, kind: str, target: str, look: Look) -> list[dict[str, Any]]:
    """Guest NIC, TAP, bridge, uplink: each with its state, the first broken one marked."""
    if running is None:
        return [_hop("nic", nic.name, "off", True)]
    hops = [_hop("nic", nic.name, running.link, running.link != "up")]
    if kind == "user":
        return [*hops, _hop("user", "passt" if target else "NAPT in the QEMU process", "up", False)]
    if kind == "direct":
        return [*hops, *path_of(target, running.target, look)]
    tap = link_of(look, running.target)
    hops.append(_hop("tap", running.target, state_of(tap), tap is None or not tap.up or blocked_by_stp(tap)))
    expected = _bridge_of(kind, target, look)
    if kind == "tap" and tap is not None and tap.master:
        expected = tap.master
    if not expected:
        return hops
    bridge = link_of(look, expected)
    astray = tap is not None and tap.master != expected
    state = f"not the master of {running.target}" if astray else state_of(bridge)
    hops.append(_hop("bridge", expected, state, bridge is None or not bridge.up or astray))
    return [*hops, *_beyond(kind, target, expected, look)]


def _bridge_of(kind: str, target: str, look: Look) -> str:
    if kind == "bridge":
        return target
    if kind != "network":
        return ""
    fact = look.fact(Key("network", target))
    return fact.bridge if isinstance(fact, Network) else ""


def _beyond(kind: str, target: str, bridge: str, look: Look) -> list[dict[str, Any]]:
    """The way out of the bridge: NAT of a network, or the bridge's other ports that are no guest's TAP."""
    if kind == "network":
        fact = look.fact(Key("network", target))
        active = isinstance(fact, Network) and fact.active
        return [_hop("network", target, "active" if active else "not active", not active)]
    ports = look.fact(Key("ports", bridge))
    members = ports.members if isinstance(ports, Ports) else ()
    links = [link_of(look, member) for member in members]
    uplinks = [link for link in links if link is not None and link.kind != "tun"]
    return ways_out(uplinks, look)


def _hop(hop: str, name: str, state: str, broken: bool) -> dict[str, Any]:
    return {"hop": hop, "name": name, "state": state, "broken": broken}
