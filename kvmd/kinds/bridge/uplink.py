"""What a Bridge says of its uplinks: what becomes of their addresses, and how a change of them is proven."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from kvmd.api.quantity import Address, Boolean, Integer, InterfaceAddresses, LinkName
from kvmd.api.resource import SpecModel
from kvmd.api.schema import branch, leaf
from kvmd.plan.bridge_settings import PortSettings


class Uplink(PortSettings):
    """A NIC that becomes a port of the bridge."""

    name: LinkName = leaf(about="Name of the link on the host.", example="eno1")


class Addresses(SpecModel):
    """Where the bridge's own addresses come from."""

    from_: Literal["Uplink", "Static", "None"] = leaf(
        "None",
        alias="from",
        about="None: no address of its own. Static: those under `static`, in the place of what the uplink carries. "
        "Uplink: the uplink's addresses and routes move to the bridge as they are, and back when the bridge goes. "
        "Moves happen under a checkpoint (see `safety`).",
        example="Static",
    )
    static: InterfaceAddresses = leaf(
        (), about="Addresses in CIDR form, for `from: Static`.", example=["10.0.0.1/24"]
    )

    gateway: Address | None = leaf(None, about="Default gateway, for `from: Static`.", example="10.0.0.254")
    dynamic: Literal["Refuse", "Move"] = leaf(
        "Refuse",
        about="Addresses of the uplink that have a lifetime (DHCP, router advertisements). Refuse: leave the uplink "
        "alone. Move: move them with what is left of it; whoever renews them must follow.",
        example="Refuse",
    )

    @model_validator(mode="after")
    def _agree(self) -> Addresses:
        if self.static and self.from_ != "Static":
            raise ValueError(f"static addresses are written, but from is {self.from_}; write `from: Static`")
        if self.gateway and not self.static:
            raise ValueError("a gateway is written, but no static address from which it can be reached")
        return self


class Probe(SpecModel):
    """What must answer after a change, or it is undone."""

    default_gateway: Boolean = leaf(
        True, about="Every default gateway that answered before (ARP, neighbour discovery) must answer.", example=True
    )
    addresses: tuple[Address, ...] = leaf(
        (), about="These must answer an ICMP echo, before and after.", example=["192.0.2.10"]
    )


class Safety(SpecModel):
    """Proof and rollback of changes that could cut the host off."""

    probe: Probe = branch(factory=Probe, about="What proves that a change was good.")
    rollback_after_seconds: Integer = leaf(
        30, about="Unless confirmed by then, everything is put back as it was.", example=30, ge=10, le=600
    )
