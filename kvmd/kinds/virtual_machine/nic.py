"""The spec of a NIC."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from kvmd.api.quantity import DeviceName, Integer, Ipv4Address, LinkName, Mac, Text
from kvmd.api.resource import SpecModel
from kvmd.api.schema import Update, branch, leaf
from kvmd.kinds.virtual_machine.bandwidth import Bandwidth


class PortForward(SpecModel):
    """A port of the host that leads to the guest."""

    protocol: Literal["tcp", "udp"] = leaf("tcp", about="Protocol.", example="tcp", update=Update.NEXT_BOOT)
    host: Integer = leaf(about="Port on the host.", example=8022, update=Update.NEXT_BOOT, ge=1, le=65535)
    guest: Integer = leaf(about="Port in the guest.", example=22, update=Update.NEXT_BOOT, ge=1, le=65535)


class UserNetwork(SpecModel):
    """User-mode networking: NAPT by QEMU or passt; TCP and UDP only, nobody reaches the guest unasked."""

    backend: Literal["auto", "slirp", "passt"] = leaf(
        "auto",
        about="slirp: within QEMU. passt: a process beside it, with portForward. auto: passt where portForward is "
        "written, else slirp. Either way no ICMP (ping does not leave the guest), and nobody reaches the guest "
        "but by portForward.",
        example="passt",
        update=Update.NEXT_BOOT,
    )
    port_forward: tuple[PortForward, ...] = branch(
        (), about="Ports of the host that lead to the guest; only passt can, not Debian 12's libvirt 9.0."
    )

    @model_validator(mode="after")
    def _agree(self) -> UserNetwork:
        if self.backend == "slirp" and self.port_forward:
            raise ValueError("libvirt forwards no ports with slirp; write `backend: passt`, or take portForward out")
        return self


class Direct(SpecModel):
    """A macvtap on a link of the host: the guest is on that link's network, the host itself does not see it."""

    device: LinkName = leaf(
        about="Link of the host, or a Vlan, Vxlan or Bridge by its name here.",
        example="eno1",
        update=Update.NEXT_BOOT,
    )
    mode: Literal["bridge", "vepa", "private", "passthrough"] = leaf(
        "bridge",
        about="bridge: guests on one link reach each other. vepa: through the switch. private: not at all. "
        "passthrough: the guest has the link alone, with its MAC.",
        example="bridge",
        update=Update.NEXT_BOOT,
    )


ATTACHMENTS = ("network", "bridge", "tap", "user", "direct")


class Interface(SpecModel):
    """A NIC; its name is its identity; exactly one attachment."""

    name: DeviceName = leaf(about="Name of the NIC within the machine.", example="net0", update=Update.IMMUTABLE)
    network: Text | None = leaf(
        None, about="Network that it is attached to.", example="default", unless="NextBoot to or from tap and user"
    )
    portgroup: Text | None = leaf(
        None,
        about="Portgroup of that network, whose limits it gets when it is plugged in; default the network's default.",
        example="fast",
        unless="NextBoot to or from tap and user, and within one network from libvirt 9.1 on",
    )
    bridge: Text | None = leaf(
        None, about="Bridge that it is attached to.", example="br0", unless="NextBoot to or from tap and user"
    )
    tap: Text | None = leaf(None, about="Tap that it is attached to.", example="tap1", update=Update.NEXT_BOOT)
    user: UserNetwork | None = branch(None, about="User-mode networking: no ICMP, no way in but portForward.")
    direct: Direct | None = branch(None, about="macvtap on a link of the host.")
    mac: Mac | None = leaf(
        None,
        about="MAC address; default derived from the host, the machine and the name.",
        example="52:54:00:12:34:56",
        update=Update.NEXT_BOOT,
    )
    ip: Ipv4Address | None = leaf(
        None, about="IPv4 address that a Network of ours reserves for it.", example="192.168.122.10"
    )
    model: Literal["virtio", "e1000", "e1000e", "rtl8139"] = leaf(
        "virtio", about="Model that the guest sees.", example="virtio", update=Update.NEXT_BOOT
    )
    link: Literal["up", "down"] = leaf("up", about="State of the virtual cable.", example="down")
    bandwidth: Bandwidth | None = branch(
        None, about="How much the guest may receive and send; default unlimited; not with `user`."
    )
    queues: Integer | None = leaf(
        None,
        about="Queues, so that several vCPUs serve the NIC; with a Tap, one that has `multiQueue`; not with `user`.",
        example=2,
        update=Update.NEXT_BOOT,
        ge=2,
        le=256,
    )
    boot_order: Integer | None = leaf(
        None, about="Place in the boot order, from 1.", example=2, update=Update.NEXT_BOOT, ge=1
    )

    @model_validator(mode="after")
    def _agree(self) -> Interface:
        found = [name for name in ATTACHMENTS if getattr(self, name) is not None]
        if len(found) != 1:
            what = " and ".join(found) if found else "none"
            raise ValueError(f"a NIC has exactly one of network, bridge, tap, user and direct; here: {what}")
        if self.user is not None and (self.bandwidth or self.queues):
            word = "bandwidth" if self.bandwidth else "queues"
            raise ValueError(
                f"a NIC in user mode has no {word}, as QEMU itself is its network; take `{word}` out, or attach it "
                "to a network, bridge or tap"
            )
        if self.queues is not None and self.model != "virtio":
            raise ValueError(
                f"a NIC of model {self.model} has one queue; take `queues` out, or write `model: virtio`"
            )
        if self.ip is not None and self.network is None:
            raise ValueError("ip is a reservation on a Network; it needs `network`")
        if self.portgroup is not None and self.network is None:
            raise ValueError("portgroup is one of a Network; it needs `network`")
        return self

    @property
    def attachment(self) -> str:
        """Which of the attachments is written."""
        return next(name for name in ATTACHMENTS if getattr(self, name) is not None)
