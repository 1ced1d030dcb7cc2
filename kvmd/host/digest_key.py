"""The key of this host's digests: made once, read by root alone, kept with all that must survive."""

from __future__ import annotations

import contextlib
import os
import secrets

from kvmd.host.plain_files import read_plain

NAME = "digest-key"
_BYTES = 32


def digest_key(state: str) -> bytes:
    """The key, made where there is none.

    Where it can be neither read nor made, one for this process: nothing passes for applied then, and without its
    state kvmd does nothing anyway.
    """
    path = os.path.join(state, NAME)
    try:
        with contextlib.suppress(FileNotFoundError):
            return _whole(path)
        _make(state, path)
        return _whole(path)
    except OSError:
        return secrets.token_bytes(_BYTES)


def _whole(path: str) -> bytes:
    key = read_plain(path)
    if len(key) != _BYTES:
        raise OSError(0, f"it has {len(key)} bytes and not {_BYTES}; remove it to have another one made", path)
    return key


def _make(state: str, path: str) -> None:
    """Put it in place whole; of two processes that make one, the first's counts."""
    os.makedirs(state, mode=0o711, exist_ok=True)
    temporary = f"{path}.{os.getpid()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)
