"""When a guest starts: its place in the order, and what must be so before."""

from __future__ import annotations

from typing import Literal

from kvmd.api.quantity import DeviceName, Integer
from kvmd.api.resource import Ref, SpecModel
from kvmd.api.schema import leaf


class Startup(SpecModel):
    """The place in the order in which guests start, after a boot of the host too."""

    order: Integer | None = leaf(
        None,
        about="Lower ones start first. A guest waits for those of lower orders that are about to start, at most "
        "60 s, and not for those that cannot start or whose start failed. Without an order it starts at once.",
        example=20,
        ge=0,
    )
    delay_seconds: Integer = leaf(
        0,
        about="How long guests of higher orders wait after this one was started.",
        example=5,
        ge=0,
        le=3600,
    )


class Dependency(SpecModel):
    """A condition of another object that must be True before the guest starts."""

    kind: Literal[
        "Bridge", "Image", "Network", "StoragePool", "Tap", "Tun", "VirtualMachine", "Vlan", "Volume", "Vxlan"
    ] = leaf(about="Kind of the object.", example="VirtualMachine")
    name: DeviceName = leaf(about="Its metadata.name.", example="db")
    condition: Literal["Ready"] = leaf(
        "Ready",
        about="The condition that must be True; a running guest is not stopped when it ends.",
        example="Ready",
    )

    @property
    def target(self) -> Ref:
        """The object."""
        return Ref(self.kind, self.name)
