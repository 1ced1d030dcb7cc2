"""Marks on files and directories: an extended attribute, which goes where the file goes."""

from __future__ import annotations

import contextlib
import errno
import os

from kvmd.api.mark import Mark
from kvmd.errors import Unsupported

ATTRIBUTE = "user.kvmd.mark"


def mark_on(path: str) -> Mark | None:
    """The mark on a file or directory; None where it has none or cannot have one."""
    try:
        return Mark.from_text(os.getxattr(path, ATTRIBUTE).decode())
    except (OSError, UnicodeDecodeError):
        return None


def put_mark(path: str, mark: Mark | None) -> None:
    """Write the mark, or take it off; raises Unsupported where the file system keeps no such attributes."""
    if mark is None:
        with contextlib.suppress(OSError):
            os.removexattr(path, ATTRIBUTE)
        return
    try:
        os.setxattr(path, ATTRIBUTE, mark.as_text().encode())
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EPERM):
            raise Unsupported(
                f"{path}: this file system keeps no extended attributes, so kvmd could not know its own files again",
                hint="use ext4, xfs or btrfs (or tmpfs of Linux 6.6), mounted without nouser_xattr",
            ) from error
        raise
