"""What kvmd reports of an object: conditions, as Kubernetes writes them, and pending changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvmd.api.schema import Update

READY = "Ready"
RECONCILING = "Reconciling"
STALLED = "Stalled"
RESTART_REQUIRED = "RestartRequired"
BLOCKED = "Blocked"
DEGRADED = "Degraded"
SPEC_INVALID = "SpecInvalid"
CONFLICT = "Conflict"
COPIED_MARK = "CopiedMark"
PRUNE_HELD = "PruneHeld"
BACKEND_UNAVAILABLE = "BackendUnavailable"
FETCH_FAILED = "DriveNotReached"  # the reason of a condition: what was started beside the guest has failed
WHEN_LET_THROUGH = "; when let through: "  # in RestartRequired: what it costs whom
CONDITION_TYPES = (
    READY,
    RECONCILING,
    STALLED,
    RESTART_REQUIRED,
    BLOCKED,
    DEGRADED,
    SPEC_INVALID,
    CONFLICT,
    COPIED_MARK,
    PRUNE_HELD,
    BACKEND_UNAVAILABLE,
)


@dataclass(frozen=True, slots=True)
class Condition:
    """An observation of one aspect; *reason* is CamelCase for machines, *message* for people."""

    type: str
    status: bool
    reason: str
    message: str = ""

    def as_data(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "type": self.type,
            "status": "True" if self.status else "False",
            "reason": self.reason,
            "message": self.message,
        }


@dataclass(frozen=True, slots=True)
class Pending:
    """A change that is written down and not yet in the running object."""

    path: str
    current: Any
    desired: Any
    effect: Update

    def as_data(self) -> dict[str, Any]:
        """The JSON form, with the names of API.md."""
        return {
            "path": self.path,
            "currentValue": self.current,
            "desiredValue": self.desired,
            "effect": self.effect.value,
        }
