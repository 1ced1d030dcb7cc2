"""What specs name and nobody may see: files on this host, and credentials of systemd."""

from __future__ import annotations

import hashlib
import os
import stat

from kvmd.errors import Retry
from kvmd.host.libvirtd.passwords import hide
from kvmd.host.plain_files import read_plain
from kvmd.observed import Secret

CREDENTIAL = "credential:"


def path_of(name: str) -> str:
    """Where it lies: systemd gives credentials to this process in a directory of its own."""
    if not name.startswith(CREDENTIAL):
        return name
    return os.path.join(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent"), name.removeprefix(CREDENTIAL))


def content_of(name: str) -> bytes:
    """All of it. Raises OSError."""
    return read_plain(path_of(name))


def read_secret(name: str) -> Secret:
    """The fact of a secret: a digest of its content, or why it cannot be used."""
    try:
        if not name.startswith(CREDENTIAL) and os.stat(name).st_mode & stat.S_IROTH:
            return Secret(name, problem=f"others may read it; type: chmod 600 {name}")
        content = content_of(name)
        word, real = _password(content), os.path.realpath(path_of(name))
        digest = hashlib.sha256(content).hexdigest()
        return Secret(name, digest, password="" if word is None else hide(word), real=real)
    except OSError as error:
        return Secret(name, problem=f"{error.strerror}")


def password_in(name: str) -> str | None:
    """The password in a secret; None where it has none or cannot be read."""
    try:
        return _password(content_of(name))
    except OSError:
        return None


def _password(content: bytes) -> str | None:
    """One line of text that XML can hold."""
    try:
        word = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        return None
    return word if word and word.isprintable() else None


def password_from(name: str) -> str:
    """The password in a secret. Raises Retry, which names the secret and never shows it."""
    word = password_in(name)
    if word is None:
        raise Retry(f"{name}: no password can be read there", hint="write one line of text into it")
    return word
