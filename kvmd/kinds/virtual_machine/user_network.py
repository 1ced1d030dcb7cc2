"""NICs without a link of the host: QEMU itself, or passt, speaks for the guest."""

from __future__ import annotations

from kvmd.api.resource import Ref
from kvmd.api.status import DEGRADED, Condition
from kvmd.errors import Unsupported
from kvmd.kinds.virtual_machine.nic import Interface, UserNetwork
from kvmd.plan.look import Look

PASST = "passt"
LIMITS = "TCP and UDP only (no ICMP), and nobody reaches the guest but by its portForward"


def attachment_of(nic: Interface, ref: Ref, look: Look) -> str:
    """``user:``, ``user:passt``, or ``user:tcp/8022/22``, which is passt too; raises where this host cannot."""
    user = nic.user
    assert user is not None
    backend = _backend(user)
    if backend not in look.host().user_backends:
        raise Unsupported(f"{ref}: interface {nic.name} {_why_not(user, backend)}", hint=_hint(user, backend))
    ports = ",".join(f"{item.protocol}/{item.host}/{item.guest}" for item in user.port_forward)
    return f"user:{ports or (PASST if backend == PASST else '')}"


def _backend(user: UserNetwork) -> str:
    """libvirt forwards no port with slirp: 9.0 says nothing of it, 11.3 refuses."""
    return (PASST if user.port_forward else "slirp") if user.backend == "auto" else user.backend


def _why_not(user: UserNetwork, backend: str) -> str:
    if backend == PASST:
        reason = "asks for portForward, which needs passt" if user.port_forward else "asks for passt"
        return f"{reason}: it is not installed here, or this libvirt cannot start it (Debian 12's cannot)"
    return "asks for slirp, which this QEMU was built without"


def _hint(user: UserNetwork, backend: str) -> str:
    if backend == PASST:
        change = "take portForward out" if user.port_forward else "write `backend: auto`"
        return f"apt-get install passt (Debian 13) and restart kvmd; or {change}, or attach the NIC to a Network"
    return "write `backend: passt`, or attach the NIC to a Network"


def told(interfaces: tuple[Interface, ...]) -> tuple[Condition, ...]:
    """What such a NIC cannot do; it is no fault, so the condition is False."""
    names = [nic.name for nic in interfaces if nic.user is not None]
    return (Condition(DEGRADED, False, "UserModeNetwork", f"{', '.join(names)}: {LIMITS}"),) if names else ()
