"""Uplinks that carry addresses: what moves where, what needs a checkpoint, and what keeps it from being done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvmd import ops
from kvmd.api.resource import Ref
from kvmd.api.status import STALLED, Condition
from kvmd.errors import Refused
from kvmd.observed import Checkpoint, Key, Link, LinkManager
from kvmd.plan.links import addresses_of, link_of, normal_addresses
from kvmd.plan.look import Look

PROOF_SECONDS = 5.0  # for gateways and probes to answer afterwards
UNDO_SECONDS = 2.0  # of the time until the rollback, for what is not proof
KERNEL_DELAY_SECONDS = 15.0  # forward delay of a bridge that nobody told another


@dataclass(frozen=True, slots=True)
class Guard:
    """What a spec says of proof and rollback, and for which spec it counts."""

    object: str
    spec_hash: str
    default_gateway: bool = True
    probes: tuple[str, ...] = ()
    rollback_after: float = 30.0
    blocking: float = 0.0  # seconds for which a port passes nothing after it was put in: STP

    def over(self, name: str, operations: Sequence[ops.Op]) -> ops.Op:
        """These operations as one, under a checkpoint."""
        patience = PROOF_SECONDS + self.blocking
        if patience + UNDO_SECONDS > self.rollback_after:
            raise Refused(
                f"{self.object}: with STP a port of {name} passes nothing for {self.blocking:g} s, so that a proof "
                f"takes {patience + UNDO_SECONDS:g} s, and safety.rollbackAfterSeconds is {self.rollback_after:g}",
                hint="write stp: false, a smaller forwardDelaySeconds, or a larger rollbackAfterSeconds",
            )
        acts = tuple(operation for operation in operations if isinstance(operation, ops.LinkOp))
        return ops.Guarded(
            name,
            acts,
            self.object,
            self.spec_hash,
            self.default_gateway,
            self.probes,
            self.rollback_after,
            patience,
        )


def carried(link: Link) -> tuple[str, ...]:
    """The addresses that would move with a link: all but the link-local ones of IPv6, which each link has."""
    return tuple(a.cidr for a in link.addresses if not (a.scope == "link" and ":" in a.cidr))


def carries(link: Link) -> bool:
    """True where the host would lose something if that link became a mere port."""
    return bool(carried(link)) or any(
        not (route.protocol == "kernel" and route.to.startswith("fe80:")) for route in link.routes
    )


def check_carrier(ref: Ref, link: Link, move: bool, dynamic: bool, look: Look) -> None:
    """Raise Refused where what an uplink carries may not be moved."""
    what = ", ".join(carried(link)) or "routes"
    if not move:
        raise Refused(
            f"{ref}: uplink {link.name} carries {what}; as a port it would cut that off",
            hint="write addresses: {from: Uplink}, which moves it to the bridge, or use a NIC without addresses",
        )
    manager = look.fact(Key("manager", link.name))
    if isinstance(manager, LinkManager):
        raise Refused(
            f"{ref}: uplink {link.name} carries {what} and is configured by {manager.by}, which would put it back; "
            "it is left alone",
            hint=f"to give it to kvmd: {manager.hint}",
        )
    leased = [address.cidr for address in link.addresses if not address.permanent and address.scope == "global"]
    if leased and not dynamic:
        raise Refused(
            f"{ref}: uplink {link.name} has {', '.join(leased)} from somebody who renews it there (DHCP or router "
            "advertisements); on the bridge it would end with its lifetime",
            hint="write addresses: {from: Static, static: […], gateway: …}, or dynamic: Move where the client of the "
            "lease will follow",
        )


def carrier_of(ref: Ref, uplinks: Sequence[Link]) -> Link | None:
    """The one uplink that carries something."""
    found = [link for link in uplinks if carries(link)]
    if len(found) > 1:
        names = ", ".join(link.name for link in found)
        raise Refused(
            f"{ref}: {names} all carry addresses, and one bridge cannot stand for several networks",
            hint="write one of them as the uplink, and a bridge of its own for each other",
        )
    return found[0] if found else None


def is_risky(operations: Sequence[ops.Op], bridge: Link | None, uplinks: Sequence[Link]) -> bool:
    """True where these operations could cut the host off: what is merely added or marked cannot."""
    if any(isinstance(operation, ops.AddressesMove) for operation in operations):
        return True
    if bridge is None or not carries(bridge) or not any(link.master == bridge.name for link in uplinks):
        return False
    names = {bridge.name, *(link.name for link in uplinks)}
    return any(
        isinstance(operation, ops.AddressDelete | ops.RouteDelete)
        or (isinstance(operation, ops.LinkSet) and operation.name in names and _touches(operation))
        for operation in operations
    )


def _touches(operation: ops.LinkSet) -> bool:
    values = (operation.mac, operation.mtu, operation.master, operation.rename)
    return bool(operation.settings or operation.port_settings) or any(value is not None for value in values)


def rejected(ref: Ref, spec_hash: str, look: Look) -> Condition | None:
    """The condition of an object whose change was rolled back, until its spec changes or somebody approves it."""
    fact = look.fact(Key("checkpoint", str(ref)))
    if not isinstance(fact, Checkpoint) or fact.spec_hash != spec_hash or fact.state == "armed":
        return None
    if look.memory(ref).approved_hash == spec_hash:
        return None
    text = f"the change was rolled back and is not tried again until its spec changes: {fact.why}"
    return Condition(STALLED, True, "RolledBack", f"{text}; to try the same again: kvmd approve {ref}")


def home_of(
    bridge: Link, written: Mapping[str, Any], names: Sequence[str], look: Look, going: bool = False
) -> Link | None:
    """The port that gets back what the bridge carries: the one whose MAC the bridge has, else the first.

    From a bridge that is *going*, what others set there, too.
    """
    addresses = written.get("addresses", {})
    ours = addresses.get("from") == "Uplink" or any(route.to == "default" for route in bridge.routes)
    ours |= going and not {*addresses_of(bridge)} <= {*normal_addresses(addresses.get("static", ()))}
    ports = [link for name in names if (link := link_of(look, Key("link", name))) and link.master == bridge.name]
    if not ours or not ports or not carries(bridge):
        return None
    return next((port for port in ports if port.mac == bridge.mac), ports[0])
