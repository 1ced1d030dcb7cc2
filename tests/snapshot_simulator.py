"""Snapshots of the host in memory: what libvirt 9.0 makes of a domain and its disks, and what it refuses."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import replace

from kvmd import ops
from kvmd.api.mark import Mark, find_in
from kvmd.errors import Stale
from kvmd.host.storage.backing import put_over
from kvmd.observed import Domain, Fact, Key, Overlay, Snapshot
from kvmd.xmlmap import Element, parse, serialise


class SnapshotRefused(Exception):
    """libvirt would refuse this."""


def execute(facts: MutableMapping[Key, Fact], operation: ops.SnapshotOp, domain: Domain) -> None:
    """Carry out one operation, or raise ``SnapshotRefused``."""
    key = Key("snapshot", operation.name)
    found = facts.get(key)
    if isinstance(operation, ops.SnapshotTake):
        _demand(found is None, f"{operation.name} exists")
        made = _take(facts, operation, domain)
        facts[key] = made
        names = tuple(sorted((*domain.snapshots, made.snapshot)))
        put(facts, replace(_domain(facts, domain), snapshots=names))
        return
    _demand(isinstance(found, Snapshot), f"no snapshot {operation.name}")
    assert isinstance(found, Snapshot)
    match operation:
        case ops.SnapshotMark(mark=mark):
            facts[key] = replace(found, mark=mark)
        case ops.SnapshotRemove():
            del facts[key]
            for overlay in found.overlays:
                domain = _moved(domain, overlay.path, overlay.over, overlay.over_format)
            put(facts, replace(domain, snapshots=tuple(n for n in domain.snapshots if n != found.snapshot)))
        case ops.SnapshotRevert():
            _revert(facts, operation, found, domain)


def put(facts: MutableMapping[Key, Fact], domain: Domain) -> None:
    """Note what a domain came to be."""
    facts[Key("domain", domain.name)] = domain


def _demand(condition: bool, why: str) -> None:
    if not condition:
        raise SnapshotRefused(why)


def _domain(facts: MutableMapping[Key, Fact], domain: Domain) -> Domain:
    fact = facts[Key("domain", domain.name)]
    assert isinstance(fact, Domain)
    return fact


def _take(facts: MutableMapping[Key, Fact], operation: ops.SnapshotTake, domain: Domain) -> Snapshot:
    root = parse(operation.xml)
    memory = isinstance(operation, ops.SnapshotTakeWithMemory)
    if domain.active != memory and not (domain.active and operation.external):  # as libvirtd.snapshot_acts does
        raise Stale(f"domain {domain.name} has been started or switched off since the plan")
    overlays = []
    for disk in root.findall("disks/disk[@snapshot='external']"):
        before = _by_target(parse(domain.live or domain.config or ""), disk.get("name", ""))
        driver = before.find("driver")
        format = "raw" if driver is None else driver.get("type", "raw")
        made = Overlay(_source(disk), _source(before), format, disk.get("name", ""), _alias(before))
        overlays.append(made)
        domain = _moved(domain, made.over, made.path, "qcow2")
    put(facts, domain)
    state = "disk-snapshot" if operation.external and not memory else domain.state
    return Snapshot(
        operation.name,
        domain.uuid,
        operation.snapshot,
        state,
        memory,
        external=operation.external,
        overlays=tuple(overlays),
        memory_file=root.find("memory").get("file", "") if root.find("memory") is not None else "",
        mark=Mark.from_text(root.findtext("description") or ""),
    )


def _revert(facts: MutableMapping[Key, Fact], operation: ops.SnapshotRevert, found: Snapshot, domain: Domain) -> None:
    _demand(found.external == bool(operation.swaps), "an external one is gone back to by overlays")
    noted = {f"restored.{operation.by}": "begun", **{f"left.{path}": operation.by for path in operation.leaves}}
    mark = found.mark.with_resolved({**found.mark.resolved, **noted}) if found.mark is not None else None
    overlays = tuple(
        Overlay(swap.path, swap.over, swap.over_format, swap.target, swap.alias) for swap in operation.swaps
    )
    found = replace(found, mark=mark, overlays=overlays)
    facts[Key("snapshot", found.name)] = found
    domain = _swapped(domain, operation.swaps)
    if operation.swaps and not operation.memory_file:
        live = domain.config if operation.running else None
        mark = find_in(parse(live)) if live is not None else None
        put(
            facts, replace(domain, state="running" if live else "shutoff", reason="booted", live=live, boot_mark=mark)
        )
        return
    runs = operation.running or found.state in ("running", "paused")
    if not runs:
        put(facts, replace(domain, state="shutoff", reason="from snapshot", live=None, boot_mark=None))
        return
    live = domain.live or domain.config or ""
    mark = find_in(parse(live))
    if mark is not None:
        resolved = {**mark.resolved, "restored": operation.by}
        mark = replace(mark, annotations=operation.annotations, resolved=resolved)
    put(facts, replace(domain, state="running", reason="from snapshot", live=live, boot_mark=mark))


def _by_target(root: Element, target: str) -> Element:
    for disk in root.findall("devices/disk"):
        found = disk.find("target")
        if found is not None and found.get("dev") == target:
            return disk
    raise Stale(f"disk {target} has gone since the plan")  # by another step of the same plan


def _alias(disk: Element) -> str:
    alias = disk.find("alias")
    return "" if alias is None else alias.get("name", "")


def _swapped(domain: Domain, swaps: tuple[ops.Swap, ...]) -> Domain:
    """Every self of the domain with the new overlays under those disks."""
    texts = []
    for text in (domain.config, domain.live):
        root = parse(text) if text is not None else None
        for swap in swaps if root is not None else ():
            put_over(_by_target(root, swap.target), swap.path, [(swap.over, swap.over_format)])
        texts.append(serialise(root) if root is not None else None)
    return replace(domain, config=texts[0], live=texts[1])


def _source(disk: Element) -> str:
    source = disk.find("source")
    return "" if source is None else source.get("file", "")


def _moved(domain: Domain, before: str, after: str, format: str) -> Domain:
    """The domain with another file under the disk that had that one, in its definition and its running self."""
    texts = []
    for text in (domain.config, domain.live):
        root = parse(text) if text is not None else None
        for disk in root.findall("devices/disk") if root is not None else ():
            source, driver = disk.find("source"), disk.find("driver")
            if source is not None and source.get("file") == before:
                source.set("file", after)
                if driver is not None:
                    driver.set("type", format)
        texts.append(serialise(root) if root is not None else None)
    return replace(domain, config=texts[0], live=texts[1])
