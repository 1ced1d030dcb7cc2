"""What can be done to storage: pools of libvirt, the files in them, and the store of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from kvmd.api.mark import Mark
from kvmd.api.quantity import format_quantity
from kvmd.ops.base import Op


@dataclass(frozen=True, slots=True)
class StorageOp(Op):
    """An operation on storage."""

    @property
    def errand(self) -> str:
        """The name of the fact that shows it, where it is only started: nothing waits for its end."""
        return ""


@dataclass(frozen=True, slots=True)
class PoolDefine(StorageOp):
    """Write the definition of a storage pool, and its mark on the directory, which is made where it is not there."""

    uuid: str
    path: str
    xml: str = field(repr=False)
    mark: Mark | None = field(repr=False)
    verb: ClassVar[str] = "define pool"


@dataclass(frozen=True, slots=True)
class PoolStart(StorageOp):
    """Start a pool."""

    uuid: str
    verb: ClassVar[str] = "start pool"


@dataclass(frozen=True, slots=True)
class PoolSetAutostart(StorageOp):
    """Switch libvirt's own autostart of a pool."""

    uuid: str
    enabled: bool
    verb: ClassVar[str] = "switch autostart of pool"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"{self.verb} {self.name} {'on' if self.enabled else 'off'}"


@dataclass(frozen=True, slots=True)
class PoolUndefine(StorageOp):
    """Stop a pool and remove its definition; its directory and all in it stay."""

    uuid: str
    path: str
    verb: ClassVar[str] = "undefine pool"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"{self.verb} {self.name} (its directory and what is in it stay)"


@dataclass(frozen=True, slots=True)
class PoolMark(StorageOp):
    """Write the mark of a pool on its directory, or take it off."""

    path: str
    mark: Mark | None = field(repr=False)
    verb: ClassVar[str] = "mark pool"


@dataclass(frozen=True, slots=True)
class Login:
    """How a server is spoken to. What is secret is named, never held."""

    user: str = ""
    secret: str = ""  # where the password or the private key is read
    cookies: str = ""  # where the cookies are read
    ca_file: str = ""  # whose certificates count; "": those of this host
    insecure: bool = False  # any certificate counts


NOBODY = Login()


@dataclass(frozen=True, slots=True)
class ImageFetch(StorageOp):
    """Bring an image into the store: download or copy it, check it, and only then give it its name."""

    format: str
    mark: Mark | None = field(repr=False)  # None: no object of its own, the medium of a guest
    url: str = ""
    path: str = ""
    checksum: str = ""  # sha256:… or sha512:…
    checksum_url: str = ""  # of a list such as SHA256SUMS
    checksum_path: str = ""
    login: Login = NOBODY
    bounded: ClassVar[bool] = False

    @property
    def errand(self) -> str:
        """A guest goes on while its medium comes; an object of its own has nothing else to do."""
        return self.name if self.mark is None else ""

    def describe(self) -> str:
        """What a plan says of it."""
        verb = "download" if self.url else "copy"
        checked = " and check it" if self.checksum or self.checksum_url or self.checksum_path else ""
        return f"{verb} {self.url or self.path}{checked}"


@dataclass(frozen=True, slots=True)
class ServerAsk(StorageOp):
    """Ask QEMU and a server whether QEMU can read there; fails where it cannot and there is no *other* way."""

    url: str
    driver: str
    other: bool  # it may be fetched instead

    @property
    def errand(self) -> str:
        """Some servers let one wait."""
        return self.url

    def describe(self) -> str:
        """What a plan says of it."""
        return f"ask whether QEMU can read {self.url}"


@dataclass(frozen=True, slots=True)
class ImageMark(StorageOp):
    """Write the mark of an image anew."""

    mark: Mark = field(repr=False)
    verb: ClassVar[str] = "mark image"


@dataclass(frozen=True, slots=True)
class ImageRemove(StorageOp):
    """Move an image to the trash of the store; refused while anything stands on it."""

    path: str
    verb: ClassVar[str] = "move to the trash: image"


@dataclass(frozen=True, slots=True)
class VolumeCreate(StorageOp):
    """Make a volume: blank, standing on *backing*, or a full copy of *source*."""

    path: str
    format: str
    capacity: int  # bytes; 0 is that of what it is made from
    mark: Mark = field(repr=False)
    backing: str = ""
    backing_format: str = ""
    source: str = ""
    source_format: str = ""
    bounded: ClassVar[bool] = False

    def describe(self) -> str:
        """What a plan says of it."""
        size = f", {format_quantity(self.capacity)}" if self.capacity else ""
        origin = f" on {self.backing}" if self.backing else f" from {self.source}" if self.source else ""
        return f"create volume {self.name} ({self.format}{size}){origin}"


@dataclass(frozen=True, slots=True)
class VolumeGrow(StorageOp):
    """Make a volume larger, in the running guest *uuid* where one uses it; never smaller."""

    path: str
    format: str
    capacity: int
    uuid: str = ""
    verb: ClassVar[str] = "grow volume"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"grow volume {self.name} to {format_quantity(self.capacity)}{' (live)' if self.uuid else ''}"


@dataclass(frozen=True, slots=True)
class VolumeMark(StorageOp):
    """Write the mark of a volume anew, or take it off."""

    path: str
    mark: Mark | None = field(repr=False)
    verb: ClassVar[str] = "mark volume"


@dataclass(frozen=True, slots=True)
class SeedWrite(StorageOp):
    """Make a NoCloud seed; *secret* names what its user data is read from where the spec does not hold it."""

    machine: str
    path: str
    user_data: str = field(repr=False)
    secret: str
    meta_data: Mapping[str, Any] = field(repr=False)
    network_config: Mapping[str, Any] | None = field(repr=False)
    verb: ClassVar[str] = "write cloud-init seed"


@dataclass(frozen=True, slots=True)
class SeedRemove(StorageOp):
    """Remove the seeds of a machine that no domain names any more."""

    verb: ClassVar[str] = "remove the cloud-init seeds of"


@dataclass(frozen=True, slots=True)
class TrashEmpty(StorageOp):
    """Remove for good what has lain in the trash of a pool, or of the image store, for long enough."""

    path: str
    files: tuple[str, ...]

    def describe(self) -> str:
        """What a plan says of it."""
        return f"remove for good from the trash of {self.name}: {', '.join(self.files)}"


@dataclass(frozen=True, slots=True)
class VolumeTrash(StorageOp):
    """Move a volume into the trash beside it; refused while any domain names it or any file stands on it."""

    path: str
    verb: ClassVar[str] = "move to the trash: volume"
