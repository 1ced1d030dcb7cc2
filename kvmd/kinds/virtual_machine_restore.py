"""VirtualMachineRestore: going back to a snapshot (loadvm, as an object); it happens once per object."""

from __future__ import annotations

from kvmd import ops, xmlmap
from kvmd.api.quantity import Text
from kvmd.api.resource import Claim, Ref, Reference, Resource, SpecModel
from kvmd.api.schema import Update, leaf
from kvmd.api.status import STALLED, Condition
from kvmd.errors import Blocked, Refused
from kvmd.observed import Domain, Key, Ledger, Snapshot
from kvmd.plan.look import Look
from kvmd.plan.model import Draft

KIND = "VirtualMachineRestore"
PLURAL = "virtualmachinerestores"
SHORT = "vmrestore"


class Spec(SpecModel):
    """A way back: the machine becomes what the snapshot shows, and what came since is lost."""

    virtual_machine: Text = leaf(about="The VirtualMachine.", example="web", update=Update.IMMUTABLE)
    snapshot: Text = leaf(
        about="VirtualMachineSnapshot, or snapshot of the domain, to go back to.",
        example="web-before-upgrade",
        update=Update.IMMUTABLE,
    )


def host_key(ref: Ref, spec: Spec | None, look: Look | None = None) -> Key:
    """What the ledger says of it: nothing on the host carries it."""
    return Key("ledger", str(ref))


def _machine(spec: Spec) -> Ref:
    return Ref("VirtualMachine", spec.virtual_machine)


def _snapshot(spec: Spec) -> Ref:
    return Ref("VirtualMachineSnapshot", spec.snapshot)


def references(ref: Ref, spec: Spec) -> tuple[Reference, ...]:
    """Its machine and its snapshot."""
    return (Reference(ref, _machine(spec)), Reference(ref, _snapshot(spec)))


def claims(ref: Ref, spec: Spec) -> tuple[Claim, ...]:
    """None."""
    return ()


def files(spec: Spec) -> tuple[str, ...]:
    """None."""
    return ()


def usable(ref: Ref, look: Look) -> bool:
    """True once it is done."""
    return _noted(ref, look).startswith("done ")


def plan(ref: Ref, look: Look) -> Draft:
    """Note it, go back, note that it is done: whatever happens between is a question to a person."""
    resource = look.spec(ref)
    assert resource is not None and isinstance(resource.spec, Spec)
    spec = resource.spec
    state, _, what = _noted(ref, look).partition(" ")
    wish = f"{spec.virtual_machine}/{spec.snapshot}"
    if what and what != wish:
        raise Refused(
            f"{ref}: it was {state} for {what} and cannot be for {wish} too: a restore happens once",
            hint="write it as it was, or make a VirtualMachineRestore of another name",
        )
    if state == "done":
        return Draft(status={"restored": True})
    applied = look.applied(ref)
    forgotten = not state and ((applied is not None and applied.generation > 0) or _used(ref, spec, look))
    if (state or forgotten) and look.memory(ref).approved_hash != resource.spec_hash:
        return _ask(ref, what or wish, forgotten, look)
    return _go_back(resource, wish, look)


def remove(ref: Ref, key: Key, look: Look) -> Draft:
    """Nothing is there to remove."""
    return Draft()


def _noted(ref: Ref, look: Look) -> str:
    fact = look.fact(Key("ledger", str(ref)))
    return fact.restore if isinstance(fact, Ledger) else ""


def _used(ref: Ref, spec: Spec, look: Look) -> bool:
    """True where the snapshot itself says that this object has gone back to it."""
    fact = look.fact(look.key(_snapshot(spec)))
    return isinstance(fact, Snapshot) and fact.mark is not None and f"restored.{ref}" in fact.mark.resolved


def _ask(ref: Ref, what: str, forgotten: bool, look: Look) -> Draft:
    error = look.memory(ref).error
    began = "nothing is noted of it any more" if forgotten else "it was begun and its end was not seen"
    text = (
        f"the restore of {what}: {began}{f' ({error})' if error else ''}; look what the machine is now; to go back "
        f"(again), losing what it has done since, type: kvmd approve {ref}"
    )
    condition = Condition(STALLED, True, "RestoreNotDone", text)
    return Draft(conditions=(condition,), settled=False, status={"restored": False})


def _go_back(resource: Resource, wish: str, look: Look) -> Draft:
    ref, spec = resource.ref, resource.spec
    assert isinstance(spec, Spec)
    domain = _domain(ref, _machine(spec), look)
    fact = _fact(ref, spec, domain, look)
    machine = look.spec(_machine(spec))
    annotations = machine.metadata.annotations if machine is not None else {}
    swaps, leaves = _swaps(ref, fact, domain, look)
    revert = ops.SnapshotRevert(
        fact.name, domain.uuid, fact.snapshot, str(ref), domain.active, annotations, swaps, leaves, fact.memory_file
    )
    operations = (
        ops.LedgerWrite(str(ref), "restore", f"started {wish}"),
        revert,
        ops.LedgerWrite(str(ref), "restore", f"done {wish}"),
    )
    reason = f"{spec.virtual_machine} goes back to {spec.snapshot}"
    return Draft(operations, settled=False, reason=reason, status={"restored": False})


def _domain(ref: Ref, target: Ref, look: Look) -> Domain:
    """The domain, where it may be touched now."""
    fact, machine = look.fact(look.key(target)), look.spec(target)
    if not isinstance(fact, Domain):
        raise Blocked(f"{ref}: waits for {target}: libvirt has no such domain", hint=f"kvmd get {target}")
    if machine is None or fact.mark is None or fact.mark.ref != target or fact.mark.owner != look.rules.owner:
        raise Refused(f"{ref}: domain {fact.name} is not managed by kvmd", hint=f"adopt it as {target} first")
    ledger = look.fact(Key("ledger", str(target)))
    if machine.suspended or (isinstance(ledger, Ledger) and ledger.suspended):
        raise Blocked(f"{ref}: waits for {target}: it is suspended", hint=f"kvmd resume {target}")
    if look.memory(target).busy:
        raise Blocked(f"{ref}: waits for {target}: {look.memory(target).busy}", hint=f"kvmd describe {target}")
    if not fact.persistent:
        raise Blocked(f"{ref}: waits for {target}: its domain has no definition now", hint=f"kvmd describe {target}")
    return fact


def _fact(ref: Ref, spec: Spec, domain: Domain, look: Look) -> Snapshot:
    """The snapshot, where libvirt can go back to it."""
    target = _snapshot(spec)
    fact = look.fact(look.key(target))
    if look.spec(target) is None and not isinstance(fact, Snapshot):
        fact = look.fact(Key("snapshot", f"{domain.name}/{spec.snapshot}"))
    if look.memory(target).busy:
        raise Blocked(f"{ref}: waits for {target}: {look.memory(target).busy}", hint=f"kvmd describe {target}")
    if not isinstance(fact, Snapshot):
        raise Blocked(f"{ref}: waits for {target}: it is not taken", hint=f"kvmd get {target}")
    if fact.uuid != domain.uuid:
        raise Refused(
            f"{ref}: {target} shows {fact.name.rpartition('/')[0]}, not {domain.name}",
            hint="name a snapshot of that machine",
        )
    return fact


def _swaps(ref: Ref, fact: Snapshot, domain: Domain, look: Look) -> tuple[tuple[ops.Swap, ...], tuple[str, ...]]:
    """The overlays to be made for an external snapshot, and the files that hold what the disks are now."""
    sources = _sources(domain)
    if not fact.external:
        _refuse_under_overlays(ref, fact, domain, sources, look)
        return (), ()
    if not fact.overlays:
        raise Refused(
            f"{ref}: {fact.name} is external and names no file that shows its moment; nothing was touched",
            hint=f"see: virsh snapshot-dumpxml {domain.name} {fact.snapshot}",
        )
    if written := [overlay.over for overlay in fact.overlays if overlay.over in sources.values()]:
        raise Refused(
            f"{ref}: {domain.name} writes into {', '.join(written)} itself, which shows that moment no longer; "
            "nothing was touched",
            hint=f"if somebody merged it by hand: virsh snapshot-delete {domain.name} {fact.snapshot} --metadata",
        )
    swaps, leaves = [], []
    for item in fact.overlays:
        leaf_now = sources.get(item.alias) or sources.get(item.target)
        if leaf_now is None:
            raise Refused(
                f"{ref}: {domain.name} has no disk {item.alias or item.target} any more; nothing was touched",
                hint="give the machine the disks that it had then",
            )
        folder, file = item.path.rpartition("/")[0], item.over.rpartition("/")[2]
        path = f"{folder}/{file.rpartition('.')[0] or file}.{fact.snapshot}.{ref.name}.qcow2"
        swaps.append(ops.Swap(item.target, item.alias, item.over, item.over_format, path))
        leaves.append(leaf_now)
    return tuple(swaps), tuple(leaves)


def _sources(domain: Domain) -> dict[str, str]:
    """The file under each disk of the definition, by alias and by target."""
    found = {}
    for disk in xmlmap.parse(domain.config or "<domain/>").findall("devices/disk"):
        source = disk.find("source")
        path = "" if source is None else source.get("file") or source.get("dev")
        for element, attribute in (("alias", "name"), ("target", "dev")):
            named = disk.find(element)
            if path and named is not None:
                found[named.get(attribute, "")] = path
    return found


def _refuse_under_overlays(ref: Ref, fact: Snapshot, domain: Domain, sources: dict[str, str], look: Look) -> None:
    """Raise Refused for an internal snapshot under an overlay: loading it would change what that stands on."""
    for name in domain.snapshots:
        other = look.fact(Key("snapshot", f"{domain.name}/{name}"))
        if isinstance(other, Snapshot) and any(item.path in sources.values() for item in other.overlays):
            raise Refused(
                f"{ref}: {fact.name} lies inside of disks on which the overlay of {other.name} stands, and going "
                "back to it would spoil that; nothing was touched",
                hint=f"remove snapshot {other.name} first, which merges it, or go back to that one",
            )
