"""A host in memory: facts and operations on them, for planning tests of thousands of hosts.

It is used beside the real libvirt and the real kernel, never instead. What it refuses and what it adds was read off
libvirt 9.0 and the kernel: an operation that they would refuse raises ``Impossible`` here.
"""

from __future__ import annotations

import copy
import ipaddress
import itertools
import math
import re
import uuid as uuids
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import memory_simulator
import snapshot_simulator
import storage_simulator

from kvmd import ops
from kvmd.api.bridge_settings import BRIDGE, PORT, USER_HZ, Setting
from kvmd.api.mark import Mark, find_in, put_into
from kvmd.api.resource import Ref, Resource
from kvmd.engine.executor import Outcome
from kvmd.engine.memory import Remembering
from kvmd.engine.records import applied_of, to_note
from kvmd.errors import Stale
from kvmd.host.marks import marks_of
from kvmd.kinds import CONTROLLERS
from kvmd.kinds.virtual_machine import io_threads
from kvmd.observed import (
    HOST,
    Address,
    BridgePort,
    Domain,
    Fact,
    File,
    Forwarding,
    Host,
    Key,
    Ledger,
    Link,
    Network,
    Observed,
    Ports,
    Route,
    Stacked,
)
from kvmd.plan.model import Applied, Desired, Plan, Rules, Step
from kvmd.plan.planner import Planner, make_plan
from kvmd.settings import Backoff
from kvmd.xmlmap import Element, cut, parse, reach, serialise, size

MACHINES = (("pc", "pc-i440fx-7.2"), ("q35", "pc-q35-7.2"))
SOME_HOST = Host(
    machine_id="0123456789abcdef0123456789abcdef",
    boot_id="boot",
    cpus=8,
    memory_bytes=64 * 2**30,
    kvm_reason="the CPU has no virtualisation",
    libvirt_version=9_000_000,
    qemu_version=7_002_000,
    machines=MACHINES,
    users=(("root", 0), ("libvirt-qemu", 64055)),
    groups=(("root", 0), ("kvm", 106)),
)


class Impossible(AssertionError):
    """libvirt or the kernel would refuse this operation."""


def _demand(condition: Any, why: str) -> None:
    if not condition:
        raise Impossible(why)


# Of each section of a network: where its entries are, how they are called, and what libvirt knows them by.
_SECTIONS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "dhcp-host": ("dhcp", "host", ("mac", "id", "name", "ip")),
    "dhcp-range": ("dhcp", "range", ("start", "end")),
    "dns-host": ("dns", "host", ("ip",)),
    "dns-txt": ("dns", "txt", ("name",)),
    "dns-srv": ("dns", "srv", ("service", "protocol", "domain", "target", "port", "priority", "weight")),
    "portgroup": ("", "portgroup", ("name",)),
    "forward-interface": ("forward", "interface", ("dev",)),
}


def _update_section(holder: Element, tag: str, keys: tuple[str, ...], operation: ops.NetworkUpdate) -> None:
    """Add, replace or remove one entry, as libvirt finds it."""
    wanted = parse(operation.xml)
    if tag == "interface":  # libvirt shows the first one as an attribute, too
        holder.attrib.pop("dev", None)
        if operation.command == "add":
            holder.set("dev", wanted.get("dev", ""))
    same = [item for item in holder.findall(tag) if all(item.get(key) == wanted.get(key) for key in keys)]
    if operation.command == "add":
        taken = [item for item in holder.findall("host") if item.get("mac") and item.get("mac") == wanted.get("mac")]
        _demand(not same and not (tag == "host" and taken), f"there already: {operation.xml}")
        holder.append(wanted)
        return
    _demand(len(same) == 1, f"not there: {operation.xml}")
    place = list(holder).index(same[0])
    holder.remove(same[0])
    if operation.command == "modify":
        _demand(tag == "portgroup", f"libvirt modifies no {tag}")
        holder.insert(place, wanted)


class Machine:
    """The facts of one host, changed by operations and by the people and guests on it."""

    def __init__(self, host: Host = SOME_HOST, owner: str = "kvmd") -> None:
        self.owner = owner
        self.facts: dict[Key, Fact] = {HOST: host}
        self.missing: frozenset[str] = frozenset()
        self.deaf: set[str] = set()  # guests that do not hear the power button
        self.executed: list[ops.Op] = []
        self._indexes = itertools.count(2)
        self._taps = itertools.count()
        self._identifiers = itertools.count(1)

    # ------------------------------------------------------------------------------------------ looking

    def observed(self) -> Observed:
        """All facts, frozen; those that did not change are the same objects as before."""
        self._look_at_ports()
        storage_simulator.look_at_holders(self.facts)
        facts = MappingProxyType(dict(self.facts))
        return Observed(facts, marks_of(Observed(owner=self.owner), facts), self.missing, self.owner)

    def _look_at_ports(self) -> None:
        taps: dict[str, list[tuple[str, str]]] = {}
        members: dict[str, list[str]] = {}
        for fact in self.facts.values():
            if isinstance(fact, Link) and fact.master:
                members.setdefault(fact.master, []).append(fact.name)
            if isinstance(fact, Domain) and fact.live is not None:
                for nic in parse(fact.live).findall("devices/interface"):
                    source, target = nic.find("source"), nic.find("target")
                    bridge = None if source is None else source.get("bridge")
                    if nic.get("type") in ("bridge", "network") and bridge and target is not None:
                        taps.setdefault(bridge, []).append((target.get("dev", ""), fact.name))
        for key in [key for key in self.facts if key.type == "ports"]:
            if key.name not in taps and key.name not in members:
                del self.facts[key]
        for bridge in sorted(taps.keys() | members.keys()):
            ports = Ports(bridge, tuple(sorted(taps.get(bridge, ()))), tuple(sorted(members.get(bridge, ()))))
            self._put(Key("ports", bridge), ports)

    def _put(self, key: Key, fact: Fact) -> None:
        if self.facts.get(key) != fact:
            self.facts[key] = fact

    def domain(self, name: str) -> Domain:
        """A domain that must be there."""
        fact = self.facts.get(Key("domain", name))
        _demand(isinstance(fact, Domain), f"no domain {name}")
        assert isinstance(fact, Domain)
        return fact

    def network(self, name: str) -> Network:
        """A network that must be there."""
        fact = self.facts.get(Key("network", name))
        _demand(isinstance(fact, Network), f"no network {name}")
        assert isinstance(fact, Network)
        return fact

    def link(self, name: str, index: int = 0) -> Link:
        """A link that must be there, under that index."""
        fact = self.facts.get(Key("link", name))
        _demand(isinstance(fact, Link), f"no link {name}")
        assert isinstance(fact, Link)
        _demand(index in (0, fact.index), f"link {name} has the index {fact.index}, not {index}")
        return fact

    def find_link(self, name: str) -> Link | None:
        """A link, or None."""
        fact = self.facts.get(Key("link", name))
        return fact if isinstance(fact, Link) else None

    def set_link(self, name: str, **attributes: Any) -> None:
        """Change a link, as anybody may."""
        self._put(Key("link", name), replace(self.link(name), **attributes))

    def add_link(self, link: Link) -> Link:
        """A new link, with the next index where it has none."""
        _demand(self.find_link(link.name) is None, f"link {link.name} exists")
        made = replace(link, index=link.index or next(self._indexes))
        self.facts[Key("link", made.name)] = made
        return made

    def add_files(self, paths: Iterable[str]) -> None:
        """Let files be there."""
        for path in paths:
            self._put(Key("file", path), File(path, "regular", 1, path))

    def add_folders(self, spec: Any) -> None:
        """Let the folders that a machine shares be there."""
        for share in getattr(spec, "filesystems", ()):
            self._put(Key("file", share.path), File(share.path, "directory", 1, share.path))

    # -------------------------------------------------------------------------------------------- acting

    def execute(self, operation: ops.Op) -> None:
        """Carry out one operation, or raise ``Impossible``."""
        self.executed.append(operation)
        match operation:
            case ops.LinkOp():
                self._execute_link(operation)
            case ops.Guarded(operations=operations):
                for inner in operations:
                    self._execute_link(inner)
            case ops.LedgerWrite():
                self._write_ledger(operation)
            case ops.StorageOp():
                try:
                    storage_simulator.execute(self.facts, operation)
                except storage_simulator.StorageRefused as error:
                    raise Impossible(str(error)) from error
            case ops.SnapshotOp():
                domain = self.domain(operation.name.rpartition("/")[0])
                _demand(domain.uuid == operation.uuid, f"{operation} is about another domain")
                try:
                    snapshot_simulator.execute(self.facts, operation, domain)
                except snapshot_simulator.SnapshotRefused as error:
                    raise Impossible(str(error)) from error
            case ops.Op() if type(operation).__name__.startswith("Network"):
                self._execute_network(operation)
            case _:
                self._execute_domain(operation)

    def _write_ledger(self, operation: ops.LedgerWrite) -> None:
        ref = Ref.parse(operation.name)
        key = Key("ledger", operation.name)
        known = self.facts.get(key, Ledger(ref))
        assert isinstance(known, Ledger)
        if operation.entry == "forget":
            self.facts.pop(key, None)
            return
        value: Any = operation.value == "true" if operation.entry == "suspended" else operation.value
        self._put(key, replace(known, **{operation.entry: value}))

    # ------------------------------------------------------------------------------------------- domains

    def _execute_domain(self, operation: ops.Op) -> None:
        if isinstance(operation, ops.DomainDefine):
            if operation.base and self.domain(operation.name).config != operation.base:
                raise Stale(f"cannot {operation.describe()}: somebody has changed it meanwhile")
            self.define(operation.xml)
            return
        domain = self.domain(operation.name)
        _demand(domain.uuid == getattr(operation, "uuid", ""), f"{operation} is about another domain")
        match operation:
            case ops.DomainStart():
                self.start(domain.name)
            case ops.DomainResume():
                _demand(domain.state == "paused", "it is not paused")
                self._set_domain(domain, state="running", reason="unpaused")
            case ops.DomainShutdown():
                _demand(domain.active, "it is not running")
                if domain.name not in self.deaf:
                    self.stop(domain.name, "shutdown")
            case ops.DomainDestroy():
                self.stop(domain.name, "destroyed")
            case ops.DomainUndefine():
                _demand(not domain.active, "it is running")
                _demand(not domain.snapshots, "it has snapshots")
                del self.facts[Key("domain", domain.name)]
            case ops.DomainSetAutostart(enabled=enabled):
                self._set_domain(domain, autostart=enabled)
            case ops.DomainSetMark(mark=mark, live=live):
                self._set_mark(domain, mark, live)
            case _:
                self._execute_live(operation, domain)

    def _execute_live(self, operation: ops.Op, domain: Domain) -> None:
        _demand(domain.live is not None, f"{domain.name} is not running")
        assert domain.live is not None
        root = parse(domain.live)
        match operation:
            case ops.DomainSetVcpus(count=count):
                vcpu = reach(root, "vcpu")
                now = int(vcpu.get("current") or vcpu.text or 0)
                _demand(
                    now < count <= int(vcpu.text or 0), f"vcpus cannot go from {now} to {count} in a running guest"
                )
                vcpu.set("current", str(count))
            case ops.DomainRequestMemory(xml=xml):
                memory_simulator.request(root, xml)
            case ops.DomainSetMemory(size=size):
                _demand(size // 1024 <= int(root.findtext("memory") or 0), "more memory than the maximum")
                reach(root, "currentMemory").text = str(size // 1024)
            case ops.DomainSetOnReboot(action=action):
                reach(root, "on_reboot").text = action
            case ops.DomainSetIoTune() | ops.DomainSetIoThreads() | ops.DomainSetBalloonPeriod():
                _tune(root, operation)
            case ops.DomainAttach(alias=alias):
                _demand(_device(root, alias) is None, f"{alias} is plugged in already")
                device = _device(parse(domain.config or ""), alias)
                _demand(device is not None, f"the definition has no {alias}")
                assert device is not None
                target = device.find("target")
                bus = "" if target is None else target.get("bus", "")
                _demand(bus not in ("sata", "ide"), f"{bus} does not hot-plug")
                self._plug(device)
                memory_simulator.plug(root, device)
                reach(root, "devices").append(device)
            case ops.DomainDetach(alias=alias, xml=xml):
                device = _same_device(root, parse(xml)) if xml else _device(root, alias)
                _demand(device is not None, f"{alias} is not plugged in")
                assert device is not None
                self._unplug(device)
                memory_simulator.plug(root, device, -1)
                reach(root, "devices").remove(device)
            case ops.DomainUpdateDevice(xml=xml):
                wanted = parse(xml)
                device = _same_device(root, wanted)
                _demand(device is not None, f"no such device in {domain.name}: {xml}")
                assert device is not None
                self._update(device, wanted)
            case _:
                raise Impossible(f"nobody knows how to {operation}")
        self._set_domain(domain, live=serialise(root))

    def _update(self, device: Element, wanted: Element) -> None:
        _demand(device.get("device") != "disk", "only the medium of a CD-ROM can be changed")
        _demand(_rest(device) == _rest(wanted), "an update may not differ in anything else")
        if device.tag == "interface":
            tap = _target(device)
            _demand(_target(wanted) == tap, "the TAP of a NIC cannot change")
            if wanted.get("type") != "ethernet":
                self._plug(wanted, tap)
        device.attrib.update(wanted.attrib)
        device[:] = list(wanted)

    def define(self, xml: str) -> Domain:
        """Define a domain as libvirt does: complete it, or refuse it."""
        return self.keep_definition(_completed(parse(xml), dict(self.host.machines)))

    def keep_definition(self, root: Element) -> Domain:
        """Note what a definition came to be."""
        name, uuid = root.findtext("name") or "", root.findtext("uuid") or ""
        for fact in self.facts.values():
            if isinstance(fact, Domain) and (fact.name == name) != (fact.uuid == uuid):
                raise Impossible(f"domain {fact.name} has the uuid {fact.uuid}, not {name} {uuid}")
        found = self.facts.get(Key("domain", name))
        config = serialise(root)
        if isinstance(found, Domain):
            made = replace(found, config=config, mark=find_in(root), persistent=True)
        else:
            made = Domain(name, uuid, "shutoff", "unknown", config, None, mark=find_in(root))
        self._put(Key("domain", name), made)
        return made

    @property
    def host(self) -> Host:
        """The host fact."""
        fact = self.facts[HOST]
        assert isinstance(fact, Host)
        return fact

    def start(self, name: str) -> None:
        """Boot: the definition becomes the running self."""
        domain = self.domain(name)
        _demand(not domain.active, f"{name} is running already")
        root = parse(domain.config or "")
        root.set("id", str(next(self._identifiers)))
        for path in _sources(root):
            fact = self.facts.get(Key("file", path))
            there = isinstance(fact, File) and fact.kind in ("regular", "block")
            _demand(there or path in storage_simulator.paths(self.facts), f"{name}: no file {path}")
        memory_simulator.start(root)
        numbers = itertools.count()
        for device in root.findall("devices/*"):
            if device.tag == "interface":
                self._plug(device)
            if device.tag in ("disk", "interface", "serial", "controller") and device.find("alias") is None:
                ElementTree.SubElement(device, "alias", {"name": f"{device.tag}{next(numbers)}"})
        cpu = root.find("cpu")
        if cpu is not None and cpu.get("mode") == "host-model":
            cpu.set("mode", "custom")
            ElementTree.SubElement(cpu, "model").text = "EPYC"
        self._set_domain(domain, state="running", reason="booted", live=serialise(root), boot_mark=find_in(root))

    def stop(self, name: str, reason: str) -> None:
        """The guest ends, for whatever reason."""
        domain = self.domain(name)
        _demand(domain.live is not None, f"{name} is not running")
        for device in parse(domain.live or "").findall("devices/interface"):
            self._unplug(device)
        if not domain.persistent:
            del self.facts[Key("domain", name)]
            return
        self._set_domain(domain, state="shutoff", reason=reason, live=None, boot_mark=None)

    def edit_domain(self, name: str, where: str, changes: Mapping[str, Any]) -> None:
        """Change the XML of a domain by hand; *where* is config or live."""
        domain = self.domain(name)
        root = parse(getattr(domain, where))
        edit(root, changes)
        extra = {"mark": find_in(root)} if where == "config" else {"boot_mark": find_in(root)}
        self._set_domain(domain, **{where: serialise(root)}, **extra)

    def _set_mark(self, domain: Domain, mark: Mark | None, live: bool) -> None:
        config = parse(domain.config or "")
        put_into(config, mark)
        self._set_domain(domain, config=serialise(config), mark=mark)
        if live and domain.live is not None:
            running = parse(domain.live)
            put_into(running, mark)
            self._set_domain(self.domain(domain.name), live=serialise(running), boot_mark=mark)

    def _set_domain(self, domain: Domain, **attributes: Any) -> None:
        self._put(Key("domain", domain.name), replace(domain, **attributes))

    def _plug(self, nic: Element, tap: str = "") -> None:
        """Connect a NIC: libvirt makes a TAP on the bridge, or QEMU takes the TAP that is there."""
        if nic.tag != "interface":
            return
        source, kind = nic.find("source"), nic.get("type")
        if kind == "ethernet":
            name = reach(nic, "target").get("dev", "")
            link = self.link(name)
            _demand(link.tun_mode == "tap", f"{name} is no TAP")
            _demand(not link.carrier, f"TAP {name} is held by somebody")
            self.set_link(name, carrier=True, operstate="up")
        if kind == "direct":
            assert source is not None
            below = self.link(source.get("dev", ""))
            _demand(not below.master, f"{below.name} is a port of {below.master}")
            numbers = (number for number in itertools.count() if self.find_link(f"macvtap{number}") is None)
            name = f"macvtap{next(numbers)}"
            self.add_link(Link(name, 0, "macvtap", up=True, carrier=True, operstate="up", parent=below.name))
            reach(nic, "target").set("dev", name)
        if kind not in ("network", "bridge"):
            return
        assert source is not None
        if kind == "network":
            network = self.network(source.get("network", ""))
            _demand(network.active, f"network {network.name} is not active")
            source.set("bridge", network.bridge)
        bridge = self.link(source.get("bridge", ""))
        _demand(bridge.kind == "bridge", f"{bridge.name} is no bridge")
        if not tap:
            tap = f"vnet{next(self._taps)}"
            self.add_link(Link(tap, 0, "tun", tun_mode="tap", up=True, carrier=True, operstate="up"))
            reach(nic, "target").set("dev", tap)
        self.set_link(tap, master=bridge.name, master_index=bridge.index, port=BridgePort("forwarding"))

    def _unplug(self, nic: Element) -> None:
        target = nic.find("target")
        if nic.tag != "interface" or target is None:
            return
        name = target.get("dev", "")
        if nic.get("type") in ("network", "bridge"):
            self.facts.pop(Key("link", name), None)
        elif self.find_link(name) is not None:
            self.set_link(name, carrier=False, operstate="down")

    # ------------------------------------------------------------------------------------------ networks

    def _execute_network(self, operation: ops.Op) -> None:
        if isinstance(operation, ops.NetworkDefine):
            self.define_network(operation.xml)
            return
        network = self.network(operation.name)
        _demand(network.uuid == getattr(operation, "uuid", ""), f"{operation} is about another network")
        match operation:
            case ops.NetworkStart(taps=taps, bridge=bridge):
                self.start_network(network.name)
                self._replug(taps, bridge)
            case ops.NetworkRestart(taps=taps, bridge=bridge):
                self.stop_network(network.name)
                self.start_network(network.name)
                self._replug(taps, bridge)
            case ops.NetworkStop():
                self.stop_network(network.name)
            case ops.NetworkUndefine():
                _demand(not network.active, "it is active")
                del self.facts[Key("network", network.name)]
            case ops.NetworkSetAutostart(enabled=enabled):
                self._put(Key("network", network.name), replace(network, autostart=enabled))
            case ops.NetworkRepair():
                fact = self.facts[Key("forwarding", "")]
                assert isinstance(fact, Forwarding)
                self._put(Key("forwarding", ""), replace(fact, ipv4=True, ipv6=True))
            case ops.NetworkUpdate():
                self._update_network(network, operation)
            case _:
                raise Impossible(f"nobody knows how to {operation}")

    def define_network(self, xml: str) -> Network:
        """Define a network as libvirt does."""
        root = parse(xml)
        name = root.findtext("name") or ""
        others = [fact for fact in self.facts.values() if isinstance(fact, Network) and fact.name != name]
        forward = root.find("forward")
        mode = "" if forward is None else forward.get("mode", "nat")
        if forward is not None and forward.get("dev") and forward.find("interface") is None:
            ElementTree.SubElement(forward, "interface", {"dev": forward.get("dev", "")})
        _demand(root.find("ip") is not None or mode not in ("nat", "route", "open"), f"{mode} needs an IP address")
        if mode == "bridge":
            used = root.find("bridge")
            _demand(used is not None and used.keys() == ["name"], "a bridge of others has a name and nothing else")
            _demand(root.find("ip") is None and root.find("mac") is None, "a bridge of others has no address here")
            return self.keep_network(root)
        for version in (4, 6):
            subnets = [ip for ip in root.findall("ip") if (":" in ip.get("address", "")) == (version == 6)]
            _demand(sum(ip.find("dhcp") is not None for ip in subnets) < 2, f"DHCP on two IPv{version} subnets")
        for ip in root.findall("ip"):
            for host in ip.findall("dhcp/host"):
                _demand((":" in ip.get("address", "")) != bool(host.get("mac")), f"reservation by {host.attrib}")
            addresses = [host.get("ip") for host in ip.findall("dhcp/host")]
            _demand(len(addresses) == len(set(addresses)), "dnsmasq refuses one address for two guests")
        bridge = reach(root, "bridge")
        if not bridge.get("name"):
            taken = {fact.bridge for fact in others}
            bridge.set("name", next(n for i in itertools.count() if (n := f"virbr{i}") not in taken))
        bridge.set("stp", bridge.get("stp", "on"))
        bridge.set("delay", bridge.get("delay", "0"))
        return self.keep_network(root)

    def keep_network(self, root: Element) -> Network:
        """Note what the definition of a network came to be."""
        name, uuid = root.findtext("name") or "", root.findtext("uuid") or str(uuids.uuid4())
        others = [fact for fact in self.facts.values() if isinstance(fact, Network) and fact.name != name]
        bridge = reach(root, "bridge")
        free = all(fact.bridge != bridge.get("name") for fact in others)
        _demand(free or root.find("forward[@mode='bridge']") is not None, "bridge name in use by another network")
        found = self.facts.get(Key("network", name))
        if isinstance(found, Network):
            _demand(found.uuid == uuid, f"network {name} has another uuid")
        known = found if isinstance(found, Network) else Network(name, uuid, False, None, None)
        made = replace(known, config=serialise(root), mark=find_in(root))
        if not made.active:
            made = replace(made, bridge=bridge.get("name", ""))
        self._put(Key("network", name), made)
        return made

    def start_network(self, name: str) -> None:
        """Bring its bridge up."""
        network = self.network(name)
        _demand(not network.active, f"network {name} is active")
        bridge = parse(network.config or "").find("bridge")
        assert bridge is not None
        if parse(network.config or "").find("forward[@mode='bridge']") is None:
            stp, delay = bridge.get("stp") == "on", float(bridge.get("delay", "0"))
            ticks = int((max(2.0, delay) if stp else delay) * USER_HZ)
            settings = numbers(BRIDGE, stp_state=int(stp), forward_delay=ticks)
            self.add_link(Link(bridge.get("name", ""), 0, "bridge", up=True, settings=settings))
        made = replace(
            network, active=True, live=network.config, bridge=bridge.get("name", ""), start_mark=network.mark
        )
        self._put(Key("network", name), made)

    def stop_network(self, name: str) -> None:
        """Take its bridge away; the TAPs of guests stay without one."""
        network = self.network(name)
        _demand(network.active, f"network {name} is not active")
        bridge = parse(network.live or "").find("bridge")
        assert bridge is not None
        own = parse(network.live or "").find("forward[@mode='bridge']") is None
        if own and self.find_link(bridge.get("name", "")) is not None:
            self.delete_link(bridge.get("name", ""))
        self._put(Key("network", name), replace(network, active=False, live=None, start_mark=None))

    def _replug(self, taps: tuple[str, ...], bridge: str) -> None:
        for tap in taps:
            if self.find_link(tap) is not None:
                self.set_link(tap, master=bridge, master_index=self.link(bridge).index)

    def _update_network(self, network: Network, operation: ops.NetworkUpdate) -> None:
        for where in [name for name in ("live", "config") if getattr(operation, name)]:
            root = parse(getattr(self.network(network.name), where))
            parent, tag, keys = _SECTIONS[operation.section]
            if parent == "dhcp":
                holder = reach(root.findall("ip")[operation.parent_index], "dhcp")
            else:
                holder = reach(root, parent) if parent else root
            _update_section(holder, tag, keys, operation)
            fact = self.network(network.name)
            self._put(Key("network", network.name), replace(fact, **{where: serialise(root)}))  # type: ignore[arg-type]

    def edit_network(self, name: str, where: str, changes: Mapping[str, Any]) -> None:
        """Change the XML of a network by hand."""
        network = self.network(name)
        root = parse(getattr(network, where))
        edit(root, changes)
        self._put(Key("network", name), replace(network, **{where: serialise(root)}))  # type: ignore[arg-type]

    # --------------------------------------------------------------------------------------------- links

    def _execute_link(self, operation: ops.LinkOp) -> None:
        name = operation.name
        match operation:
            case ops.BridgeCreate(alias=alias, mac=mac, mtu=mtu, settings=settings):
                made = Link(name, 0, "bridge", mac, mtu or 1500, alias=alias, mark=Mark.from_alias(alias))
                self.add_link(replace(made, settings=numbers(BRIDGE, **dict(settings))))
            case ops.TapCreate(alias=alias, mode=mode, owner=owner, group=group, multi_queue=queues, vnet_hdr=header):
                made = Link(name, 0, "tun", alias=alias, mark=Mark.from_alias(alias), tun_mode=mode, persistent=True)
                self.add_link(replace(made, owner=owner, group=group, multi_queue=queues, vnet_hdr=header))
            case ops.VlanCreate(alias=alias, parent=parent, id=number, mtu=mtu):
                below = self.link(parent)
                _demand(below.up, f"{parent} is down")
                made = Link(name, 0, "vlan", below.mac, mtu or below.mtu, alias=alias, mark=Mark.from_alias(alias))
                self.add_link(replace(made, parent=parent, stacked=Stacked(number)))
            case ops.VxlanCreate(alias=alias, parent=parent, mac=mac, mtu=mtu):
                size = mtu or (self.link(parent).mtu - 50 if parent else 1500)
                made = Link(name, 0, "vxlan", mac, size, alias=alias, mark=Mark.from_alias(alias), parent=parent)
                end = Stacked(operation.id, operation.local, operation.remote, operation.port)
                self.add_link(replace(made, stacked=end))
            case ops.TapOwner(owner=owner, group=group, mode=mode):
                link = self.link(name, operation.index)
                _demand(link.tun_mode == mode and not link.carrier, f"{name} is held by somebody")
                kept = (owner is not None or link.owner is None) and (group is not None or link.group is None)
                _demand(kept, f"{name}: the kernel takes no owner off")
                self.set_link(name, owner=owner, group=group, vnet_hdr=operation.vnet_hdr)
            case ops.LinkSet():
                self._set(operation)
            case ops.LinkDelete(alias=alias):
                link = self.link(name, operation.index)
                _demand(link.alias == alias, f"{name} is another link now")
                _demand(link.kind != "tun" or not link.carrier, f"{name} is held by somebody")
                self.delete_link(name)
            case ops.AddressAdd(cidr=cidr):
                self.add_address(name, cidr, operation.index)
            case ops.AddressDelete(cidr=cidr):
                link = self.link(name, operation.index)
                _demand(any(item.cidr == cidr for item in link.addresses), f"{name} has no address {cidr}")
                network = str(ipaddress.ip_interface(cidr).network)
                routes = tuple(r for r in link.routes if (r.to, r.protocol) != (network, "kernel"))
                kept = tuple(item for item in link.addresses if item.cidr != cidr)
                self.set_link(name, addresses=kept, routes=routes)
            case ops.RouteAdd() | ops.RouteDelete():
                self._change_route(operation)
            case ops.AddressesMove():
                self._move_addresses(operation)
            case ops.AddressesRestore():
                self._restore_addresses(operation)
            case _:
                raise Impossible(f"nobody knows how to {operation}")

    def _change_route(self, operation: ops.RouteAdd | ops.RouteDelete) -> None:
        name, to, via, metric = operation.name, operation.to, operation.via, operation.metric
        link = self.link(name, operation.index)
        if isinstance(operation, ops.RouteAdd):
            _demand(link.up, f"{name} is down")
            route = Route(to, via, metric or (1024 if ":" in to else 0), "static")
            self.set_link(name, routes=(*(r for r in link.routes if r != route), route))
        else:
            found = [r for r in link.routes if (r.to, r.via) == (to, via) and r.metric in (metric, 1024)]
            _demand(found, f"{name} has no route to {to}")
            self.set_link(name, routes=tuple(r for r in link.routes if r != found[0]))

    def _restore_addresses(self, operation: ops.AddressesRestore) -> None:
        for cidr in operation.cidrs:
            self.add_address(operation.name, cidr, operation.index)
        link = self.link(operation.name, operation.index)
        _demand(link.up, f"{operation.name} is down")
        ways = (Route(to, "192.0.2.1", 0, "static") for to in operation.ways)
        self.set_link(operation.name, routes=(*link.routes, *ways))

    def _move_addresses(self, operation: ops.AddressesMove) -> None:
        """Address and route facts change their link; static ones take their place where the operation says so."""
        source, target = (
            self.link(operation.source, operation.source_index),
            self.link(operation.name, operation.index),
        )
        _demand(target.up, f"{target.name} is down")
        self.set_link(source.name, addresses=(), routes=())
        if not operation.instead:
            self.set_link(target.name, addresses=source.addresses, routes=source.routes)
            return
        for cidr in operation.instead:
            self.add_address(target.name, cidr)
        if operation.gateway:
            self.set_link(target.name, routes=(*target.routes, Route("default", operation.gateway, 0, "static")))

    def _set(self, operation: ops.LinkSet) -> None:
        link = self.link(operation.name, operation.index)
        changed = {
            name: value for name in ("alias", "mac", "mtu", "up") if (value := getattr(operation, name)) is not None
        }
        if operation.alias is not None:
            changed["mark"] = Mark.from_alias(operation.alias)
        if operation.settings:
            _demand(link.kind == "bridge", f"{link.name} is no bridge")
            changed["settings"] = tuple((dict(link.settings) | dict(operation.settings)).items())
        if operation.up and link.kind == "bridge" and not link.up:
            own = Address("fe80::5054:ff:fe00:1/64", "link")  # the kernel's own
            changed["addresses"] = (*link.addresses, own)
        if operation.master is not None:
            bridge = self.link(operation.master) if operation.master else None
            _demand(bridge is None or bridge.kind == "bridge", f"{operation.master} is no bridge")
            changed |= {"master": operation.master, "master_index": bridge.index if bridge else 0}
            changed["port"] = BridgePort("forwarding", numbers(PORT, cost=100)) if bridge else None
        if operation.port_settings:
            port = changed.get("port", link.port)
            _demand(port, f"{link.name} is no port")
            settings = dict(port.settings) | dict(operation.port_settings)
            changed["port"] = replace(port, settings=tuple(settings.items()))
        if operation.port_mark is not None:
            names = tuple(name for name in link.alternative_names if not name.startswith("kvmd.port."))
            changed["alternative_names"] = (*names, operation.port_mark) if operation.port_mark else names
        if operation.rename is None:
            self.set_link(operation.name, **changed)
        else:
            self.rename_link(link.name, operation.rename, **changed)

    def rename_link(self, name: str, new: str, **changed: Any) -> None:
        """Another name; what is its port follows."""
        link = self.facts.pop(Key("link", name))
        assert isinstance(link, Link)
        self.add_link(replace(link, name=new, **changed))
        for fact in list(self.facts.values()):
            if isinstance(fact, Link) and fact.master == name:
                self.set_link(fact.name, master=new)

    def add_address(self, name: str, cidr: str, index: int = 0) -> None:
        """Give a link an address, and the kernel's route to its subnet."""
        link = self.link(name, index)
        interface = ipaddress.ip_interface(cidr)
        _demand(all(item.cidr != cidr for item in link.addresses), f"{name} has {cidr} already")
        address = Address(str(interface), "link" if interface.is_link_local else "global")
        route = Route(str(interface.network), "", 256 if interface.version == 6 else 0, "kernel")
        self.set_link(name, addresses=(*link.addresses, address), routes=(*link.routes, route))

    def delete_link(self, name: str) -> None:
        """Remove a link; what was its port has no master any more."""
        for fact in list(self.facts.values()):
            if isinstance(fact, Link) and fact.master == name:
                self.set_link(fact.name, master="", master_index=0, port=None)
        del self.facts[Key("link", name)]


def numbers(table: Iterable[Setting], **other: int) -> tuple[tuple[str, int], ...]:
    """The settings of a bridge or port as the kernel makes them, but for those said."""
    return tuple((s.kernel, other.get(s.kernel, s.default or 0)) for s in table)


def edit(root: Element, changes: Mapping[str, Any]) -> None:
    """Change XML by path: ``devices/disk/target@bus: sata``, ``memory: 1``; None takes it away."""
    for where, value in changes.items():
        path, _, name = where.partition("@")
        if name and value is None:
            for element in root.findall(path) if path else [root]:
                element.attrib.pop(name, None)
        elif value is None:
            parent_path, _, tag = path.rpartition("/")
            parents = root.findall(parent_path) if parent_path else [root]
            for parent in parents:
                for child in parent.findall(tag):
                    parent.remove(child)
        else:
            found = root.find(path) if path else root
            element = reach(root, path) if found is None else found
            if isinstance(value, str) and value.lstrip().startswith("<"):
                element.append(parse(value))
            elif name:
                element.set(name, str(value))
            else:
                element.text = str(value)


def _target(device: Element) -> str:
    target = device.find("target")
    return "" if target is None else target.get("dev", "")


def _rest(device: Element) -> list[str]:
    """What an update of a device may not change; another medium may be of another format."""
    free = ("source", "link", "target", "bandwidth")
    rest = [ElementTree.tostring(item, "unicode") for item in device if item.tag not in free]
    rest = [re.sub(r'(<driver[^>]*) type="\w+"', r"\1", text) for text in rest]
    return sorted(ElementTree.canonicalize(text, strip_text=True) for text in rest)


def _tune(root: Element, operation: ops.Op) -> None:
    """What changes in a running guest without a device coming or going."""
    match operation:
        case ops.DomainSetIoTune(target=target, limits=limits):
            found = [disk for disk in root.findall("devices/disk") if _target(disk) == target]
            _demand(found, f"no disk {target}")
            given = {name: value for name, value in limits if value}
            for word in ("bytes", "iops"):
                split = given.keys() & {f"read_{word}_sec", f"write_{word}_sec"}
                _demand(not (f"total_{word}_sec" in given and split), "total and read/write cannot be set together")
            for name in given:
                base = name.removesuffix("_length").removesuffix("_max")
                _demand(base in given or name == "size_iops_sec", f"cannot reset {base} when {name} is set")
            cut(found[0], "iotune")
            for name, value in given.items():
                reach(found[0], f"iotune/{name}").text = str(value)
        case ops.DomainSetIoThreads(add=add, remove=remove):
            present = set(io_threads.numbers(root))
            _demand(not present & set(add) and set(remove) <= present, "no such I/O thread, or there already")
            _demand(not io_threads.used(root) & set(remove), "the I/O thread serves a disk")
            present = (present | set(add)) - set(remove)
            cut(root, "iothreadids")
            reach(root, "iothreads").text = str(len(present))
            for number in sorted(present):
                ElementTree.SubElement(reach(root, "iothreadids"), "iothread", {"id": str(number)})
        case ops.DomainSetBalloonPeriod(seconds=seconds):
            _demand(reach(root, "devices/memballoon").get("model") != "none", "no balloon")
            cut(root, "devices/memballoon/stats")
            if seconds:
                reach(root, "devices/memballoon/stats").set("period", str(seconds))


def _device(root: Element, alias: str) -> Element | None:
    for device in root.findall("devices/*"):
        found = device.find("alias")
        if device.tag != "console" and found is not None and found.get("name") == alias:
            return device
    return None


def _same_device(root: Element, wanted: Element) -> Element | None:
    """libvirt finds a NIC by its MAC, a disk by its target."""
    leaf, name = ("mac", "address") if wanted.tag == "interface" else ("target", "dev")
    for device in root.findall(f"devices/{wanted.tag}"):
        if reach(copy.deepcopy(device), leaf).get(name) == reach(wanted, leaf).get(name):
            return device
    return None


def _sources(root: Element) -> list[str]:
    disks = [item.get("file") or item.get("dev") for item in root.findall("devices/disk/source")]
    return [path for path in [*disks, root.findtext("os/kernel"), root.findtext("os/initrd")] if path]


def _completed(root: Element, machines: Mapping[str, str]) -> Element:
    """What libvirt makes of a definition: defaults written out, empty values dropped, nonsense refused."""
    root.attrib.pop("id", None)
    memory_simulator.complete(root)
    memory = reach(root, "memory")
    maximum = (size("memory").get(root) or 0) // 1024
    _demand(maximum > 0, "no memory")
    memory.set("unit", "KiB")
    memory.text = str(maximum)
    now = reach(root, "currentMemory")
    now.set("unit", "KiB")
    now.text = str(min(int(now.text or maximum), maximum))
    _complete_cpus(root)
    kind = root.find("os/type")
    assert kind is not None
    kind.set("machine", machines.get(kind.get("machine", "pc"), kind.get("machine", "pc")))
    for path in ("os/cmdline", "os/kernel", "os/initrd"):
        if root.find(path) is not None and not root.findtext(path):
            cut(root, path)
    orders = [item.get("order") for item in root.findall("devices/*/boot")]
    _demand(len(orders) == len(set(orders)), "boot order used for more than one device")
    _demand(not (orders and root.find("os/boot") is not None), "per-device boot elements beside os/boot")
    if not orders and root.find("os/boot") is None:
        ElementTree.SubElement(reach(root, "os"), "boot", {"dev": "hd"})
    _complete_threads(root)
    _complete_devices(root, "q35" in kind.get("machine", ""))
    return root


def _complete_cpus(root: Element) -> None:
    vcpu = reach(root, "vcpu")
    maximum, current = int(vcpu.text or 1), int(vcpu.get("current") or vcpu.text or 1)
    _demand(current <= maximum, "maximum vCPU count must not be less than current vCPU count")
    vcpu.attrib.pop("current", None)
    vcpu.set("placement", "static")
    if current != maximum:
        vcpu.set("current", str(current))
    topology = root.find("cpu/topology")
    if topology is not None:
        product = math.prod(int(topology.get(name, "1")) for name in ("sockets", "cores", "threads"))
        _demand(product == maximum, "CPU topology doesn't match maximum vcpu count")
    cpu = reach(root, "cpu")
    if cpu.get("mode", "custom") == "custom" and cpu.find("model") is None:
        cpu.set("mode", "custom")
        ElementTree.SubElement(cpu, "model", {"fallback": "forbid"}).text = "qemu64"


def _complete_threads(root: Element) -> None:
    if root.find("devices/memballoon") is None:
        ElementTree.SubElement(reach(root, "devices"), "memballoon", {"model": "virtio"})
    _demand(io_threads.used(root) <= io_threads.numbers(root), "a disk names an I/O thread that is not defined")


def _complete_devices(root: Element, q35: bool) -> None:
    targets = [item.get("dev") for item in root.findall("devices/disk/target")]
    _demand(len(targets) == len(set(targets)), f"target duplicated: {targets}")
    tags = ("disk", "interface", "serial", "memory", "filesystem", "hostdev")
    aliases = [item.get("name", "") for tag in tags for item in root.findall(f"devices/{tag}/alias")]
    owned = [name for name in aliases if name.startswith("ua-")]
    _demand(len(owned) == len(set(owned)), f"alias duplicated: {owned}")
    for disk in root.findall("devices/disk"):
        target, driver = reach(disk, "target"), reach(disk, "driver")
        _demand(not (q35 and target.get("bus") == "ide"), "IDE controllers are unsupported for q35")
        _demand(disk.find("source") is not None or disk.get("device") == "cdrom", "a disk without a source")
        driver.set("type", driver.get("type", "raw"))
        if disk.find("serial") is not None and not disk.findtext("serial"):
            cut(disk, "serial")
    shares = root.findall("devices/filesystem")
    if any(reach(copy.deepcopy(share), "driver").get("type") == "virtiofs" for share in shares):
        shared = root.find("memoryBacking/access[@mode='shared']")
        _demand(shared is not None, "virtiofs requires shared memory")
    for nic in root.findall("devices/interface"):
        mac = reach(nic, "mac")
        mac.set("address", mac.get("address") or f"52:54:00:{uuids.uuid4().hex[:6]}")
    devices, console, serial = reach(root, "devices"), root.find("devices/console"), root.find("devices/serial")
    if serial is None and console is not None:
        console.tag = "serial"
        serial = console
    elif console is not None:
        devices.remove(console)
    if serial is not None:
        mirrored = copy.deepcopy(serial)
        mirrored.tag = "console"
        devices.append(mirrored)


# ---------------------------------------------------------------------------------------------- the engine


class Loop:
    """Plan, act, look again: what the engine does, without threads and clocks. *now* passes by a second a round."""

    def __init__(self, machine: Machine, rules: Rules | None = None, now: float = 1000.0) -> None:
        self.machine, self.rules, self.now = machine, rules or Rules(host_devices=("*",)), now
        self.memory = Remembering(Backoff(jitter=0.0))
        self.planner = Planner(CONTROLLERS, self.rules)
        self.applied: dict[Ref, Applied] = {}
        self.resources: Mapping[Ref, Resource] = {}

    def desired(self, **given: Any) -> Desired:
        """What the source asks for, beside what was applied before."""
        return Desired(resources=self.resources, applied=self.applied, **given)

    def look(self) -> Observed:
        """The facts, taken note of as the engine does."""
        observed = self.machine.observed()
        self.memory.take_specs(self.resources.items())
        departing = [ref for ref in observed.marks if ref not in self.resources and ref.kind in CONTROLLERS]
        self.memory.take_facts(departing, observed.complete, observed, self.now)
        return observed

    def plan(self) -> Plan:
        """The next plan."""
        observed = self.look()
        begun: list[Step] = []
        plan = self.planner.plan(self.desired(), observed, self.memory.value(self.now), self.now, begun.append)
        assert all(step in plan.steps for step in begun), "what is begun while others are planned is in the plan"
        return plan

    def fresh_plan(self) -> Plan:
        """What a planner that remembers nothing says now."""
        observed = self.machine.observed()
        return make_plan(self.desired(), observed, self.memory.value(self.now), self.rules, self.now, CONTROLLERS)

    def act(self, plan: Plan) -> None:
        """Carry out what can be done now: a step that waits for others, unless all are links, comes next round."""
        self.keep(plan)
        done: set[Ref] = set()
        for step in plan.steps:
            links = all(isinstance(operation, ops.LinkOp) for operation in step.operations)
            if not step.after or (links and all(ref in done for ref in step.after)):
                self._run(step)
                done |= {step.ref} if links else set()
        self.now += 1

    def _run(self, step: Step) -> None:
        self.memory.start(step)
        done: list[ops.Op] = []
        try:
            for operation in step.operations:
                self.machine.execute(operation)
                done.append(operation)
        except Stale as error:
            self.memory.end(Outcome(step, tuple(done), error, 0.0), self.now)
        else:
            self.memory.end(Outcome(step, step.operations, None, 0.0), self.now)

    def keep(self, plan: Plan) -> None:
        """Remember what is applied, as the store does."""
        for ref, item in plan.objects.items():
            for resource, generation in to_note(item, self.applied.get(ref)):
                self.applied = self.applied | {ref: applied_of(resource, generation)}
        there = self.machine.observed().marks
        gone = [ref for ref in self.applied if ref not in self.resources and ref not in there]
        self.applied = {ref: item for ref, item in self.applied.items() if ref not in gone}

    def converge(self, resources: Mapping[Ref, Resource] | None = None, rounds: int = 12) -> list[Plan]:
        """Plan and act until nothing is left to do or to wait for; every plan on the way, the last one empty."""
        if resources is not None:
            self.resources = resources
        plans: list[Plan] = []
        for _ in range(rounds):
            plan = self.plan()
            plans.append(plan)
            if plan.empty and plan.wake_at is None:
                self.keep(plan)
                return plans
            if plan.empty and plan.wake_at is not None:
                self.now = max(self.now, plan.wake_at)
            else:
                self.act(plan)
        left = "; ".join(f"{step.ref} ({step.cause}) after {step.after}: {step.reason}" for step in plans[-1].steps)
        raise AssertionError(f"no end after {rounds} rounds: {left}")
