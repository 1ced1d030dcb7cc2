"""Devices that a running guest is asked to let go of: it may take its time, or never answer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from kvmd import ops
from kvmd.api.status import DEGRADED, Condition
from kvmd.kinds.virtual_machine import filesystems, host_devices
from kvmd.kinds.virtual_machine.domain import ALIAS_DISK, ALIAS_NIC, State
from kvmd.kinds.virtual_machine.memory import ALIAS_DIMM
from kvmd.observed import Domain
from kvmd.xmlmap import Element

TRIES = 2  # after how many more times of asking people are told

_WORDS = {ALIAS_DISK: "the disk", ALIAS_NIC: "the interface", ALIAS_DIMM: "DIMM"}
_CURES = {
    ALIAS_DISK: "unmount it there, and load the hot-plug driver of its bus",
    ALIAS_NIC: "load the PCI hot-plug driver there",
    ALIAS_DIMM: "only memory that its kernel brought online as movable can go: memhp_default_state=online_movable",
}


def left_behind(root: Element, want: State) -> frozenset[str]:
    """Devices of ours that the guest has and nobody wants any more: the definition has lost them already."""
    groups: tuple[tuple[str, str, str, Iterable[Any]], ...] = (
        ("disk", ALIAS_DISK, "disks", want.disks),
        ("interface", ALIAS_NIC, "interfaces", want.interfaces),
        ("filesystem", filesystems.ALIAS, "filesystems", want.shares),
        ("hostdev", host_devices.ALIAS, "hostDevices", want.passed),
    )
    found = []
    for tag, prefix, where, devices in groups:
        wanted = {prefix + device.name for device in devices}
        names = {alias.get("name", "") for alias in root.findall(f"devices/{tag}/alias")}
        ours = (name for name in names - wanted if name.startswith(prefix))
        found += [f"{where}[{name.removeprefix(prefix)}]" for name in ours]
    return frozenset(found)


def was_asked(domain: Domain, alias: str) -> bool:
    """True where the definition has lost the device already: that is done just before the guest is asked."""
    return not re.search(rf"<alias name=['\"]{re.escape(alias)}['\"]", domain.config or "")


def unanswered(domain: Domain, operations: tuple[ops.Op, ...], fruitless: int) -> tuple[Condition, ...]:
    """Say which devices the guest keeps although it was asked again and again."""
    aliases = [operation.alias for operation in operations if isinstance(operation, ops.DomainDetach)]
    if fruitless < TRIES or not aliases:
        return ()
    prefix = next((prefix for prefix in _CURES if aliases[0].startswith(prefix)), "")
    names = ", ".join(_named(alias) for alias in aliases)
    cure = "it is paused, and answers when it runs again" if domain.state == "paused" else _CURES.get(prefix, "")
    text = f"the guest does not let go of {names} ({cure}); it is asked again, and the next start is without"
    return (Condition(DEGRADED, True, "DetachUnanswered", text),)


def _named(alias: str) -> str:
    prefix = next((prefix for prefix in _WORDS if alias.startswith(prefix)), "")
    return f"{_WORDS.get(prefix, '')} {alias.removeprefix(prefix)}".strip()
