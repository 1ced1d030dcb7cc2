"""What a spec, and the reservations that VMs ask of it, come to on this host."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from kvmd.api.mark import derived_mac
from kvmd.api.resource import Claim, Ref, Resource
from kvmd.api.status import DEGRADED, Condition
from kvmd.kinds.network.document import State, Subnet
from kvmd.kinds.network.spec import Ip, Spec
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
    return State(
        forward=spec.forward.mode,
        bridge=LEAVE if spec.bridge.name is None else spec.bridge.name,
        stp=spec.bridge.stp,
        domain=spec.domain.name,
        mtu=spec.mtu,
        subnets=subnets,
    )


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
    served = {host[1] for subnet in want.subnets for host in subnet.hosts} if want.subnets is not LEAVE else set()
    lost = [f"{name} {address}" for address, name in reservations(ref, look).values() if address not in served]
    if not lost:
        return ()
    text = f"no reservation for {', '.join(sorted(lost))}: not in the subnet of this network that has DHCP"
    return (Condition(DEGRADED, True, "NotReserved", text),)


def _wanted_subnet(ip: Ip, reserved: Mapping[str, tuple[str, str]]) -> Subnet:
    hosts = {host.mac: (host.mac, host.ip, host.name or "") for host in ip.dhcp.hosts}
    taken = {host.ip for host in ip.dhcp.hosts}
    for mac, (address, name) in reserved.items():
        if _is_in(address, ip) and address not in taken:
            hosts.setdefault(mac, (mac, address, name))
    ranges = tuple(sorted((item.start, item.end) for item in ip.dhcp.ranges))
    return Subnet(str(ipaddress.ip_interface(ip.address)), ranges, tuple(sorted(hosts.values())))


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
