"""Install once: the first start of a new guest boots an installer from a CD-ROM, every later one its disk.

Whether it has happened stands in the ledger alone: *started* before the start, *done* once the guest has powered off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import Field, model_validator

from kvmd import ops
from kvmd.api.quantity import HostPath
from kvmd.api.resource import Ref, SpecModel
from kvmd.api.schema import leaf
from kvmd.api.status import DEGRADED, RECONCILING, STALLED, Condition
from kvmd.kinds.virtual_machine.disk import Disk
from kvmd.kinds.virtual_machine.domain import State
from kvmd.kinds.virtual_machine.nic import Interface
from kvmd.observed import Domain, Ledger

if TYPE_CHECKING:
    from kvmd.kinds.virtual_machine.spec import Spec

TRAY = "install"  # the name of the installer's CD-ROM
WAITING, STARTED, BROKEN, DONE = "waiting", "started", "broken", "done"


class InstallFrom(SpecModel):
    """The ISO of the installer: exactly one."""

    path: HostPath | None = leaf(None, about="ISO file on the host.", example="/var/lib/libvirt/images/debian.iso")
    image: str | None = leaf(None, about="An Image.", example="debian-netinst")

    @model_validator(mode="after")
    def _agree(self) -> InstallFrom:
        if (self.path is None) == (self.image is None):
            raise ValueError("write exactly one of `path` and `image`")
        return self


class Install(SpecModel):
    """What a new guest boots once, before its disk; for guests that exist already it does nothing."""

    source: InstallFrom = Field(alias="from", description="The ISO of the installer.")
    done_when: Literal["GuestPoweroff"] = leaf(
        "GuestPoweroff",
        about="How the installer ends: it powers the guest off, or reboots it, which then counts as the same.",
        example="GuestPoweroff",
    )


def stage(spec: Spec, domain: Domain | None, ledger: Ledger) -> str:
    """waiting, started, broken, done, or "" where nothing is to be installed."""
    if spec.install is None:
        return ""
    return WAITING if domain is None and not ledger.install else ledger.install


def with_installer(spec: Spec, at: str) -> Spec:
    """The spec with the installer in a tray that boots first, while it is wanted."""
    if spec.install is None or at not in (WAITING, STARTED, BROKEN):
        return spec
    media = spec.install.source.model_dump(exclude_none=True)
    tray = Disk.model_validate({"name": TRAY, "device": "cdrom", "media": media, "bootOrder": 1})
    disks = (*(_later(disk) for disk in spec.disks), tray)
    return spec.model_copy(update={"disks": disks, "interfaces": tuple(map(_later, spec.interfaces))})


Device = TypeVar("Device", Disk, Interface)


def _later(device: Device) -> Device:
    order = device.boot_order
    return device if order is None else device.model_copy(update={"boot_order": order + 1})


def before_definition(ref: Ref, at: str, ledger: Ledger) -> tuple[ops.Op, ...]:
    """Note that a new guest has yet to be installed: one that is there without that note is never installed."""
    return (ops.LedgerWrite(str(ref), "install", WAITING),) if at == WAITING and not ledger.install else ()


def ended(ref: Ref, at: str, domain: Domain | None) -> tuple[ops.Op, ...]:
    """Note that the installer has powered the guest off."""
    if at != STARTED or domain is None or domain.active or domain.reason != "shutdown":
        return ()
    return (ops.LedgerWrite(str(ref), "install", DONE),)


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


def is_over(at: str, config: State | None) -> bool:
    """True where the installer is still in the definition and no longer wanted."""
    return at == DONE and config is not None and any(disk.name == TRAY for disk in config.disks)
