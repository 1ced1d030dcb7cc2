"""Facts about domains of libvirt and their snapshots. Part of observed."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kvmd.api.mark import Mark

_RUN = re.compile(r"<domain\b[^>]*?\bid=['\"](\d+)['\"]")


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

    @property
    def run(self) -> str:
        """What tells this run of it from the next: libvirt's number for it; "" while it is off."""
        match = _RUN.search(self.live or "")
        return match[1] if match else ""


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
