"""Facts about networks of libvirt: who has which address in them, and what lets packets by. Part of observed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from kvmd.api.mark import Mark


class Lease(NamedTuple):
    """An address that a guest was given; *name* is what it calls itself."""

    address: str
    mac: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Leases:
    """The leases of the network that has that bridge."""

    bridge: str
    leases: tuple[Lease, ...] = ()


@dataclass(frozen=True, slots=True)
class Forwarding:
    """What decides over packets between links: switches of the kernel, and rules that have to do with networks."""

    ipv4: bool
    ipv6: bool
    bridged: bool = False  # frames within a bridge pass the firewall, too
    drops: bool = False  # the firewall's FORWARD policy is DROP
    # Table and rule as iptables writes it, after ``ip6`` those of ip6tables; ``nft`` or ``nft6``, chain and rule of
    # libvirt's own tables.
    rules: tuple[str, ...] = ()
    bridged_ipv6: bool = False
    drops_ipv6: bool = False
    backend: str = "iptables"  # or nftables: what libvirt writes its rules with
    astray: tuple[tuple[str, str], ...] = ()  # bridges with a strict rp_filter, and the link that answers leave by


@dataclass(frozen=True, slots=True)
class Network:
    """A network of libvirt."""

    name: str
    uuid: str
    active: bool
    config: str | None
    live: str | None
    autostart: bool = False
    bridge: str = ""  # of the running self, else of the definition
    mark: Mark | None = None
    start_mark: Mark | None = None  # of the running self: what it was started with

    @property
    def run(self) -> str:
        """What tells this run of it from the next with another definition; "" where it was started without a mark."""
        mark = self.start_mark
        return "" if mark is None else f"{mark.generation}:{mark.spec_hash[:16]}"
