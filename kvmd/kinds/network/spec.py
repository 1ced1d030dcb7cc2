"""The language of a network: every leaf with its description, default, example and update class."""

from __future__ import annotations

import ipaddress
from typing import Any, Literal

from pydantic import model_validator

from kvmd.api.quantity import Address, Boolean, DomainName, Integer, InterfaceAddress, Ipv4Address, LinkName, Mac
from kvmd.api.resource import SpecModel
from kvmd.api.schema import Update, branch, leaf

DNS_NAME = r"^[a-zA-Z0-9.-]+$"  # libvirt's schema: dnsName


class Forward(SpecModel):
    """How guests reach the world."""

    mode: Literal["nat", "route", "open", "isolated"] = leaf(
        "nat",
        about="nat: behind the host's address. route: routed, no NAT. open: routed without firewall rules. "
        "isolated: among themselves and the host only.",
        example="nat",
        update=Update.REPLUG,
    )


class NetworkBridge(SpecModel):
    """The bridge that libvirt makes for the network."""

    name: LinkName | None = leaf(
        None, about="Name of the bridge; null lets libvirt choose virbrN.", example="virbr1", update=Update.REPLUG
    )
    stp: Boolean = leaf(True, about="Spanning tree protocol.", example=True, update=Update.REPLUG)


class Domain(SpecModel):
    """The DNS domain."""

    name: str | None = leaf(
        None,
        about="DNS domain given to guests.",
        example="lab.example",
        update=Update.REPLUG,
        pattern=DNS_NAME,
    )


class Range(SpecModel):
    """A range of addresses for DHCP."""

    start: Address = leaf(about="First address.", example="192.168.122.2")
    end: Address = leaf(about="Last address.", example="192.168.122.254")


class Host(SpecModel):
    """A DHCP reservation."""

    mac: Mac = leaf(about="MAC of the guest's NIC.", example="52:54:00:12:34:56")
    ip: Ipv4Address = leaf(about="The IPv4 address that it gets.", example="192.168.122.10")
    name: str | None = leaf(None, about="Host name that it gets.", example="web", pattern=DNS_NAME)


class Dhcp(SpecModel):
    """DHCP on one subnet."""

    ranges: tuple[Range, ...] = branch((), about="Ranges for guests without a reservation.")
    hosts: tuple[Host, ...] = branch((), about="Reservations; added and removed without touching any guest.")


class Ip(SpecModel):
    """A subnet of the network."""

    address: InterfaceAddress = leaf(
        about="Address of the host on the bridge, in CIDR form.", example="192.168.122.1/24", update=Update.REPLUG
    )
    dhcp: Dhcp = branch(factory=Dhcp, about="DHCP on this subnet.")

    @model_validator(mode="after")
    def _inside(self) -> Ip:
        network = ipaddress.ip_interface(self.address).network
        for item in self.dhcp.ranges:
            start, end = ipaddress.ip_address(item.start), ipaddress.ip_address(item.end)
            if start not in network or end not in network or int(start) > int(end):
                raise ValueError(f"the range {item.start} to {item.end} does not lie within {network}")
            if network.version == 4 and network.prefixlen < 31 and {start, end} & set(_ends(network)):
                raise ValueError(f"{item.start} to {item.end} holds the network or broadcast address of {network}")
        for host in self.dhcp.hosts:
            if ipaddress.ip_address(host.ip) not in network:
                raise ValueError(f"the reservation {host.ip} does not lie within {network}")
        for what in ("mac", "ip", "name"):
            values = [value for host in self.dhcp.hosts if (value := getattr(host, what))]
            if len(values) != len(set(values)):
                raise ValueError(f"two reservations have the same {what}")
        return self

    @property
    def version(self) -> int:
        """4 or 6."""
        return ipaddress.ip_interface(self.address).version

    @property
    def serves(self) -> bool:
        """True where it has DHCP by its own words."""
        return bool(self.dhcp.ranges or self.dhcp.hosts)


def _ends(network: Any) -> tuple[Any, Any]:
    return network.network_address, network.broadcast_address


class Spec(SpecModel):
    """A libvirt network."""

    name_on_host: DomainName | None = leaf(
        None, about="Name in libvirt; default metadata.name.", example="default", update=Update.IMMUTABLE
    )
    forward: Forward = branch(factory=Forward, about="How guests reach the world.")
    bridge: NetworkBridge = branch(factory=NetworkBridge, about="The network's bridge.")
    domain: Domain = branch(factory=Domain, about="DNS domain.")
    mtu: Integer | None = leaf(
        None,
        about="MTU of the bridge and of its guests' TAPs; guests with virtio learn it; null leaves libvirt's 1500.",
        example=1450,
        update=Update.REPLUG,
        ge=68,
        le=65535,
    )
    ips: tuple[Ip, ...] = branch((), about="Subnets; none for a bridge without an address.")
    disruption_policy: Literal["Wait", "Replug"] = leaf(
        "Wait",
        about="What a change that guests would notice does: Wait until none uses the network or somebody approves, "
        "or Replug every guest at once.",
        example="Wait",
    )
    deletion_policy: Literal["Delete", "Orphan"] = leaf(
        "Delete", about="When the spec goes: remove the network, or only take the mark off.", example="Delete"
    )

    @model_validator(mode="after")
    def _agree(self) -> Spec:
        """Refuse what libvirt refuses of any network."""
        addresses = [ip.address.split("/")[0] for ip in self.ips]
        if len(addresses) != len(set(addresses)):
            raise ValueError("two subnets have the same address")
        for version in (4, 6):
            if sum(ip.serves for ip in self.ips if ip.version == version) > 1:
                raise ValueError(f"libvirt serves DHCP on one IPv{version} subnet of a network only")
        return self
