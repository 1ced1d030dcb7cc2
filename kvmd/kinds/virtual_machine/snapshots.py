"""What snapshots mean for their machine: overlays under its disks, acts under way, and what holds its removal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kvmd.api.resource import Ref, Resource
from kvmd.errors import Blocked
from kvmd.kinds.virtual_machine.disk import Disk
from kvmd.kinds.virtual_machine.spec import Spec
from kvmd.observed import Domain, Key, Ledger, Snapshot
from kvmd.plan.look import Look
from kvmd.plan.model import Applied
from kvmd.xmlmap import Element

KINDS = frozenset({"VirtualMachineSnapshot", "VirtualMachineRestore"})
SOURCES = ("path", "volume", "image", "url")
RESTORED = "restored"  # in the mark of a running self that came from a snapshot: who asked for it


def on_overlays(resource: Resource, spec: Spec, domain: Domain | None, root: Element | None, look: Look) -> Spec:
    """*spec* with the active overlay in the place of each file that a snapshot has put one over: no drift."""
    if domain is None or root is None:
        return spec
    noted, chains = dict(_noted(domain, look)), dict(_chains(root))
    if not noted and not chains:
        return spec
    # A file that is a disk of its own besides is where its own disk says, not where another's chain leads.
    sources = frozenset(_sources(root))
    sure, seen = (
        {path: top for top in sources for path in _below(top, under) if path not in sources}
        for under in (noted, {**chains, **noted})
    )
    # What no snapshot says, the chain in the definition does (of somebody else's snapshot, of an earlier restore).
    # Had the spec of that very disk changed, its word would count.
    same = _as_applied(resource, look.applied(resource.ref))
    disks = tuple(_over(disk, seen if disk.name in same else sure) for disk in spec.disks)
    return spec.model_copy(update={"disks": disks})


def _as_applied(resource: Resource, applied: Applied | None) -> frozenset[str]:
    """The disks of which the spec names the same source as when it was last applied."""
    before = _named_sources(applied.written) if applied is not None else {}
    now = _named_sources(resource.written)
    return frozenset(name for name, source in now.items() if before.get(name) == source)


def _named_sources(written: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    return {disk["name"]: tuple(disk.get(word) for word in SOURCES) for disk in written.get("disks") or ()}


def _over(disk: Disk, active: dict[str, str]) -> Disk:
    top = active.get(disk.path or "")
    return disk if top is None else disk.model_copy(update={"path": top, "format": "qcow2"})


def _noted(domain: Domain, look: Look) -> Iterator[tuple[str, str]]:
    """Overlay and the file under it, by the snapshots that libvirt knows."""
    for name in domain.snapshots:
        fact = look.fact(Key("snapshot", f"{domain.name}/{name}"))
        if isinstance(fact, Snapshot):
            yield from ((overlay.path, overlay.over) for overlay in fact.overlays)


def _chains(root: Element) -> Iterator[tuple[str, str]]:
    """The same, by the chains in the definition."""
    for element in root.findall("devices/disk"):
        while (below := element.find("backingStore")) is not None:
            top, base = (part.find("source") for part in (element, below))
            if top is not None and base is not None and top.get("file") and base.get("file"):
                yield top.get("file", ""), base.get("file", "")
            element = below


def _sources(root: Element) -> Iterator[str]:
    for source in root.findall("devices/disk/source"):
        if path := source.get("file"):
            yield path


def _below(top: str, under: dict[str, str]) -> Iterator[str]:
    """Every file under *top*; a file that would stand on itself ends the walk."""
    seen = {top}
    while (top := under.get(top, "")) and top not in seen:
        seen.add(top)
        yield top


def under_way(ref: Ref, look: Look) -> str:
    """The act on a snapshot of this machine that has not returned: the guest stands still, or is another, for it."""
    sources = (user.source for user in look.users(ref) if user.source.kind in KINDS)
    acts = ((source, look.memory(source).busy) for source in sources)
    return next((f"{source}: {busy}" for source, busy in acts if busy), "")


def half_restored(ref: Ref, look: Look) -> bool:
    """True while nobody knows whether a restore has ended: no time for a restart."""
    sources = (user.source for user in look.users(ref) if user.source.kind in KINDS)
    facts = (look.fact(Key("ledger", str(source))) for source in sources)
    return any(isinstance(fact, Ledger) and fact.restore.startswith("started") for fact in facts)


def restored(domain: Domain) -> bool:
    """True where the running self came from a snapshot: a restart would throw that away."""
    return domain.boot_mark is not None and RESTORED in domain.boot_mark.resolved


def refuse_removal(ref: Ref, domain: Domain) -> None:
    """Raise Blocked while the domain has snapshots: they would be lost with it."""
    if domain.snapshots:
        names = ", ".join(domain.snapshots[:4]) + (" and more" if len(domain.snapshots) > 4 else "")
        raise Blocked(
            f"{ref}: domain {domain.name} still has snapshots ({names}), which would be lost with it",
            hint=f"remove their specs (and: kvmd approve prune), or: virsh snapshot-delete {domain.name} NAME",
        )
