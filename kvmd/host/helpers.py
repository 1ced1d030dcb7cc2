"""Programs and files beside QEMU that some machines need: which of them this host lacks."""

from __future__ import annotations

import glob
import os
import shutil

# https://libvirt.org/formatdomain.html#bios-bootloader: where packages of firmware describe it.
_FIRMWARE = ("/usr/share/qemu/firmware", "/etc/qemu/firmware")
# https://www.qemu.org/docs/master/interop/vhost-user.html#backend-program-conventions
_VHOST_USER = ("/usr/share/qemu/vhost-user", "/etc/qemu/vhost-user")
# Where distributions have QEMU's modules. A QEMU that was built without modules has no such folder.
_MODULES = ("/usr/lib/*/qemu", "/usr/lib/qemu", "/usr/lib64/qemu")


def lacking() -> tuple[str, ...]:
    """``swtpm`` for a TPM, ``ovmf`` for UEFI, ``virtiofsd`` for shares, ``spice``: those that are not here."""
    found = {
        "swtpm": all(shutil.which(name) for name in ("swtpm", "swtpm_setup")),
        "ovmf": any(_descriptors(folder) for folder in _FIRMWARE),
        "virtiofsd": any("virtiofsd" in name for folder in _VHOST_USER for name in _descriptors(folder)),
        "spice": _has_spice(),
    }
    return tuple(name for name, here in found.items() if not here)


def _has_spice() -> bool:
    """libvirt believes in SPICE whether its module is there or not, and QEMU then fails to start."""
    modules = {os.path.basename(file) for folder in _MODULES for file in glob.iglob(f"{folder}/*.so")}
    return not modules or "ui-spice-core.so" in modules


def _descriptors(folder: str) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if name.endswith(".json")]
    except OSError:
        return []
