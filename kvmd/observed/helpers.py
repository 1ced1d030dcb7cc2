"""What some machines need beside QEMU, by the names that the host's fact has for what it lacks. Part of observed."""

from __future__ import annotations

from typing import NamedTuple


class Helper(NamedTuple):
    """How people are told of it, and what they install (Debian 13; in brackets what it is part of before)."""

    words: str
    package: str


HELPERS = {
    "swtpm": Helper("swtpm", "swtpm swtpm-tools"),
    "ovmf": Helper("ovmf", "ovmf"),
    "virtiofsd": Helper("virtiofsd", "virtiofsd (Debian 12: qemu-system-common)"),
    "spice": Helper("QEMU module for SPICE", "qemu-system-modules-spice (Debian 12: qemu-system-common)"),
}
