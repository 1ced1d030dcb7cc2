"""What can be done to a host, as frozen data; ``kvmd.host`` alone carries it out.

Each operation says what it costs the guests (its impact) and describes itself in the words of a plan.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import ClassVar

from kvmd.api.mark import Mark


class Impact(IntEnum):
    """What an operation costs the guests on this host, cheapest first."""

    NONE = 0
    BLIP = 1
    RESTART = 2
    DATA_LOSS = 3

    @property
    def word(self) -> str:
        """The word that plans and JSON use."""
        return ("none", "blip", "restart", "data loss")[self]


@dataclass(frozen=True, slots=True)
class Op:
    """An operation: *name* on the host is its object."""

    name: str
    impact: ClassVar[Impact] = Impact.NONE
    verb: ClassVar[str] = "change"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"{self.verb} {self.name}"


# ---------------------------------------------------------------------------------------------- domains


@dataclass(frozen=True, slots=True)
class DomainDefine(Op):
    """Write the persistent definition (mark included); it never touches the running guest."""

    uuid: str
    xml: str = field(repr=False)
    creates: bool = False
    verb: ClassVar[str] = "define domain"


@dataclass(frozen=True, slots=True)
class DomainStart(Op):
    """Boot a defined domain."""

    uuid: str
    verb: ClassVar[str] = "start domain"


@dataclass(frozen=True, slots=True)
class DomainResume(Op):
    """Let a paused guest run on."""

    uuid: str
    verb: ClassVar[str] = "resume domain"


@dataclass(frozen=True, slots=True)
class DomainShutdown(Op):
    """Ask the guest to power off, by *methods* in order; success of the call is not success."""

    uuid: str
    methods: tuple[str, ...] = ("agent", "acpi")
    restart: bool = False  # it is to be started again afterwards
    impact: ClassVar[Impact] = Impact.RESTART
    verb: ClassVar[str] = "shut down domain"


@dataclass(frozen=True, slots=True)
class DomainDestroy(Op):
    """Pull the plug."""

    uuid: str
    reason: str = ""
    impact: ClassVar[Impact] = Impact.RESTART
    verb: ClassVar[str] = "force off domain"


@dataclass(frozen=True, slots=True)
class DomainUndefine(Op):
    """Remove the definition; disks stay, NVRAM and TPM state stay."""

    uuid: str
    verb: ClassVar[str] = "undefine domain"


@dataclass(frozen=True, slots=True)
class DomainSetVcpus(Op):
    """Give a running guest more virtual CPUs."""

    uuid: str
    count: int
    verb: ClassVar[str] = "set live vcpus of domain"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"{self.verb} {self.name} to {self.count}"


@dataclass(frozen=True, slots=True)
class DomainSetMemory(Op):
    """Move the balloon of a running guest; *size* in bytes."""

    uuid: str
    size: int
    verb: ClassVar[str] = "set live memory of domain"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"{self.verb} {self.name} to {self.size // 2**20} MiB"


@dataclass(frozen=True, slots=True)
class DomainAttach(Op):
    """Plug into the running guest the device that its definition holds under *alias*."""

    uuid: str
    alias: str
    verb: ClassVar[str] = "attach device to domain"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"attach {self.alias} to domain {self.name}"


@dataclass(frozen=True, slots=True)
class DomainDetach(Op):
    """Ask the running guest to let go of a device; *xml* names it where it has no alias of ours."""

    uuid: str
    alias: str
    xml: str = field(default="", repr=False)
    verb: ClassVar[str] = "detach device from domain"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"detach {self.alias} from domain {self.name}"


@dataclass(frozen=True, slots=True)
class DomainUpdateDevice(Op):
    """Make a live device (CD-ROM media, NIC link or attachment) what *xml* says."""

    uuid: str
    alias: str
    xml: str = field(repr=False)
    verb: ClassVar[str] = "update device of domain"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"update {self.alias} of running domain {self.name}"


@dataclass(frozen=True, slots=True)
class DomainSetMark(Op):
    """Write (None: take off) the mark, in the definition and, where *live*, in the running self."""

    uuid: str
    mark: Mark | None
    live: bool = False
    verb: ClassVar[str] = "mark domain"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"{'take over' if self.mark else 'let go of'} domain {self.name}"


@dataclass(frozen=True, slots=True)
class DomainSetAutostart(Op):
    """Switch libvirt's own autostart; kvmd owns booting, so on what it manages it is off."""

    uuid: str
    enabled: bool = False
    verb: ClassVar[str] = "switch autostart of domain"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"{self.verb} {self.name} {'on' if self.enabled else 'off'}"


# --------------------------------------------------------------------------------------------- networks


@dataclass(frozen=True, slots=True)
class NetworkDefine(Op):
    """Write the persistent definition of a network (mark included)."""

    uuid: str
    xml: str = field(repr=False)
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
        count = len(self.guests)
        blip = f" (network blip: {count} VM{'s' * (count != 1)}: {', '.join(self.guests)})" if count else ""
        return f"restart network {self.name}{blip}"


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
    """Change one DHCP host or range of a network, in the definition and, where it runs, at once."""

    uuid: str
    section: str  # dhcp-host | dhcp-range
    command: str  # add | delete | modify
    xml: str
    parent_index: int = 0
    live: bool = False
    config: bool = False
    verb: ClassVar[str] = "update network"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"{self.command} {self.section} {self.xml} of network {self.name}"


@dataclass(frozen=True, slots=True)
class NetworkSetAutostart(Op):
    """Switch libvirt's own autostart of a network."""

    uuid: str
    enabled: bool = False
    verb: ClassVar[str] = "switch autostart of network"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"{self.verb} {self.name} {'on' if self.enabled else 'off'}"


# ------------------------------------------------------------------------------------------------ links


@dataclass(frozen=True, slots=True)
class LinkOp(Op):
    """An operation on the kernel's links; those of one plan that belong together go out as one batch.

    Where *index* is not 0 the link must still have that index, else the operation is stale; 0 means the link
    that an earlier operation of the same batch creates, else the one of that name.
    """


@dataclass(frozen=True, slots=True)
class BridgeCreate(LinkOp):
    """Create and mark a bridge, down; it comes up after its ports are in."""

    alias: str
    mac: str = ""
    mtu: int | None = None
    stp: bool = False
    forward_delay_seconds: float | None = None
    verb: ClassVar[str] = "create bridge"


@dataclass(frozen=True, slots=True)
class TapCreate(LinkOp):
    """Create and mark a persistent TAP or TUN, crash-atomically."""

    alias: str
    mode: str = "tap"  # tap | tun
    owner: int | None = None
    group: int | None = None
    multi_queue: bool = False
    verb: ClassVar[str] = "create"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"create {self.mode} {self.name}"


@dataclass(frozen=True, slots=True)
class TapOwner(LinkOp):
    """Change owner and group of a TAP or TUN that nobody holds."""

    index: int
    mode: str = "tap"
    owner: int | None = None
    group: int | None = None
    multi_queue: bool = False
    verb: ClassVar[str] = "set owner of"

    def describe(self) -> str:
        """What a plan says of it."""
        owner = "root only" if self.owner is None else f"user {self.owner}"
        return f"{self.verb} {self.name}: {owner}" + ("" if self.group is None else f", group {self.group}")


@dataclass(frozen=True, slots=True)
class LinkSet(LinkOp):
    """Change attributes of a link; None leaves one alone. *master* "" releases it from its bridge.

    *index* 0 means: the link that an earlier operation of the same batch creates.
    """

    index: int = 0
    alias: str | None = None
    mac: str | None = None
    mtu: int | None = None
    up: bool | None = None
    master: str | None = None
    stp: bool | None = None
    forward_delay_seconds: float | None = None
    port_mark: str | None = None  # altname that says: kvmd put this port, which is not ours, there
    verb: ClassVar[str] = "set link"

    def describe(self) -> str:
        """What a plan says of it."""
        words = {
            "master": f"port of {self.master}" if self.master else "no longer a port",
            "up": "up" if self.up else "down",
            "mtu": f"MTU {self.mtu}",
            "mac": f"MAC {self.mac}",
            "stp": f"STP {'on' if self.stp else 'off'}",
            "forward_delay_seconds": f"forward delay {self.forward_delay_seconds or 0:g} s",
            "alias": "mark" if self.alias else "no mark",
        }
        parts = [word for name, word in words.items() if getattr(self, name) is not None]
        return f"set link {self.name}: {', '.join(parts) or 'mark of the port'}"


@dataclass(frozen=True, slots=True)
class LinkDelete(LinkOp):
    """Delete a link by the index that was just seen, only if it still carries *alias*.

    What libvirt left behind carries none: then *mac*, which libvirt drew for it, says whose it is.
    """

    index: int
    alias: str
    mac: str = ""
    verb: ClassVar[str] = "delete link"


@dataclass(frozen=True, slots=True)
class AddressAdd(LinkOp):
    """Add an address to a link."""

    index: int
    cidr: str
    verb: ClassVar[str] = "add address to"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"add address {self.cidr} to {self.name}"


@dataclass(frozen=True, slots=True)
class AddressDelete(LinkOp):
    """Remove an address from a link; *keep* are those that must be there afterwards."""

    index: int
    cidr: str
    keep: tuple[str, ...] = ()
    verb: ClassVar[str] = "remove address from"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"remove address {self.cidr} from {self.name}"


@dataclass(frozen=True, slots=True)
class RouteAdd(LinkOp):
    """Add (or replace) a route through a link."""

    index: int
    to: str
    via: str = ""
    metric: int = 0
    verb: ClassVar[str] = "add route to"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"add route {self.to} through {self.name}{_way(self.via, self.metric)}"


@dataclass(frozen=True, slots=True)
class RouteDelete(LinkOp):
    """Remove a route through a link."""

    index: int
    to: str
    via: str = ""
    metric: int = 0
    verb: ClassVar[str] = "remove route from"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"remove route {self.to} through {self.name}{_way(self.via, self.metric)}"


def _way(via: str, metric: int) -> str:
    return (f" via {via}" if via else "") + (f" metric {metric}" if metric else "")


# ----------------------------------------------------------------------------------------------- ledger


@dataclass(frozen=True, slots=True)
class LedgerWrite(Op):
    """Record a one-shot act, fsynced, before or after it happens."""

    entry: str  # once | last_stop | balloon | suspended | removed | forget
    value: str = ""
    verb: ClassVar[str] = "record"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"record {self.entry}={self.value} of {self.name}"
