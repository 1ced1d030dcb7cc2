"""The host preflight as data: everything that kvmd needs of a host, what was found, why it matters and what to type.

Nothing here changes the host. What can only be known by doing it (does KVM really run a program, can a bridge be
made) is done in a process of its own, in its own network namespace and under a time limit.
"""

from __future__ import annotations

from collections.abc import Callable

from kvmd.host.preflight import kernel, software
from kvmd.host.preflight.kernel import lacking_links, usable_kvm
from kvmd.host.preflight.tools import Check, Status

__all__ = ["Check", "Status", "lacking_links", "run_checks", "usable_kvm"]


def run_checks(uri: str) -> tuple[Check, ...]:
    """Every check, in the order in which to put things right; *uri* is libvirt's. Takes about 1 s, at most 30 s."""
    checks: tuple[Callable[[], Check | tuple[Check, ...]], ...] = (
        kernel.cpu_virtualisation,
        kernel.kvm_modules,
        kernel.kvm_device,
        kernel.kvm_usable,
        kernel.kvm_nested,
        kernel.links,
        software.qemu,
        software.block_drivers,
        lambda: software.libvirt(uri),
        software.libvirt_guests,
        software.dnsmasq,
        software.virtiofsd,
        software.spice,
        kernel.firewall_tool,
        kernel.forwarding,
        kernel.iommu,
        kernel.apparmor,
        kernel.cgroup,
        kernel.disk_space,
        kernel.machine_id,
    )
    return tuple(check for ask in checks for check in _answers(ask))


def _answers(ask: Callable[[], Check | tuple[Check, ...]]) -> tuple[Check, ...]:
    """One check must not take the others with it."""
    try:
        answer = ask()
    except Exception as error:
        name = getattr(ask, "__name__", "check").replace("_", "-").replace("<lambda>", "libvirt")
        return (
            Check(name, "warn", f"could not be checked: {error!r}", "kvmd check itself failed here", "kvmd check"),
        )
    return answer if isinstance(answer, tuple) else (answer,)
