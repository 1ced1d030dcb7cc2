"""What must be remembered whatever happens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvmd.ops.base import Op


@dataclass(frozen=True, slots=True)
class LedgerWrite(Op):
    """Record a one-shot act, fsynced, before or after it happens."""

    entry: str  # once | install | last_stop | restarting | balloon | restore | suspended | removed | forget
    value: str = ""
    verb: ClassVar[str] = "record"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"record {self.entry}={self.value} of {self.name}"
