"""What can be done to links that stand on another link, or on none but the host's routes: VLANs and VXLANs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvmd.ops.link import LinkOp


@dataclass(frozen=True, slots=True)
class VlanCreate(LinkOp):
    """Create and mark a VLAN on *parent*, down."""

    alias: str
    parent: str
    id: int
    mac: str = ""
    mtu: int | None = None
    verb: ClassVar[str] = "create VLAN"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"create VLAN {self.name}: id {self.id} on {self.parent}"


@dataclass(frozen=True, slots=True)
class VxlanCreate(LinkOp):
    """Create and mark a VXLAN, down. *remote* is another host's address or a multicast group."""

    alias: str
    id: int
    parent: str = ""
    local: str = ""
    remote: str = ""
    port: int = 4789
    mac: str = ""
    mtu: int | None = None
    verb: ClassVar[str] = "create VXLAN"

    def describe(self) -> str:
        """What a plan says of it."""
        way = (f" to {self.remote}" if self.remote else "") + (f" over {self.parent}" if self.parent else "")
        return f"create VXLAN {self.name}: id {self.id}{way}"


StackedCreate = VlanCreate | VxlanCreate
