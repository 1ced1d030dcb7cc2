"""How much a NIC may send and receive: the spec, and where it stands in a domain's XML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import model_validator

from kvmd import xmlmap
from kvmd.api.bandwidth import KIBIBYTE, KILOBYTE, Burst, Rate
from kvmd.api.resource import SpecModel
from kvmd.api.schema import branch, leaf
from kvmd.plan.difference import at
from kvmd.xmlmap import Element, Place


class Direction(SpecModel):
    """Limits of one direction."""

    average: Rate = leaf(about="Bytes a second.", example="10M")
    peak: Rate | None = leaf(None, about="Bytes a second while a burst lasts.", example="20M")
    burst: Burst | None = leaf(None, about="Bytes of a burst.", example="512Ki")

    @model_validator(mode="after")
    def _agree(self) -> Direction:
        if self.peak is not None and (self.burst is None or self.peak < self.average):
            raise ValueError("`peak` needs `burst`, and is not less than `average`")
        return self


class Bandwidth(SpecModel):
    """How much the guest may receive and send."""

    inbound: Direction | None = branch(None, about="To the guest; default unlimited.")
    outbound: Direction | None = branch(None, about="From the guest; default unlimited.")


def _place(way: str, word: str) -> Place:
    unit = KIBIBYTE if word == "burst" else KILOBYTE
    plain = xmlmap.number(xmlmap.attribute(f"bandwidth/{way}", word))

    def get(root: Element) -> int | None:
        value = plain.get(root)
        return value * unit if value else None

    def put(root: Element, value: int | None) -> None:
        plain.put(root, None if value is None else value // unit)
        found = root.find("bandwidth")
        if found is not None and not len(found):
            xmlmap.cut(root, "bandwidth")

    return Place(get, put)


def _limit(way: str, word: str) -> Any:
    return field(default=None, metadata=at(f"bandwidth.{way}.{word}", xml=_place(way, word)))


@dataclass(frozen=True, slots=True, kw_only=True)
class BandwidthState:
    """The limits of a NIC, in bytes; the base of its whole state."""

    inbound_average: int | None = _limit("inbound", "average")
    inbound_peak: int | None = _limit("inbound", "peak")
    inbound_burst: int | None = _limit("inbound", "burst")
    outbound_average: int | None = _limit("outbound", "average")
    outbound_peak: int | None = _limit("outbound", "peak")
    outbound_burst: int | None = _limit("outbound", "burst")


def limits_of(bandwidth: Bandwidth | None) -> dict[str, Any]:
    """The fields of the state that a spec says."""
    found: dict[str, Any] = {}
    for way in ("inbound", "outbound"):
        direction = getattr(bandwidth, way, None)
        for word in ("average", "peak", "burst") if direction is not None else ():
            found[f"{way}_{word}"] = getattr(direction, word)
    return found
