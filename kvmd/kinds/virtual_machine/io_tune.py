"""How fast a guest may read and write a disk: the spec, and where it stands in a domain's XML."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from pydantic import model_validator

from kvmd import xmlmap
from kvmd.api.quantity import Integer, Size
from kvmd.api.resource import SpecModel
from kvmd.api.schema import branch, leaf
from kvmd.plan.difference import at
from kvmd.xmlmap import Element, Place

# QEMU's THROTTLE_VALUE_MAX: what is above it is refused when the guest starts.
MOST = 10**15


class IoLimit(SpecModel):
    """Limits of one direction; null is unlimited."""

    bytes: Size | None = leaf(None, about="Bytes a second.", example="50Mi", gt=0, le=MOST)
    bytes_burst: Size | None = leaf(
        None, about="Bytes a second while a burst lasts; needs `bytes`.", example="100Mi", gt=0, le=MOST
    )
    bytes_burst_seconds: Integer | None = leaf(
        None, about="How long a burst of bytes may last; default 1.", example=10, ge=1, le=10**6
    )
    iops: Integer | None = leaf(None, about="Requests a second.", example=500, ge=1, le=MOST)
    iops_burst: Integer | None = leaf(
        None, about="Requests a second while a burst lasts; needs `iops`.", example=2000, ge=1, le=MOST
    )
    iops_burst_seconds: Integer | None = leaf(
        None, about="How long a burst of requests may last; default 1.", example=10, ge=1, le=10**6
    )

    @model_validator(mode="after")
    def _agree(self) -> IoLimit:
        for word in ("bytes", "iops"):
            base, burst = getattr(self, word), getattr(self, f"{word}_burst")
            if burst is not None and (base is None or burst < base):
                raise ValueError(f"{word}Burst ({burst}) needs `{word}`, and is not less than it")
            if getattr(self, f"{word}_burst_seconds") is not None and burst is None:
                raise ValueError(f"{word}BurstSeconds needs `{word}Burst`")
        return self


class IoTune(SpecModel):
    """How fast the guest may read and write; of bytes and of requests a limit in total, or for each direction."""

    total: IoLimit | None = branch(None, about="Reads and writes together.")
    read: IoLimit | None = branch(None, about="Reads.")
    write: IoLimit | None = branch(None, about="Writes.")
    iops_size: Size | None = leaf(
        None, about="A request of more bytes counts as several; default any is one.", example="4Ki", gt=0, le=MOST
    )

    @model_validator(mode="after")
    def _agree(self) -> IoTune:
        directions = [item for item in (self.read, self.write) if item is not None]
        for word in ("bytes", "iops"):
            if getattr(self.total, word, None) and any(getattr(item, word) for item in directions):
                raise ValueError(
                    f"`total.{word}` excludes `read.{word}` and `write.{word}`; QEMU takes one or the other"
                )
        limits = [item for item in (self.total, *directions) if item is not None]
        if self.iops_size is not None and not any(item.iops for item in limits):
            raise ValueError("iopsSize says how requests are counted; it needs a limit of `iops`")
        return self


def _limit(path: str, name: str) -> Any:
    """A field for one limit; libvirt calls it *name*."""
    return field(default=None, metadata=at(f"ioTune.{path}", limit=name, xml=_place(name)))


def _place(name: str) -> Place:
    plain = xmlmap.number(xmlmap.text(f"iotune/{name}"))

    def put(root: Element, value: int | None) -> None:
        plain.put(root, value)
        tune = root.find("iotune")
        if tune is not None and not len(tune):
            xmlmap.cut(root, "iotune")

    # 0 is unlimited. A burst lasts 1 s unless said otherwise: libvirt writes that 1 where one was taken out.
    nothing = (None, 0, 1) if name.endswith("_length") else (None, 0)
    return Place(lambda root: None if (value := plain.get(root)) in nothing else value, put)


@dataclass(frozen=True, slots=True, kw_only=True)
class IoTuneState:
    """The limits of a disk; the base of its whole state."""

    total_bytes: int | None = _limit("total.bytes", "total_bytes_sec")
    read_bytes: int | None = _limit("read.bytes", "read_bytes_sec")
    write_bytes: int | None = _limit("write.bytes", "write_bytes_sec")
    total_iops: int | None = _limit("total.iops", "total_iops_sec")
    read_iops: int | None = _limit("read.iops", "read_iops_sec")
    write_iops: int | None = _limit("write.iops", "write_iops_sec")
    total_bytes_burst: int | None = _limit("total.bytesBurst", "total_bytes_sec_max")
    read_bytes_burst: int | None = _limit("read.bytesBurst", "read_bytes_sec_max")
    write_bytes_burst: int | None = _limit("write.bytesBurst", "write_bytes_sec_max")
    total_iops_burst: int | None = _limit("total.iopsBurst", "total_iops_sec_max")
    read_iops_burst: int | None = _limit("read.iopsBurst", "read_iops_sec_max")
    write_iops_burst: int | None = _limit("write.iopsBurst", "write_iops_sec_max")
    iops_size: int | None = _limit("iopsSize", "size_iops_sec")
    total_bytes_burst_seconds: int | None = _limit("total.bytesBurstSeconds", "total_bytes_sec_max_length")
    read_bytes_burst_seconds: int | None = _limit("read.bytesBurstSeconds", "read_bytes_sec_max_length")
    write_bytes_burst_seconds: int | None = _limit("write.bytesBurstSeconds", "write_bytes_sec_max_length")
    total_iops_burst_seconds: int | None = _limit("total.iopsBurstSeconds", "total_iops_sec_max_length")
    read_iops_burst_seconds: int | None = _limit("read.iopsBurstSeconds", "read_iops_sec_max_length")
    write_iops_burst_seconds: int | None = _limit("write.iopsBurstSeconds", "write_iops_sec_max_length")


def limits_of(tune: IoTune | None) -> dict[str, int]:
    """The fields of the state that a spec says."""
    if tune is None:
        return {}
    found = {
        f"{way}_{name}": value
        for way in ("total", "read", "write")
        for name, value in (getattr(tune, way) or IoLimit()).model_dump(by_alias=False).items()
    }
    found |= {"iops_size": tune.iops_size}
    usual = {name: 1 for name in found if name.endswith("_seconds")}
    return {name: value for name, value in found.items() if value not in (None, usual.get(name))}


def limits_after(live: IoTuneState, changed: dict[str, int | None]) -> tuple[tuple[str, int], ...]:
    """Every limit under libvirt's name, once the leaves *changed* are so: one call sets them all, 0 is none."""
    return tuple(
        (item.metadata["limit"], changed.get(item.metadata["path"], getattr(live, item.name)) or 0)
        for item in fields(IoTuneState)
    )
