"""The trash beside the volumes of a pool and in the image store: for a week, named by when it came."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable

from kvmd.observed import Trash

FOLDER = ".kvmd-trash"
KEPT_SECONDS = 7 * 86400.0


def throw_away(path: str) -> str:
    """Move a file into the trash of its directory; where it is now. Raises OSError."""
    folder, file = os.path.split(path)
    trash = os.path.join(folder, FOLDER)
    os.makedirs(trash, mode=0o700, exist_ok=True)
    when = int(time.time())
    while os.path.lexists(moved := os.path.join(trash, f"{when}-{file}")):
        when += 1
    os.rename(path, moved)
    return moved


def overdue_in(folder: str) -> Trash | None:
    """What has lain there for longer than a week."""
    try:
        names = os.listdir(os.path.join(folder, FOLDER))
    except OSError:
        return None
    found = tuple(sorted(name for name in names if _is_overdue(name)))
    return Trash(folder, found) if found else None


def empty(folder: str, names: Iterable[str]) -> None:
    """Remove those for good. Raises OSError."""
    for name in names:
        if _is_overdue(name):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, FOLDER, name))


def _is_overdue(name: str) -> bool:
    when, dash, _ = name.partition("-")
    return bool(dash) and when.isdecimal() and time.time() - int(when) > KEPT_SECONDS
