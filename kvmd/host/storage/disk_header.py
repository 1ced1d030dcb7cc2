"""What a disk image says of itself, read from its first bytes; qcow2 as in QEMU's docs/interop/qcow2.txt."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from kvmd.host.plain_files import open_plain

_MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQ")  # magic, version, backing offset and size, cluster bits, size
_FEATURES = struct.Struct(">Q")
_DATA_FILE = 1 << 2
_BACKING_FORMAT = 0xE2792ACA
_MOST_BYTES = 65536
_LONGEST_NAME = 1023


@dataclass(frozen=True, slots=True)
class Header:
    """Format, size that a guest sees, and what the file stands on. Bytes."""

    format: str
    capacity: int
    backing: str = ""
    backing_format: str = ""
    data_file: bool = False


def read_header(path: str, size: int, said: str = "") -> Header:
    """Read the header of a file of that size; a damaged one is raw. Raises OSError.

    Where the file is *said* to be raw it is not looked into: a guest can write any header onto its raw disk.
    """
    if said == "raw":
        return Header("raw", size)
    data = _first_bytes(path)
    if len(data) < 72 or data[:4] != _MAGIC:
        return Header("raw", size)
    _, version, offset, length, _, capacity = _HEADER.unpack_from(data)
    features = _FEATURES.unpack_from(data, 72)[0] if version >= 3 and len(data) >= 80 else 0
    backing = ""
    if offset and length:
        named = 0 < length <= _LONGEST_NAME and offset + length <= len(data)
        backing = data[offset : offset + length].decode("utf-8", "replace") if named else "unreadable"
    return Header("qcow2", capacity, backing, _backing_format(data, version), bool(features & _DATA_FILE))


def _first_bytes(path: str) -> bytes:
    """Of a file or a block device only: a chain may lead anywhere, and to open a watchdog starts it."""
    with open_plain(path, or_block=True, follow=False) as file:
        return os.pread(file.fileno(), _MOST_BYTES, 0)


def _backing_format(data: bytes, version: int) -> str:
    at = struct.unpack_from(">I", data, 100)[0] if version >= 3 and len(data) >= 104 else 72
    while at + 8 <= len(data):
        kind, length = struct.unpack_from(">II", data, at)
        if kind == 0:
            return ""
        if kind == _BACKING_FORMAT:
            return data[at + 8 : at + 8 + length].decode("ascii", "replace")
        at += 8 + (length + 7) // 8 * 8
    return ""
