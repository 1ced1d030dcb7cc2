"""Programs and files beside QEMU that some machines need: which of them this host lacks."""

from __future__ import annotations

import os
import shutil

# https://libvirt.org/formatdomain.html#bios-bootloader: where packages of firmware describe it.
_FIRMWARE = ("/usr/share/qemu/firmware", "/etc/qemu/firmware")


def lacking() -> tuple[str, ...]:
    """``swtpm`` for a TPM, ``ovmf`` for UEFI: those that are not here."""
    found = {
        "swtpm": all(shutil.which(name) for name in ("swtpm", "swtpm_setup")),
        "ovmf": any(_holds_descriptors(folder) for folder in _FIRMWARE),
    }
    return tuple(name for name, here in found.items() if not here)


def _holds_descriptors(folder: str) -> bool:
    try:
        return any(name.endswith(".json") for name in os.listdir(folder))
    except OSError:
        return False
