"""Acts on storage: pools through libvirt, files by qemu-img; what is made gets its name and mark when it is whole."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import libvirt

from kvmd import ops
from kvmd.api.mark import Mark
from kvmd.errors import Blocked, Refused, Retry
from kvmd.host.attributes import mark_on, put_mark
from kvmd.host.errands import Errands
from kvmd.host.libvirtd.acts import LibvirtActs
from kvmd.host.libvirtd.connection import translate
from kvmd.host.libvirtd.storage_calls import (
    domains_naming,
    domains_standing_on,
    find_pool,
    pool_at,
    pool_paths,
    refresh_pool,
    resize_block,
    start_pool,
    undefine_pool,
)
from kvmd.host.storage.backing import overlays_on
from kvmd.host.storage.disk_header import Header, read_header
from kvmd.host.storage.facts import StorageFacts, volume_id
from kvmd.host.storage.images import ImageStore
from kvmd.host.storage.qemu_img import qemu_img
from kvmd.host.storage.reach import user_of
from kvmd.host.storage.seeds import Seeds
from kvmd.host.storage.servers import ask
from kvmd.host.storage.transfer import bring
from kvmd.host.storage.trash import empty, overdue_in, throw_away
from kvmd.observed import File, Image

MOST_TRANSFERS = 3
MEDIA_SECONDS = 86400.0


class Storage:
    """What all hands share: the image store, the facts, and how many transfers may run at once."""

    def __init__(self, images: ImageStore, seeds: Seeds, facts: StorageFacts, errands: Errands) -> None:
        self.images, self.seeds, self.facts, self.errands = images, seeds, facts, errands
        self.transfers = threading.BoundedSemaphore(MOST_TRANSFERS)


class StorageActs:
    """One worker's hand on storage."""

    def __init__(self, storage: Storage, libvirt: LibvirtActs) -> None:
        self._storage, self._libvirt = storage, libvirt

    def execute(self, operation: ops.StorageOp) -> None:
        """Carry out one operation; raises a KvmdError that says what to do next."""
        if operation.errand:
            self._storage.errands.start(operation.errand, lambda: self._beside(operation))
        else:
            self._carry_out(operation)

    def _beside(self, operation: ops.StorageOp) -> None:
        """The same in another thread, which needs a connection of its own."""
        libvirt = self._libvirt.another()
        try:
            StorageActs(self._storage, libvirt)._carry_out(operation)
        finally:
            libvirt.close()

    def _carry_out(self, operation: ops.StorageOp) -> None:
        try:
            self._match(operation)
        except libvirt.libvirtError as error:
            raise translate(error, operation.describe()) from None
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            hint = "make room on that disk" if error.errno == errno.ENOSPC else "see: ls -ld on that path"
            raise Retry(f"{operation.describe()}: {where}{error.strerror}", hint=hint) from error
        finally:
            self._storage.facts.mark_stale()

    def _match(self, operation: ops.StorageOp) -> None:
        match operation:
            case ops.PoolDefine() | ops.PoolStart() | ops.PoolSetAutostart() | ops.PoolUndefine() | ops.PoolMark():
                self._match_pool(operation)
            case ops.ImageFetch():
                self._transfer(operation, self._fetch)
            case ops.ServerAsk():
                self._storage.facts.learned(ask(operation))
            case ops.ImageMark(name=name, mark=mark):
                image = self._storage.images.read(name)
                if image is not None:
                    self._storage.images.write(replace(image, mark=mark))
            case ops.ImageRemove(name=name):
                self._remove_image(operation, self._storage.images.read(name))
            case ops.VolumeCreate():
                self._transfer(operation, self._create)
            case ops.VolumeGrow():
                self._grow(operation)
            case ops.VolumeMark(path=path, mark=mark):
                put_mark(path, mark)
            case ops.VolumeTrash():
                self._trash(operation)
            case ops.TrashEmpty(path=path, files=files):
                empty(path, files)
            case ops.SeedWrite(machine=machine):
                self._storage.seeds.write(operation)
                self._sweep_seeds(operation, machine, operation.path)
            case ops.SeedRemove(name=machine):
                self._sweep_seeds(operation, machine)
            case _:
                raise Refused(f"no way to {operation.describe()} is known", hint="please report this as a bug")

    def _match_pool(self, operation: ops.StorageOp) -> None:
        match operation:
            case ops.PoolDefine(path=path, xml=xml, mark=mark):
                self._refuse_directory_of_another(operation, path, mark)
                os.makedirs(path, mode=0o711, exist_ok=True)
                self._libvirt.call(operation, lambda connection: connection.storagePoolDefineXML(xml))
                put_mark(path, mark)  # killed before, it is known as ours by its UUID
            case ops.PoolStart(uuid=uuid):
                self._libvirt.call(operation, lambda c: start_pool(c, uuid))
            case ops.PoolSetAutostart(uuid=uuid, enabled=enabled):
                self._libvirt.call(operation, lambda c: find_pool(c, uuid).setAutostart(int(enabled)))
            case ops.PoolUndefine(uuid=uuid, path=path):
                self._libvirt.call(operation, lambda c: undefine_pool(c, uuid))
                there = mark_on(path)
                if there is not None and there.object_id == uuid:
                    put_mark(path, None)
            case ops.PoolMark(path=path, mark=mark):
                self._refuse_directory_of_another(operation, path, mark)
                put_mark(path, mark)

    def _refuse_directory_of_another(self, operation: ops.StorageOp, path: str, mark: Mark | None) -> None:
        """Raise Refused where the directory carries the mark of a pool that is there: one directory, one pool."""
        there = mark_on(path)
        if there is None or mark is None or there.object_id == mark.object_id:
            return
        other = self._libvirt.call(operation, lambda c: pool_at(c, there.object_id))
        if other is not None and os.path.realpath(other[1]) == os.path.realpath(path):
            raise Refused(
                f"{operation.describe()}: {path} is the directory of pool {other[0]}, {there.ref} of owner "
                f"'{there.owner}'",
                hint="let volumes name that pool, or choose another directory",
            )

    def _transfer(self, operation: ops.StorageOp, act: Callable[[Any], None]) -> None:
        """Run it beside few others, its progress shown under its name."""
        try:
            with self._storage.transfers:
                act(operation)
        finally:
            if not operation.errand:
                self._storage.errands.ended(operation.name)

    # ---------------------------------------------------------------------------------------------- images

    def _fetch(self, operation: ops.ImageFetch) -> None:
        images = self._storage.images
        part, path = images.part(operation.name), images.path(operation.name)
        twin = images.with_digest(operation.checksum) if operation.checksum else None
        if twin is not None and not os.path.exists(part):
            os.link(twin.path, part)
        digest = bring_or_have(operation, part, twin, self._progress(operation.name))
        size = os.stat(part).st_size
        header = read_header(part, size)
        _refuse_header(operation, header, part)
        self._show(operation, part)
        os.rename(part, path)
        images.write(
            Image(
                operation.name, operation.name, path, operation.format, size, header.capacity, digest, operation.mark
            )
        )
        if operation.mark is not None:
            images.supersede(operation.mark)
        self._sweep(operation)

    def _show(self, operation: ops.ImageFetch, path: str) -> None:
        """Let guests read it; where a login was asked for, nobody but QEMU."""
        login = operation.login
        if not (login.user or login.secret or login.cookies):
            os.chmod(path, 0o444)
            return
        os.chmod(path, 0o400)
        qemu = user_of("<domain/>", self._libvirt.call(operation, lambda c: c.getCapabilities()))
        if qemu is not None:
            os.chown(path, qemu.number, qemu.group)

    def _progress(self, name: str) -> Callable[[int, int], None]:
        return lambda done, total: self._storage.errands.progress(name, done, total)

    def _sweep(self, operation: ops.StorageOp) -> None:
        """Remove images that no spec asks for any more, and media long unused, as soon as nothing stands on them."""
        for image in (*self._storage.images.superseded(), *self._storage.images.idle_media(MEDIA_SECONDS)):
            with contextlib.suppress(Blocked):
                self._refuse_in_use(operation, image.path, f"image {image.name}")
                self._storage.images.remove(image)
        self._empty_trash_of(self._storage.images.directory)  # with no Image left, nobody else does

    def _remove_image(self, operation: ops.ImageRemove, image: Image | None) -> None:
        if image is None:
            return
        self._refuse_in_use(operation, image.path, operation.describe())
        self._storage.images.remove(image)
        self._sweep(operation)

    def _refuse_in_use(self, operation: ops.StorageOp, path: str, what: str) -> None:
        """Raise Blocked while a domain names the file or another file stands on it, whoever made those."""
        users, folders = self._libvirt.call(operation, lambda c: (domains_standing_on(c, path), pool_paths(c)))
        if users:
            raise Blocked(f"{what}: used by {', '.join(users[:4])}", hint=f"see: virsh domblklist {users[0]}")
        try:
            overlays = overlays_on(path, folders, to_the_bottom=True)
        except OSError as error:
            text = f"{what}: {error.filename} cannot be read ({error.strerror}), and may have what stands on it"
            raise Blocked(text, hint=f"mend that, and see: ls {error.filename}") from error
        if overlays:
            raise Blocked(f"{what}: {', '.join(overlays[:4])} stands on it", hint="remove or flatten that first")

    def _sweep_seeds(self, operation: ops.StorageOp, machine: str, *keep: str) -> None:
        """Remove a machine's seeds but the new one and those that a domain names."""
        ours = [fact.path for fact in self._storage.seeds.facts().values() if isinstance(fact, File)]
        used = self._libvirt.call(operation, lambda c: [path for path in ours if domains_naming(c, path)])
        self._storage.seeds.remove(machine, (*keep, *used))

    # --------------------------------------------------------------------------------------------- volumes

    def _create(self, operation: ops.VolumeCreate) -> None:
        folder, file = os.path.split(operation.path)
        temporary = os.path.join(folder, f".kvmd-{file}.part")
        if os.path.lexists(operation.path):
            raise Retry(
                f"{operation.path} is already there", hint=f"move it away, or choose another name: ls -l {folder}"
            )
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # of a kvmd that was killed
        try:
            self._make_or_say_full(operation, temporary)
            os.chmod(temporary, 0o600)
            with open(temporary, "rb") as made:
                os.fsync(made.fileno())
                name = volume_id(operation.name, os.fstat(made.fileno()))
            put_mark(temporary, replace(operation.mark, object_id=name))
            os.link(temporary, operation.path)  # unlike a rename it replaces nothing
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        self._libvirt.call(operation, lambda c: refresh_pool(c, operation.name.partition("/")[0]))

    def _make_or_say_full(self, operation: ops.VolumeCreate, path: str) -> None:
        try:
            self._make(operation, path)
        except Retry as error:
            if os.strerror(errno.ENOSPC) not in str(error):
                raise
            folder = os.path.dirname(path)
            text = f"{operation.describe()}: the disk of {folder} is full; nothing of it is left there"
            raise Retry(text, hint=f"make room: df {folder}") from error

    def _make(self, operation: ops.VolumeCreate, path: str) -> None:
        size = [str(operation.capacity)] if operation.capacity else []
        if operation.source:
            total = read_header(operation.source, os.stat(operation.source).st_size, operation.source_format).capacity
            report = self._progress(operation.name)
            words = ("convert", "-p", "-f", operation.source_format, "-O", operation.format, operation.source, path)
            qemu_img(*words, progress=lambda share: report(int(share * total), total))
            if size:
                qemu_img("resize", "-f", operation.format, path, *size)
        elif operation.backing:
            backing = ("-F", operation.backing_format, "-b", operation.backing)
            qemu_img("create", "-q", "-f", operation.format, *backing, path, *size)
        else:
            qemu_img("create", "-q", "-f", operation.format, path, *size)

    def _grow(self, operation: ops.VolumeGrow) -> None:
        """In the guest where one runs on it; a file that QEMU holds is locked against qemu-img."""
        now = read_header(operation.path, os.stat(operation.path).st_size, operation.format).capacity
        if now > operation.capacity:
            raise Refused(f"{operation.describe()}: it has {now} bytes already", hint="a volume never shrinks")
        if operation.uuid:
            self._libvirt.call(operation, lambda c: resize_block(c, operation))
        else:
            qemu_img("resize", "-q", "-f", operation.format, operation.path, str(operation.capacity))

    def _trash(self, operation: ops.VolumeTrash) -> None:
        self._refuse_in_use(operation, operation.path, operation.describe())
        put_mark(throw_away(operation.path), None)  # killed before, it is in the trash all the same
        self._empty_trash_of(os.path.dirname(operation.path))  # of a pool that has no spec, nobody else empties it
        self._libvirt.call(operation, lambda c: refresh_pool(c, operation.name.partition("/")[0]))

    def _empty_trash_of(self, folder: str) -> None:
        if (old := overdue_in(folder)) is not None:
            empty(folder, old.overdue)


def bring_or_have(
    operation: ops.ImageFetch, part: str, twin: Image | None, progress: Callable[[int, int], None]
) -> str:
    """The digest of the file at *part*; where the store had the same content already nothing is fetched."""
    if twin is not None and os.path.exists(part) and os.path.samefile(twin.path, part):
        return twin.digest
    return bring(operation, part, progress)


def _refuse_header(operation: ops.ImageFetch, header: Header, part: str) -> None:
    """Refuse what is not what its spec says, and what would read other files of this host."""
    source = operation.url or operation.path
    if header.format != operation.format:
        os.unlink(part)
        raise Refused(f"{source} is {header.format}, not {operation.format}", hint=f"write `format: {header.format}`")
    if header.backing or header.data_file:
        os.unlink(part)
        what = f"stands on {header.backing}" if header.backing else "keeps its data in another file"
        raise Refused(f"{source} {what}", hint="make it whole first: qemu-img convert -O qcow2 OLD NEW")
