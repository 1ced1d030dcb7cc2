"""What one call of libvirt tells of many domains at once, where else each would be asked by itself."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import libvirt

# Listing costs a hundredth of asking, but all domains are listed: it pays from so many on, and so large a share.
_LEAST = 8
_SHARE = 50


def worth_a_list(wanted: int, all_: int) -> bool:
    """True where listing all of them is cheaper than asking for each that is wanted."""
    return wanted > max(_LEAST, all_ // _SHARE)


@dataclass(frozen=True, slots=True)
class Bulk:
    """By UUID."""

    domains: Mapping[str, Any]
    states: Mapping[str, tuple[int, int]]
    transient: frozenset[str]
    autostart: frozenset[str]
    snapshots: frozenset[str]  # those that have any

    @classmethod
    def of(cls, connection: Any, wanted: Container[str] | None) -> Bulk:
        """Ask; of the *wanted* domains (None: all) the states, too."""
        domains = {domain.UUIDString(): domain for domain in connection.listAllDomains(0)}

        def listed(flag: int) -> frozenset[str]:
            return frozenset(domain.UUIDString() for domain in connection.listAllDomains(flag))

        return cls(
            domains,
            _states_of(connection, [domain for uuid, domain in domains.items() if wanted is None or uuid in wanted]),
            listed(libvirt.VIR_CONNECT_LIST_DOMAINS_TRANSIENT),
            listed(libvirt.VIR_CONNECT_LIST_DOMAINS_AUTOSTART),
            listed(libvirt.VIR_CONNECT_LIST_DOMAINS_HAS_SNAPSHOT),
        )


def _states_of(connection: Any, domains: list[Any]) -> dict[str, tuple[int, int]]:
    """State and reason of each; they need no monitor, so no stuck guest holds this up."""
    if not domains:
        return {}
    nowait = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
    try:
        found = connection.domainListGetStats(domains, libvirt.VIR_DOMAIN_STATS_STATE, nowait)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            raise
        return {}
    return {domain.UUIDString(): (told["state.state"], told["state.reason"]) for domain, told in found}
