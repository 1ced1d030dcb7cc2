"""Facts of libvirt: domains and networks, kept between looks, marked stale by events, relisted now and then."""

from __future__ import annotations

import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import libvirt

from kvmd.api.mark import XML_NAMESPACE, Mark, find_in
from kvmd.errors import BackendUnavailable, KvmdError
from kvmd.host.libvirt_connection import ABSENT, Recorder, connect, counted, is_lost, register_events
from kvmd.observed import Domain, Fact, Key, Network
from kvmd.settings import Libvirt

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


def _capabilities(connection: Any) -> Capabilities:
    root = ElementTree.fromstring(connection.getCapabilities())
    architecture = root.findtext("host/cpu/arch") or "x86_64"
    machines = {
        machine.text or "": machine.get("canonical", "")
        for guest in root.findall("guest")
        if guest.find(f"arch[@name='{architecture}']") is not None
        for machine in guest.findall("arch/machine")
        if machine.get("canonical")
    }
    return Capabilities(
        connection.getLibVersion(), connection.getVersion(), architecture, tuple(sorted(machines.items()))
    )


@dataclass(slots=True)
class _Entry:
    """A domain or network with what was derived from its XML, so that equal XML is never parsed again."""

    fact: Domain | Network
    ports: tuple[tuple[str, str], ...] = ()  # bridge and TAP of each NIC of the running self


@dataclass(slots=True)
class _Stale:
    everything: bool = True
    domains: set[str] = field(default_factory=set)
    networks: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return self.everything or bool(self.domains) or bool(self.networks)


# From so many domains on, flags are read by list.
BULK = 8


class LibvirtFacts:
    """The reader: one thread with one connection that only calls what never blocks on a stuck guest."""

    def __init__(self, settings: Libvirt, owner: str, recorder: Recorder, wake: Callable[[], None]) -> None:
        self._settings, self._owner, self._recorder, self._wake = settings, owner, recorder, wake
        self._lock = threading.Condition()
        self._stale = _Stale()
        self._requested = 0
        self._answered = 0
        self._generation = 0
        self._domains: dict[str, _Entry] = {}
        self._networks: dict[str, _Entry] = {}
        self._connection: Any = None
        self._flags: tuple[frozenset[str], frozenset[str]] | None = None  # transient, autostart
        self._busy_since: float | None = None
        self._relisted = 0.0
        self._error: KvmdError | None = BackendUnavailable("libvirt was not asked yet")
        self._retry_at = 0.0
        self._facts: Mapping[Key, Fact] = {}
        self._ports: Mapping[str, tuple[tuple[str, str], ...]] = {}
        self.relists = 0
        self.capabilities = Capabilities()
        self._start_reader()

    # ------------------------------------------------------------------------------ seen from the cycle

    def look(
        self, patience: float
    ) -> tuple[Mapping[Key, Fact], Mapping[str, tuple[tuple[str, str], ...]], KvmdError | None]:
        """Refresh what is stale, waiting at most *patience* seconds; facts, TAPs by bridge, and what went wrong."""
        with self._lock:
            if time.monotonic() - self._relisted > self._settings.relist:
                self._stale.everything = True
            if self._stale or self._error is not None:
                self._requested += 1
                wanted = self._requested
                self._lock.notify_all()
                done = self._lock.wait_for(lambda: self._answered >= wanted, patience)
                if not done:
                    self._replace_stuck_reader()
                    text = f"libvirt has not answered for {patience:g} s"
                    return self._facts, self._ports, BackendUnavailable(text, hint="see: virsh list --all")
            return self._facts, self._ports, self._error

    def mark_stale(self, kind: str, uuid: str) -> None:
        """That object may have changed; "" means any of its kind."""
        with self._lock:
            if not uuid:
                self._stale.everything = True
            elif kind == "domain":
                self._stale.domains.add(uuid)
            else:
                self._stale.networks.add(uuid)

    @property
    def connection(self) -> Any:
        """The reader's connection, for calls that never block; None while there is none."""
        return self._connection

    # ------------------------------------------------------------------------------------ reader thread

    def _start_reader(self) -> None:
        self._generation += 1
        name = f"libvirt-facts-{self._generation}"
        threading.Thread(target=self._read_for_ever, args=(self._generation,), name=name, daemon=True).start()

    def _replace_stuck_reader(self) -> None:
        """Give up a reader that hangs in one call for longer than keepalive takes to notice (lock held)."""
        limit = self._settings.keepalive_interval * (self._settings.keepalive_count + 1) + 5
        if self._busy_since is not None and time.monotonic() - self._busy_since > limit:
            self._busy_since = None
            self._connection = None
            self._stale.everything = True
            self._start_reader()

    def _read_for_ever(self, generation: int) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._requested > self._answered or self._generation != generation)
                if self._generation != generation:
                    return
                wanted, stale, self._stale = self._requested, self._stale, _Stale(everything=False)
                self._busy_since = time.monotonic()
            error = self._refresh(stale)
            with self._lock:
                if self._generation != generation:
                    return
                self._busy_since = None
                self._error = error
                if error is not None:
                    self._stale.everything = True
                self._answered = max(self._answered, wanted)
                self._publish()
                self._lock.notify_all()

    def _refresh(self, stale: _Stale) -> KvmdError | None:
        try:
            if self._connection is None or not self._connection.isAlive():
                self._reconnect()
                stale.everything = True
            if stale.everything or len(stale.domains) > len(self._domains):
                self._relist()
            else:
                self._look_at_flags(bulk=len(stale.domains) > BULK)
                for uuid in stale.domains:
                    self._reread(uuid, self._domains, self._find_domain, self._domain_entry)
                for uuid in stale.networks:
                    self._reread(uuid, self._networks, self._find_network, self._network_entry)
        except libvirt.libvirtError as error:
            if is_lost(error):
                self._connection = None
            return BackendUnavailable(f"libvirt could not be read: {error}", hint="see: virsh list --all")
        except KvmdError as error:
            return error
        return None

    def _look_at_flags(self, bulk: bool) -> None:
        """Two lists instead of two calls a domain: who is transient, and who has libvirt's autostart on."""
        self._flags = None
        if bulk:
            transient = self._connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_TRANSIENT)
            autostart = self._connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_AUTOSTART)
            self._flags = (
                frozenset(domain.UUIDString() for domain in transient),
                frozenset(domain.UUIDString() for domain in autostart),
            )

    def _reconnect(self) -> None:
        now = time.monotonic()
        if now < self._retry_at:
            raise BackendUnavailable("libvirt does not answer; waiting before the next try")
        self._retry_at = now + 0.5
        self._connection = None
        connection = connect(self._settings)
        register_events(connection, self._on_event, self._on_close)
        self._connection = connection
        self.capabilities = _capabilities(connection)
        self._retry_at = 0.0

    def _on_event(self, kind: str, uuid: str) -> None:
        self.mark_stale(kind, uuid)
        self._wake()

    def _on_close(self) -> None:
        self.mark_stale("", "")
        self._wake()

    def _relist(self) -> None:
        self.relists += 1
        with counted(self._recorder, "listAllDomains", "read"):
            domains = self._connection.listAllDomains(0)
        self._look_at_flags(bulk=len(domains) > BULK)
        self._domains = self._entries(domains, self._domains, self._domain_entry)
        try:
            with counted(self._recorder, "listAllNetworks", "read"):
                networks = self._connection.listAllNetworks(0)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:  # the embedded driver has none
                raise
            networks = []
        self._networks = self._entries(networks, self._networks, self._network_entry)
        self._relisted = time.monotonic()

    def _entries(
        self, objects: list[Any], before: dict[str, _Entry], build: Callable[..., _Entry]
    ) -> dict[str, _Entry]:
        found: dict[str, _Entry] = {}
        for item in objects:
            uuid = item.UUIDString()
            try:
                found[uuid] = build(item, before.get(uuid))
            except libvirt.libvirtError as error:
                if error.get_error_code() not in ABSENT:
                    raise
        return found

    def _reread(
        self, uuid: str, entries: dict[str, _Entry], find: Callable[[str], Any], build: Callable[..., _Entry]
    ) -> None:
        try:
            entries[uuid] = build(find(uuid), entries.get(uuid))
        except libvirt.libvirtError as error:
            if error.get_error_code() not in ABSENT:
                raise
            entries.pop(uuid, None)

    def _find_domain(self, uuid: str) -> Any:
        return self._connection.lookupByUUIDString(uuid)

    def _find_network(self, uuid: str) -> Any:
        return self._connection.networkLookupByUUIDString(uuid)

    def _domain_entry(self, domain: Any, before: _Entry | None) -> _Entry:
        state, reason = domain.state()
        active = state != libvirt.VIR_DOMAIN_SHUTOFF
        if state == libvirt.VIR_DOMAIN_CRASHED:
            active = bool(domain.isActive())
        secure = libvirt.VIR_DOMAIN_XML_SECURE
        config = domain.XMLDesc(secure | libvirt.VIR_DOMAIN_XML_INACTIVE)
        live = domain.XMLDesc(secure) if active else None
        self._recorder.libvirt_call("XMLDesc", "read", "ok")
        word = _STATES.get(state, "unknown")
        reasons = _REASONS.get(word, ())
        old = before.fact if before is not None and isinstance(before.fact, Domain) else None
        uuid = domain.UUIDString()
        if self._flags is not None:
            persistent, autostart = uuid not in self._flags[0], uuid in self._flags[1]
        else:
            persistent = bool(domain.isPersistent())
            autostart = bool(persistent and domain.autostart())
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
        )
        if old == fact and before is not None:
            return before
        same_live = old is not None and old.live == live and before is not None
        return _Entry(fact, before.ports if same_live and before is not None else _ports(live))

    def _network_entry(self, network: Any, before: _Entry | None) -> _Entry:
        active = bool(network.isActive())
        persistent = bool(network.isPersistent())
        config = network.XMLDesc(libvirt.VIR_NETWORK_XML_INACTIVE) if persistent else None
        live = network.XMLDesc(0) if active else None
        self._recorder.libvirt_call("networkXMLDesc", "read", "ok")
        root = ElementTree.fromstring(config or live or "<network/>")
        bridge = root.find("bridge")
        fact = Network(
            name=network.name(),
            uuid=network.UUIDString(),
            active=active,
            config=config,
            live=live,
            autostart=bool(persistent and network.autostart()),
            bridge="" if bridge is None else bridge.get("name", ""),
            mark=find_in(root),
        )
        return before if before is not None and before.fact == fact else _Entry(fact)

    def _publish(self) -> None:
        """Rebuild the tables, keeping every object (and the whole) where nothing changed (lock held)."""
        facts: dict[Key, Fact] = {}
        taps: dict[str, list[tuple[str, str]]] = {}
        for entry in self._domains.values():
            facts[Key("domain", entry.fact.name)] = entry.fact
            for bridge, tap in entry.ports:
                taps.setdefault(bridge, []).append((tap, entry.fact.name))
        for entry in self._networks.values():
            facts[Key("network", entry.fact.name)] = entry.fact
        if facts.keys() != self._facts.keys() or any(facts[key] is not self._facts[key] for key in facts):
            self._facts = facts
            self._ports = {bridge: tuple(sorted(found)) for bridge, found in taps.items()}


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


def _ports(live: str | None) -> tuple[tuple[str, str], ...]:
    """Bridge and TAP of each NIC that libvirt itself put on a bridge."""
    if live is None or "<interface " not in live:
        return ()
    found = []
    for nic in ElementTree.fromstring(live).findall("devices/interface"):
        source, target = nic.find("source"), nic.find("target")
        if nic.get("type") in ("bridge", "network") and source is not None and target is not None:
            bridge, tap = source.get("bridge"), target.get("dev")
            if bridge and tap:
                found.append((bridge, tap))
    return tuple(found)
