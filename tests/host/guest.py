"""The kernel and initramfs of the small guest that tests boot, built once per machine by deploy/guest/build.sh."""

from __future__ import annotations

import functools
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

BUILD = Path(__file__).resolve().parents[2] / "deploy" / "guest" / "build.sh"

# The console is the guest's only voice; the rest saves half a second of boot under TCG.
ARGS = "console=ttyS0 quiet tsc=reliable no_timer_check mitigations=off"


@dataclass(frozen=True)
class GuestFiles:
    """Where the guest's files lie."""

    kernel: str
    initrd: str
    release: str  # version of the kernel's package


@functools.cache
def guest_files() -> GuestFiles:
    """Build the guest where it is not yet (10 s, downloads two packages) and say where it lies."""
    directory = Path(os.environ.get("KVMD_GUEST_DIR", "/var/tmp/kvmd-guest"))
    done = subprocess.run([str(BUILD), str(directory)], capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.fail(f"the guest could not be built: {done.stderr.strip()}", pytrace=False)
    stamp = (directory / "stamp").read_text().splitlines()
    release = next(line.partition(": ")[2] for line in stamp if line.startswith("Version: "))
    return GuestFiles(str(directory / "vmlinuz"), str(directory / "initrd.img"), release)
