"""When changes that need a restart get one: the policy, and the maintenance window."""

from __future__ import annotations

import datetime
import re
import zoneinfo
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from cronsim import CronSim, CronSimError
from pydantic import field_validator, model_validator

from kvmd import ops
from kvmd.api.quantity import Duration, Text
from kvmd.api.resource import Resource, SpecModel
from kvmd.api.schema import branch, leaf
from kvmd.observed import Domain
from kvmd.plan.look import Look

if TYPE_CHECKING:
    from kvmd.kinds.virtual_machine.live import LiveChanges

_ON_REBOOT = re.compile(r"<on_reboot>(\w[\w-]*)</on_reboot>")


class WindowSpec(SpecModel):
    """When the guest may be restarted for the changes that wait."""

    schedule: Text = leaf(about="When it opens, as in crontab.", example="0 3 * * sun")
    duration: Duration = leaf(about="How long it stays open.", example="2h")
    time_zone: Text = leaf("UTC", about="Whose clock the schedule is read by.", example="Europe/Berlin")

    @field_validator("schedule")
    @classmethod
    def _is_cron(cls, schedule: str) -> str:
        try:
            next(CronSim(schedule, datetime.datetime(2024, 1, 1)))
        except (CronSimError, StopIteration):
            raise ValueError(
                f"'{schedule}' is no crontab expression that ever comes true; write minute, hour, day, month and "
                "weekday, such as '0 3 * * sun'"
            ) from None
        return schedule

    @field_validator("time_zone")
    @classmethod
    def _is_known(cls, time_zone: str) -> str:
        try:
            zoneinfo.ZoneInfo(time_zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"'{time_zone}' is no time zone of this host; write e.g. Europe/Berlin or UTC") from None
        return time_zone


class UpdatePolicy(SpecModel):
    """What happens with changes that need a restart."""

    restart: Literal["Never", "Manual", "Window", "Automatic"] = leaf(
        "Manual",
        about="Never: they wait for the guest's next start. Manual: the same, or `kvmd approve`. Window: the guest "
        "is shut down and started once its window is open, or by `kvmd approve`. Automatic: at once.",
        example="Manual",
    )
    on_guest_reboot: Literal["Ignore", "Apply"] = leaf(
        "Ignore",
        about="Apply: while changes wait, a reboot from inside the guest becomes the restart that applies them "
        "(kvmd starts it again); for runStrategy Always. Ignore: the guest reboots as it is.",
        example="Apply",
    )
    window: WindowSpec | None = branch(None, about="When it may be restarted; for restart Window.")

    @model_validator(mode="after")
    def _agree(self) -> UpdatePolicy:
        if (self.restart == "Window") != (self.window is not None):
            raise ValueError("`restart: Window` and `window` go together; write both or neither")
        return self


def due(
    resource: Resource, policy: UpdatePolicy, running: LiveChanges, begun: bool, look: Look
) -> tuple[bool, float | None]:
    """Whether the policy makes a restart of the changes that wait now, and when that may change."""
    memory = look.memory(resource.ref)
    if not running.pending or policy.restart == "Never":
        return False, None
    if policy.restart == "Automatic" or memory.approved_hash == resource.spec_hash:
        return True, None
    if policy.restart != "Window" or memory.window is None:
        return False, None
    if begun:
        return True, None  # the guest was asked within the window: half a restart would leave it off
    opens, closes = memory.window
    if look.now < opens:
        return False, opens
    return look.now < closes, closes if look.now < closes else None


def reboots_to_apply(resource: Resource) -> bool:
    """True where a reboot from inside the guest is to apply the changes that wait."""
    policy: UpdatePolicy = resource.spec.update_policy  # type: ignore[attr-defined]
    return policy.on_guest_reboot == "Apply"


def on_reboot(resource: Resource, domain: Domain | None, now_is: tuple[bool, bool], look: Look) -> tuple[ops.Op, ...]:
    """Let a reboot of the guest end its QEMU while changes wait or it is installed (*now_is*), and only then."""
    applied = look.applied(resource.ref)
    before = applied.written.get("updatePolicy") if applied else None
    apply = reboots_to_apply(resource)
    pending, installing = now_is
    if domain is None or not domain.active:
        return ()
    if not apply and not installing and not (isinstance(before, Mapping) and before.get("onGuestReboot") == "Apply"):
        return ()
    now, configured = (_ON_REBOOT.search(xml or "") for xml in (domain.live, domain.config))
    normal = configured[1] if configured else "restart"
    wanted = "destroy" if installing or (apply and pending) else normal
    if (now[1] if now else "restart") == wanted or wanted not in ("destroy", "restart"):
        return ()
    return (ops.DomainSetOnReboot(domain.name, domain.uuid, wanted),)
