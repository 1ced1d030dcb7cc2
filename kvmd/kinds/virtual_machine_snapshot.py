"""VirtualMachineSnapshot: a moment of a machine, with its memory or without (savevm, as an object)."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator

from kvmd import ops, xmlmap
from kvmd.api.mark import Mark
from kvmd.api.quantity import Boolean, DomainName, Text
from kvmd.api.resource import Claim, Ref, Reference, Resource, SpecModel
from kvmd.api.schema import Update, leaf
from kvmd.api.status import STALLED, Condition
from kvmd.errors import Blocked, Refused, Unsupported
from kvmd.observed import Domain, Key
from kvmd.observed import Snapshot as Fact
from kvmd.plan.look import Look
from kvmd.plan.model import Applied, Draft

KIND = "VirtualMachineSnapshot"
PLURAL = "virtualmachinesnapshots"
SHORT = "vmsnap"

LEFT = "left."  # in the mark: a file that a way back has left
MERGES_SINCE = 9_000_000  # from this libvirt on, removing an external snapshot merges its overlays


def _file_name(value: str) -> str:
    if value.startswith("."):
        raise ValueError(f"'{value}' begins with a dot, which libvirt refuses")
    return value


class Spec(SpecModel):
    """A snapshot of a machine; it is taken once and never changes."""

    name_on_host: Annotated[DomainName, AfterValidator(_file_name)] | None = leaf(
        None, about="Name in libvirt; default metadata.name.", example="before-upgrade", update=Update.IMMUTABLE
    )
    virtual_machine: Text = leaf(about="The VirtualMachine.", example="web", update=Update.IMMUTABLE)
    memory: Boolean = leaf(
        True,
        about="With the memory of the running guest, so that it goes on from there; false: its disks only, as if the "
        "power had been cut.",
        example=False,
        update=Update.IMMUTABLE,
    )


def host_key(ref: Ref, spec: Spec | None, look: Look | None = None) -> Key:
    """The snapshot of the domain."""
    if spec is None:
        return Key("snapshot", ref.name)
    machine = spec.virtual_machine if look is None else look.key(_machine(spec)).name
    return Key("snapshot", f"{machine}/{spec.name_on_host or ref.name}")


def _machine(spec: Spec) -> Ref:
    return Ref("VirtualMachine", spec.virtual_machine)


def references(ref: Ref, spec: Spec) -> tuple[Reference, ...]:
    """Its machine."""
    return (Reference(ref, _machine(spec)),)


def claims(ref: Ref, spec: Spec) -> tuple[Claim, ...]:
    """Its name among the snapshots of the machine."""
    return (Claim("snapshot", host_key(ref, spec).name),)


def files(spec: Spec) -> tuple[str, ...]:
    """None."""
    return ()


def usable(ref: Ref, look: Look) -> bool:
    """True once it is taken."""
    return isinstance(look.fact(look.key(ref)), Fact)


def plan(ref: Ref, look: Look) -> Draft:
    """Take it, once; afterwards only its mark can change."""
    resource = look.spec(ref)
    assert resource is not None and isinstance(resource.spec, Spec)
    key, applied = look.key(ref), look.applied(ref)
    fact = look.fact(key)
    if isinstance(fact, Fact):
        _refuse_changes(ref, resource.spec, applied)
        mark = _mark(resource, fact.uuid, fact.mark, look)
        same = fact.mark is not None and fact.mark.ref == ref and fact.mark.says_the_same_as(mark)
        operations = () if same else (ops.SnapshotMark(key.name, fact.uuid, fact.snapshot, mark),)
        return Draft(operations, status=_status(fact))
    if applied is not None and applied.generation and look.memory(ref).approved_hash != resource.spec_hash:
        text = (
            f"snapshot {key.name} was there and is gone; one that is taken now would show another moment; to have "
            f"that taken type: kvmd approve {ref}"
        )
        return Draft(conditions=(Condition(STALLED, True, "SnapshotLost", text),), settled=False)
    domain = _domain(ref, resource.spec, look)
    mark = _mark(resource, domain.uuid, None, look)
    return Draft((_take(ref, resource.spec, key, domain, mark),), settled=False)


def remove(ref: Ref, key: Key, look: Look) -> Draft:
    """Remove it; what an external one put over the disks is merged, so that nothing is lost."""
    fact = look.fact(key)
    if not isinstance(fact, Fact):
        return Draft()
    if fact.external and look.host().libvirt_version < MERGES_SINCE:
        domain = fact.name.rpartition("/")[0]
        raise Unsupported(
            f"{ref}: libvirt merges external snapshots from 9.0 on; nothing was touched",
            hint=f"merge each disk by hand (virsh blockcommit {domain} DISK --active --pivot), then: virsh "
            f"snapshot-delete {domain} {fact.snapshot} --metadata",
        )
    return Draft((ops.SnapshotRemove(key.name, fact.uuid, fact.snapshot, fact.external, fact.memory_file),))


def _mark(resource: Resource, uuid: str, before: Mark | None, look: Look) -> Mark:
    before = before if before is not None and before.ref == resource.ref else None
    mark = Mark.of(resource, look.rules.owner, uuid, before)
    return mark.with_resolved(before.resolved) if before is not None else mark


def _refuse_changes(ref: Ref, spec: Spec, applied: Applied | None) -> None:
    if applied is None or not applied.known or not applied.generation:
        return
    now: Mapping[str, Any] = spec.model_dump(by_alias=True)
    before = {"nameOnHost": None, "memory": True} | dict(applied.written)
    for leaf_name in ("virtualMachine", "memory", "nameOnHost"):
        if before.get(leaf_name) != now[leaf_name]:
            raise Refused(
                f"{ref}: spec.{leaf_name} cannot change: the moment that it shows is over",
                hint="write it as it was, or make a VirtualMachineSnapshot of another name",
            )


def _domain(ref: Ref, spec: Spec, look: Look) -> Domain:
    """The domain, where it may be touched now."""
    target = _machine(spec)
    fact = look.fact(look.key(target))
    if not isinstance(fact, Domain):
        raise Blocked(f"{ref}: waits for {target}: libvirt has no such domain", hint=f"kvmd get {target}")
    if fact.mark is None or fact.mark.ref != target or fact.mark.owner != look.rules.owner:
        raise Refused(
            f"{ref}: domain {fact.name} is not managed by kvmd, and a snapshot changes what its disks are",
            hint=f"adopt it as {target} first",
        )
    if not fact.persistent:
        raise Blocked(f"{ref}: waits for {target}: its domain has no definition now", hint=f"kvmd describe {target}")
    if look.memory(target).busy:
        raise Blocked(f"{ref}: waits for {target}: {look.memory(target).busy}", hint=f"kvmd describe {target}")
    if spec.memory and fact.state not in ("running", "paused"):
        raise Blocked(
            f"{ref}: waits for {target}: it is {fact.state}, and `memory: true` wants that of a running guest",
            hint="start it, or write `memory: false`",
        )
    return fact


@dataclass(frozen=True, slots=True)
class _Disk:
    """A disk of the domain, as far as a snapshot must know it."""

    target: str
    kind: str  # file | block | network | …
    format: str
    path: str
    writable: bool


def _disks(domain: Domain) -> tuple[tuple[_Disk, ...], bool]:
    """Every disk of what a snapshot is taken of, and whether the firmware is UEFI."""
    root = xmlmap.parse(domain.live or domain.config or "<domain/>")
    found = []
    for disk in root.findall("devices/disk"):
        target, driver, source = disk.find("target"), disk.find("driver"), disk.find("source")
        writable = disk.get("device", "disk") in ("disk", "lun") and disk.find("readonly") is None
        found.append(
            _Disk(
                "" if target is None else target.get("dev", ""),
                disk.get("type", "file"),
                "raw" if driver is None else driver.get("type", "raw"),
                "" if source is None else source.get("file") or source.get("dev") or "",
                writable,
            )
        )
    loader, system = root.find("os/loader"), root.find("os")
    flash = loader is not None and loader.get("type") == "pflash"
    return tuple(found), flash or (system is not None and system.get("firmware") == "efi")


def _take(ref: Ref, spec: Spec, key: Key, domain: Domain, mark: Mark) -> ops.SnapshotTake:
    disks, uefi = _disks(domain)
    written = [disk for disk in disks if disk.writable]
    if not written:
        raise Unsupported(
            f"{ref}: domain {domain.name} has no disk that it may write, and a snapshot is kept in or beside one",
            hint="give the machine a qcow2 disk",
        )
    # libvirt keeps disks alone inside of qcow2 only while nobody writes to them.
    quiet = spec.memory or not domain.active
    qcow2 = all(disk.format == "qcow2" for disk in written)
    internal = quiet and qcow2 and not uefi
    placeless = [disk.target for disk in written if disk.kind != "file"]
    if not internal and placeless:
        why = "the firmware is UEFI" if uefi else "the guest runs" if qcow2 else "not every disk is qcow2"
        raise Unsupported(
            f"{ref}: {why}, so that each disk needs an overlay in a file beside it, and {', '.join(placeless)} is "
            "no file",
            hint="use qcow2 disks in files" if uefi or not qcow2 else "switch the machine off first",
        )
    name = key.name.rpartition("/")[2]
    root = _snapshot_element(name, mark)
    folder = written[0].path.rpartition("/")[0]
    memory = {"snapshot": "no"}
    if spec.memory:
        memory = {"snapshot": "internal"} if internal else {"snapshot": "external"}
        memory |= {} if internal else {"file": f"{folder}/{domain.name}.{name}.memory"}
    ElementTree.SubElement(root, "memory", memory)
    parts = ElementTree.SubElement(root, "disks")
    for disk in disks:
        _disk_element(parts, disk, name, internal)
    make = ops.SnapshotTakeWithMemory if spec.memory else ops.SnapshotTake
    return make(key.name, domain.uuid, name, xmlmap.serialise(root), not internal)


def _snapshot_element(name: str, mark: Mark) -> ElementTree.Element:
    root = ElementTree.Element("domainsnapshot")
    ElementTree.SubElement(root, "name").text = name
    ElementTree.SubElement(root, "description").text = mark.as_text()
    return root


def _disk_element(parts: ElementTree.Element, disk: _Disk, name: str, internal: bool) -> None:
    how = "no" if not disk.writable else "internal" if internal else "external"
    element = ElementTree.SubElement(parts, "disk", {"name": disk.target, "snapshot": how})
    if how == "external":
        ElementTree.SubElement(element, "driver", {"type": "qcow2"})
        folder, _, file = disk.path.rpartition("/")
        stem = file.rpartition(".")[0] or file
        ElementTree.SubElement(element, "source", {"file": f"{folder}/{stem}.{name}.qcow2"})


def _status(fact: Fact) -> Mapping[str, Any]:
    taken = datetime.fromtimestamp(fact.created, UTC).isoformat() if fact.created else None
    return {
        "taken": taken,
        "guest": fact.state,
        "memory": fact.memory,
        "location": "external" if fact.external else "internal",
        "restorable": bool(fact.overlays) or not fact.external,
        "parent": fact.parent or None,
        "overlays": [{"path": overlay.path, "over": overlay.over} for overlay in fact.overlays],
        "leftBehind": _left(fact.mark),
    }


def _left(mark: Mark | None) -> list[dict[str, str]]:
    """The files in which a restore has left what the disks were, and which restore it was."""
    noted = sorted((mark.resolved if mark is not None else {}).items())
    return [{"path": key.removeprefix(LEFT), "by": by} for key, by in noted if key.startswith(LEFT)]
