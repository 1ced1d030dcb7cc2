"""Facts about what disks stand on: pools, volumes, images, files, and what is on its way. Part of observed."""

from __future__ import annotations

from dataclasses import dataclass

from kvmd.api.mark import Mark
from kvmd.api.resource import Ref

DEFAULT_FORMAT = "qcow2"  # of a Volume whose spec does not say one


def said_format(mark: Mark) -> str:
    """The format of a volume as its spec last said: what lies in the file, a guest may have written."""
    return str(mark.written.get("format") or DEFAULT_FORMAT)


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
    format: str = "raw"  # raw | qcow2: what the file looks like; no guest may be given it as that (see said_format)
    capacity: int = 0  # what a guest sees
    backing: str = ""  # the file that an overlay stands on
    backing_format: str = ""
    data_file: bool = False  # its data lies in another file
    mark: Mark | None = None
    real: str = ""  # the path with every symbolic link followed


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

    @property
    def is_medium(self) -> bool:
        """True where it was fetched for a drive of a guest, and is no object of its own."""
        return self.mark is None and self.name.startswith("media-")


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
class Server:
    """What was found out about something on a server: whether QEMU can read it there, and why (not)."""

    url: str
    direct: bool
    why: str


@dataclass(frozen=True, slots=True)
class File:
    """A file that a spec names; *kind* is regular, directory, block, missing, denied or other."""

    path: str
    kind: str
    inode: int = 0
    real: str = ""  # the path with every symbolic link followed
    device: int = 0
    binary: bool = False  # it has something in it that is no text
    replaced: str = ""  # a running guest has another file open that had this name: where that can be reached


@dataclass(frozen=True, slots=True)
class Trash:
    """What lies in the trash of a directory for longer than it must be kept."""

    path: str
    overdue: tuple[str, ...]  # names of files
    keeper: Ref | None = None  # of the image store: the one Image that has it emptied
