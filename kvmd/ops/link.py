"""What can be done to links of the kernel: bridges, TAPs, TUNs, addresses and routes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvmd.api.bridge_settings import BRIDGE, PORT, Numbers, described
from kvmd.ops.base import Op


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
    settings: Numbers = ()  # as kvmd.api.bridge_settings names them, in the kernel's units
    verb: ClassVar[str] = "create bridge"

    def describe(self) -> str:
        """What a plan says of it."""
        words = ", ".join(described(BRIDGE, self.settings))
        return f"create bridge {self.name}" + (f": {words}" if words else "")


@dataclass(frozen=True, slots=True)
class TapCreate(LinkOp):
    """Create and mark a persistent TAP or TUN, crash-atomically."""

    alias: str
    mode: str = "tap"  # tap | tun
    owner: int | None = None
    group: int | None = None
    multi_queue: bool = False
    vnet_hdr: bool = True
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
    vnet_hdr: bool = True
    verb: ClassVar[str] = "set owner of"

    def describe(self) -> str:
        """What a plan says of it."""
        owner = "root only" if self.owner is None else f"user {self.owner}"
        more = ("" if self.group is None else f", group {self.group}") + (
            "" if self.vnet_hdr else ", no virtio header"
        )
        return f"{self.verb} {self.name}: {owner}{more}"


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
    settings: Numbers = ()  # of a bridge
    port_settings: Numbers = ()  # of a port, once it is one
    rename: str | None = None
    port_mark: str | None = None  # altname that says: kvmd put this port, which is not ours, there
    verb: ClassVar[str] = "set link"

    def describe(self) -> str:
        """What a plan says of it."""
        words = {
            "master": f"port of {self.master}" if self.master else "no longer a port",
            "up": "up" if self.up else "down",
            "mtu": f"MTU {self.mtu}",
            "mac": f"MAC {self.mac}",
            "rename": f"name {self.rename}",
            "alias": "mark" if self.alias else "no mark",
        }
        parts = [word for name, word in words.items() if getattr(self, name) is not None]
        parts += [*described(BRIDGE, self.settings), *described(PORT, self.port_settings)]
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
