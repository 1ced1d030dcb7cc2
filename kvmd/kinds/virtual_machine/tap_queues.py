"""NICs on TAPs that were made before: both have one queue or both several, or QEMU cannot open the TAP."""

from __future__ import annotations

from kvmd import ops
from kvmd.api.resource import Ref
from kvmd.kinds.virtual_machine.domain import ALIAS_NIC, State
from kvmd.kinds.virtual_machine.nic import Interface
from kvmd.kinds.virtual_machine.spec import Spec
from kvmd.observed import Key, Link
from kvmd.plan.look import Look


def unready(operation: ops.Op, spec: Spec, config: State | None, look: Look) -> tuple[str, ...]:
    """Why the TAPs that an operation would open do not suit their NICs."""
    nics = [nic for nic in spec.interfaces if nic.tap] if _opens(operation) else []
    if isinstance(operation, ops.DomainAttach):
        nics = [nic for nic in nics if operation.alias == ALIAS_NIC + nic.name]
    return tuple(why for nic in nics if (why := _why_not(nic, config, look)))


def ready(spec: Spec, config: State | None, look: Look) -> bool:
    """True where every TAP suits its NIC."""
    return not any(nic.tap and _why_not(nic, config, look) for nic in spec.interfaces)


def _opens(operation: ops.Op) -> bool:
    return isinstance(operation, ops.DomainStart | ops.DomainAttach)


def _why_not(nic: Interface, config: State | None, look: Look) -> str:
    name = look.key(Ref("Tap", str(nic.tap))).name
    link = look.fact(Key("link", name))
    kept = next((item.queues for item in config.interfaces if item.name == nic.name), None) if config else None
    queues = nic.queues or kept or 1  # what nobody writes is what the definition has
    if not isinstance(link, Link) or link.multi_queue == (queues > 1):
        return ""
    if link.multi_queue:
        cure = "write `queues: 2` there, or take `multiQueue` of the Tap out"
        return f"TAP {name}, which has several queues, and interface {nic.name} one ({cure})"
    cure = "write `multiQueue: true` at the Tap, or take `queues` out"
    return f"TAP {name}, which has one queue, and interface {nic.name} asks for {queues} ({cure})"
