"""Volume: a disk in a pool: blank, an overlay on an image, or a full copy of it; it grows live and never shrinks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, model_validator

from kvmd import ops
from kvmd.api.mark import Mark
from kvmd.api.quantity import Size, Text, format_quantity
from kvmd.api.resource import Claim, Ref, Reference, Resource, SpecModel
from kvmd.api.schema import Update, branch, leaf
from kvmd.api.status import STALLED, Condition
from kvmd.errors import Blocked, Refused
from kvmd.observed import DEFAULT_FORMAT, Domain, Holders, Image, Key, Pool, Transfer, said_format
from kvmd.observed import Volume as Fact
from kvmd.plan.difference import Change
from kvmd.plan.holders import refuse_held
from kvmd.plan.look import Look
from kvmd.plan.model import Applied, Draft

KIND = "Volume"
PLURAL = "volumes"
SHORT = "vol"

SECTOR = 512


def _file(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+:-]{0,199}", value):
        raise ValueError(f"'{value}' is not a plain file name (letters, digits, '_', '.', '+', ':' and '-')")
    return value


def _sectors(size: int) -> int:
    if size <= 0 or size % SECTOR:
        raise ValueError(f"{size} bytes is not a whole number of sectors of {SECTOR}; write e.g. 40Gi")
    return size


class Origin(SpecModel):
    """What it is made from, once."""

    image: Text = leaf(about="The Image.", example="debian-13", update=Update.IMMUTABLE)
    copy_mode: Literal["Overlay", "Full"] | None = leaf(
        None,
        about="Overlay: only what the guest changes is written. Full: a copy of its own. Default Overlay for qcow2, "
        "Full for raw.",
        example="Overlay",
        update=Update.IMMUTABLE,
        alias="copy",
    )


class Spec(SpecModel):
    """A volume."""

    name_on_host: Annotated[str, AfterValidator(_file)] | None = leaf(
        None, about="File name; default metadata.name and the format.", example="web.img", update=Update.IMMUTABLE
    )
    pool: Text = leaf(
        "default", about="StoragePool, or pool of libvirt, that holds it.", example="default", update=Update.IMMUTABLE
    )
    format: Literal["qcow2", "raw"] = leaf(
        DEFAULT_FORMAT, about="Format of the file.", example="qcow2", update=Update.IMMUTABLE
    )
    capacity: Annotated[Size, AfterValidator(_sectors)] | None = leaf(
        None,
        about="What the guest sees; null is that of the image. It grows under a running guest.",
        example="40Gi",
        unless="a smaller one is refused",
    )
    origin: Origin | None = branch(None, about="What it is made from; null is a blank one.", alias="from")
    reclaim_policy: Literal["Retain", "Delete"] = leaf(
        "Retain",
        about="When the spec goes: keep the file for a spec of the same name, or move it to the trash of the pool.",
        example="Retain",
    )

    @model_validator(mode="after")
    def _agree(self) -> Spec:
        if self.origin is None and self.capacity is None:
            raise ValueError("a blank volume needs `capacity`")
        if self.origin is not None and self.format == "raw" and self.origin.copy_mode == "Overlay":
            raise ValueError("an overlay is qcow2; write `format: qcow2`, or `copy: Full`")
        return self

    @property
    def overlays(self) -> bool:
        """True where it stands on its image."""
        return self.origin is not None and self.format == "qcow2" and self.origin.copy_mode != "Full"


def host_key(ref: Ref, spec: Spec | None, look: Look | None = None) -> Key:
    """The file in its pool."""
    if spec is None:
        return Key("volume", ref.name)
    pool = spec.pool if look is None else look.key(Ref("StoragePool", spec.pool)).name
    return Key("volume", f"{pool}/{_file_name(ref, spec)}")


def _file_name(ref: Ref, spec: Spec) -> str:
    return spec.name_on_host or f"{ref.name}.{spec.format}"


def references(ref: Ref, spec: Spec) -> tuple[Reference, ...]:
    """Its pool and its image."""
    image = (Reference(ref, Ref("Image", spec.origin.image)),) if spec.origin else ()
    return (Reference(ref, Ref("StoragePool", spec.pool)), *image)


def claims(ref: Ref, spec: Spec) -> tuple[Claim, ...]:
    """Its file."""
    return (Claim("volume", host_key(ref, spec).name),)


def files(spec: Spec) -> tuple[str, ...]:
    """None: the host looks into its pools by itself."""
    return ()


def usable(ref: Ref, look: Look) -> bool:
    """True where its file is there and its last copy has ended."""
    return isinstance(look.fact(look.key(ref)), Fact)


def file_of(ref: Ref, look: Look) -> tuple[str, str] | None:
    """Its file in the pool."""
    resource, fact = look.spec(ref), look.fact(look.key(ref))
    if resource is None or not isinstance(resource.spec, Spec):
        return None
    if isinstance(fact, Fact):
        if not _is_ours(ref, fact) and _odd_format(resource, fact):
            return None  # no guest gets it before a person has looked at it
        return fact.path, _format(ref, resource.spec, fact)
    folder = _pool_folder(Ref("StoragePool", resource.spec.pool), look)
    return (f"{folder}/{_file_name(ref, resource.spec)}", resource.spec.format) if folder else None


def _format(ref: Ref, spec: Spec, fact: Fact) -> str:
    """What its spec said when it was last applied, else says now; never what its guest may have written into it."""
    return said_format(fact.mark) if fact.mark is not None and fact.mark.ref == ref else spec.format


def _is_ours(ref: Ref, fact: Fact) -> bool:
    return fact.mark is not None and fact.mark.ref == ref


def plan(ref: Ref, look: Look) -> Draft:
    """Make it, let it grow, or note what its spec now says."""
    resource = look.spec(ref)
    assert resource is not None and isinstance(resource.spec, Spec)
    spec, key, applied = resource.spec, look.key(ref), look.applied(ref)
    found = look.fact(key)
    fact = found if isinstance(found, Fact) else None
    mark = _mark(resource, fact, applied, look)
    needs = tuple(reference.target for reference in references(ref, spec))
    if fact is None:
        if applied is not None and applied.generation and look.memory(ref).approved_hash != resource.spec_hash:
            return _lost(ref, key, look)
        create = _create(resource, key, mark, look)
        return Draft((create,), needs=needs, settled=False, status=_status(key, None, look))
    if odd := _odd_format(resource, fact):
        raise odd
    _refuse_other_making(ref, spec, fact, applied, look)
    operations: list[ops.Op] = []
    changes: tuple[Change, ...] = ()
    if spec.capacity is not None and spec.capacity != fact.capacity and "capacity" in resource.owned:
        if spec.capacity < fact.capacity:
            raise Refused(
                f"{ref}: {format_quantity(fact.capacity)} cannot become {format_quantity(spec.capacity)}: a volume "
                "never shrinks, what lies beyond the new end would be lost",
                hint=f"write `capacity: {format_quantity(fact.capacity)}`, or copy its files to a new Volume",
            )
        _refuse_covered(ref, fact, look)
        uuid = _running_user(ref, fact.path, look)
        operations.append(ops.VolumeGrow(key.name, fact.path, spec.format, spec.capacity, uuid))
        changes = (Change("capacity", fact.capacity, spec.capacity),)
    if fact.mark is None or fact.mark.retained or not fact.mark.says_the_same_as(mark) or fact.mark.ref != ref:
        operations.append(ops.VolumeMark(key.name, fact.path, mark))
    return Draft(tuple(operations), changes, status=_status(key, replace(fact, format=spec.format), look))


def _lost(ref: Ref, key: Key, look: Look) -> Draft:
    text = (
        f"its file {key.name} was there and is gone; kvmd puts no new one in its place by itself; put the file "
        f"back, or, to have an empty one made as at first, type: kvmd approve {ref}"
    )
    return Draft(
        conditions=(Condition(STALLED, True, "VolumeLost", text),), settled=False, status=_status(key, None, look)
    )


def _mark(resource: Resource, fact: Fact | None, applied: Applied | None, look: Look) -> Mark:
    """The host writes the mark's ``object_id`` itself when it makes the file: only then there is one."""
    owner = look.rules.owner
    before = fact.mark if fact is not None and fact.mark is not None and fact.mark.ref == resource.ref else None
    if before is not None and before.retained:
        before = None
    if before is None and applied is not None and applied.generation:
        before = Mark(owner, resource.ref, applied.spec_hash, applied.generation)
    return Mark.of(resource, owner, fact.uuid if fact else "", before)


def _create(resource: Resource, key: Key, mark: Mark, look: Look) -> ops.VolumeCreate:
    spec = resource.spec
    assert isinstance(spec, Spec)
    folder = _pool_path(Ref("StoragePool", spec.pool), look)
    path = f"{folder}/{_file_name(resource.ref, spec)}"
    if spec.origin is None:
        return ops.VolumeCreate(key.name, path, spec.format, spec.capacity or 0, mark)
    target = Ref("Image", spec.origin.image)
    found = look.file(target)
    if found is None:
        raise Blocked(f"{resource.ref}: waits for {target}: no spec names it", hint=f"kvmd get {target}")
    source, format = found
    name = source.rpartition("/")[2]
    fact = look.fact(Key("image", name))
    if isinstance(fact, Image) and spec.capacity is not None and spec.capacity < fact.capacity:
        raise Refused(
            f"{resource.ref}: {format_quantity(spec.capacity)} is less than the {format_quantity(fact.capacity)} of "
            f"{target}",
            hint=f"write `capacity: {format_quantity(fact.capacity)}` or more, or leave it out",
        )
    if spec.overlays:
        return ops.VolumeCreate(
            key.name, path, spec.format, spec.capacity or 0, mark, backing=source, backing_format=format
        )
    return ops.VolumeCreate(
        key.name, path, spec.format, spec.capacity or 0, mark, source=source, source_format=format
    )


def _pool_folder(pool: Ref, look: Look) -> str:
    """The directory of a pool, there or not yet; "" where nobody knows it."""
    fact, resource = look.fact(look.key(pool)), look.spec(pool)
    path = fact.path if isinstance(fact, Pool) else getattr(resource.spec, "path", "") if resource else ""
    return str(path).rstrip("/")


def _pool_path(pool: Ref, look: Look) -> str:
    fact = look.fact(look.key(pool))
    if isinstance(fact, Pool) and fact.type != "dir":
        raise Refused(
            f"{pool} is of type {fact.type}; volumes are made in pools of type dir",
            hint="make a StoragePool with a `path` and name that one",
        )
    folder = _pool_folder(pool, look)
    if not folder:
        raise Blocked(f"waits for {pool}: neither a spec nor libvirt has it", hint=f"kvmd get {pool}")
    return folder


def _odd_format(resource: Resource, fact: Fact) -> Refused | None:
    """Why not: it was made in another format, or a stranger's file says more than its spec does."""
    ref, spec = resource.ref, resource.spec
    assert isinstance(spec, Spec)
    ours = _is_ours(ref, fact)
    made = _format(ref, spec, fact)
    found = fact.format if made == spec.format and not (ours and made == "raw") else made
    if found != spec.format:
        hint = f"write `format: {found}`, or make a new Volume"
        if not ours and spec.format == "raw":
            hint = f"a guest to which it was raw may have written that: qemu-img info {fact.path}"
        return Refused(
            f"{ref}: the file is {found}, the spec says {spec.format}; a volume is never converted in place",
            hint=hint,
        )
    if not ours and found != "raw" and (fact.backing or fact.data_file) and "format" not in resource.owned:
        other = f"{fact.backing} below it" if fact.backing else "another file with its data"
        return Refused(
            f"{ref}: the file asks for {other}; a guest to which it was a raw disk could have written that, to be "
            "shown other files of this host",
            hint=f"see: qemu-img info {fact.path}; if that is right, write `format: qcow2`",
        )
    return None


def _refuse_other_making(ref: Ref, spec: Spec, fact: Fact, applied: Applied | None, look: Look) -> None:
    """Raise Refused for another origin or place than it has: nothing makes it anew, and nothing moves it."""
    asked = host_key(ref, spec, look).name
    if asked != fact.name:
        raise Refused(
            f"{ref}: its file is {fact.name}, the spec asks for {asked}; a volume never moves, and is never renamed",
            hint="write `pool` and `nameOnHost` as they were, or make a new Volume, from a copy of the file: "
            f"qemu-img convert -f {spec.format} -O {spec.format} {fact.path} NEW",
        )
    if applied is None or not applied.known or not applied.generation:
        return
    before, after = _making(applied.written), _making(spec.model_dump(by_alias=True))
    if before != after:
        raise Refused(
            f"{ref}: it was made {before}, the spec now says {after}; a volume is never made anew under its guest",
            hint="write `from` as it was, or make a new Volume and let the machine use that",
        )


def _making(written: Mapping[str, Any]) -> str:
    """How a volume of that spec is made."""
    origin = written.get("from")
    if not isinstance(origin, Mapping):
        return "from nothing"
    full = origin.get("copy") == "Full" or written.get("format") == "raw"
    return f"{'as a full copy of' if full else 'as an overlay on'} {origin.get('image')}"


def _refuse_covered(ref: Ref, fact: Fact, look: Look) -> None:
    """Raise Refused where the guest has an overlay on the file: the overlay keeps its size."""
    holders = look.fact(Key("holders", fact.path))
    if isinstance(holders, Holders) and holders.overlays:
        raise Refused(
            f"{ref}: {holders.overlays[0]} lies over its file (of a snapshot), and would keep its size",
            hint="remove the snapshot, which merges it, and the volume grows; see: virsh snapshot-list",
        )


def _running_user(ref: Ref, path: str, look: Look) -> str:
    """The UUID of the running guest that has it, or ""."""
    for user in look.users(ref):
        domain = look.fact(look.key(user.source))
        if isinstance(domain, Domain) and domain.live is not None and f"'{path}'" in domain.live:
            return domain.uuid
    return ""


def remove(ref: Ref, key: Key, look: Look) -> Draft:
    """Keep the file for a spec of the same name, or move it to the trash, as its last spec said."""
    fact, applied = look.fact(key), look.applied(ref)
    if not isinstance(fact, Fact) or fact.mark is None:
        return Draft()
    if applied is not None and applied.known and applied.written.get("reclaimPolicy") == "Delete":
        refuse_held(ref, fact.path, look)
        return Draft((ops.VolumeTrash(key.name, fact.path),))
    retained = Mark(fact.mark.owner, ref, fact.mark.spec_hash, 0, fact.uuid, written=fact.mark.written)
    return Draft((ops.VolumeMark(key.name, fact.path, retained),), reason="kept, as its reclaimPolicy asks")


def _status(key: Key, fact: Fact | None, look: Look) -> Mapping[str, Any]:
    if fact is not None:
        backing = {"backing": fact.backing} if fact.backing else {}
        return {"path": fact.path, "format": fact.format, "capacity": format_quantity(fact.capacity), **backing}
    transfer = look.fact(Key("transfer", key.name))
    if isinstance(transfer, Transfer):
        return {"progress": {"doneBytes": transfer.done, "totalBytes": transfer.total or None}}
    return {}
