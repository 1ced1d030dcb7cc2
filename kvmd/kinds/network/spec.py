"""The language of a network: every leaf with its description, default, example and update class."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, model_validator

from kvmd.api.quantity import (
    Address,
    DnsmasqWord,
    DomainName,
    Duration,
    HostPath,
    Integer,
    InterfaceAddress,
    Mac,
    Text,
    duration_seconds,
    plain_for_dnsmasq,
)
from kvmd.api.resource import SpecModel
from kvmd.api.schema import Update, branch, leaf
from kvmd.kinds.network.surroundings import (
    DNS_NAME,
    Bandwidth,
    Dns,
    Domain,
    Forward,
    NetworkBridge,
    PortGroup,
    Route,
    refuse_twice,
)

SHORTEST_LEASE = 120  # seconds; what dnsmasq takes at least


def _refuse_short(lease: str | None) -> None:
    if lease is not None and duration_seconds(lease) < SHORTEST_LEASE:
        raise ValueError(f"a lease of {lease} is too short: dnsmasq gives none of less than 2m")


class Range(SpecModel):
    """A range of addresses for DHCP."""

    start: Address = leaf(about="First address.", example="192.168.122.2")
    end: Address = leaf(about="Last address.", example="192.168.122.254")
    lease: Duration | None = leaf(
        None, about="How long a guest keeps an address of the range; null takes dnsmasq's hour.", example="12h"
    )

    @model_validator(mode="after")
    def _agree(self) -> Range:
        _refuse_short(self.lease)
        return self


class Host(SpecModel):
    """A DHCP reservation: by MAC for IPv4, by DUID or name for IPv6."""

    mac: Mac | None = leaf(None, about="MAC of the guest's NIC (IPv4).", example="52:54:00:12:34:56")
    id: Text | None = leaf(
        None,
        about="DUID of the guest (IPv6).",
        example="0:3:0:1:0:16:3e:11:22:33",
        pattern=r"^([0-9a-fA-F]{1,2}:)+[0-9a-fA-F]{1,2}$",
    )
    ip: Address = leaf(about="The address that it gets.", example="192.168.122.10")
    name: Text | None = leaf(None, about="Host name that it gets.", example="web", pattern=DNS_NAME)
    lease: Duration | None = leaf(None, about="How long it keeps it.", example="12h")

    @model_validator(mode="after")
    def _agree(self) -> Host:
        _refuse_short(self.lease)
        if ipaddress.ip_address(self.ip).version == 4 and (self.mac is None or self.id is not None):
            raise ValueError(f"the reservation {self.ip} needs `mac`, and no `id`: IPv4 knows guests by their MAC")
        if ipaddress.ip_address(self.ip).version == 6 and (self.mac is not None or not (self.id or self.name)):
            raise ValueError(f"the reservation {self.ip} needs `id` or `name`, and no `mac`: DHCPv6 tells no MAC")
        return self


class Bootp(SpecModel):
    """What a guest that boots from the network is told."""

    file: DnsmasqWord = leaf(about="File that it loads.", example="pxelinux.0", update=Update.REPLUG, min_length=1)
    server: DnsmasqWord | None = leaf(
        None, about="TFTP server; null is the host itself.", example="192.168.122.9", update=Update.REPLUG
    )


class Dhcp(SpecModel):
    """DHCP on one subnet."""

    ranges: tuple[Range, ...] = branch((), about="Ranges for guests without a reservation.")
    hosts: tuple[Host, ...] = branch((), about="Reservations; added and removed without touching any guest.")
    bootp: Bootp | None = branch(
        None, about="What a guest that boots from the network is told (IPv4); with ranges or hosts."
    )

    @model_validator(mode="after")
    def _agree(self) -> Dhcp:
        if self.bootp is not None and not self.ranges and not self.hosts:
            raise ValueError(
                "bootp without ranges and hosts reaches nobody, and libvirt drops it; write `ranges`, too"
            )
        return self


class Ip(SpecModel):
    """A subnet of the network."""

    address: InterfaceAddress = leaf(
        about="Address of the host on the bridge, in CIDR form.", example="192.168.122.1/24", update=Update.REPLUG
    )
    tftp: Annotated[HostPath, AfterValidator(plain_for_dnsmasq)] | None = leaf(
        None, about="Folder that the host serves by TFTP (IPv4).", example="/srv/tftp", update=Update.REPLUG
    )
    dhcp: Dhcp = branch(factory=Dhcp, about="DHCP on this subnet.")

    @model_validator(mode="after")
    def _inside(self) -> Ip:
        if self.version == 6 and (self.tftp or self.dhcp.bootp):
            raise ValueError(f"{self.address}: tftp and bootp are of IPv4")
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
        for what in ("mac", "id", "ip", "name"):
            refuse_twice((getattr(host, what) for host in self.dhcp.hosts), f"two reservations have the same {what}")
        return self

    @property
    def version(self) -> int:
        """4 or 6."""
        return ipaddress.ip_interface(self.address).version

    @property
    def serves(self) -> bool:
        """True where it has DHCP by its own words."""
        return bool(self.dhcp.ranges or self.dhcp.hosts or self.dhcp.bootp)


def _ends(network: Any) -> tuple[Any, Any]:
    return network.network_address, network.broadcast_address


class Spec(SpecModel):
    """A libvirt network."""

    name_on_host: Annotated[DomainName, AfterValidator(plain_for_dnsmasq)] | None = leaf(
        None, about="Name in libvirt; default metadata.name.", example="default", update=Update.IMMUTABLE
    )
    forward: Forward = branch(factory=Forward, about="How guests reach the world.")
    bridge: NetworkBridge = branch(factory=NetworkBridge, about="The network's bridge.")
    domain: Domain = branch(factory=Domain, about="DNS domain.")
    dns: Dns = branch(factory=Dns, about="The name server that guests are given.")
    bandwidth: Bandwidth = branch(factory=Bandwidth, about="Limits of all guests together.")
    portgroups: tuple[PortGroup, ...] = branch((), about="Groups of NICs with limits of their own.")
    routes: tuple[Route, ...] = branch((), about="Routes of the host through guests of this network.")
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
        refuse_twice((ip.address.split("/")[0] for ip in self.ips), "two subnets have the same address")
        for version in (4, 6):
            if sum(ip.serves for ip in self.ips if ip.version == version) > 1:
                raise ValueError(f"libvirt serves DHCP on one IPv{version} subnet of a network only")
        refuse_twice((group.name for group in self.portgroups), "two portgroups have the same name")
        if sum(group.default for group in self.portgroups) > 1:
            raise ValueError("two portgroups are the default; only one can be")
        ways = (f"{route.to} {route.metric or 1}" for route in self.routes)  # libvirt's metric is 1
        refuse_twice(ways, "two routes have the same destination and metric")
        networks = [ipaddress.ip_interface(ip.address).network for ip in self.ips]
        for route in self.routes:
            if not any(ipaddress.ip_address(route.via) in network for network in networks):
                raise ValueError(
                    f"the gateway {route.via} of the route to {route.to} is in no subnet of this network"
                )
        if self.forward.mode == "bridge":
            self._agree_on_a_bridge_of_others()
        return self

    def _agree_on_a_bridge_of_others(self) -> None:
        """libvirt makes nothing of such a network but an entry in a table: addresses and names are not its own."""
        if self.bridge.name is None:
            raise ValueError("forward mode bridge needs bridge.name: the Bridge, or the bridge of the host, to use")
        own = {"ips", "domain", "dns", "routes", "mtu", "bandwidth"} & self.model_fields_set
        own |= {f"bridge.{name}" for name in self.bridge.model_fields_set - {"name"}}
        if own:
            words = ", ".join(sorted(own))
            raise ValueError(f"forward mode bridge uses a bridge that is not the network's; take out: {words}")
