"""Quantities of bandwidth, in the units that libvirt counts in."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from kvmd.api.quantity import Size, format_quantity

# https://libvirt.org/formatdomain.html#quality-of-service: kilobytes a second, which libvirt hands to tc as kbps
# (1000 bytes: tc(8)), and a burst in kibibytes. The kernel keeps rates in bytes of 32 bits where tc is older.
KILOBYTE, KIBIBYTE = 10**3, 2**10
MOST = 2**32 - 1


def _whole(unit: int, words: str) -> AfterValidator:
    def check(size: int) -> int:
        if size % unit or not 0 < size <= MOST * unit:
            better = max(1, -(-size // unit))
            written = format_quantity(better * unit) if unit == KIBIBYTE else f"{better}k"
            raise ValueError(
                f"{size} bytes is not a whole number of {words}, as libvirt counts here; write {written}"
            )
        return size

    return AfterValidator(check)


Rate = Annotated[Size, _whole(KILOBYTE, "kilobytes (1000 bytes)")]
Burst = Annotated[Size, _whole(KIBIBYTE, "KiB (1024 bytes)")]
