"""Append-only files that are durable when a call returns: what must survive a crash of kvmd or of the machine.

One line is one entry. A line that was being written when the machine died is no entry; what is behind it counts.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator

_LONGEST = 8 * 2**20  # no line of ours is longer


class Journal:
    """A file of lines in a directory that is made when first needed; mode 0600. Every method may raise OSError."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._torn: bool | None = None  # True: the last line has no end; None: nobody looked yet

    def lines(self) -> Iterator[str]:
        """Every line from the first on; none where there is no file."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        with open(descriptor, "rb") as stream:
            while line := stream.readline(_LONGEST):
                yield line.decode("utf-8", errors="replace")

    def append(self, lines: Iterable[str]) -> None:
        """Add lines with one write and one fsync, however many they are."""
        text = "".join(f"{line}\n" for line in lines).encode()
        if not text:
            return
        fresh = not os.path.exists(self.path)
        if fresh:
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o600)
        try:
            if self._is_torn(descriptor):
                text = b"\n" + text
            self._torn = None
            while text:
                text = text[os.write(descriptor, text) :]
            os.fsync(descriptor)
            self._torn = False
        finally:
            os.close(descriptor)
        if fresh:
            _sync(os.path.dirname(self.path))

    def rewrite(self, lines: Iterable[str]) -> None:
        """Replace the whole file, so that at every moment the old one or the new one is there."""
        temporary = f"{self.path}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(temporary, flags, 0o600), "w", encoding="utf-8") as stream:
                stream.writelines(f"{line}\n" for line in lines)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        self._torn = False
        _sync(os.path.dirname(self.path))

    def _is_torn(self, descriptor: int) -> bool:
        if self._torn is None:
            size = os.fstat(descriptor).st_size
            self._torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        return self._torn


def _sync(folder: str) -> None:
    descriptor = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
