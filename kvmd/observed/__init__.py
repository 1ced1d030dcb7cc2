"""Frozen facts about the host, read by ``kvmd.host`` and shared between cycles.

A relist that reads equal yields the *same* object as before: who remembers a fact may compare by identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from kvmd.api.resource import Ref
from kvmd.observed.domains import Domain, GuestNic, GuestWords, Overlay, Snapshot
from kvmd.observed.links import Address, BridgePort, Checkpoint, Link, LinkManager, Moved, Ports, Route, Stacked
from kvmd.observed.networks import Forwarding, Lease, Leases, Network
from kvmd.observed.storage import (
    DEFAULT_FORMAT,
    File,
    Holders,
    Image,
    Pool,
    Server,
    Transfer,
    Trash,
    Volume,
    said_format,
)

__all__ = [
    "DEFAULT_FORMAT",
    "HOST",
    "Address",
    "BridgePort",
    "Checkpoint",
    "Domain",
    "Fact",
    "File",
    "Forwarding",
    "GuestNic",
    "GuestWords",
    "Holders",
    "Host",
    "Image",
    "Key",
    "Lease",
    "Leases",
    "Ledger",
    "Link",
    "LinkManager",
    "Marked",
    "Moved",
    "Network",
    "Observed",
    "Overlay",
    "Pool",
    "Ports",
    "Route",
    "Secret",
    "Server",
    "Snapshot",
    "Stacked",
    "Transfer",
    "Trash",
    "Volume",
    "said_format",
]


class Key(NamedTuple):
    """The name of a fact: what it is about and the name on the host."""

    type: str  # domain | network | link | pool | volume | image | seed | file | … : what the fact is
    name: str

    def __str__(self) -> str:
        return f"{self.type} {self.name}"


HOST = Key("host", "")


@dataclass(frozen=True, slots=True)
class Secret:
    """Something that a spec names and nobody may see: a digest of it, or why it cannot be used."""

    name: str
    digest: str = ""
    problem: str = ""
    password: str = ""  # what stands for it in the XML of facts, where it can be a password
    real: str = ""  # where it lies, every symbolic link followed


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
    | GuestWords
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
