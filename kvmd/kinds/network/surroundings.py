"""The language of a network beside its subnets: ways out, bridge, names, limits and routes."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import AfterValidator, StringConstraints, model_validator

from kvmd.api.bandwidth import Burst, Rate
from kvmd.api.quantity import (
    Address,
    Boolean,
    DnsmasqText,
    Integer,
    IpNetwork,
    Ipv4Address,
    LinkName,
    Text,
    plain_for_dnsmasq,
)
from kvmd.api.resource import SpecModel
from kvmd.api.schema import Update, branch, leaf

DNS_NAME = r"^[a-zA-Z0-9.-]+$"  # libvirt's schema: dnsName
HostName = Annotated[Text, StringConstraints(pattern=DNS_NAME)]


def refuse_twice(values: Iterable[str | None], what: str) -> None:
    """Raise ValueError where a value stands there twice."""
    found = [value for value in values if value]
    if len(found) != len(set(found)):
        raise ValueError(what)


class Addresses(SpecModel):
    """Addresses of the host that guests appear with."""

    start: Ipv4Address = leaf(about="First address.", example="198.51.100.1", update=Update.REPLUG)
    end: Ipv4Address = leaf(about="Last address.", example="198.51.100.4", update=Update.REPLUG)

    @model_validator(mode="after")
    def _agree(self) -> Addresses:
        if ipaddress.IPv4Address(self.start) > ipaddress.IPv4Address(self.end):
            raise ValueError(f"{self.start} comes after {self.end}")
        return self


class Ports(SpecModel):
    """Ports of the host that guests appear with."""

    start: Integer = leaf(about="First port.", example=1024, update=Update.REPLUG, ge=1, le=65535)
    end: Integer = leaf(about="Last port.", example=65535, update=Update.REPLUG, ge=1, le=65535)

    @model_validator(mode="after")
    def _agree(self) -> Ports:
        if self.start > self.end:
            raise ValueError(f"port {self.start} comes after {self.end}")
        return self


class Nat(SpecModel):
    """What packets of guests look like outside."""

    addresses: Addresses | None = branch(
        None, about="Addresses to appear with; default that of the link they leave by."
    )
    ports: Ports | None = branch(None, about="Ports to appear with; default 1024 to 65535.")
    ipv6: Boolean = leaf(False, about="NAT for IPv6, too.", example=True, update=Update.REPLUG)


class Forward(SpecModel):
    """How guests reach the world."""

    mode: Literal["nat", "route", "open", "isolated", "bridge"] = leaf(
        "nat",
        about="nat: behind the host's address. route: routed, no NAT. open: routed without firewall rules. "
        "isolated: among themselves and the host only. bridge: on a bridge that is there already, a Bridge or one "
        "of the host; the network has no addresses then.",
        example="nat",
        update=Update.REPLUG,
    )
    device: LinkName | None = leaf(None, about="Only out by this link (nat and route); null is any.", example="eno1")
    nat: Nat = branch(factory=Nat, about="What packets of guests look like outside (mode nat).")
    repair: Boolean = leaf(
        False,
        about="Put back what forwarding needs where somebody took it away: ip_forward, and the firewall rules that "
        "libvirt made for this network. False only says so, in the condition Degraded.",
        example=True,
    )

    @model_validator(mode="after")
    def _agree(self) -> Forward:
        if self.device is not None and self.mode not in ("nat", "route"):
            raise ValueError(f"forward.device is for the modes nat and route, not for {self.mode}")
        if self.mode != "nat" and self.nat.model_fields_set:
            raise ValueError(f"forward.nat is for mode nat, not for {self.mode}")
        return self


class NetworkBridge(SpecModel):
    """The bridge that libvirt makes for the network."""

    name: Annotated[LinkName, AfterValidator(plain_for_dnsmasq)] | None = leaf(
        None,
        about="Name of the bridge; null lets libvirt choose virbrN. In mode bridge: the one to use.",
        example="virbr1",
        update=Update.REPLUG,
    )
    stp: Boolean = leaf(True, about="Spanning tree protocol.", example=True)
    forward_delay_seconds: Integer = leaf(
        0,
        about="With stp: how long a new port listens, and how long it learns; the kernel takes at least 2.",
        example=2,
        ge=0,
        le=30,
    )


class Domain(SpecModel):
    """The DNS domain."""

    name: Text | None = leaf(
        None,
        about="DNS domain given to guests.",
        example="lab.example",
        update=Update.REPLUG,
        pattern=DNS_NAME,
    )
    local_only: Boolean = leaf(
        False,
        about="Names of this domain are answered here or not at all: nobody else is asked.",
        example=True,
        update=Update.REPLUG,
    )

    @model_validator(mode="after")
    def _agree(self) -> Domain:
        if self.local_only and self.name is None:
            raise ValueError("localOnly needs a name")
        return self


class Forwarder(SpecModel):
    """Who is asked for names that are not known here."""

    address: Address | None = leaf(
        None, about="Name server; null asks those of the host.", example="9.9.9.9", update=Update.REPLUG
    )
    domain: Text | None = leaf(
        None,
        about="Only for this domain; null is all.",
        example="corp.example",
        update=Update.REPLUG,
        pattern=DNS_NAME,
    )

    @model_validator(mode="after")
    def _agree(self) -> Forwarder:
        if self.address is None and self.domain is None:
            raise ValueError("write `address`, `domain`, or both")
        return self


class DnsHost(SpecModel):
    """An address with its names."""

    ip: Address = leaf(about="Address.", example="192.168.122.7")
    names: tuple[HostName, ...] = leaf(about="Its names.", example=["printer"], min_length=1)


class DnsTxt(SpecModel):
    """A TXT record."""

    name: Text = leaf(about="Name.", example="release", pattern=DNS_NAME)
    value: DnsmasqText = leaf(about="Text; a comma begins another string of the record.", example="2026-01")


class DnsSrv(SpecModel):
    """An SRV record: where a service is."""

    service: Text = leaf(about="Service.", example="ldap", pattern=r"^[a-zA-Z0-9_-]+$")
    protocol: Literal["tcp", "udp", "tls"] = leaf(about="Protocol.", example="tcp")
    domain: Text | None = leaf(
        None, about="Domain; null is that of the network.", example="lab.example", pattern=DNS_NAME
    )
    target: Text | None = leaf(None, about="Host that offers it.", example="ldap.lab.example", pattern=DNS_NAME)
    port: Integer | None = leaf(None, about="Its port.", example=389, ge=1, le=65535)
    priority: Integer | None = leaf(None, about="Lower ones first.", example=10, ge=1, le=65535)
    weight: Integer | None = leaf(None, about="Share among equal priorities.", example=5, ge=1, le=65535)

    @model_validator(mode="after")
    def _agree(self) -> DnsSrv:
        if self.target is None and (self.port or self.priority or self.weight):
            raise ValueError("port, priority and weight need a target")
        return self


class Dns(SpecModel):
    """The name server that guests are given; records are added and removed without touching any guest."""

    enable: Boolean = leaf(True, about="Whether there is one.", example=False, update=Update.REPLUG)
    forward_plain_names: Boolean = leaf(
        True, about="Whether names without a dot are asked of others, too.", example=False, update=Update.REPLUG
    )
    forwarders: tuple[Forwarder, ...] = branch((), about="Who is asked, in this order; default the host's servers.")
    hosts: tuple[DnsHost, ...] = branch((), about="Addresses with names.")
    txt: tuple[DnsTxt, ...] = branch((), about="TXT records.")
    srv: tuple[DnsSrv, ...] = branch((), about="SRV records.")

    @model_validator(mode="after")
    def _agree(self) -> Dns:
        refuse_twice((host.ip for host in self.hosts), "two of dns.hosts have the same ip; write all names in one")
        refuse_twice((record.name for record in self.txt), "two of dns.txt have the same name")
        if not self.enable and (self.hosts or self.txt or self.srv or self.forwarders):
            raise ValueError("dns.enable is false, so there can be no hosts, records or forwarders")
        return self


class Limit(SpecModel):
    """A limit in one direction."""

    average: Rate = leaf(about="Bytes a second.", example="10M", update=Update.REPLUG)
    peak: Rate | None = leaf(None, about="Bytes a second for a short time.", example="20M", update=Update.REPLUG)
    burst: Burst | None = leaf(None, about="Bytes that go at peak speed.", example="512Ki", update=Update.REPLUG)


class Bandwidth(SpecModel):
    """Limits in both directions (the kernel needs sch_htb, sch_sfq and act_police)."""

    inbound: Limit | None = branch(None, about="To the guests.")
    outbound: Limit | None = branch(None, about="From the guests.")


class PortGroup(SpecModel):
    """A group of NICs; a change reaches a guest when its NIC is plugged in again."""

    name: Text = leaf(about="Name.", example="slow", min_length=1)
    default: Boolean = leaf(False, about="Whether NICs that name no group are in it.", example=True)
    bandwidth: Bandwidth = branch(factory=Bandwidth, about="Limits of each NIC.")


class Route(SpecModel):
    """A route of the host through a guest of this network."""

    to: IpNetwork = leaf(about="Where to.", example="10.20.0.0/16", update=Update.REPLUG)
    via: Address = leaf(about="The guest.", example="192.168.122.2", update=Update.REPLUG)
    metric: Integer | None = leaf(None, about="Metric.", example=2, update=Update.REPLUG, ge=1, le=2**32 - 1)

    @model_validator(mode="after")
    def _agree(self) -> Route:
        if ipaddress.ip_network(self.to).version != ipaddress.ip_address(self.via).version:
            raise ValueError(f"{self.to} and {self.via} are of different families")
        return self
