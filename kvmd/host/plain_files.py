"""Reading what specs name: only plain files, opened so that nothing under that name can hold anybody up.

A pipe would keep its reader waiting for ever, and to open a device may be an order to it (a watchdog begins to run).
"""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO

MOST_BYTES = 1 << 20


def open_plain(path: str, or_block: bool = False, follow: bool = True) -> BinaryIO:
    """Open a plain file (*or_block*: or a block device), by *follow* through a symbolic link, too. Raises OSError."""
    place = os.open(path, os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))  # does not touch what is there
    try:
        mode = os.fstat(place).st_mode
        if not (stat.S_ISREG(mode) or (or_block and stat.S_ISBLK(mode))):
            more = ", neither a file nor a block device" if or_block else ""
            raise OSError(errno.EINVAL, f"it is no plain file{more}", path)
        found = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(place)
    return os.fdopen(found, "rb")


def read_plain(path: str, most: int = MOST_BYTES) -> bytes:
    """All of a plain file. Raises OSError, also for one with more than *most* bytes."""
    with open_plain(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes", path)
    return content
