"""The spec of a disk or CD-ROM."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from kvmd.api.quantity import Boolean, DeviceName, HostPath, Integer, Text
from kvmd.api.resource import SpecModel
from kvmd.api.schema import Update, branch, leaf
from kvmd.kinds.virtual_machine.io_tune import IoTune
from kvmd.kinds.virtual_machine.login import AUTH, COOKIES, TLS, AuthFrom, CookiesFrom, Tls, refuse_login
from kvmd.kinds.virtual_machine.remote import Url, refuse_access

Access = Literal["Auto", "Direct", "Cached"]


class Media(SpecModel):
    """What lies in the tray of a CD-ROM: exactly one."""

    path: HostPath | None = leaf(None, about="ISO file on the host.", example="/var/lib/libvirt/images/debian.iso")
    image: Text | None = leaf(None, about="An Image.", example="debian-netinst")
    volume: Text | None = leaf(None, about="A Volume.", example="tools")
    url: Url | None = leaf(
        None,
        about="ISO file on a server: http, https, ftp, ftps, tftp, ssh, nfs, nbd, iscsi or rbd.",
        example="https://mirror.example/debian.iso",
    )
    access: Access = leaf(
        "Auto",
        about="Direct: QEMU reads from the server. Cached: kvmd fetches it first. Auto: Direct where this QEMU and "
        "the server can.",
        example="Auto",
    )
    auth_from: AuthFrom | None = branch(None, about=AUTH)
    cookies_from: CookiesFrom | None = branch(None, about=COOKIES)
    tls: Tls | None = branch(None, about=TLS)

    @model_validator(mode="after")
    def _agree(self) -> Media:
        if sum(item is not None for item in (self.path, self.image, self.volume, self.url)) != 1:
            raise ValueError(
                "write exactly one of `path`, `image`, `volume` and `url`; an empty tray is `media: null`"
            )
        _agree_on_access(self.url, self.access, True)
        refuse_login(self)
        return self


def _agree_on_access(url: str | None, access: Access, read_only: bool) -> None:
    if url is not None:
        refuse_access(url, access, read_only)
    elif access != "Auto":
        raise ValueError("only what has a `url` has `access`")


class Disk(SpecModel):
    """A disk or CD-ROM; its name is its identity, the order in the list means nothing."""

    name: DeviceName = leaf(about="Name of the disk within the machine.", example="root", update=Update.IMMUTABLE)
    device: Literal["disk", "cdrom"] = leaf(
        "disk", about="What the guest sees.", example="cdrom", update=Update.NEXT_BOOT
    )
    path: HostPath | None = leaf(
        None,
        about="File or block device on the host, for a disk.",
        example="/var/lib/libvirt/images/root.qcow2",
        unless="NextBoot for the file under a disk that is plugged in",
    )
    volume: Text | None = leaf(
        None,
        about="Volume, for a disk.",
        example="web-root",
        unless="NextBoot for the volume under a disk that is plugged in",
    )
    image: Text | None = leaf(
        None,
        about="Image, for a disk that is only read.",
        example="golden",
        unless="NextBoot for the image under a disk that is plugged in",
    )
    url: Url | None = leaf(
        None,
        about="Where a server has it, for a disk: nbd, iscsi, rbd, nfs; for one that is only read http, https, ftp, "
        "ftps, tftp and ssh too.",
        example="iscsi://san.example/iqn.2026-01.example:disk/1",
        unless="NextBoot for the source of a disk that is plugged in",
    )
    access: Access = leaf(
        "Auto",
        about="Of a url. Direct: QEMU reads from the server. Cached: kvmd fetches it first. Auto: Direct where this "
        "QEMU and the server can.",
        example="Auto",
        unless="NextBoot for a disk that is plugged in",
    )
    auth_from: AuthFrom | None = branch(None, about=AUTH)
    cookies_from: CookiesFrom | None = branch(None, about=COOKIES)
    tls: Tls | None = branch(None, about=TLS)
    format: Literal["raw", "qcow2"] | None = leaf(
        None,
        about="Format of the file at `path` or `url`; never guessed. A volume has its own.",
        example="qcow2",
        update=Update.NEXT_BOOT,
    )
    media: Media | None = branch(None, about="What lies in the tray of a CD-ROM; null is an empty tray.")
    bus: Literal["virtio", "scsi", "sata", "ide", "usb"] | None = leaf(
        None,
        about="Bus; default virtio for a disk, sata for a CD-ROM.",
        example="virtio",
        update=Update.NEXT_BOOT,
        unless="a disk on sata or ide, and an empty tray, cannot be plugged into a running guest",
    )
    read_only: Boolean = leaf(False, about="The guest may not write.", example=True, update=Update.NEXT_BOOT)
    boot_order: Integer | None = leaf(
        None, about="Place in the boot order, from 1.", example=1, update=Update.NEXT_BOOT, ge=1
    )
    serial: Text | None = leaf(
        None,
        about="Serial number that the guest reads.",
        example="root01",
        update=Update.NEXT_BOOT,
        pattern=r"^[A-Za-z0-9_.+-]+$",
    )
    cache: Literal["default", "none", "writethrough", "writeback", "directsync", "unsafe"] = leaf(
        "default", about="Host cache mode.", example="none", update=Update.NEXT_BOOT
    )
    io: Literal["default", "native", "threads", "io_uring"] = leaf(
        "default",
        about="How QEMU reads and writes the file; native needs cache none or directsync.",
        example="io_uring",
        update=Update.NEXT_BOOT,
    )
    discard: Literal["default", "ignore", "unmap"] = leaf(
        "default",
        about="What becomes of blocks that the guest trims: ignore keeps them, unmap gives them back to the host.",
        example="unmap",
        update=Update.NEXT_BOOT,
    )
    detect_zeroes: Literal["default", "off", "on", "unmap"] = leaf(
        "default",
        about="What becomes of blocks that the guest fills with zeroes: off writes them, on leaves holes, unmap "
        "frees them too where `discard` is unmap.",
        example="unmap",
        update=Update.NEXT_BOOT,
    )
    io_thread: Integer | None = leaf(
        None,
        about="Which of the machine's `ioThreads` serves it, from 1; default QEMU's main loop. On virtio only.",
        example=1,
        update=Update.NEXT_BOOT,
        ge=1,
    )
    io_tune: IoTune | None = branch(None, about="How fast the guest may read and write a disk; default unlimited.")

    @property
    def effective_bus(self) -> str:
        """The bus with its default."""
        return self.bus or ("sata" if self.device == "cdrom" else "virtio")

    @property
    def sources(self) -> tuple[str, ...]:
        """The words for a source that are written; a disk has one."""
        return tuple(word for word in ("path", "volume", "image", "url") if getattr(self, word) is not None)

    @model_validator(mode="after")
    def _agree(self) -> Disk:
        refuse_login(self)
        if self.device == "cdrom":
            self._agree_as_tray()
            return self
        if self.media is not None:
            raise ValueError("only a CD-ROM has media; write `device: cdrom`, or `path` or `volume` for a disk")
        if len(self.sources) != 1:
            raise ValueError("a disk needs exactly one source; write `path`, `volume`, `image` or `url`")
        if (self.volume or self.image) and self.format is not None:
            raise ValueError(f"a {'volume' if self.volume else 'image'} has its own format; take `format` out")
        if (self.path or self.url) and self.format is None:
            word = "path" if self.path else "url"
            raise ValueError(f"a disk by {word} needs `format: raw` or `format: qcow2`; it is never guessed")
        if self.image and not self.read_only:
            raise ValueError("an image never changes; write `readOnly: true`, or a Volume `from: {image: …}`")
        _agree_on_access(self.url, self.access, self.read_only)
        if self.io == "native" and self.cache not in ("none", "directsync"):
            raise ValueError("io native needs `cache: none` or `cache: directsync`; QEMU refuses it with any other")
        if self.io_thread is not None and self.effective_bus != "virtio":
            raise ValueError(
                "only a disk on virtio has an ioThread of its own; take `ioThread` out, or use bus virtio"
            )
        if self.read_only and self.effective_bus in ("ide", "sata"):
            raise ValueError(f"QEMU has no read-only disks on {self.effective_bus}; use bus virtio or scsi")
        return self

    def _agree_as_tray(self) -> None:
        if self.sources or self.access != "Auto":
            raise ValueError("a CD-ROM takes `media: {path: …}` or `media: {volume: …}`, not a disk's source")
        if self.io_thread is not None or self.io_tune is not None:
            raise ValueError("a CD-ROM has neither ioThread nor ioTune; they are for disks")
        if self.effective_bus == "virtio":
            raise ValueError("a CD-ROM cannot sit on virtio; use sata, scsi, ide or usb")
        if self.effective_bus == "usb" and self.media is None:
            raise ValueError("a CD-ROM on usb cannot be empty, libvirt refuses it; write `media`, or use sata")
