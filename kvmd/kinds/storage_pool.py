"""StoragePool: a directory that libvirt knows as a pool; removing the pool never removes the directory."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from typing import Any, Literal

from kvmd import ops, xmlmap
from kvmd.api.mark import Mark, derived_uuid
from kvmd.api.quantity import DomainName, HostPath
from kvmd.api.resource import Claim, Ref, Reference, SpecModel
from kvmd.api.schema import Update, leaf
from kvmd.errors import Refused
from kvmd.observed import Key, Observed, Pool, Trash
from kvmd.plan.look import Look
from kvmd.plan.model import Draft
from kvmd.plan.paths import refuse_outside
from kvmd.plan.wording import Described

KIND = "StoragePool"
PLURAL = "storagepools"
SHORT = "pool"


class Spec(SpecModel):
    """A storage pool."""

    name_on_host: DomainName | None = leaf(
        None, about="Name in libvirt; default metadata.name.", example="default", update=Update.IMMUTABLE
    )
    type: Literal["dir"] = leaf("dir", about="What it is: a directory.", example="dir", update=Update.IMMUTABLE)
    path: HostPath = leaf(
        about="The directory; made where it is not there, never removed.",
        example="/var/lib/libvirt/images",
        update=Update.IMMUTABLE,
    )
    deletion_policy: Literal["Delete", "Orphan"] = leaf(
        "Delete",
        about="When the spec goes: undefine the pool (the directory and all in it stay), or only take the mark off.",
        example="Delete",
    )


def describe(key: Key, observed: Observed) -> Described | None:
    """A pool that is a directory."""
    pool = observed.facts.get(key)
    if not isinstance(pool, Pool) or pool.type != "dir":
        return None
    return Described({"path": pool.path})


def host_key(ref: Ref, spec: Spec | None, look: Look | None = None) -> Key:
    """The pool of libvirt."""
    return Key("pool", (spec.name_on_host if spec else None) or ref.name)


def references(ref: Ref, spec: Spec) -> tuple[Reference, ...]:
    """None."""
    return ()


def claims(ref: Ref, spec: Spec) -> tuple[Claim, ...]:
    """Its name and its directory: libvirt has one pool a directory."""
    return (Claim("pool", host_key(ref, spec).name), Claim("directory", spec.path))


def files(spec: Spec) -> tuple[str, ...]:
    """Its directory."""
    return (spec.path,)


def usable(ref: Ref, look: Look) -> bool:
    """True while it is active."""
    fact = look.fact(look.key(ref))
    return isinstance(fact, Pool) and fact.active


def plan(ref: Ref, look: Look) -> Draft:
    """Define and start it; kvmd starts it at boot, so libvirt's own autostart is off."""
    resource = look.spec(ref)
    assert resource is not None and isinstance(resource.spec, Spec)
    spec, key = resource.spec, look.key(ref)
    fact, applied = look.fact(key), look.applied(ref)
    pool = fact if isinstance(fact, Pool) else None
    refuse_outside(ref, (spec.path,), look, changes=True)
    uuid = pool.uuid if pool else derived_uuid(look.host().machine_id, look.rules.owner, ref)
    before = pool.mark if pool and pool.mark and pool.mark.ref == ref else None
    if before is None and applied is not None and applied.generation:
        before = Mark(look.rules.owner, ref, applied.spec_hash, applied.generation)
    mark = Mark.of(resource, look.rules.owner, uuid, before)
    if pool is None:
        define = ops.PoolDefine(key.name, uuid, spec.path, _xml(key.name, uuid, spec.path), mark)
        return Draft((define, ops.PoolStart(key.name, uuid)), status=_status(None, spec))
    if pool.type != spec.type or pool.path.rstrip("/") != spec.path.rstrip("/"):
        raise Refused(
            f"{ref}: the pool {pool.name} is a {pool.type} at {pool.path}; a pool never moves",
            hint=f"write `path: {pool.path}` back, or make another StoragePool for {spec.path}",
        )
    operations: list[ops.Op] = []
    if pool.config is None:  # it runs, and its definition was taken away
        operations.append(ops.PoolDefine(pool.name, uuid, spec.path, _xml(pool.name, uuid, spec.path), mark))
    elif pool.mark is None or not pool.mark.says_the_same_as(mark) or pool.mark.ref != ref:
        operations.append(ops.PoolMark(pool.name, spec.path, mark))
    if pool.autostart:
        operations.append(ops.PoolSetAutostart(pool.name, uuid, False))
    if not pool.active:
        operations.append(ops.PoolStart(pool.name, uuid))
    trash = look.fact(Key("trash", pool.path))
    if isinstance(trash, Trash):
        operations.append(ops.TrashEmpty(f"pool {pool.name}", pool.path, trash.overdue))
    return Draft(
        tuple(operations),
        status=_status(pool, spec),
        reason="" if pool.active else "it is not active",
        asked_elsewhere=all(isinstance(operation, ops.TrashEmpty) for operation in operations),
    )


def remove(ref: Ref, key: Key, look: Look) -> Draft:
    """Undefine it; the directory and all in it stay."""
    pool, applied = look.fact(key), look.applied(ref)
    if not isinstance(pool, Pool):
        return Draft()
    if applied is not None and applied.written.get("deletionPolicy") == "Orphan":
        mark = ops.PoolMark(pool.name, pool.path, None)
        return Draft((mark,), reason="let go of, as its deletionPolicy asks")
    return Draft((ops.PoolUndefine(pool.name, pool.uuid, pool.path),))


def _xml(name: str, uuid: str, path: str) -> str:
    root = ElementTree.Element("pool", {"type": "dir"})
    ElementTree.SubElement(root, "name").text = name
    ElementTree.SubElement(root, "uuid").text = uuid
    ElementTree.SubElement(ElementTree.SubElement(root, "target"), "path").text = path
    return xmlmap.serialise(root)


def _status(pool: Pool | None, spec: Spec) -> Mapping[str, Any]:
    if pool is None:
        return {"active": False, "path": spec.path}
    return {"nameOnHost": pool.name, "uuid": pool.uuid, "active": pool.active, "path": pool.path}
