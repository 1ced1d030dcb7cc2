"""The files of checkpoints: one an object, replaced whole and fsynced, and the lock between two writers."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from kvmd.host.checkpoint.record import Record

ARMED: Final = "armed"
ROLLED_BACK: Final = "rolled back"
MOVED: Final = "moved"  # confirmed long ago, and kept for the day on which somebody deletes the bridge


@dataclass(frozen=True, slots=True)
class Entry:
    """One checkpoint. *deadline* is in seconds since that *boot*."""

    id: str
    object: str
    spec_hash: str
    state: str
    boot: str
    deadline: float
    why: str
    record: Record

    def rolled_back(self, why: str) -> Entry:
        """The same, put back: what must not be tried again."""
        return replace(self, state=ROLLED_BACK, why=why)


class CheckpointFiles:
    """``<state>/checkpoints``, or a *folder* beside it. Every method may raise OSError."""

    def __init__(self, state: str, folder: str = "checkpoints") -> None:
        self.folder = os.path.join(state, folder)

    @contextlib.contextmanager
    def decision(self) -> Iterator[None]:
        """Only one process at a time changes the kernel or a file under a checkpoint; ours ends with our death."""
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        descriptor = os.open(os.path.join(self.folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def entries(self) -> list[Entry]:
        """All of them; a file that nobody can read is none."""
        try:
            names = sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return []
        found = (self._read(os.path.join(self.folder, name)) for name in names if name.endswith(".json"))
        return [entry for entry in found if entry is not None]

    def find(self, object_: str) -> Entry | None:
        """The checkpoint of one object."""
        return self._read(self._path(object_))

    def write(self, entry: Entry) -> None:
        """Durable when this returns."""
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        path = self._path(entry.object)
        data: dict[str, Any] = {name: getattr(entry, name) for name in entry.__slots__ if name != "record"}
        with open(os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as stream:
            json.dump(data | {"record": entry.record.as_data()}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(f"{path}.new", path)
        self._sync(self.folder)
        self._sync(os.path.dirname(self.folder))

    def remove(self, object_: str) -> None:
        """Confirmed, or of no use any more."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(object_))
            self._sync(self.folder)

    def _path(self, object_: str) -> str:
        return os.path.join(self.folder, object_.replace("/", "-") + ".json")

    def _read(self, path: str) -> Entry | None:
        try:
            with open(path, encoding="utf-8") as stream:
                data = json.load(stream)
            return Entry(**{**data, "record": Record.from_data(data["record"])})
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    @staticmethod
    def _sync(folder: str) -> None:
        descriptor = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def boot_id() -> str:
    """The identity of this boot: after another one the kernel's state is not what a checkpoint recorded."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
        return stream.read().strip()
