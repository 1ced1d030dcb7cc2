"""Whether the guest agent answers: libvirt notes it in the running self, so nobody has to ask the guest."""

from __future__ import annotations

import re
from typing import Any

from kvmd.kinds.virtual_machine.devices import AGENT_CHANNEL
from kvmd.observed import Domain

_STATE = re.compile(rf"<target\b(?=[^>]*\bname=['\"]{re.escape(AGENT_CHANNEL)}['\"])[^>]*\bstate=['\"](\w+)['\"]")


def is_connected(domain: Domain | None) -> bool:
    """True while an agent in the guest holds its channel open."""
    return _state(domain) == "connected"


def status_of(domain: Domain | None) -> dict[str, Any]:
    """connected or disconnected, of a running machine that has the channel."""
    state = _state(domain)
    return {"guestAgent": state} if state else {}


def _state(domain: Domain | None) -> str:
    match = _STATE.search(domain.live) if domain is not None and domain.live is not None else None
    return match[1] if match else ""
