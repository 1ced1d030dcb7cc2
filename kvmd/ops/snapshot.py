"""What can be done to a snapshot of a domain: take it, mark it, go back to it, remove it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from kvmd.api.mark import Mark
from kvmd.ops.base import Impact, Op


@dataclass(frozen=True, slots=True)
class SnapshotOp(Op):
    """An operation on the snapshot *snapshot* of the domain *uuid*; its name is ``domain/snapshot``."""

    uuid: str
    snapshot: str


@dataclass(frozen=True, slots=True)
class SnapshotTake(SnapshotOp):
    """Take a snapshot of the disks, mark included; an external one puts an overlay over each disk."""

    xml: str = field(repr=False)
    external: bool = False
    verb: ClassVar[str] = "take snapshot"
    bounded: ClassVar[bool] = False

    def describe(self) -> str:
        """What a plan says of it."""
        return f"take snapshot {self.name} of the disks ({_place(self.external)})"


@dataclass(frozen=True, slots=True)
class SnapshotTakeWithMemory(SnapshotTake):
    """Take a snapshot of memory and disks; the guest stands still while its memory is written."""

    impact: ClassVar[Impact] = Impact.BLIP

    def describe(self) -> str:
        """What a plan says of it."""
        return f"take snapshot {self.name} of memory and disks ({_place(self.external)}; the guest stands still)"


@dataclass(frozen=True, slots=True)
class SnapshotMark(SnapshotOp):
    """Write the mark of a snapshot anew."""

    mark: Mark = field(repr=False)
    verb: ClassVar[str] = "mark snapshot"


@dataclass(frozen=True, slots=True)
class SnapshotRemove(SnapshotOp):
    """Remove a snapshot; an external one is merged: nothing that the guest has written since is lost."""

    external: bool = False
    memory_file: str = ""  # which libvirt 9.0 leaves behind
    verb: ClassVar[str] = "remove snapshot"
    bounded: ClassVar[bool] = False

    def describe(self) -> str:
        """What a plan says of it."""
        merged = " (its overlays are merged; those that the machine does not stand on stay)" if self.external else ""
        return f"remove snapshot {self.name}{merged}"


@dataclass(frozen=True, slots=True)
class Swap:
    """An overlay to be made at *path* over *over*, for the disk with that alias, else with that target."""

    target: str
    alias: str
    over: str
    over_format: str
    path: str


@dataclass(frozen=True, slots=True)
class SnapshotRevert(SnapshotOp):
    """Go back to a snapshot: what memory and disks have become since is lost.

    The definition stays what it is. *running*: the guest is to run afterwards, whatever the snapshot says.
    *annotations* are those that the running self is to count as obeyed, *by* is who asked.
    *swaps* (of an external one): the definition gets new overlays over the files that show the moment, and what
    the disks have become since stays in *leaves*; *memory_file* holds the memory.
    """

    by: str
    running: bool
    annotations: Mapping[str, str] = field(repr=False)
    swaps: tuple[Swap, ...] = ()
    leaves: tuple[str, ...] = ()
    memory_file: str = ""
    impact: ClassVar[Impact] = Impact.DATA_LOSS
    verb: ClassVar[str] = "go back to snapshot"
    bounded: ClassVar[bool] = False

    def describe(self) -> str:
        """What a plan says of it."""
        if not self.swaps:
            return f"{self.verb} {self.name} (what was written since is lost)"
        return (
            f"{self.verb} {self.name} (the guest loses what was written since; it stays in {', '.join(self.leaves)})"
        )


def _place(external: bool) -> str:
    return "external" if external else "internal"
