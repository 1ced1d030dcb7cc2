"""Network: a libvirt network with its bridge, NAT, DHCP and DNS; changed in place under running guests."""

from __future__ import annotations

import ipaddress
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import model_validator

from kvmd import ops, xmlmap
from kvmd.api.mark import Mark, derived_mac, derived_uuid, put_into
from kvmd.api.quantity import Address, Boolean, DomainName, InterfaceAddress, Ipv4Address, LinkName, Mac
from kvmd.api.resource import Claim, Ref, Reference, Resource, SpecModel, hash_of
from kvmd.api.schema import Update, branch, leaf
from kvmd.api.status import DEGRADED, Condition, Pending
from kvmd.errors import Blocked, Refused
from kvmd.observed import Key, Link, Ports
from kvmd.observed import Network as Fact
from kvmd.plan.look import Look
from kvmd.plan.model import LEAVE, Change, Draft, Leave, at, differences, is_owned, plain
from kvmd.xmlmap import Element

KIND = "Network"
PLURAL = "networks"
SHORT = "net"


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
        for host in self.dhcp.hosts:
            if ipaddress.ip_address(host.ip) not in network:
                raise ValueError(f"the reservation {host.ip} does not lie within {network}")
        for what in ("mac", "ip"):
            values = [getattr(host, what) for host in self.dhcp.hosts]
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


class Spec(SpecModel):
    """A libvirt network."""

    name_on_host: DomainName | None = leaf(
        None, about="Name in libvirt; default metadata.name.", example="default", update=Update.IMMUTABLE
    )
    forward: Forward = branch(factory=Forward, about="How guests reach the world.")
    bridge: NetworkBridge = branch(factory=NetworkBridge, about="The network's bridge.")
    domain: Domain = branch(factory=Domain, about="DNS domain.")
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


@dataclass(frozen=True, slots=True)
class Subnet:
    """One subnet; its name is its address."""

    name: str
    ranges: tuple[tuple[str, str], ...] = ()
    hosts: tuple[tuple[str, str, str], ...] = ()  # MAC, IP, name


def _subnets_get(root: Element) -> tuple[Subnet, ...]:
    return tuple(sorted((_subnet(ip) for ip in root.findall("ip")), key=lambda subnet: subnet.name))


def _subnet(ip: Element) -> Subnet:
    address = ip.get("address", "")
    prefix = ip.get("prefix") or ip.get("netmask") or ("64" if ":" in address else "24")
    cidr = str(ipaddress.ip_interface(f"{address}/{prefix}"))
    ranges = sorted((item.get("start", ""), item.get("end", "")) for item in ip.findall("dhcp/range"))
    hosts = sorted(
        ((item.get("mac") or "").lower(), item.get("ip", ""), item.get("name") or "")
        for item in ip.findall("dhcp/host")
    )
    return Subnet(cidr, tuple(ranges), tuple(hosts))


def _subnets_put(root: Element, subnets: tuple[Subnet, ...]) -> None:
    """Write subnets whole: libvirt adds nothing of its own inside ``<ip>``."""
    for old in root.findall("ip"):
        root.remove(old)
    for subnet in subnets:
        interface = ipaddress.ip_interface(subnet.name)
        ip = ElementTree.SubElement(
            root, "ip", {"address": str(interface.ip), "prefix": str(interface.network.prefixlen)}
        )
        if interface.version == 6:
            ip.set("family", "ipv6")
        if subnet.ranges or subnet.hosts:
            dhcp = ElementTree.SubElement(ip, "dhcp")
            for start, end in subnet.ranges:
                ElementTree.SubElement(dhcp, "range", {"start": start, "end": end})
            for host in subnet.hosts:
                dhcp.append(_host_element(host))


def _host_element(host: tuple[str, str, str]) -> Element:
    mac, ip, name = host
    element = ElementTree.Element("host", {"mac": mac})
    if name:
        element.set("name", name)
    element.set("ip", ip)
    return element


def _forward_get(root: Element) -> str:
    forward = root.find("forward")
    return "isolated" if forward is None else forward.get("mode", "nat")


def _forward_put(root: Element, mode: str) -> None:
    if mode == "isolated":
        xmlmap.cut(root, "forward")
    elif mode != _forward_get(root):
        xmlmap.cut(root, "forward")
        ElementTree.SubElement(root, "forward", {"mode": mode})


@dataclass(frozen=True, slots=True)
class State:
    """A network as it is or should be."""

    forward: str = field(metadata=at("forward.mode", xml=xmlmap.Place(_forward_get, _forward_put)))
    bridge: str | Leave | None = field(metadata=at("bridge.name", xml=xmlmap.attribute("bridge", "name")))
    stp: bool | None = field(
        metadata=at("bridge.stp", xml=xmlmap.attribute("bridge", "stp", {"on": True, "off": False}))
    )
    domain: str | None = field(metadata=at("domain.name", xml=xmlmap.attribute("domain", "name")))
    subnets: tuple[Subnet, ...] | Leave = field(metadata=at("ips", xml=xmlmap.Place(_subnets_get, _subnets_put)))


def host_key(ref: Ref, spec: Spec | None) -> Key:
    """The network of libvirt."""
    return Key("network", (spec.name_on_host if spec else None) or ref.name)


def references(ref: Ref, spec: Spec) -> tuple[Reference, ...]:
    """None."""
    return ()


def claims(ref: Ref, spec: Spec) -> tuple[Claim, ...]:
    """Its name, its bridge and its addresses."""
    bridge = (Claim("link", spec.bridge.name),) if spec.bridge.name else ()
    addresses = tuple(Claim("address", ip.address.split("/")[0]) for ip in spec.ips)
    return (Claim("network", host_key(ref, spec).name), *bridge, *addresses)


def files(spec: Spec) -> tuple[str, ...]:
    """None."""
    return ()


def usable(ref: Ref, look: Look) -> bool:
    """True where the network is active and its bridge is there."""
    fact = look.fact(look.key(ref))
    if not isinstance(fact, Fact) or not fact.active:
        return False
    return not fact.bridge or look.fact(Key("link", fact.bridge)) is not None


def plan(ref: Ref, look: Look) -> Draft:
    """Define and start it; change DHCP in place; let what guests would notice wait, as its policy says."""
    resource = look.spec(ref)
    assert resource is not None and isinstance(resource.spec, Spec)
    fact = look.fact(look.key(ref))
    network = fact if isinstance(fact, Fact) else None
    want = _wanted(resource, look, network is not None and network.config is not None)
    applied = look.applied(ref)
    owned = resource.owned | (applied.owned if applied else frozenset())
    if network is None or network.config is None:
        _has_subnet(ref, want.forward, want.subnets)
        return _create(resource, want, look)
    config = xmlmap.read(State, xmlmap.parse(network.config))
    forward = want.forward if is_owned("forward.mode", owned) else config.forward
    _has_subnet(ref, forward, config.subnets if want.subnets is LEAVE else want.subnets)
    changes = tuple(c for c in differences(config, want) if is_owned(c.path, owned))
    operations: list[ops.Op] = []
    reserved = {"reservations": hash_of(_reservations(ref, look))}
    mark = Mark.of(resource, look.rules.owner, network.uuid, network.mark).with_resolved(reserved)
    elsewhere = network.mark is not None and network.mark.resolved != reserved
    if changes or network.mark is None or not network.mark.says_the_same_as(mark) or network.mark.ref != ref:
        xml = _document(network.config, want, mark, {change.path for change in changes})
        operations.append(ops.NetworkDefine(network.name, network.uuid, xml))
    if network.autostart:
        operations.append(ops.NetworkSetAutostart(network.name, network.uuid, False))
    running, pending, found = _running(network, want, owned, resource, look)
    operations += running
    status = _status(network, look)
    return Draft(
        tuple(operations),
        tuple(dict.fromkeys((*changes, *found))),
        pending,
        _unserved(want, ref, look),
        status=status,
        reason=_why(network, look),
        asked_elsewhere=elsewhere,
    )


def remove(ref: Ref, key: Key, look: Look) -> Draft:
    """Stop and undefine it once no guest is on it."""
    network, applied = look.fact(key), look.applied(ref)
    if not isinstance(network, Fact):
        return Draft()
    if applied is not None and applied.written.get("deletionPolicy") == "Orphan":
        root = xmlmap.parse(network.config or network.live or "<network/>")
        put_into(root, None)
        orphan = ops.NetworkDefine(network.name, network.uuid, xmlmap.serialise(root))
        return Draft((orphan,), reason="let go of, as its deletionPolicy asks")
    guests = sorted({guest for _, guest in _ports(look, network.bridge).taps} - look.departing_names(ref))
    if guests:
        raise Blocked(f"{ref}: used by {', '.join(guests)}", hint="shut those guests down or move their NICs first")
    stop = (ops.NetworkStop(network.name, network.uuid),) if network.active else _left_behind(network, look)
    return Draft((*stop, ops.NetworkUndefine(network.name, network.uuid)))


def _has_subnet(ref: Ref, mode: str, subnets: tuple[Subnet, ...] | Leave) -> None:
    """Refuse what libvirt refuses: a way out for guests that have no addresses."""
    if mode != "isolated" and not subnets:
        raise Refused(
            f"{ref}: forward mode {mode} needs a subnet", hint="write `ips`, or `forward: {mode: isolated}`"
        )


def _wanted(resource: Resource, look: Look, exists: bool) -> State:
    spec = resource.spec
    assert isinstance(spec, Spec)
    applied = look.applied(resource.ref)
    subnets: tuple[Subnet, ...] | Leave = LEAVE
    if not exists or "ips" in resource.owned | (applied.owned if applied else frozenset()):
        reserved = _reservations(resource.ref, look)
        serving = _serving(spec, reserved)
        found = (_wanted_subnet(ip, reserved if ip is serving else {}) for ip in spec.ips)
        subnets = tuple(sorted(found, key=lambda subnet: subnet.name))
    return State(
        forward=spec.forward.mode,
        bridge=LEAVE if spec.bridge.name is None else spec.bridge.name,
        stp=spec.bridge.stp,
        domain=spec.domain.name,
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


def _unserved(want: State, ref: Ref, look: Look) -> tuple[Condition, ...]:
    """Say which reservations of VMs are not made."""
    served = {host[1] for subnet in want.subnets for host in subnet.hosts} if want.subnets is not LEAVE else set()
    lost = [f"{name} {address}" for address, name in _reservations(ref, look).values() if address not in served]
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


def _reservations(ref: Ref, look: Look) -> dict[str, tuple[str, str]]:
    """The reservations that interfaces with an ``ip`` ask for: MAC to address and host name."""
    found: dict[str, tuple[str, str]] = {}
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
        found[attributes.get("mac") or known or derived] = (attributes["ip"], user.source.name)
    return found


def _create(resource: Resource, want: State, look: Look) -> Draft:
    name = look.key(resource.ref).name
    uuid = derived_uuid(look.host().machine_id, look.rules.owner, resource.ref)
    root = ElementTree.Element("network")
    ElementTree.SubElement(root, "name").text = name
    ElementTree.SubElement(root, "uuid").text = uuid
    applied = look.applied(resource.ref)
    mark = Mark.of(resource, look.rules.owner, uuid)
    if applied is not None and applied.generation:
        mark = Mark.of(
            resource,
            look.rules.owner,
            uuid,
            Mark(look.rules.owner, resource.ref, applied.spec_hash, applied.generation),
        )
    mark = mark.with_resolved({"reservations": hash_of(_reservations(resource.ref, look))})
    xml = _document(xmlmap.serialise(root), want, mark, None)
    bridge = want.bridge if isinstance(want.bridge, str) else ""
    define = ops.NetworkDefine(name, uuid, xml, creates=True)
    start = ops.NetworkStart(name, uuid, bridge)
    return Draft((define, start), conditions=_unserved(want, resource.ref, look), status={"active": False})


def _document(base: str, want: State, mark: Mark, paths: set[str] | None) -> str:
    """Overlay what is wanted (all of it, or the paths that changed) and the mark on a definition."""
    root = xmlmap.parse(base)
    if want.bridge is LEAVE:
        paths = {"forward.mode", "bridge.stp", "domain.name", "ips"} if paths is None else paths - {"bridge.name"}
    if paths is None or "bridge.name" in paths:
        xmlmap.reach(root, "bridge")
    xmlmap.write(want, root, lambda path: paths is None or path in paths)
    put_into(root, mark)
    return xmlmap.serialise(root)


def _running(
    network: Fact, want: State, owned: frozenset[str], resource: Resource, look: Look
) -> tuple[list[ops.Op], tuple[Pending, ...], tuple[Change, ...]]:
    """What the running network needs: a start, its guests' TAPs, DHCP in place, or a restart that may wait."""
    spec = resource.spec
    assert isinstance(spec, Spec)
    bridge = network.bridge
    after = want.bridge if isinstance(want.bridge, str) else bridge  # its name once it is started again
    ports = _ports(look, bridge)
    taps, guests = tuple(tap for tap, _ in ports.taps), tuple(sorted({guest for _, guest in ports.taps}))
    if not network.active or network.live is None:
        return [*_left_behind(network, look), ops.NetworkStart(network.name, network.uuid, after, taps)], (), ()
    if bridge and look.fact(Key("link", bridge)) is None:
        # libvirt goes on saying that the network is active after its bridge was deleted.
        return [ops.NetworkRestart(network.name, network.uuid, after, taps, ())], (), ()
    live = xmlmap.read(State, xmlmap.parse(network.live))
    found = tuple(c for c in differences(live, want) if is_owned(c.path, owned))
    in_place = [c for c in found if c.path == "ips" and _same_subnets(live, want)]
    disruptive = [c for c in found if c not in in_place]
    operations: list[ops.Op] = _dhcp_updates(network, live, want) if in_place else []
    operations += _replugs(ports, bridge, look)
    if not disruptive:
        return operations, (), found
    memory = look.memory(resource.ref)
    approved = memory.approved_hash == resource.spec_hash
    if spec.disruption_policy == "Replug" or approved or not taps:
        restart = ops.NetworkRestart(network.name, network.uuid, after, taps, guests)
        return [restart], (), found
    pending = tuple(Pending(f"spec.{c.path}", plain(c.before), plain(c.after), Update.REPLUG) for c in disruptive)
    return operations, pending, tuple(in_place)


def _left_behind(network: Fact, look: Look) -> tuple[ops.LinkDelete, ...]:
    """The bridge that a libvirtd which died in the middle of a start made: with it there no start succeeds.

    It is known by the MAC that libvirt drew for this network alone.
    """
    link = look.fact(Key("link", network.bridge)) if network.bridge else None
    if not isinstance(link, Link) or link.kind != "bridge" or link.alias or _ports(look, link.name).members:
        return ()
    mac = xmlmap.parse(network.config or "<network/>").find("mac")
    if mac is None or mac.get("address", "").lower() != link.mac:
        return ()
    return (ops.LinkDelete(link.name, link.index, "", link.mac),)


def _same_subnets(live: State, want: State) -> bool:
    if live.subnets is LEAVE or want.subnets is LEAVE:
        return False
    return [subnet.name for subnet in live.subnets] == [subnet.name for subnet in want.subnets]


def _dhcp_updates(network: Fact, live: State, want: State) -> list[ops.Op]:
    """Removals first, so that an address can move from one reservation to another."""
    assert live.subnets is not LEAVE and want.subnets is not LEAVE
    order = [_subnet(ip).name for ip in xmlmap.parse(network.live or "").findall("ip")]
    removals: list[ops.Op] = []
    additions: list[ops.Op] = []
    for old, new in zip(live.subnets, want.subnets, strict=True):
        index = order.index(new.name)
        for section, before, after in (("dhcp-range", old.ranges, new.ranges), ("dhcp-host", old.hosts, new.hosts)):
            for item in before:
                if item not in after:
                    removals.append(_update(network, section, "delete", item, index))
            for item in after:
                if item not in before:
                    additions.append(_update(network, section, "add", item, index))
    return [*removals, *additions]


def _update(network: Fact, section: str, command: str, item: tuple[str, ...], index: int) -> ops.Op:
    if section == "dhcp-host":
        element = _host_element((item[0], item[1], item[2]))
    else:
        element = ElementTree.Element("range", {"start": item[0], "end": item[1]})
    xml = ElementTree.tostring(element, encoding="unicode")
    return ops.NetworkUpdate(network.name, network.uuid, section, command, xml, index, live=True)


def _ports(look: Look, bridge: str) -> Ports:
    fact = look.fact(Key("ports", bridge)) if bridge else None
    return fact if isinstance(fact, Ports) else Ports(bridge)


def _replugs(ports: Ports, bridge: str, look: Look) -> list[ops.Op]:
    """Put TAPs of running guests that lost their bridge back on it."""
    operations: list[ops.Op] = []
    for tap, _ in ports.taps:
        link = look.fact(Key("link", tap))
        if isinstance(link, Link) and not link.master and not link.persistent:
            operations.append(ops.LinkSet(tap, link.index, master=bridge, up=True))
    return operations


def _why(network: Fact, look: Look) -> str:
    if not network.active:
        return "it is not active"
    if network.bridge and look.fact(Key("link", network.bridge)) is None:
        return f"its bridge {network.bridge} is gone"
    return ""


def _status(network: Fact, look: Look) -> Mapping[str, Any]:
    ports = _ports(look, network.bridge)
    return {
        "nameOnHost": network.name,
        "uuid": network.uuid,
        "active": network.active,
        "bridge": network.bridge,
        "attachedInterfaces": [{"tap": tap, "guest": guest} for tap, guest in ports.taps],
    }
