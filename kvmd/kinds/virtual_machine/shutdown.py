"""How a guest is asked to power off: the ways, in order, and how long each has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import model_validator

from kvmd.api.quantity import Boolean, Integer
from kvmd.api.resource import SpecModel
from kvmd.api.schema import branch, leaf

Method = Literal["agent", "acpi"]


class Timeouts(SpecModel):
    """How long each way has, in seconds, before the next one is tried."""

    agent: Integer | None = leaf(None, about="The guest agent; default an equal share of the rest.", example=30, ge=1)
    acpi: Integer | None = leaf(None, about="The power button; default an equal share of the rest.", example=90, ge=1)


class Shutdown(SpecModel):
    """How the guest is asked to power off."""

    methods: tuple[Method, ...] = leaf(
        ("agent", "acpi"),
        about="Ways, in order; one that does not work is passed over.",
        example=["acpi"],
        min_length=1,
    )
    timeouts: Timeouts = branch(factory=Timeouts, about="How long each way has before the next one is tried.")
    timeout_seconds: Integer | None = leaf(
        None,
        about="How long the guest has altogether, in seconds; default 120, or the sum where each way has its time.",
        example=120,
        ge=1,
    )
    force_after_timeout: Boolean = leaf(True, about="Whether the plug is pulled then.", example=True)

    @model_validator(mode="after")
    def _agree(self) -> Shutdown:
        for word in ("agent", "acpi"):
            if getattr(self.timeouts, word) is not None and word not in self.methods:
                raise ValueError(f"timeouts.{word} has a time, but `methods` does not list {word}")
        given = sum(self._given())
        if given > self.seconds or (self._untimed() and given == self.seconds):
            raise ValueError(
                f"the times of `timeouts` add up to {given} s, and the guest has {self.seconds} s altogether; "
                "raise timeoutSeconds"
            )
        return self

    def _given(self) -> list[int]:
        times = (getattr(self.timeouts, method) for method in dict.fromkeys(self.methods))
        return [time for time in times if time is not None]

    def _untimed(self) -> int:
        return len(dict.fromkeys(self.methods)) - len(self._given())

    @property
    def seconds(self) -> int:
        """How long the guest has."""
        if self.timeout_seconds is not None:
            return self.timeout_seconds
        return 120 if self._untimed() else sum(self._given())

    def ways(self) -> Iterator[tuple[tuple[Method, ...], float]]:
        """Each way with those that follow it should it not work, and until when since the first request it has."""
        methods = tuple(dict.fromkeys(self.methods))
        share = (self.seconds - sum(self._given())) / max(self._untimed(), 1)
        until = 0.0
        for number, method in enumerate(methods):
            time = getattr(self.timeouts, method)
            until += share if time is None else time
            yield methods[number:], self.seconds if number == len(methods) - 1 else until

    def way(self, elapsed: float) -> tuple[tuple[Method, ...], float, float]:
        """The way whose turn it is: with those that follow it, and from when until when."""
        since = 0.0
        *earlier, (last, deadline) = self.ways()
        for methods, until in earlier:
            if elapsed < until:
                return methods, since, until
            since = until
        return last, since, deadline
