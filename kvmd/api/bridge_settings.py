"""The settings of a bridge and of its ports: how specs say them, and how the kernel counts them.

A number that the kernel has is in the kernel's unit: times in clock ticks (1/100 s, USER_HZ), switches as 0 and 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

USER_HZ: Final = 100  # clock ticks a second in everything that the kernel says to programs, whatever its own HZ

Numbers = tuple[tuple[str, int], ...]  # kernel name and number


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its leaf in specs, its name for the kernel, and what the kernel makes it unasked."""

    leaf: str
    kernel: str
    words: str
    default: int | None  # the kernel's, in its unit; None where it depends on the link
    unit: int = 0  # of the kernel's in one of the spec's; 0 for a switch

    def number(self, value: int | bool) -> int:
        """What the kernel would call that."""
        return int(value) * (self.unit or 1)

    def value(self, number: int) -> int | float | bool:
        """What a spec would call that."""
        if not self.unit:
            return bool(number)
        return number / self.unit if number % self.unit else number // self.unit

    def describe(self, number: int) -> str:
        """What a plan says of it."""
        if not self.unit:
            return f"{self.words} {'on' if number else 'off'}"
        return f"{self.words} {self.value(number):g}{' s' if self.unit == USER_HZ else ''}"


BRIDGE: Final = (
    Setting("stp", "stp_state", "STP", 0),  # first: the kernel judges the forward delay by it
    Setting("priority", "priority", "STP priority", 32768, 1),
    Setting("forwardDelaySeconds", "forward_delay", "forward delay", 15 * USER_HZ, USER_HZ),
    Setting("helloTimeSeconds", "hello_time", "hello time", 2 * USER_HZ, USER_HZ),
    Setting("maxAgeSeconds", "max_age", "max age", 20 * USER_HZ, USER_HZ),
    Setting("ageingTimeSeconds", "ageing_time", "ageing time", 300 * USER_HZ, USER_HZ),
    Setting("groupForwardMask", "group_fwd_mask", "group forward mask", 0, 1),
    Setting("multicastSnooping", "mcast_snooping", "multicast snooping", 1),
    Setting("multicastQuerier", "mcast_querier", "multicast querier", 0),
    Setting("defaultPvid", "vlan_default_pvid", "default PVID", 1, 1),
    Setting("vlanFiltering", "vlan_filtering", "VLAN filtering", 0),
)
PORT: Final = (
    Setting("cost", "cost", "path cost", None, 1),  # by the speed of the link
    Setting("priority", "priority", "port priority", 32, 1),
    Setting("learning", "learning", "learning", 1),
    Setting("flood", "flood", "flooding", 1),
    Setting("multicastFlood", "mcast_flood", "multicast flooding", 1),
    Setting("broadcastFlood", "bcast_flood", "broadcast flooding", 1),
    Setting("isolated", "isolated", "isolation", 0),
    Setting("hairpin", "hairpin", "hairpin", 0),
    Setting("bpduGuard", "guard", "BPDU guard", 0),
    Setting("rootGuard", "root_block", "root guard", 0),
    Setting("fastLeave", "fastleave", "fast leave", 0),
)


def described(table: Sequence[Setting], numbers: Iterable[tuple[str, int]]) -> list[str]:
    """What a plan says of several."""
    by_name = {setting.kernel: setting for setting in table}
    return [by_name[name].describe(number) for name, number in numbers]
