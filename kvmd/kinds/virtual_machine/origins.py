"""Disks, media and boot files that a spec names by object: which file each is, and what needs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from kvmd import ops
from kvmd.api.resource import Ref
from kvmd.api.status import BLOCKED, Condition
from kvmd.kinds.virtual_machine.cloud_init import SEED, seed_of
from kvmd.kinds.virtual_machine.disk import Disk
from kvmd.kinds.virtual_machine.domain import ALIAS_DISK, ALIAS_NIC, State
from kvmd.kinds.virtual_machine.drives import Drives, drives_of
from kvmd.kinds.virtual_machine.kernel_boot import BootFile
from kvmd.kinds.virtual_machine.nic import Interface
from kvmd.kinds.virtual_machine.spec import Spec
from kvmd.plan.look import Look

# What is noted of a start waits with it.
_STARTS = frozenset({("once", "started"), ("install", "started")})


@dataclass(frozen=True, slots=True)
class Origins:
    """The spec with every object resolved to its file; *unknown* are objects that nobody knows."""

    spec: Spec
    unknown: tuple[Ref, ...] = ()
    files: tuple[tuple[str, str], ...] = ()  # which file each object is: what the mark remembers
    operations: tuple[ops.Op, ...] = ()  # that make the seed of cloud-init
    drives: Drives = field(default_factory=Drives)  # what comes from servers

    @property
    def startable(self) -> bool:
        """False while something that it stands on is not known."""
        return not self.unknown and not self.drives.waits

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What to say of the unknown, and of what is still to come."""
        unknown = tuple(
            Condition(
                BLOCKED,
                True,
                "WaitsForObject",
                f"waits for {ref}: no spec names it, or its file is not what that says; type: kvmd get {ref.kind}",
            )
            for ref in self.unknown
        )
        return (*unknown, *self.drives.conditions)


def stands_on(disk: Disk) -> Ref | None:
    """The object behind a disk or in a tray; None for a plain path and for a URL."""
    if disk.volume:
        return Ref("Volume", disk.volume)
    if disk.image:
        return Ref("Image", disk.image)
    media = disk.media
    if media is None:
        return None
    return Ref("Volume", media.volume) if media.volume else Ref("Image", media.image) if media.image else None


def boots_from(spec: Spec) -> tuple[Ref, ...]:
    """The images of kernelBoot."""
    boot = spec.kernel_boot
    return (
        tuple(Ref("Image", file.image) for file in (boot.kernel, boot.initrd) if file and file.image) if boot else ()
    )


def objects_of(spec: Spec) -> tuple[Ref, ...]:
    """Every object of storage that it stands on."""
    found = (stands_on(disk) for disk in spec.disks)
    return tuple(dict.fromkeys((*(ref for ref in found if ref is not None), *boots_from(spec))))


def resolves(spec: Spec) -> bool:
    """True where words of the spec stand for files that planning finds: objects, servers, the seed of cloud-init."""
    served = (url for disk in spec.disks for url in (disk.url, disk.media and disk.media.url))
    return spec.cloud_init is not None or bool(objects_of(spec)) or any(served)


def attached_to(nic: Interface) -> Ref | None:
    """The object that a NIC is attached to; None for user-mode networking."""
    kinds = {"network": "Network", "bridge": "Bridge", "tap": "Tap"}
    kind = kinds.get(nic.attachment)
    return Ref(kind, str(getattr(nic, nic.attachment))) if kind else None


def needs_of(spec: Spec, operations: tuple[ops.Op, ...]) -> tuple[tuple[Ref, ...], ...]:
    """For each operation the objects that must be usable first; what is noted of a start waits with the start."""
    everything = tuple(dict.fromkeys((*objects_of(spec), *(t for nic in spec.interfaces if (t := attached_to(nic))))))
    by_alias: dict[str, Ref | None] = {ALIAS_DISK + disk.name: stands_on(disk) for disk in spec.disks}
    by_alias |= {ALIAS_NIC + nic.name: attached_to(nic) for nic in spec.interfaces}
    starts = any(isinstance(item, ops.DomainStart) for item in operations)

    def needs(operation: ops.Op) -> tuple[Ref, ...]:
        if isinstance(operation, ops.DomainStart):
            return everything
        if isinstance(operation, ops.LedgerWrite) and (operation.entry, operation.value) in _STARTS and starts:
            return everything
        if isinstance(operation, ops.DomainAttach | ops.DomainUpdateDevice):
            target = by_alias.get(operation.alias)
            return (target,) if target is not None else ()
        return ()

    return tuple(needs(operation) for operation in operations)


def prepare(ref: Ref, spec: Spec, uuid: str, config: State | None, look: Look) -> Origins:
    """Resolve every object, and put the seed of cloud-init into a CD-ROM of its own."""
    drives = drives_of(ref, spec, config, look)
    origins = replace(_resolve(drives.spec, config, look), drives=drives)
    if spec.cloud_init is None:
        return origins
    present = next((disk.source for disk in config.disks if disk.name == SEED), None) if config else None
    seed = seed_of(ref, spec.cloud_init, uuid, present, look)
    # virtio-scsi: the kernels of cloud images have no driver for AHCI (measured: Debian's linux-image-cloud).
    tray = Disk.model_validate({"name": SEED, "device": "cdrom", "bus": "scsi", "media": {"path": seed.path}})
    with_tray = origins.spec.model_copy(update={"disks": (*origins.spec.disks, tray)})
    return replace(origins, spec=with_tray, operations=seed.operations)


def _resolve(spec: Spec, config: State | None, look: Look) -> Origins:
    """Put the file in the place of each object; what nobody knows is left as the definition has it, or out."""
    if not objects_of(spec):
        return Origins(spec)
    files: dict[str, str] = {}
    unknown: dict[Ref, None] = {}
    present = {disk.name: disk for disk in config.disks} if config else {}
    disks = []
    for disk in spec.disks:
        target = stands_on(disk)
        found = look.file(target) if target is not None else None
        if target is not None and found is None:
            unknown[target] = None
        if target is not None and found is not None:
            files[f"file.{target}"] = found[0]
        if target is None:
            disks.append(disk)
        elif found is not None:
            disks.append(_with_file(disk, *found))
        elif disk.name in present:
            disks.append(_with_file(disk, present[disk.name].source, present[disk.name].format or "raw"))
    changes: dict[str, object] = {"disks": tuple(disks)}
    if spec.kernel_boot is not None:
        boot: Mapping[str, BootFile | None] = dict(_boot_files(spec, config, look, unknown))
        changes["kernel_boot"] = spec.kernel_boot.model_copy(update=boot)
        files |= {f"file.{ref}": found[0] for ref in boots_from(spec) if (found := look.file(ref)) is not None}
    return Origins(spec.model_copy(update=changes), tuple(unknown), tuple(files.items()))


def _with_file(disk: Disk, path: str | None, format: str) -> Disk:
    if disk.media is not None:
        media = disk.media.model_copy(update={"path": path, "volume": None, "image": None})
        return disk.model_copy(update={"media": media if path else None, "format": format})
    return disk.model_copy(update={"path": path, "volume": None, "image": None, "format": format})


def _boot_files(
    spec: Spec, config: State | None, look: Look, unknown: dict[Ref, None]
) -> Iterator[tuple[str, BootFile | None]]:
    assert spec.kernel_boot is not None
    for name in ("kernel", "initrd"):
        file: BootFile | None = getattr(spec.kernel_boot, name)
        if file is None or not file.image:
            continue
        target = Ref("Image", file.image)
        found = look.file(target)
        if found is None:
            unknown[target] = None
        path = found[0] if found is not None else getattr(config, name, None)
        yield name, file.model_copy(update={"path": path, "image": None}) if path else None
