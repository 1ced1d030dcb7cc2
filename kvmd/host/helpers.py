"""Programs and files beside QEMU that some machines need: which of them this host lacks."""

from __future__ import annotations

import os
import shutil

# https://libvirt.org/formatdomain.html#bios-bootloader: where packages of firmware describe it.
_FIRMWARE = ("/usr/share/qemu/firmware", "/etc/qemu/firmware")
# https://www.qemu.org/docs/master/interop/vhost-user.html#backend-program-conventions
_VHOST_USER = ("/usr/share/qemu/vhost-user", "/etc/qemu/vhost-user")


def lacking() -> tuple[str, ...]:
    """``swtpm`` for a TPM, ``ovmf`` for UEFI, ``virtiofsd`` for shares: those that are not here."""
    found = {
        "swtpm": all(shutil.which(name) for name in ("swtpm", "swtpm_setup")),
        "ovmf": any(_descriptors(folder) for folder in _FIRMWARE),
        "virtiofsd": any("virtiofsd" in name for folder in _VHOST_USER for name in _descriptors(folder)),
    }
    return tuple(name for name, here in found.items() if not here)


def _descriptors(folder: str) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if name.endswith(".json")]
    except OSError:
        return []
