"""Install once: the first start of a new guest boots an installer (ISO, kernel, or both), every later one its disk.

Whether it has happened stands in the ledger alone: *started* before the start, *done* once its end was seen. An
installer that is done when the guest agent answers may reboot as often as it likes: the disk boots first then, and
the ISO only while there is nothing on the disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import Field, model_validator

from kvmd import ops
from kvmd.api.quantity import HostPath, Text
from kvmd.api.resource import Ref, SpecModel
from kvmd.api.schema import branch, leaf
from kvmd.api.status import DEGRADED, RECONCILING, STALLED, Condition
from kvmd.kinds.virtual_machine.disk import Disk
from kvmd.kinds.virtual_machine.kernel_boot import KernelBoot
from kvmd.kinds.virtual_machine.nic import Interface
from kvmd.kinds.virtual_machine.remote import Url
from kvmd.observed import Domain, Ledger
from kvmd.plan.difference import Change

if TYPE_CHECKING:
    from kvmd.kinds.virtual_machine.spec import Spec

TRAY = "install"  # the name of the installer's CD-ROM
WAITING, STARTED, BROKEN, DONE = "waiting", "started", "broken", "done"


class InstallFrom(SpecModel):
    """The installer: an ISO, a kernel, or a kernel with the ISO that it reads."""

    path: HostPath | None = leaf(None, about="ISO file on the host.", example="/var/lib/libvirt/images/debian.iso")
    image: Text | None = leaf(None, about="An Image.", example="debian-netinst")
    url: Url | None = leaf(
        None, about="ISO file on a server, as of a CD-ROM.", example="https://mirror.example/debian.iso"
    )
    kernel_boot: KernelBoot | None = branch(None, about="A kernel that is booted instead of the ISO.")

    @model_validator(mode="after")
    def _agree(self) -> InstallFrom:
        if len(self.media) > 1:
            raise ValueError("write one of `path`, `image` and `url`")
        if not self.media and self.kernel_boot is None:
            raise ValueError("write `path`, `image` or `url` for an ISO, or `kernelBoot`")
        return self

    @property
    def media(self) -> dict[str, str]:
        """What lies in the tray; nothing where only a kernel is booted."""
        return {word: value for word in ("path", "image", "url") if (value := getattr(self, word)) is not None}


class Install(SpecModel):
    """What a new guest boots once, before its disk; for guests that exist already it does nothing."""

    source: InstallFrom = Field(alias="from", description="The installer.")
    done_when: Literal["GuestPoweroff", "GuestAgent"] = leaf(
        "GuestPoweroff",
        about="How the installer ends. GuestPoweroff: it powers the guest off, or reboots it, which then counts as "
        "the same. GuestAgent: the guest agent answers for the first time; until then it may reboot at will.",
        example="GuestPoweroff",
    )

    @property
    def ends_by_reboot(self) -> bool:
        """True where a reboot is to end the guest, so that it starts anew without its installer."""
        return self.done_when == "GuestPoweroff"

    def agree_with(self, disks: tuple[Disk, ...], guest_agent: bool) -> None:
        """Raise ValueError where the rest of the spec does not let the end be seen, or would boot it again."""
        if self.ends_by_reboot:
            return
        if not guest_agent:
            raise ValueError("doneWhen GuestAgent needs the agent's channel; write `devices: {guestAgent: true}`")
        if self.source.kernel_boot is not None:
            raise ValueError(
                "with doneWhen GuestAgent each reboot would boot the installer's kernel again; use an ISO"
            )
        if not any(disk.boot_order is not None and disk.device == "disk" for disk in disks):
            raise ValueError("doneWhen GuestAgent needs a disk with `bootOrder`, which boots once something is on it")


def stage(spec: Spec, domain: Domain | None, ledger: Ledger) -> str:
    """waiting, started, broken, done, or "" where nothing is to be installed."""
    if spec.install is None:
        return ""
    return WAITING if domain is None and not ledger.install else ledger.install


def with_installer(spec: Spec, at: str) -> Spec:
    """The spec with the installer in a tray that boots first, while it is wanted."""
    if spec.install is None or at not in (WAITING, STARTED, BROKEN):
        return spec
    source, first = spec.install.source, spec.install.ends_by_reboot
    changes: dict[str, object] = {"kernel_boot": source.kernel_boot} if source.kernel_boot is not None else {}
    if source.media:
        orders = [disk.boot_order or 0 for disk in spec.disks] + [nic.boot_order or 0 for nic in spec.interfaces]
        order = 1 if first else max(orders) + 1
        tray = Disk.model_validate({"name": TRAY, "device": "cdrom", "media": source.media, "bootOrder": order})
        disks, interfaces = spec.disks, spec.interfaces
        if first:
            disks, interfaces = tuple(map(_later, disks)), tuple(map(_later, interfaces))
        changes |= {"disks": (*disks, tray), "interfaces": interfaces}
    return spec.model_copy(update=changes)


Device = TypeVar("Device", Disk, Interface)


def _later(device: Device) -> Device:
    order = device.boot_order
    return device if order is None else device.model_copy(update={"boot_order": order + 1})


def before_definition(ref: Ref, at: str, ledger: Ledger) -> tuple[ops.Op, ...]:
    """Note that a new guest has yet to be installed: one that is there without that note is never installed."""
    return (ops.LedgerWrite(str(ref), "install", WAITING),) if at == WAITING and not ledger.install else ()


def ended(ref: Ref, spec: Spec, at: str, domain: Domain | None) -> tuple[ops.Op, ...]:
    """Note that the installer has powered the guest off, or that the agent of what it has installed answers."""
    if at != STARTED or domain is None or spec.install is None:
        return ()
    if spec.install.ends_by_reboot:
        over = not domain.active and domain.reason == "shutdown"
    else:
        over = domain is not None and domain.agent == "connected"
    return (ops.LedgerWrite(str(ref), "install", DONE),) if over else ()


def before_start(ref: Ref, at: str) -> tuple[ops.Op, ...]:
    """Note that the installer begins: until it is done, nobody knows what it has left on the disk."""
    return (ops.LedgerWrite(str(ref), "install", STARTED),) if at in (WAITING, BROKEN) else ()


def before_stop(ref: Ref, at: str) -> tuple[ops.Op, ...]:
    """Note that the guest was asked to power off by us: that is no end of its installer."""
    return (ops.LedgerWrite(str(ref), "install", BROKEN),) if at == STARTED else ()


def asks(ref: Ref, at: str, domain: Domain | None, asked: bool) -> Condition | None:
    """What to say where the installer began and its end was not seen; None where it may start."""
    if at not in (STARTED, BROKEN) or asked or (domain is not None and domain.reason == "failed"):
        return None
    text = (
        f"its installer was started once and its end was not seen; to run it again type: kvmd start {ref.name}; to "
        "boot from its disk, take `install` out of its spec"
    )
    return Condition(STALLED, True, "InstallNotDone", text)


def running(at: str) -> tuple[Condition, ...]:
    """What to say while the installer runs."""
    return (Condition(RECONCILING, True, "Installing", "its installer runs"),) if at == STARTED else ()


def conditions(spec: Spec, domain: Domain | None, ledger: Ledger) -> tuple[Condition, ...]:
    """What to say of an install that will never run."""
    if spec.install is None or domain is None or ledger.install:
        return ()
    text = "it was there before anybody asked for its install, which is not run; take `install` out of its spec"
    return (Condition(DEGRADED, True, "InstallNotRun", text),)


def is_over(spec: Spec, at: str, changes: tuple[Change, ...]) -> bool:
    """True where the installer is what has to leave the definition."""
    if at != DONE or spec.install is None:
        return False
    boots = spec.install.source.kernel_boot is not None
    return any(c.path == f"disks[{TRAY}]" or (boots and c.path.startswith("kernelBoot.")) for c in changes)


def owns(spec: Spec, at: str) -> frozenset[str]:
    """Leaves that are ours because we installed it: what the installer boots goes with it."""
    return frozenset({"kernelBoot"} if at and spec.install and spec.install.source.kernel_boot else ())


def without_empty_tray(changes: tuple[Change, ...]) -> tuple[Change, ...]:
    """The changes of a running guest that count: its installer's tray stays until the next boot, once it is empty."""
    return tuple(
        change
        for change in changes
        if change.path != f"disks[{TRAY}]" or change.after is not None or getattr(change.before, "source", None)
    )
