"""One writer a host: a lock that the kernel takes away with the process that holds it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time

from kvmd.errors import Refused
from kvmd.settings import Settings

PROBE_SECONDS = 0.1  # whoever holds it for longer writes to this host


class Lock:
    """``<run>/kvmd.lock``, held until closed or until the process ends, however it ends."""

    def __init__(self, settings: Settings) -> None:
        """Take the lock; raises Refused where another kvmd holds it."""
        self._settings = settings
        self._descriptor = _take(settings)

    def renew(self) -> None:
        """Take it again where its file was deleted; raises Refused where another kvmd was faster."""
        with contextlib.suppress(FileNotFoundError):
            if os.stat(_path(self._settings)).st_ino == os.fstat(self._descriptor).st_ino:
                return
        former, self._descriptor = self._descriptor, _take(self._settings)
        os.close(former)

    def close(self) -> None:
        """Let go."""
        os.close(self._descriptor)


def _take(settings: Settings) -> int:
    try:
        os.makedirs(settings.paths.run, mode=0o755, exist_ok=True)
        descriptor = os.open(_path(settings), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise Refused(
            f"{_path(settings)} cannot be opened: {error.strerror}",
            hint="run kvmd as root (sudo), or set paths.run",
        ) from None
    if not _locked(descriptor):
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise Refused(
            f"another kvmd (process {holder or 'unknown'}) writes to this host: it holds {_path(settings)}",
            hint="ask it: kvmd get vm; or stop it: systemctl stop kvmd",
        )
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _locked(descriptor: int) -> bool:
    """Take the lock; who only asks whether it is held (``daemon_holds_lock``) has it for an instant, too."""
    deadline = time.monotonic() + PROBE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(PROBE_SECONDS / 20)
        else:
            return True


def daemon_holds_lock(settings: Settings) -> bool:
    """True while another process writes to this host."""
    try:
        descriptor = os.open(_path(settings), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def _path(settings: Settings) -> str:
    return os.path.join(settings.paths.run, "kvmd.lock")
