"""What a host lacks for a machine, and machine types that grow old under a guest that is pinned to one."""

from __future__ import annotations

from kvmd.api.status import BLOCKED, DEGRADED, Condition
from kvmd.kinds.virtual_machine.spec import Spec
from kvmd.observed import Domain
from kvmd.observed.helpers import HELPERS
from kvmd.plan.look import Look


def lacking(spec: Spec, look: Look) -> tuple[str, ...]:
    """What it needs beside QEMU and this host has not."""
    screen = spec.devices.graphics
    needed = {
        "spice": screen is not None and screen.type == "spice",
        "swtpm": spec.devices.tpm is not None,
        "virtiofsd": any(share.type == "virtiofs" for share in spec.filesystems),
        "ovmf": spec.firmware is not None and spec.firmware.type == "efi",
    }
    return tuple(name for name in look.host().lacking if needed.get(name))


def is_gone(machine: str, look: Look) -> bool:
    """True where this QEMU no longer has that machine type."""
    return bool(look.host().machine_types) and _deprecated(machine, look) is None


def _deprecated(machine: str, look: Look) -> bool | None:
    """None for a type that this QEMU does not have."""
    return next((old for name, old in look.host().machine_types if name == machine), None)


def conditions(spec: Spec, domain: Domain | None, machine: str, look: Look) -> tuple[Condition, ...]:
    """Say it before the next start fails."""
    type_ = DEGRADED if domain is not None and domain.active else BLOCKED
    found = []
    for name in lacking(spec, look):
        helper = HELPERS[name]
        text = f"it cannot start: this host has no {helper.words}; type: apt-get install {helper.package}"
        found.append(Condition(type_, True, "HelperMissing", text))
    if is_gone(machine, look):
        text = f"it cannot start: this QEMU has no machine {machine} any more; write `machine: q35` for the newest"
        found.append(Condition(type_, True, "MachineGone", text))
    elif _deprecated(machine, look):
        text = (
            f"{machine} is deprecated and will go from QEMU; write `machine: q35` for the newest with the next boot"
        )
        found.append(Condition(DEGRADED, True, "MachineDeprecated", text))
    return tuple(found)
