"""Frozen facts about the host, read by ``kvmd.host`` and shared between cycles.

A relist that reads equal yields the *same* object as before: who remembers a fact may compare by identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from kvmd.api.bridge_settings import Numbers
from kvmd.api.mark import Mark
from kvmd.api.resource import Ref
from kvmd.network_facts import Forwarding, Leases


class Key(NamedTuple):
    """The name of a fact: what it is about and the name on the host."""

    type: str  # domain | network | link | pool | volume | image | seed | file | … : what the fact is
    name: str

    def __str__(self) -> str:
        return f"{self.type} {self.name}"


HOST = Key("host", "")


@dataclass(frozen=True, slots=True)
class Address:
    """An IP address on a link: CIDR, scope and whether it is permanent (not DHCP or RA)."""

    cidr: str
    scope: str = "global"  # global | link | host | site
    permanent: bool = True
    dynamic: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """A unicast route of the main table through one link; *to* is a CIDR or ``default``."""

    to: str
    via: str = ""
    metric: int = 0
    protocol: str = ""  # kernel | boot | static | …


@dataclass(frozen=True, slots=True)
class BridgePort:
    """What a link is as a port of a bridge."""

    state: str  # disabled | listening | learning | forwarding | blocking
    settings: Numbers = ()  # in the kernel's names and units


@dataclass(frozen=True, slots=True)
class Stacked:
    """What a VLAN or VXLAN is: its number and, of a VXLAN, where it leads to."""

    id: int
    local: str = ""
    remote: str = ""  # another host's address or a multicast group
    port: int = 0


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface of the kernel."""

    name: str
    index: int
    kind: str  # bridge | tun | veth | vlan | vxlan | macvtap | "" for a physical NIC
    mac: str = ""
    mtu: int = 1500
    up: bool = False  # administratively
    carrier: bool = False
    operstate: str = "down"
    master: str = ""  # name of the bridge that it is a port of
    master_index: int = 0
    alias: str = ""
    alternative_names: tuple[str, ...] = ()
    mark: Mark | None = None
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    port: BridgePort | None = None
    # of a bridge: what is not there the kernel lacks, or has from the root of the spanning tree for now
    settings: Numbers = ()  # in the kernel's names and units
    root: str = ""  # the bridge that is the root of its spanning tree, where it is not this one
    # of a TAP or TUN
    tun_mode: str = ""  # tap | tun
    persistent: bool = False
    multi_queue: bool = False
    vnet_hdr: bool = False  # follows whoever attached last
    owner: int | None = None
    group: int | None = None
    # of a link that stands on another one
    parent: str = ""  # its name; "" too where it is in another namespace
    stacked: Stacked | None = None

    @property
    def stp(self) -> bool:
        """True for a bridge that takes part in the spanning tree."""
        return dict(self.settings).get("stp_state", 0) != 0


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain of libvirt: *config* and *live* are its XML (None where it has no such self)."""

    name: str
    uuid: str
    state: str  # running | paused | shutoff | crashed | suspended | …
    reason: str  # libvirt's reason for the state: booted, destroyed, shutdown, crashed, …
    config: str | None
    live: str | None
    persistent: bool = True  # False: config is what a definition of the running domain would be
    autostart: bool = False
    mark: Mark | None = None  # of the definition
    boot_mark: Mark | None = None  # of the running self: what it was started with
    snapshots: tuple[str, ...] = ()  # their names, in order

    @property
    def active(self) -> bool:
        """True while a QEMU process belongs to it."""
        return self.live is not None


@dataclass(frozen=True, slots=True)
class Overlay:
    """A file that an external snapshot put over the disk that was there before."""

    path: str
    over: str
    over_format: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot of a domain. *uuid* is the domain's: a snapshot has none of its own."""

    name: str  # domain/snapshot
    uuid: str
    snapshot: str
    state: str  # of the guest then: running | paused | shutoff | disk-snapshot
    memory: bool = False
    parent: str = ""
    created: int = 0  # seconds since 1970
    external: bool = False
    overlays: tuple[Overlay, ...] = ()
    memory_file: str = ""  # of an external one
    mark: Mark | None = None


@dataclass(frozen=True, slots=True)
class Network:
    """A network of libvirt."""

    name: str
    uuid: str
    active: bool
    config: str | None
    live: str | None
    autostart: bool = False
    bridge: str = ""  # of the running self, else of the definition
    mark: Mark | None = None


@dataclass(frozen=True, slots=True)
class Pool:
    """A storage pool of libvirt; *path* is its directory, where its type has one."""

    name: str
    uuid: str
    type: str  # dir | logical | netfs | …
    path: str
    active: bool
    config: str | None = None
    autostart: bool = False
    mark: Mark | None = None  # on its directory


@dataclass(frozen=True, slots=True)
class Volume:
    """A file in the directory of a pool; sizes in bytes. *uuid* names this very file: a copy has another."""

    name: str  # pool/file
    uuid: str
    path: str
    format: str = "raw"  # raw | qcow2
    capacity: int = 0  # what a guest sees
    backing: str = ""  # the file that an overlay stands on
    backing_format: str = ""
    data_file: bool = False  # its data lies in another file
    mark: Mark | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """A file in the image store: checked when it came, never changed since."""

    name: str  # its file name
    uuid: str
    path: str
    format: str
    size: int
    capacity: int
    digest: str  # sha256:…
    mark: Mark | None = None


@dataclass(frozen=True, slots=True)
class Secret:
    """Something that a spec names and nobody may see: a digest of it, or why it cannot be used."""

    name: str
    digest: str = ""
    problem: str = ""
    password: str = ""  # what stands for it in the XML of facts, where it can be a password


@dataclass(frozen=True, slots=True)
class Server:
    """What was found out about something on a server: whether QEMU can read it there, and why (not)."""

    url: str
    direct: bool
    why: str


@dataclass(frozen=True, slots=True)
class Holders:
    """Who stands on one file: names of domains (definition or running self), and paths of overlays."""

    path: str
    domains: tuple[str, ...] = ()
    overlays: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Transfer:
    """A download, a copy or a question to a server that is under way, or the *problem* that ended it. Bytes."""

    name: str
    done: int = 0
    total: int = 0  # 0: nobody knows
    problem: str = ""
    attempts: int = 0  # that failed
    again_at: float = 0.0  # monotonic seconds: not to be tried before
    final: bool = False  # time alone mends nothing


@dataclass(frozen=True, slots=True)
class File:
    """A file that a spec names; *kind* is regular, directory, block, missing, denied or other."""

    path: str
    kind: str
    inode: int = 0
    real: str = ""  # the path with every symbolic link followed
    device: int = 0
    replaced: str = ""  # a running guest has another file open that had this name: where that can be reached


@dataclass(frozen=True, slots=True)
class Trash:
    """What lies in the trash of a pool's directory for longer than it must be kept."""

    path: str
    overdue: tuple[str, ...]  # names of files


@dataclass(frozen=True, slots=True)
class Ports:
    """Who is, or should be, on one bridge.

    *taps* are pairs of TAP and domain that live guests say they have there; *members* are the links whose
    master it is now.
    """

    bridge: str
    taps: tuple[tuple[str, str], ...] = ()
    members: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LinkManager:
    """Who else configures a link: *by* is its name, *hint* what to write where so that it lets go."""

    name: str
    by: str
    hint: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A change of the host's own network that is not confirmed, or that was rolled back and why."""

    object: str  # Kind/name
    spec_hash: str
    state: str  # armed | rolled back
    why: str = ""


@dataclass(frozen=True, slots=True)
class Moved:
    """What was moved to a bridge and proven there, since this boot: each with the kernel's message of it."""

    object: str  # Kind/name
    addresses: tuple[tuple[Address, bytes], ...]
    routes: tuple[tuple[Route | None, bytes], ...]  # None: of another table than the main one
    taken_at: float  # seconds since the boot


@dataclass(frozen=True, slots=True)
class Ledger:
    """What must not be forgotten of one object: one-shot acts and the last stop that was seen."""

    ref: Ref
    once: str = ""  # "" | waiting | started | done | again (somebody asked for another run)
    last_stop: str = ""  # libvirt's reason of the last stop seen
    suspended: bool = False
    restarting: bool = False  # it was shut down to be started again
    install: str = ""  # "" | waiting | started | broken (powered off by us) | done
    balloon: str = ""  # what its balloon was asked for in vain, and where it stayed
    restore: str = ""  # "" | started domain/snapshot | done domain/snapshot


@dataclass(frozen=True, slots=True)
class Host:
    """What does not change while the host runs (and libvirt and QEMU stay as they are)."""

    machine_id: str
    boot_id: str = ""
    architecture: str = "x86_64"
    cpus: int = 1
    memory_bytes: int = 0
    kvm_usable: bool = False
    kvm_reason: str = ""  # why not, where it is not usable
    libvirt_version: int = 0  # 9000000 is 9.0.0
    qemu_version: int = 0
    machines: tuple[tuple[str, str], ...] = ()  # alias and canonical name
    machine_types: tuple[tuple[str, bool], ...] = ()  # canonical name, and whether QEMU calls it deprecated
    lacking: tuple[str, ...] = ()  # what machines may need beside QEMU and this host has not: swtpm, ovmf
    users: tuple[tuple[str, int], ...] = ()
    groups: tuple[tuple[str, int], ...] = ()
    user_backends: tuple[str, ...] = ("slirp",)  # of user-mode networks: slirp, passt; what any QEMU has until asked
    lacking_links: tuple[str, ...] = ()  # kinds of link that this kernel was found not to know

    def canonical_machine(self, machine: str) -> str:
        """Resolve an alias such as ``q35`` to what this QEMU makes of it."""
        return dict(self.machines).get(machine, machine)


Marked = Link | Domain | Snapshot | Network | Pool | Volume | Image  # what can carry a mark
Fact = (
    Marked
    | Leases
    | Forwarding
    | Holders
    | Transfer
    | Secret
    | Server
    | File
    | Trash
    | Ports
    | LinkManager
    | Checkpoint
    | Moved
    | Ledger
    | Host
)


@dataclass(frozen=True, slots=True)
class Observed:
    """All facts of one look. *missing* names the sources that could not be read (libvirt, links, …)."""

    facts: Mapping[Key, Fact] = field(default_factory=lambda: MappingProxyType({}))
    marks: Mapping[Ref, tuple[Key, ...]] = field(default_factory=lambda: MappingProxyType({}))
    missing: frozenset[str] = frozenset()
    owner: str = "kvmd"

    @property
    def complete(self) -> bool:
        """True where every source was read to its end."""
        return not self.missing

    @property
    def host(self) -> Host:
        """The host itself."""
        fact = self.facts.get(HOST)
        return fact if isinstance(fact, Host) else Host(machine_id="")
