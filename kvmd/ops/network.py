"""What can be done to a network of libvirt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from kvmd.ops.base import Impact, Op


@dataclass(frozen=True, slots=True)
class NetworkDefine(Op):
    """Write the persistent definition of a network (mark included).

    *base* is the definition that *xml* was made from: where libvirt has another one by now, nothing is written.
    """

    uuid: str
    xml: str = field(repr=False)
    base: str = field(default="", repr=False)
    creates: bool = False
    verb: ClassVar[str] = "define network"


@dataclass(frozen=True, slots=True)
class NetworkStart(Op):
    """Start a network and put the TAPs of running guests back on its bridge."""

    uuid: str
    bridge: str
    taps: tuple[str, ...] = ()
    verb: ClassVar[str] = "start network"


@dataclass(frozen=True, slots=True)
class NetworkRestart(Op):
    """Destroy and start a network, then re-plug the TAPs of *guests* in one batch."""

    uuid: str
    bridge: str
    taps: tuple[str, ...] = ()
    guests: tuple[str, ...] = ()
    impact: ClassVar[Impact] = Impact.BLIP
    verb: ClassVar[str] = "restart network"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"restart network {self.name}" + (f" ({blip_of(self.guests)})" if self.guests else "")


def blip_of(guests: tuple[str, ...]) -> str:
    """Who notices that a network is started anew."""
    return f"network blip: {len(guests)} VM{'s' * (len(guests) != 1)}: {', '.join(guests)}"


@dataclass(frozen=True, slots=True)
class NetworkStop(Op):
    """Stop a network."""

    uuid: str
    impact: ClassVar[Impact] = Impact.BLIP
    verb: ClassVar[str] = "stop network"


@dataclass(frozen=True, slots=True)
class NetworkUndefine(Op):
    """Remove the definition of a network."""

    uuid: str
    verb: ClassVar[str] = "undefine network"


@dataclass(frozen=True, slots=True)
class NetworkUpdate(Op):
    """Change one entry of a network, in the definition and, where it runs, at once."""

    uuid: str
    section: str  # dhcp-host | dhcp-range | dns-host | dns-txt | dns-srv | portgroup | forward-interface
    command: str  # add | delete | modify
    xml: str
    parent_index: int = -1  # which subnet, of DHCP
    live: bool = False
    config: bool = False
    verb: ClassVar[str] = "update network"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"{self.command} {self.section} {self.xml} of network {self.name}"


@dataclass(frozen=True, slots=True)
class NetworkRepair(Op):
    """Put back what forwarding of a network needs and somebody took away."""

    uuid: str
    switches: tuple[str, ...] = ()  # of the kernel, as sysctl names them
    jumps: tuple[tuple[str, str, str], ...] = ()  # table, chain, libvirt's that it should jump to, of both versions
    table: bool = False  # libvirt's own of nftables, too
    rules: bool = False
    verb: ClassVar[str] = "repair forwarding of network"

    def describe(self) -> str:
        """What a plan says of it."""
        parts = [f"{name}=1" for name in self.switches] + ["firewall rules"] * self.rules
        return f"{self.verb} {self.name}: {', '.join(parts)}"


@dataclass(frozen=True, slots=True)
class NetworkSetAutostart(Op):
    """Switch libvirt's own autostart of a network."""

    uuid: str
    enabled: bool = False
    verb: ClassVar[str] = "switch autostart of network"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"{self.verb} {self.name} {'on' if self.enabled else 'off'}"
