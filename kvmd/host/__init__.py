"""The only door to the machine: ``Host.observe()`` gives frozen facts, a ``Hand`` carries out operations."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from kvmd import ops
from kvmd.errors import KvmdError
from kvmd.host.checkpoint.guarded import Checkpoints
from kvmd.host.errands import Errands
from kvmd.host.files import Files
from kvmd.host.forwarding.facts import ForwardingFacts
from kvmd.host.forwarding.rule_hold import release
from kvmd.host.helpers import lacking
from kvmd.host.ledger import LedgerFile
from kvmd.host.libvirtd.acts import LibvirtActs
from kvmd.host.libvirtd.connection import Recorder
from kvmd.host.libvirtd.facts import LibvirtFacts
from kvmd.host.libvirtd.guest_words import AgentWords
from kvmd.host.libvirtd.leases import LeaseFiles
from kvmd.host.libvirtd.reader import Capabilities
from kvmd.host.links.kernel import Links
from kvmd.host.links.managers import LinkManagers
from kvmd.host.links.monitor import LinkMonitor
from kvmd.host.links.ports import ports_of
from kvmd.host.marks import marks_of
from kvmd.host.preflight.rows import lacking_links, usable_kvm
from kvmd.host.storage.acts import Storage, StorageActs
from kvmd.host.storage.facts import StorageFacts
from kvmd.host.storage.images import ImageStore
from kvmd.host.storage.opened import Opened
from kvmd.host.storage.seeds import Seeds
from kvmd.observed import HOST, Key, Link, Observed, Ports
from kvmd.observed import Host as HostFact
from kvmd.plan.paths import FOLDERS_FOR_PEOPLE
from kvmd.settings import Settings

LIBVIRT = "libvirt"
LINKS = "links"
_MOVES_TAPS = (ops.DomainStart, ops.DomainAttach, ops.DomainDetach, ops.SnapshotRevert)


class Host:
    """One machine: libvirt, the kernel's links, files and the ledger.

    *wake* is called from other threads whenever something may have changed.
    """

    def __init__(
        self, settings: Settings, recorder: Recorder, wake: Callable[[], None], namespace: str | None = None
    ) -> None:
        self._settings, self._recorder, self._wake = settings, recorder, wake
        self._lock = threading.Lock()
        self.links = Links(namespace)
        self.checkpoints = Checkpoints(settings.paths.state, self.links, namespace)
        self._links_stale = threading.Event()
        self._links_stale.set()
        self._links_read_at = 0.0
        self._batches = 0  # of links, at work now
        self._link_facts: Mapping[Key, Link] = {}
        self._links_complete = False
        self._monitor = LinkMonitor(self._on_links, namespace)
        self._monitor.start()
        self.libvirt = LibvirtFacts(settings.libvirt, recorder, wake)
        self.files = Files()
        self._opened = Opened()
        self._managers = LinkManagers()
        self._leases = LeaseFiles()
        self._agents = AgentWords(settings.libvirt, recorder, wake)
        self._forwarding = ForwardingFacts(settings.libvirt.relist, wake)
        images = ImageStore(os.path.join(settings.paths.state, "images"))
        seeds = Seeds(os.path.join(settings.paths.state, "seeds"))
        errands = Errands(settings.backoff, wake)
        self.storage = Storage(images, seeds, StorageFacts(images, seeds, settings.libvirt.relist, errands), errands)
        self.ledger = LedgerFile(settings.paths.state)
        self._kvm, self._lacking_links = usable_kvm(), lacking_links()
        self._lacking: tuple[str, ...] = ()
        self._host: tuple[tuple[object, ...], HostFact] | None = None
        self._ports: dict[Key, Ports] = {}
        self._parts: tuple[object, ...] = ()
        self._observed = Observed(owner=settings.owner)

    def observe(self, paths: Iterable[str] = (), secrets: Sequence[str] = ()) -> Observed:
        """Look at the host, reading only what is stale; the same object as before where nothing changed."""
        missing: set[str] = set()
        domains, taps, error = self.libvirt.look(self._settings.libvirt.slow)
        if error is not None:
            missing.add(LIBVIRT)
        if not self._look_at_links():
            missing.add(LINKS)
        files = self._opened.look(self.files.look(paths), domains, self.libvirt.holders)
        host = self._host_fact()
        storage = self.storage.facts.look(domains, self.libvirt.holders, files, secrets)
        managers = self._managers.look(self._link_facts)
        leases, forwarding = self._leases.look(), self._forwarding.look(domains)
        words = self._agents.look(domains)
        network = (self._link_facts, managers, self.checkpoints.facts, leases, forwarding, words)
        parts = (domains, taps, *network, files, self.ledger.facts, storage, host)
        same = len(parts) == len(self._parts) and all(new is old for new, old in zip(parts, self._parts, strict=True))
        if same and frozenset(missing) == self._observed.missing:
            return self._observed
        if same:
            facts, marks = self._observed.facts, self._observed.marks
        else:
            ports = self._ports = ports_of(self._link_facts.values(), taps, self._ports)
            merged = {
                **domains,
                **managers,
                **leases,
                **words,
                **forwarding,
                **self.checkpoints.facts,
                **self._link_facts,
                **ports,
                **files,
                **self.ledger.facts,
                **storage,
                HOST: host,
            }
            facts, marks = MappingProxyType(merged), marks_of(self._observed, merged)
        self._parts = parts
        self._observed = Observed(facts, marks, frozenset(missing), self._settings.owner)
        return self._observed

    def recover(self) -> list[str]:
        """At the start: end what a kvmd that died left half done; says what was done. The caller holds the lock."""
        release()
        with contextlib.suppress(OSError):  # of a file system that is read-only, what needs it speaks for itself
            for folder in FOLDERS_FOR_PEOPLE:
                os.makedirs(os.path.join(self._settings.paths.state, folder), mode=0o711, exist_ok=True)
        return self.checkpoints.recover()

    def hand(self) -> Hand:
        """A new worker's hand."""
        return Hand(self, LibvirtActs(self._settings.libvirt, self._recorder))

    def mark_stale(self, operation: ops.Op) -> None:
        """What that operation touched must be read again."""
        if isinstance(operation, ops.LinkOp | ops.Guarded):
            self._links_stale.set()
            return
        if isinstance(operation, ops.StorageOp):
            self.storage.facts.mark_stale()
            if (pool := getattr(operation, "uuid", "")) and not isinstance(operation, ops.VolumeGrow):
                self.libvirt.mark_stale("pool", pool)
            elif isinstance(operation, ops.PoolMark):
                self.libvirt.mark_stale("", "")
            return
        kind = "network" if type(operation).__name__.startswith("Network") else "domain"
        uuid = getattr(operation, "uuid", "")
        if uuid:
            self.libvirt.mark_stale(kind, uuid)
            if isinstance(operation, ops.NetworkRepair):
                self._forwarding.forget()
            elif kind == "network":
                self._forwarding.mark_stale()
            if kind == "network" or isinstance(operation, _MOVES_TAPS):
                self._links_stale.set()
        if isinstance(operation, ops.SnapshotOp):
            self.storage.facts.mark_stale()  # overlays come and go

    def forget_everything(self) -> None:
        """Read all of it again at the next look."""
        self.libvirt.mark_stale("", "")
        self.storage.facts.mark_stale()
        self._forwarding.mark_stale()
        self.storage.errands.forget_failures()
        self._links_stale.set()
        self._host = None

    def close(self) -> None:
        """Stop watching the kernel; threads that hang in libvirt are daemons and end with the process."""
        self._monitor.stop()
        self.links.close()

    def _on_links(self, _names: frozenset[str] | None) -> None:
        self._links_stale.set()
        if not self._batches:
            self._wake()

    def execute_links(self, operations: Sequence[ops.LinkOp]) -> list[KvmdError | None]:
        """Carry out a batch; its own news, hundreds of messages, need no look before its end, which wakes anyway."""
        long = any(isinstance(operation, ops.LinkDelete) for operation in operations)
        with self._lock:
            self._batches += not long
        try:
            return self.links.execute(operations)
        finally:
            with self._lock:
                self._batches -= not long
            self.mark_stale(operations[0])

    def _look_at_links(self) -> bool:
        """True where the kernel's links were read to the end."""
        old = time.monotonic() - self._links_read_at > self._settings.libvirt.relist
        if not self._links_stale.is_set() and not old and self._links_complete:
            return True
        self._links_stale.clear()
        self._links_read_at = time.monotonic()
        try:
            links, complete = self.links.observe()
        except (KvmdError, OSError):
            self._links_stale.set()
            return False
        before = self._link_facts
        if links.keys() != before.keys() or any(links[key] is not before[key] for key in links):
            self._link_facts = links
        self._links_complete = complete
        return complete

    def _host_fact(self) -> HostFact:
        """Made anew where libvirt, QEMU or the accounts of this machine may be others."""
        capabilities = self.libvirt.capabilities
        self._lacking = lacking()
        basis = (capabilities, self._lacking, _stamp("/etc/passwd"), _stamp("/etc/group"))
        if self._host is None or self._host[0] != basis:
            fact = self._new_host_fact(capabilities)
            known = self._host[1] if self._host is not None else None
            self._host = basis, known if known == fact and known is not None else fact
        return self._host[1]

    def _new_host_fact(self, capabilities: Capabilities) -> HostFact:
        usable, reason = self._kvm
        users, groups = _accounts()
        return HostFact(
            machine_id=_machine_id(self._settings.paths.state),
            boot_id=_first_line("/proc/sys/kernel/random/boot_id"),
            architecture=capabilities.architecture or os.uname().machine,
            cpus=os.cpu_count() or 1,
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            kvm_usable=usable,
            kvm_reason=reason,
            libvirt_version=capabilities.libvirt_version,
            qemu_version=capabilities.qemu_version,
            machines=capabilities.machines,
            machine_types=capabilities.machine_types,
            lacking=self._lacking,
            user_backends=capabilities.user_backends,
            users=users,
            groups=groups,
            lacking_links=self._lacking_links,
        )


class Hand:
    """Carries out operations, one at a time, with a connection of its own."""

    def __init__(self, host: Host, acts: LibvirtActs) -> None:
        self._host, self._acts = host, acts
        self._storage = StorageActs(host.storage, acts)

    def execute(self, operation: ops.Op) -> None:
        """Carry out one operation and mark what it touched as stale; raises a KvmdError."""
        try:
            match operation:
                case ops.LinkOp():
                    error = self._host.links.execute([operation])[0]
                    if error is not None:
                        raise error
                case ops.Guarded():
                    self._host.checkpoints.execute(operation)
                case ops.LedgerWrite():
                    self._host.ledger.write(operation)
                case ops.StorageOp():
                    self._storage.execute(operation)
                case ops.NetworkStart() | ops.NetworkRestart():
                    self._acts.execute(operation)
                    self._replug(operation)
                case ops.Op():
                    self._acts.execute(operation)
        finally:
            self._host.mark_stale(operation)

    def execute_links(self, operations: Sequence[ops.LinkOp]) -> list[KvmdError | None]:
        """Carry out link operations as one batch; one answer for each."""
        return self._host.execute_links(operations)

    def close(self) -> None:
        """Give the connection back."""
        self._acts.close()

    def _replug(self, operation: ops.NetworkStart | ops.NetworkRestart) -> None:
        """libvirt leaves the TAPs of running guests off a network's new bridge: put them back in one batch."""
        if not operation.taps:
            return
        present, _ = self._host.links.observe()
        bridge = operation.bridge
        plugs = [
            ops.LinkSet(tap, link.index, master=bridge, up=True)
            for tap in operation.taps
            if (link := present.get(Key("link", tap))) is not None and link.master != bridge
        ]
        errors = [error for error in self._host.links.execute(plugs) if error is not None] if plugs else []
        if errors:
            raise errors[0]


def _accounts() -> tuple[tuple[tuple[str, int], ...], tuple[tuple[str, int], ...]]:
    users = tuple((entry.pw_name, entry.pw_uid) for entry in pwd.getpwall())
    groups = tuple((entry.gr_name, entry.gr_gid) for entry in grp.getgrall())
    return users, groups


def _stamp(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0)
    return (status.st_ino, status.st_mtime_ns)


def _machine_id(state: str) -> str:
    """The host's identity; a machine without one (a bare container) gets one that stays, in the state directory."""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id", os.path.join(state, "machine-id")):
        if len(found := _first_line(path)) >= 32:
            return found
    made = uuid.uuid4().hex
    os.makedirs(state, mode=0o750, exist_ok=True)
    with open(os.path.join(state, "machine-id"), "w", encoding="ascii") as file:
        file.write(made + "\n")
        file.flush()
        os.fsync(file.fileno())
    return made


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return ""


__all__ = ["LIBVIRT", "LINKS", "Hand", "Host"]
