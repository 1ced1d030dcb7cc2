"""Facts about storage: files in the directories of pools, the image store, and transfers under way.

A pool's directory is listed after every change that kvmd makes there, when the pool changes, and with each relist;
in between, only files that carry a mark are looked at.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from kvmd.api.resource import Ref
from kvmd.host.attributes import mark_on
from kvmd.host.errands import Errands
from kvmd.host.secrets import read_secret
from kvmd.host.storage.bases import bases_of
from kvmd.host.storage.disk_header import read_header
from kvmd.host.storage.images import ImageStore
from kvmd.host.storage.seeds import Seeds
from kvmd.host.storage.trash import overdue_in
from kvmd.observed import Fact, File, Holders, Image, Key, Pool, Server, Volume, said_format

MOST_SERVERS = 1024
HIDDEN = "."  # what is being made, and the trash, begin with it


class StorageFacts:
    """Volumes, images and transfers; every fact stays the same object while nothing changes."""

    def __init__(self, images: ImageStore, seeds: Seeds, relist: float, errands: Errands) -> None:
        self._images, self._seeds, self._relist, self._errands = images, seeds, relist, errands
        self._lock = threading.Lock()
        self._stale = True
        self._listed_at = 0.0
        self._pools: tuple[Pool, ...] = ()
        self._libvirt: tuple[Mapping[Key, Fact], tuple[Pool, ...]] = ({}, ())  # and the pools in it
        self._volumes: dict[Key, tuple[tuple[int, ...], Volume]] = {}
        self._store: Mapping[Key, Fact] = {}
        self._overlays: dict[str, list[str]] = {}  # what stands on each of our files
        self._real: dict[str, str] = {}  # our files, symbolic links followed
        self._servers: dict[Key, Server] = {}
        self.facts: Mapping[Key, Fact] = {}

    def mark_stale(self) -> None:
        """List everything again at the next look."""
        with self._lock:
            self._stale = True

    def learned(self, server: Server) -> None:
        """Something was found out about a server; remembered as long as this process lives."""
        with self._lock:
            if len(self._servers) >= MOST_SERVERS:
                self._servers.pop(next(iter(self._servers)))
            self._servers[Key("server", server.url)] = server

    def look(
        self,
        libvirt: Mapping[Key, Fact],
        users: Mapping[str, tuple[str, ...]],
        files: Mapping[Key, Fact],
        secrets: Sequence[str],
    ) -> Mapping[Key, Fact]:
        """All facts; the same mapping as before where nothing changed.

        *users* are the domains that name a file; *files* and *secrets* are those that the specs name.
        """
        errands = self._errands.facts()  # first: what has ended has told that its file must be looked for
        if libvirt is not self._libvirt[0]:
            self._libvirt = libvirt, tuple(f for f in libvirt.values() if isinstance(f, Pool) and f.type == "dir")
        pools = self._libvirt[1]
        with self._lock:
            stale, self._stale = self._stale, False
            servers = dict(self._servers)
        if stale or pools != self._pools or time.monotonic() - self._listed_at > self._relist:
            self._list(pools)
        else:
            self._look_at_marked()
        found: dict[Key, Fact] = {**self._store, **servers}
        found.update({key: volume for key, (_, volume) in self._volumes.items()})
        found.update(errands)
        found.update(self._look_at_holders(users, files))
        found.update(self._look_at_secrets(secrets))
        if found.keys() != self.facts.keys() or any(found[key] is not self.facts[key] for key in found):
            self.facts = found
        return self.facts

    def _look_at_holders(self, users: Mapping[str, tuple[str, ...]], files: Mapping[Key, Fact]) -> dict[Key, Fact]:
        """Who stands on each of our files, and on each that a spec names."""
        found: dict[Key, Fact] = {}
        named = (file for file in files.values() if isinstance(file, File))
        real_of = {name: file.real for file in named for name in (file.path, file.real) if name} | self._real
        for path, real in real_of.items():
            holders = Holders(path, users.get(path, ()), tuple(self._overlays.get(real, ())))
            if holders.domains or holders.overlays:
                key = Key("holders", path)
                known = self.facts.get(key)
                found[key] = known if known is not None and known == holders else holders
        return found

    def _look_at_secrets(self, names: Sequence[str]) -> dict[Key, Fact]:
        found: dict[Key, Fact] = {}
        for name in names:
            key, secret = Key("secret", name), read_secret(name)
            known = self.facts.get(key)
            found[key] = known if known is not None and known == secret else secret
        return found

    def _list(self, pools: tuple[Pool, ...]) -> None:
        self._pools, self._listed_at = pools, time.monotonic()
        before, self._volumes = self._volumes, {}
        for pool in pools:
            for name in _files_in(pool):
                key = Key("volume", f"{pool.name}/{name}")
                self._take(key, os.path.join(pool.path, name), before.get(key), anew=True)
        trash = {Key("trash", pool.path): fact for pool in pools if (fact := overdue_in(pool.path)) is not None}
        images = self._images.facts()
        if (fact := overdue_in(self._images.directory)) is not None:
            trash[Key("trash", fact.path)] = replace(fact, keeper=_first_of(images))
        self._store = {**images, **self._seeds.facts(), **trash}
        self._find_overlays()

    def _find_overlays(self) -> None:
        """What stands directly on our files; who removes one looks through every chain to its bottom.

        Only what has the name of one of ours is looked for: a guest may have written any path into its raw disk.
        """
        volumes = sorted((volume for _, volume in self._volumes.values()), key=lambda volume: volume.path)
        ours = [image.path for image in self._store.values() if isinstance(image, Image)]
        ours += [volume.path for volume in volumes if volume.mark is not None]
        self._real = {path: os.path.realpath(path) for path in ours}
        names = {os.path.basename(real) for real in self._real.values()}
        self._overlays = {}
        for volume in volumes:
            for base in bases_of(volume.path, volume.backing):
                if os.path.basename(base) in names:
                    self._overlays.setdefault(os.path.realpath(base), []).append(volume.path)

    def _look_at_marked(self) -> None:
        for key, known in list(self._volumes.items()):
            if known[1].mark is not None:
                del self._volumes[key]
                self._take(key, known[1].path, known, anew=False)

    def _take(self, key: Key, path: str, known: tuple[tuple[int, ...], Volume] | None, anew: bool) -> None:
        """One file; its header is read again where it is another file, or was written to by nobody but us."""
        try:
            status = os.stat(path, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):
                return
            identity = (status.st_dev, status.st_ino)
            if known is not None and known[0] == identity and not anew:
                self._volumes[key] = known
                return
            fact = _volume(key.name, path, status)
        except OSError:
            return
        self._volumes[key] = known if known is not None and known == (identity, fact) else (identity, fact)


def _files_in(pool: Pool) -> Iterator[str]:
    try:
        names = sorted(os.listdir(pool.path))
    except OSError:
        return
    yield from (name for name in names if not name.startswith(HIDDEN))


def _first_of(images: Mapping[Key, Fact]) -> Ref | None:
    """The first Image that is in the store and is there to stay."""
    marks = (fact.mark for _, fact in sorted(images.items()) if isinstance(fact, Image))
    return next((mark.ref for mark in marks if mark is not None and not mark.retained), None)


def _volume(name: str, path: str, status: os.stat_result) -> Volume:
    mark = mark_on(path)
    header = read_header(path, status.st_size, said_format(mark) if mark is not None else "")
    return Volume(
        name=name,
        uuid=volume_id(name, status),
        path=path,
        format=header.format,
        capacity=header.capacity,
        backing=header.backing,
        backing_format=header.backing_format,
        data_file=header.data_file,
        mark=mark,
        real=os.path.realpath(path),
    )


def volume_id(name: str, status: os.stat_result) -> str:
    """What names this very file: a copy of it, mark and all, has another inode."""
    return f"{name}#{status.st_ino}"
