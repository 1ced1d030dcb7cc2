"""Whether the guest agent answers, and what it says of its guest: nothing here asks it."""

from __future__ import annotations

from typing import Any

from kvmd.observed import Domain, GuestWords, Key
from kvmd.plan.look import Look


def status_of(domain: Domain | None, look: Look) -> dict[str, Any]:
    """connected or disconnected, of a running machine that has the channel; and what its agent says."""
    if domain is None or not domain.agent:
        return {}
    words = words_of(domain, look)
    found: dict[str, Any] = {"guestAgent": domain.agent}
    if words is not None:
        said = {"hostName": words.host_name, "os": words.system, "kernel": words.kernel}
        found["guestSays"] = {key: value for key, value in said.items() if value}
    return found


def words_of(domain: Domain | None, look: Look) -> GuestWords | None:
    """What the agent said last."""
    if domain is None or domain.agent != "connected":
        return None
    fact = look.fact(Key("guest", domain.name))
    return fact if isinstance(fact, GuestWords) else None


def addresses_of(mac: str, words: GuestWords | None) -> list[str]:
    """The addresses that it says its NIC with that MAC has."""
    nics = words.nics if words is not None else ()
    return [address for nic in nics if nic.mac == mac.lower() for address in nic.addresses]
