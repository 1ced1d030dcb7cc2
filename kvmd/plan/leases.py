"""The addresses that guests were given by the DHCP of a libvirt network."""

from __future__ import annotations

from kvmd.observed import Key, Lease, Leases
from kvmd.plan.look import Look


def leases_on(bridge: str, look: Look) -> tuple[Lease, ...]:
    """The leases on the bridge of a network."""
    fact = look.fact(Key("leases", bridge)) if bridge else None
    return fact.leases if isinstance(fact, Leases) else ()


def addresses_of(mac: str, bridge: str, look: Look) -> list[str]:
    """The addresses of one NIC."""
    return [lease.address for lease in leases_on(bridge, look) if lease.mac == mac]
