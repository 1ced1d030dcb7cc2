"""What every operation has: an object, what it costs the guests, and the words of a plan."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar


class Impact(IntEnum):
    """What an operation costs the guests on this host, cheapest first."""

    NONE = 0
    BLIP = 1
    RESTART = 2
    DATA_LOSS = 3

    @property
    def word(self) -> str:
        """The word that plans and JSON use."""
        return ("none", "blip", "restart", "data loss")[self]


@dataclass(frozen=True, slots=True)
class Op:
    """An operation: *name* on the host is its object."""

    name: str
    impact: ClassVar[Impact] = Impact.NONE
    verb: ClassVar[str] = "change"
    bounded: ClassVar[bool] = True  # False: it takes as long as its data does

    def describe(self) -> str:
        """What a plan says of it."""
        return f"{self.verb} {self.name}"
