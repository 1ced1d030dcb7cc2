"""The files below a disk image, under whatever name: every way in which an overlay may name files of this host."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from typing import Any

from kvmd.host.storage.disk_header import read_header

LONGEST_CHAIN = 32
_UNREADABLE = frozenset({errno.EIO, errno.ESTALE})  # a broken disk, a server of NFS that is gone
_JSON = "json:"
_PROTOCOLS = ("file:", "host_device:")  # of files of this host; what else has one is on the network


def real_bases(path: str, said: str = "") -> frozenset[str]:
    """Every file under that one, with every symbolic link followed."""
    return frozenset(os.path.realpath(base) for base in all_under(path, said))


def all_under(path: str, said: str = "") -> Iterator[str]:
    """Every file under that one, to the bottom of its chain; under one that is *said* to be raw there is none.

    Raises OSError where a file of the chain is there and cannot be read; one that is not there ends the chain.
    """
    waiting, seen = [(path, said)], {path}
    while waiting:
        here, said = waiting.pop()
        try:
            header = read_header(os.path.realpath(here), 0, said)
        except OSError as error:
            if error.errno in _UNREADABLE:
                raise
            continue
        for base in bases_of(here, header.backing):
            if base not in seen and len(seen) <= LONGEST_CHAIN:
                seen.add(base)
                waiting.append((base, header.backing_format))
                yield base


def bases_of(path: str, backing: str) -> Iterator[str]:
    """The files that one with this word in its header stands on: as QEMU does, from where the overlay was named."""
    for name in _file_names(backing) if backing.startswith(_JSON) else filter(None, (backing,)):
        yield os.path.join(os.path.dirname(path), _without_protocol(name))


def _file_names(text: str) -> Iterator[str]:
    """The files in QEMU's long form, whose options may be nested or flat (`file.filename`)."""
    try:
        waiting: list[Any] = [json.loads(text.removeprefix(_JSON))]
    except ValueError:
        return
    while waiting:
        value = waiting.pop()
        for key, inner in value.items() if isinstance(value, dict) else ():
            if isinstance(inner, dict):
                waiting.append(inner)
            elif isinstance(inner, str) and key.rpartition(".")[2] == "filename":
                yield inner


def _without_protocol(name: str) -> str:
    return next((name.removeprefix(word) for word in _PROTOCOLS if name.startswith(word)), name)
