"""What could cut the host off, and so happens under a checkpoint: all of it, or nothing of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvmd.ops.base import Op
from kvmd.ops.link import LinkOp


@dataclass(frozen=True, slots=True)
class AddressesMove(LinkOp):
    """Move the addresses and routes of *source* to this link, as they are: metrics, protocol, scope, lifetimes.

    *cidrs* are those that were seen there. Where *instead* says anything, these addresses (and, with *gateway*,
    this default route) take their place.
    """

    index: int
    source: str
    source_index: int
    cidrs: tuple[str, ...]
    instead: tuple[str, ...] = ()
    gateway: str = ""
    verb: ClassVar[str] = "move addresses to"

    def describe(self) -> str:
        """What a plan says of it."""
        what = ", ".join(self.cidrs) or "no address"
        if self.instead:
            way = f" and the gateway {self.gateway}" if self.gateway else ""
            return (
                f"take {what} off {self.source} and give {self.name} {', '.join(self.instead)}{way}, with its routes"
            )
        return f"move {what} and the routes of {self.source} to {self.name}"


@dataclass(frozen=True, slots=True)
class AddressesRestore(LinkOp):
    """Give a link back what it once had, and lost with the link itself or with its being up.

    *addresses* and *routes* are the kernel's messages of *taken_at* (seconds since the boot); *cidrs* and *ways* say
    the same to people. Nothing is taken away by it, so it needs no proof.
    """

    index: int
    addresses: tuple[bytes, ...]
    routes: tuple[bytes, ...]
    taken_at: float
    cidrs: tuple[str, ...]
    ways: tuple[str, ...]
    verb: ClassVar[str] = "give back addresses to"

    def describe(self) -> str:
        """What a plan says of it."""
        ways = f"{'the routes' if len(self.ways) > 1 else 'the route'} {', '.join(self.ways)}" if self.ways else ""
        what = " and ".join(part for part in (", ".join(self.cidrs), ways) if part)
        return f"give {self.name} back {what}"


@dataclass(frozen=True, slots=True)
class Guarded(Op):
    """Link operations that are carried out as one batch, proven, and otherwise undone.

    *object* and *spec_hash* say what is not tried again once it was rolled back. Times are in seconds: without a
    confirmation everything is put back *rollback_after*; the proof may take *patience*.
    """

    operations: tuple[LinkOp, ...]
    object: str
    spec_hash: str
    default_gateway: bool = True
    probes: tuple[str, ...] = ()
    rollback_after: float = 30.0
    patience: float = 5.0
    verb: ClassVar[str] = "change"

    def describe(self) -> str:
        """What a plan says of it."""
        acts = "; ".join(operation.describe() for operation in self.operations)
        return f"under a checkpoint of {self.rollback_after:g} s: {acts}"
