"""What a spec, and the reservations that VMs ask of it, come to on this host."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from kvmd.api.mark import derived_mac
from kvmd.api.quantity import duration_seconds
from kvmd.api.resource import Claim, Ref, Resource
from kvmd.api.status import DEGRADED, Condition
from kvmd.kinds.network.document import State
from kvmd.kinds.network.names import DnsHost, Forwarder, Srv, Txt
from kvmd.kinds.network.spec import Ip, Spec
from kvmd.kinds.network.subnet import Host, Range, Subnet
from kvmd.kinds.network.surroundings import Dns, Limit
from kvmd.kinds.network.surroundings import PortGroup as PortGroupSpec
from kvmd.kinds.network.traffic import PortGroup, Rate, StaticRoute
from kvmd.plan.difference import LEAVE, Leave
from kvmd.plan.look import Look


def wanted(resource: Resource, look: Look, exists: bool) -> State:
    """The network that the spec asks for; what it leaves open in one that *exists* stays as it is."""
    spec = resource.spec
    assert isinstance(spec, Spec)
    applied = look.applied(resource.ref)
    subnets: tuple[Subnet, ...] | Leave = LEAVE
    if not exists or "ips" in resource.owned | (applied.owned if applied else frozenset()):
        reserved = reservations(resource.ref, look)
        serving = _serving(spec, reserved)
        found = (_wanted_subnet(ip, reserved if ip is serving else {}) for ip in spec.ips)
        subnets = tuple(sorted(found, key=lambda subnet: subnet.name))
    others = spec.forward.mode == "bridge"  # on a bridge that is not the network's: whatever it is like
    nat = spec.forward.nat
    return State(
        forward=spec.forward.mode,
        device=spec.forward.device,
        nat_addresses=(nat.addresses.start, nat.addresses.end) if nat.addresses else None,
        nat_ports=(str(nat.ports.start), str(nat.ports.end)) if nat.ports else None,
        nat_ipv6=nat.ipv6,
        bridge=bridge_of(spec, look),
        stp=LEAVE if others else spec.bridge.stp,
        delay=LEAVE if others else spec.bridge.forward_delay_seconds,
        domain=spec.domain.name,
        local_only=spec.domain.local_only,
        dns=spec.dns.enable,
        plain_names=spec.dns.forward_plain_names,
        forwarders=tuple(Forwarder(item.domain or "", item.address or "") for item in spec.dns.forwarders),
        **_records(spec.dns),
        inbound=_rate(spec.bandwidth.inbound),
        outbound=_rate(spec.bandwidth.outbound),
        mtu=spec.mtu,
        subnets=subnets,
        routes=tuple(sorted(StaticRoute(item.to, item.via, item.metric or 0) for item in spec.routes)),
        portgroups=tuple(sorted(map(_group, spec.portgroups), key=lambda group: group.name)),
    )


def bridge_of(spec: Spec, look: Look) -> str | Leave:
    """Its bridge on the host; in mode bridge what the Bridge of that name is there, else the link of that name."""
    name = spec.bridge.name
    if name is None:
        return LEAVE
    if spec.forward.mode == "bridge" and look.spec(ref := Ref("Bridge", name)) is not None:
        return look.key(ref).name
    return name


def _records(dns: Dns) -> dict[str, Any]:
    """The records in the order in which libvirt's are read."""
    hosts = (DnsHost(host.ip, tuple(sorted(host.names))) for host in dns.hosts)
    services = (
        Srv(
            item.service,
            item.protocol,
            item.domain or "",
            item.target or "",
            item.port or 0,
            item.priority or 0,
            item.weight or 0,
        )
        for item in dns.srv
    )
    return {
        "dns_hosts": tuple(sorted(hosts)),
        "dns_txt": tuple(sorted(Txt(item.name, item.value) for item in dns.txt)),
        "dns_srv": tuple(sorted(services)),
    }


def _rate(rate: Limit | None) -> Rate | None:
    return Rate(rate.average, rate.peak or 0, rate.burst or 0) if rate is not None else None


def _group(group: PortGroupSpec) -> PortGroup:
    limits = group.bandwidth
    return PortGroup(group.name, group.default, _rate(limits.inbound), _rate(limits.outbound))


def _serving(spec: Spec, reserved: Mapping[str, tuple[str, str]]) -> Ip | None:
    """The one IPv4 subnet that has DHCP: libvirt refuses a network with two."""
    subnets = [ip for ip in spec.ips if ip.version == 4]
    own = (ip for ip in subnets if ip.serves)
    fitting = (ip for ip in subnets if any(_is_in(address, ip) for address, _ in reserved.values()))
    return next(own, None) or next(fitting, None)


def _is_in(address: str, ip: Ip) -> bool:
    """True where a guest on that subnet can have the address."""
    interface = ipaddress.ip_interface(ip.address)
    return ipaddress.ip_address(address) in interface.network and address != str(interface.ip)


def unserved(want: State, ref: Ref, look: Look) -> tuple[Condition, ...]:
    """Say which reservations of VMs are not made."""
    served = {host.ip for subnet in want.subnets for host in subnet.hosts} if want.subnets is not LEAVE else set()
    lost = [f"{name} {address}" for address, name in reservations(ref, look).values() if address not in served]
    if not lost:
        return ()
    text = f"no reservation for {', '.join(sorted(lost))}: not in the subnet of this network that has DHCP"
    return (Condition(DEGRADED, True, "NotReserved", text),)


def _wanted_subnet(ip: Ip, reserved: Mapping[str, tuple[str, str]]) -> Subnet:
    own = [
        Host(host.mac or "", host.ip, host.name or "", host.id or "", _seconds(host.lease)) for host in ip.dhcp.hosts
    ]
    taken, macs = {host.ip for host in own}, {host.mac for host in own}
    for mac, (address, name) in reserved.items():
        if _is_in(address, ip) and address not in taken and mac not in macs:
            own.append(Host(mac, address, name))
    ranges = (Range(item.start, item.end, _seconds(item.lease)) for item in ip.dhcp.ranges)
    bootp = ip.dhcp.bootp
    return Subnet(
        str(ipaddress.ip_interface(ip.address)),
        tuple(sorted(ranges, key=lambda item: (item.start, item.end))),
        tuple(sorted(own, key=lambda host: (host.mac, host.ip))),
        ip.tftp or "",
        (bootp.file, bootp.server or "") if bootp else None,
    )


def _seconds(lease: str | None) -> int | None:
    return None if lease is None else int(duration_seconds(lease))


def reservations(ref: Ref, look: Look) -> dict[str, tuple[str, str]]:
    """The reservations that interfaces with an ``ip`` ask for: MAC to address and host name."""
    found: dict[str, tuple[str, str]] = {}
    named: set[str] = set()  # one name, one reservation: libvirt refuses a second one (code 55)
    for user in look.users(ref):
        attributes = dict(user.attributes)
        if "ip" not in attributes or look.spec(user.source) is None:
            continue
        if next(iter(look.claimants(Claim("address", attributes["ip"]))), user.source) != user.source:
            continue  # two want that address and the other one has it: with both, dnsmasq would serve nobody
        applied = look.applied(user.source)
        interface = attributes["interface"]
        known = applied.resolved.get(f"mac.{interface}") if applied else None
        derived = derived_mac(look.host().machine_id, look.rules.owner, user.source, interface)
        name = "" if user.source.name in named else user.source.name
        named.add(user.source.name)
        found[attributes.get("mac") or known or derived] = (attributes["ip"], name)
    return found
