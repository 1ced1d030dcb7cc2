"""What a Bridge says of itself."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from kvmd.api.quantity import Boolean, Integer, LinkName, Mac
from kvmd.api.resource import SpecModel
from kvmd.api.schema import Update, branch, leaf
from kvmd.kinds.bridge.uplink import Addresses, Safety, Uplink

_KEPT_BY_STANDARD = 0x7  # STP, pause frames and LACP never pass a bridge (BR_GROUPFWD_RESTRICTED)
_FROM_THE_ROOT = " While another bridge is the root of the spanning tree, the root's counts."


class Spec(SpecModel):
    """A Linux bridge."""

    name_on_host: LinkName | None = leaf(
        None, about="Name of the link; default metadata.name.", example="br0", update=Update.IMMUTABLE
    )
    uplinks: tuple[Uplink, ...] = branch(
        (), about="NICs that kvmd makes ports; ports that others put there are left alone."
    )
    mac: Mac | None = leaf(
        None,
        about="MAC of the bridge; by default that of the uplink that carries addresses, else of the first, else one "
        "derived from machine and name.",
        example="52:54:00:00:00:01",
    )
    mtu: Integer | None = leaf(
        None,
        about="MTU in bytes; null is the smallest of its ports, as the kernel chooses it.",
        example=1500,
        ge=68,
        le=65535,
    )
    stp: Boolean = leaf(False, about="Spanning tree protocol.", example=False)
    priority: Integer | None = leaf(
        None,
        about="Priority in the spanning tree; the lowest becomes the root. The kernel's is 32768.",
        example=32768,
        ge=0,
        le=65535,
    )
    forward_delay_seconds: Integer | None = leaf(
        None,
        about="Forward delay in seconds, 2 to 30 (IEEE 802.1D), used while STP is on." + _FROM_THE_ROOT,
        example=15,
        ge=2,
        le=30,
    )
    hello_time_seconds: Integer | None = leaf(
        None, about="Seconds between two hellos of STP, 1 to 10." + _FROM_THE_ROOT, example=2, ge=1, le=10
    )
    max_age_seconds: Integer | None = leaf(
        None,
        about="Seconds after which a silent root counts as gone, 6 to 40." + _FROM_THE_ROOT,
        example=20,
        ge=6,
        le=40,
    )
    ageing_time_seconds: Integer | None = leaf(
        None,
        about="Seconds after which a MAC that was not seen is forgotten; 0 makes it a hub. The kernel's is 300.",
        example=300,
        ge=0,
        le=1_000_000,
    )
    group_forward_mask: Integer | None = leaf(
        None,
        about="Which frames to 01:80:C2:00:00:0X pass, bit X each: 16384 lets LLDP pass. Not those of STP, pause and "
        "LACP (bits 0 to 2).",
        example=16384,
        ge=0,
        le=65535,
    )
    multicast_snooping: Boolean | None = leaf(
        None, about="Send multicast only to where somebody listens. The kernel's is true.", example=True
    )
    multicast_querier: Boolean | None = leaf(
        None, about="Ask who listens, where no router does. The kernel's is false.", example=False
    )
    vlan_filtering: Boolean | None = leaf(
        None, about="Let each port pass only its own VLANs; needs a kernel that can.", example=False
    )
    default_pvid: Integer | None = leaf(
        None,
        about="VLAN of untagged frames of a port that has no other; 0 for none. The kernel's is 1.",
        example=1,
        ge=0,
        le=4094,
    )
    addresses: Addresses = branch(factory=Addresses, about="The bridge's own addresses.")
    safety: Safety = branch(factory=Safety, about="Proof and rollback of changes that could cut the host off.")
    deletion_policy: Literal["Delete", "Orphan"] = leaf(
        "Delete", about="When the spec goes: delete the bridge, or only take the mark off.", example="Delete"
    )

    @model_validator(mode="after")
    def _agree(self) -> Spec:
        if (self.group_forward_mask or 0) & _KEPT_BY_STANDARD:
            raise ValueError(
                f"groupForwardMask {self.group_forward_mask} has one of the bits 0 to 2 (STP, pause frames, LACP), "
                "which the kernel lets no bridge pass"
            )
        if self.multicast_querier and self.multicast_snooping is False:
            raise ValueError("multicastQuerier asks for what multicastSnooping: false does not listen to")
        return self
