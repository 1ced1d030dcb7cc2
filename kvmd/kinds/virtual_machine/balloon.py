"""The balloon: the device by which a guest gives memory back; the spec, and where it stands in a domain's XML."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from kvmd import xmlmap
from kvmd.api.quantity import Boolean, Integer
from kvmd.api.resource import SpecModel
from kvmd.api.schema import Update, leaf
from kvmd.xmlmap import Element, Place

DEFAULT = "virtio"
_PATH = "devices/memballoon"


class Balloon(SpecModel):
    """The balloon of the guest's memory."""

    model: Literal["virtio", "virtio-transitional", "virtio-non-transitional", "none"] = leaf(
        DEFAULT,
        about="Its model; without one (none) the memory of a running guest cannot change.",
        example="none",
        update=Update.NEXT_BOOT,
    )
    stats_period_seconds: Integer | None = leaf(
        None,
        about="How often the guest's driver tells of its memory, for the metrics; default never.",
        example=10,
        unless="NextBoot together with another model",
        ge=1,
        le=3600,
    )
    free_page_reporting: Boolean = leaf(
        False, about="The guest gives pages that it freed back by itself.", example=True, update=Update.NEXT_BOOT
    )

    @model_validator(mode="after")
    def _agree(self) -> Balloon:
        if self.model == "none" and (self.stats_period_seconds is not None or self.free_page_reporting):
            raise ValueError("without a balloon (model none) there are neither statistics nor freePageReporting")
        return self


def _model_put(root: Element, model: str) -> None:
    """Another model may need another place, which is libvirt's to find; of none nothing else may be written."""
    found = xmlmap.reach(root, _PATH)
    if model == "none":
        found.clear()
    found.set("model", model)
    xmlmap.cut(found, "address")


def _unless_none(place: Place) -> Place:
    """A machine without a balloon has no other word about it."""

    def put(root: Element, value: object) -> None:
        if MODEL.get(root) != "none":
            place.put(root, value)

    return Place(place.get, put)


MODEL = Place(lambda root: xmlmap.attribute(_PATH, "model").get(root) or DEFAULT, _model_put)
_PERIOD = xmlmap.number(xmlmap.attribute(f"{_PATH}/stats", "period"))
_REPORTING = xmlmap.attribute(_PATH, "freePageReporting", {"on": True, "off": False})
PERIOD = _unless_none(Place(lambda root: _PERIOD.get(root) or None, _PERIOD.put))
REPORTING = _unless_none(
    Place(lambda root: bool(_REPORTING.get(root)), lambda root, value: _REPORTING.put(root, value or None))
)
