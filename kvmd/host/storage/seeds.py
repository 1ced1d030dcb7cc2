"""NoCloud seeds: made in this process, named by their content, put in place whole; and what they are made from."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterable, Mapping

from kvmd import ops
from kvmd.errors import Retry, Unsupported
from kvmd.host.secrets import content_of
from kvmd.observed import Fact, File, Key


class Seeds:
    """``<state>/seeds``."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._known: dict[Key, Fact] = {}

    def facts(self) -> Mapping[Key, Fact]:
        """Every seed that is there."""
        found: dict[Key, Fact] = {}
        with contextlib.suppress(OSError):
            for name in os.listdir(self.directory):
                if name.endswith(".iso"):
                    key = Key("seed", name)
                    path = os.path.join(self.directory, name)
                    found[key] = self._known.get(key) or File(path, "regular", 0, path)
        self._known = found
        return found

    def write(self, operation: ops.SeedWrite) -> None:
        """Make a seed; the guest's QEMU may read it, nobody else. Raises OSError or Retry."""
        os.makedirs(self.directory, mode=0o711, exist_ok=True)
        data = _iso(operation, _user_data(operation))
        temporary = os.path.join(self.directory, f".{operation.name}.part")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, operation.path)

    def remove(self, machine: str, keep: Iterable[str]) -> None:
        """Remove the seeds of a machine but those that a domain still names."""
        kept = set(keep)
        for key, fact in self.facts().items():
            name, _, _ = key.name.rpartition("-")
            if name == machine and isinstance(fact, File) and fact.path not in kept:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(fact.path)


def _user_data(operation: ops.SeedWrite) -> bytes:
    if not operation.secret:
        return operation.user_data.encode()
    try:
        return content_of(operation.secret)
    except OSError as error:
        raise Retry(f"{operation.secret}: {error.strerror}", hint="put it there") from error


def _iso(operation: ops.SeedWrite, user_data: bytes) -> bytes:
    """An ISO 9660 image with Joliet and Rock Ridge, labelled cidata. JSON is YAML."""
    try:
        import pycdlib
    except ImportError as error:
        raise Unsupported("pycdlib is not installed", hint="pip install pycdlib") from error
    files = {"user-data": user_data, "meta-data": json.dumps(operation.meta_data).encode()}
    if operation.network_config is not None:
        files["network-config"] = json.dumps(operation.network_config).encode()
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    for number, (name, data) in enumerate(files.items()):
        short = f"/FILE{number}.;1"
        iso.add_fp(io.BytesIO(data), len(data), short, rr_name=name, joliet_path=f"/{name}")
    target = io.BytesIO()
    iso.write_fp(target)
    iso.close()
    return target.getvalue()
