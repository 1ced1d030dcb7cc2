"""Reading libvirt: one connection, and what was read over it of domains and networks."""

from __future__ import annotations

import re
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import unescape

import libvirt

from kvmd.api.mark import XML_NAMESPACE, Mark, find_in
from kvmd.errors import BackendUnavailable, KvmdError
from kvmd.host.attributes import mark_on
from kvmd.host.libvirtd.bulk import Bulk, worth_a_list
from kvmd.host.libvirtd.connection import (
    ABSENT,
    DEFINITION,
    SECURE,
    Recorder,
    connect,
    counted,
    is_lost,
    register_events,
)
from kvmd.host.libvirtd.passwords import hide_in
from kvmd.host.libvirtd.snapshot_facts import snapshots_of
from kvmd.host.libvirtd.stuck import FIRST_SECONDS, SINCE, Reading, is_held
from kvmd.host.libvirtd.user_backends import user_backends
from kvmd.observed import Domain, Key, Network, Pool, Snapshot
from kvmd.settings import Libvirt

RETRY_SECONDS = 0.5

_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "running",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "shutting down",
    libvirt.VIR_DOMAIN_SHUTOFF: "shutoff",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "suspended",
}
# virDomainShutoffReason, virDomainPausedReason, virDomainRunningReason
_REASONS: Mapping[str, tuple[str, ...]] = {
    "shutoff": (
        "unknown",
        "shutdown",
        "destroyed",
        "crashed",
        "migrated",
        "saved",
        "failed",
        "from snapshot",
        "daemon",
    ),
    "paused": (
        "unknown",
        "user",
        "migration",
        "saving",
        "dump",
        "I/O error",
        "watchdog",
        "from snapshot",
        "shutting down",
        "snapshot",
        "crashed",
        "starting-up",
        "post-copy",
        "post-copy failed",
        "api error",
    ),
    "running": (
        "unknown",
        "booted",
        "migrated",
        "restored",
        "from snapshot",
        "unpaused",
        "migration canceled",
        "save canceled",
        "wakeup",
        "crashed",
        "post-copy",
    ),
    "crashed": ("unknown", "panicked"),
}


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What libvirt says of itself, QEMU and the host."""

    libvirt_version: int = 0
    qemu_version: int = 0
    architecture: str = ""
    machines: tuple[tuple[str, str], ...] = ()
    machine_types: tuple[tuple[str, bool], ...] = ()
    user_backends: tuple[str, ...] = ("slirp",)


def _capabilities(connection: Any) -> Capabilities:
    root = ElementTree.fromstring(connection.getCapabilities())
    architecture = root.findtext("host/cpu/arch") or "x86_64"
    found = [
        machine
        for guest in root.findall("guest")
        if guest.find(f"arch[@name='{architecture}']") is not None
        for machine in guest.findall(".//machine")
    ]
    machines = {item.text or "": item.get("canonical", "") for item in found if item.get("canonical")}
    types = {item.text or "": item.get("deprecated") == "yes" for item in found if not item.get("canonical")}
    return Capabilities(
        connection.getLibVersion(),
        connection.getVersion(),
        architecture,
        tuple(sorted(machines.items())),
        tuple(sorted(types.items())),
        user_backends(connection, root),
    )


@dataclass(slots=True)
class Entry:
    """A domain, network or pool with what was derived from its XML, so that equal XML is never parsed again."""

    fact: Domain | Network | Pool
    ports: tuple[tuple[Key, str], ...] = ()  # of each NIC of the running self the link below, and its own
    files: frozenset[str] = frozenset()  # that its definition or its running self names
    snapshots: tuple[Snapshot, ...] = ()


@dataclass(slots=True)
class Stale:
    """What must be read again."""

    everything: bool = True
    domains: set[str] = field(default_factory=set)
    networks: set[str] = field(default_factory=set)
    pools: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return self.everything or bool(self.domains) or bool(self.networks) or bool(self.pools)


class Reader:
    """One connection and everything read over it; it only calls what never blocks on a stuck guest.

    Whoever gives up a reader that hangs makes a new one: what the old one still writes, it writes to itself.
    """

    def __init__(
        self,
        settings: Libvirt,
        recorder: Recorder,
        on_event: Callable[[str, str], None],
        on_close: Callable[[], None],
        before: Reader | None = None,
    ) -> None:
        self._settings, self._recorder, self._on_event, self._on_close = settings, recorder, on_event, on_close
        self._connection: Any = None
        self._retry_at = 0.0
        self.domains: dict[str, Entry] = dict(before.domains) if before else {}
        self.networks: dict[str, Entry] = dict(before.networks) if before else {}
        self.pools: dict[str, Entry] = dict(before.pools) if before else {}
        self.capabilities: Capabilities = before.capabilities if before else Capabilities()
        self._bulk: Bulk | None = None
        self.relisted = 0.0
        self.reading: Reading | None = None  # where that may wait
        self.held: set[str] = set()  # domains that could not be read now

    def refresh(self, stale: Stale) -> KvmdError | None:
        """Read what is stale; the error that ended it, or None."""
        self.held = set()
        try:
            if self._connection is None or not self._connection.isAlive():
                self._reconnect()
                stale.everything = True
            if stale.everything or len(stale.domains) > len(self.domains):
                self._relist()
            else:
                many = worth_a_list(len(stale.domains), len(self.domains))
                self._bulk = Bulk.of(self._connection, stale.domains) if many else None
                for uuid in stale.domains:
                    self._reread(uuid, self.domains, self._find_domain, self._domain_entry)
                for uuid in stale.networks:
                    self._reread(uuid, self.networks, self._find_network, self._network_entry)
                for uuid in stale.pools:
                    self._reread(uuid, self.pools, self._find_pool, self._pool_entry)
        except libvirt.libvirtError as error:
            if is_lost(error):
                self._connection = None
            return BackendUnavailable(f"libvirt could not be read: {error}", hint="see: virsh list --all")
        except KvmdError as error:
            return error
        return None

    def _reconnect(self) -> None:
        now = time.monotonic()
        if now < self._retry_at:
            raise BackendUnavailable("libvirt does not answer; waiting before the next try")
        self._retry_at = now + RETRY_SECONDS
        self._connection = None
        connection = connect(self._settings)
        register_events(connection, self._on_event, self._on_close)
        self._connection = connection
        self.capabilities = _capabilities(connection)
        self._retry_at = 0.0

    def _relist(self) -> None:
        with counted(self._recorder, "listAllDomains", "read"):
            self._bulk = Bulk.of(self._connection, None)
        self.domains = self._entries(list(self._bulk.domains.values()), self.domains, self._domain_entry)
        self.networks = self._entries(self._list("listAllNetworks"), self.networks, self._network_entry)
        self.pools = self._entries(self._list("listAllStoragePools"), self.pools, self._pool_entry)
        self.relisted = time.monotonic()

    def _list(self, call: str) -> list[Any]:
        try:
            with counted(self._recorder, call, "read"):
                return list(getattr(self._connection, call)(0))
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:  # the embedded driver has none
                raise
        return []

    def _entries(self, objects: list[Any], before: dict[str, Entry], build: Callable[..., Entry]) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        for item in objects:
            uuid = item.UUIDString()
            try:
                found[uuid] = build(item, before.get(uuid))
            except libvirt.libvirtError as error:
                if error.get_error_code() not in ABSENT:
                    raise
        return found

    def _reread(
        self, uuid: str, entries: dict[str, Entry], find: Callable[[str], Any], build: Callable[..., Entry]
    ) -> None:
        try:
            entries[uuid] = build(find(uuid), entries.get(uuid))
        except libvirt.libvirtError as error:
            if error.get_error_code() not in ABSENT:
                raise
            entries.pop(uuid, None)

    def _find_domain(self, uuid: str) -> Any:
        known = self._bulk.domains.get(uuid) if self._bulk is not None else None
        return self._connection.lookupByUUIDString(uuid) if known is None else known

    def _find_network(self, uuid: str) -> Any:
        return self._connection.networkLookupByUUIDString(uuid)

    def _find_pool(self, uuid: str) -> Any:
        return self._connection.storagePoolLookupByUUIDString(uuid)

    def _domain_entry(self, domain: Any, before: Entry | None) -> Entry:
        uuid, bulk = domain.UUIDString(), self._bulk
        state, reason = (bulk.states.get(uuid) if bulk is not None else None) or domain.state()
        active = state != libvirt.VIR_DOMAIN_SHUTOFF
        if state == libvirt.VIR_DOMAIN_CRASHED:
            active = bool(domain.isActive())
        if active and self.capabilities.libvirt_version >= SINCE and is_held(domain):
            self.held.add(uuid)
            if before is not None:
                return before
        config, live = self._xml_of(domain, active)
        word = _STATES.get(state, "unknown")
        reasons = _REASONS.get(word, ())
        old = before.fact if before is not None and isinstance(before.fact, Domain) else None
        if bulk is not None:
            persistent, autostart = uuid not in bulk.transient, uuid in bulk.autostart
            has_snapshots = uuid in bulk.snapshots
        else:
            persistent = bool(domain.isPersistent())
            autostart = bool(persistent and domain.autostart())
            has_snapshots = domain.snapshotNum(0) > 0
        snapshots = snapshots_of(domain) if has_snapshots else ()
        fact = Domain(
            name=domain.name(),
            uuid=uuid,
            state=word,
            reason=reasons[reason] if 0 <= reason < len(reasons) else "unknown",
            config=config,
            live=live,
            persistent=persistent,
            autostart=autostart,
            mark=old.mark if old is not None and old.config == config else _mark(config),
            boot_mark=old.boot_mark if old is not None and old.live == live else _mark(live),
            snapshots=tuple(snapshot.snapshot for snapshot in snapshots),
        )
        if before is not None and old == fact and before.snapshots == snapshots:
            return before
        same_live = old is not None and old.live == live and before is not None
        ports = before.ports if same_live and before is not None else _ports(live)
        files = _files(config, live).union(*((item.path, item.over) for each in snapshots for item in each.overlays))
        return Entry(old if old == fact and old is not None else fact, ports, files, snapshots)

    def _xml_of(self, domain: Any, active: bool) -> tuple[str, str | None]:
        """The definition and the running self; whoever waits for us may know how long that takes."""
        if active and self.capabilities.libvirt_version >= SINCE:
            limit = FIRST_SECONDS if domain.UUIDString() in self.held else self._settings.slow
            self.reading = Reading(domain.name(), time.monotonic(), limit)
        try:
            config = hide_in(domain.XMLDesc(DEFINITION))
            live = hide_in(domain.XMLDesc(SECURE)) if active else None
        finally:
            self.reading = None
        self._recorder.libvirt_call("XMLDesc", "read", "ok")
        return config, live

    def _network_entry(self, network: Any, before: Entry | None) -> Entry:
        active = bool(network.isActive())
        persistent = bool(network.isPersistent())
        config = network.XMLDesc(libvirt.VIR_NETWORK_XML_INACTIVE) if persistent else None
        live = network.XMLDesc(0) if active else None
        self._recorder.libvirt_call("networkXMLDesc", "read", "ok")
        root = ElementTree.fromstring(config or live or "<network/>")
        running = ElementTree.fromstring(live) if live is not None else root
        bridge = running.find("bridge")  # another in the definition is for the next start
        fact = Network(
            name=network.name(),
            uuid=network.UUIDString(),
            active=active,
            config=config,
            live=live,
            autostart=bool(persistent and network.autostart()),
            bridge="" if bridge is None else bridge.get("name", ""),
            mark=find_in(root),
            start_mark=find_in(running) if live is not None else None,
        )
        return before if before is not None and before.fact == fact else Entry(fact)

    def _pool_entry(self, pool: Any, before: Entry | None) -> Entry:
        persistent = bool(pool.isPersistent())
        xml = pool.XMLDesc(libvirt.VIR_STORAGE_XML_INACTIVE if persistent else 0)
        self._recorder.libvirt_call("storagePoolXMLDesc", "read", "ok")
        root = ElementTree.fromstring(xml)
        path = root.findtext("target/path") or ""
        fact = Pool(
            name=pool.name(),
            uuid=pool.UUIDString(),
            type=root.get("type", ""),
            path=path,
            active=bool(pool.isActive()),
            config=xml if persistent else None,
            autostart=bool(persistent and pool.autostart()),
            mark=mark_on(path) if root.get("type") == "dir" else None,
        )
        return before if before is not None and before.fact == fact else Entry(fact)


def _mark(xml: str | None) -> Mark | None:
    """The mark in a domain's XML; looking for the namespace first spares parsing what is not ours."""
    if xml is None or XML_NAMESPACE not in xml:
        return None
    # Parsing only the metadata is ten times cheaper than the whole; libvirt declares our prefix within it.
    start, end = xml.find("<metadata"), xml.find("</metadata>")
    try:
        return find_in(ElementTree.fromstring(f"<domain>{xml[start : end + len('</metadata>')]}</domain>"))
    except ElementTree.ParseError:
        return find_in(ElementTree.fromstring(xml))


# Every place where a domain's XML names a file of the host: sources, backing chains, kernels, loaders, consoles.
# Each begins with what hardly occurs elsewhere: that is found ten times faster than a choice of names.
_FILES = (
    re.compile(r"='(?=/)(?:(?<=file=')|(?<=dev=')|(?<=path=')|(?<=template='))([^']*)'"),
    re.compile(r">(/[^<]*)</(?:kernel|initrd|loader|nvram)>"),
)


def _files(config: str, live: str | None) -> frozenset[str]:
    """The files that it names; unescaped only where something is escaped."""
    found = {path for text in (config, live or "") for pattern in _FILES for path in pattern.findall(text)}
    return frozenset(unescape(path) if "&" in path else path for path in found)


# What a NIC's source names: the link below its TAP or macvtap, and under which key its own link is kept.
_BELOW = {"bridge": ("bridge", "ports"), "network": ("bridge", "ports"), "direct": ("dev", "macvtaps")}


def _ports(live: str | None) -> tuple[tuple[Key, str], ...]:
    """Of each NIC for which libvirt itself made a link: the link below, and that link."""
    if live is None or "<interface " not in live:
        return ()
    found = []
    for nic in ElementTree.fromstring(live).findall("devices/interface"):
        source, target = nic.find("source"), nic.find("target")
        word, kept_as = _BELOW.get(nic.get("type", ""), ("", ""))
        if word and source is not None and target is not None:
            below, own = source.get(word), target.get("dev")
            if below and own:
                found.append((Key(kept_as, below), own))
    return tuple(found)
