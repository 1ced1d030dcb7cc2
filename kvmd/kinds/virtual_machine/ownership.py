"""Which differences of a domain are kvmd's to put right: what the spec says, said before, or what must follow it."""

from __future__ import annotations

from typing import Any

from kvmd.api.resource import Resource
from kvmd.kinds.virtual_machine import install
from kvmd.kinds.virtual_machine.board import followers
from kvmd.kinds.virtual_machine.cloud_init import SEED
from kvmd.kinds.virtual_machine.domain import FOREIGN
from kvmd.kinds.virtual_machine.spec import DEFAULT_SERIAL, Spec
from kvmd.plan.difference import Change, is_owned
from kvmd.plan.model import Applied


def owned_changes(
    found: Any, resource: Resource, applied: Applied | None, before: frozenset[str] = frozenset()
) -> tuple[Change, ...]:
    """The differences that are ours: written now or before; devices that no spec ever named are left alone."""
    owned = resource.owned | (applied.owned if applied else frozenset()) | before
    found = tuple(found)
    follows = {
        path
        for change in found
        if change.path != "accelerator" or is_owned("accelerator", owned)
        for path in _implied(change, resource.spec)
    }
    follows |= followers(found, owned)
    if _lists_serials(owned) and not _lists_serials(resource.owned):
        follows.add(f"devices.serial[{DEFAULT_SERIAL.name}]")
    return tuple(
        change
        for change in found
        if f"[{FOREIGN}" not in change.path
        and not (change.path.endswith(".format") and change.after is None)  # an empty tray has none
        and (
            change.always or is_owned(change.path, owned) or change.path in follows or _is_source(change.path, owned)
        )
    )


def _lists_serials(paths: frozenset[str]) -> bool:
    return any(path.startswith("devices.serial") for path in paths)


def _implied(change: Change, spec: Any) -> tuple[str, ...]:
    """Leaves that nobody wrote and that must follow one that somebody wrote, or libvirt refuses the whole."""
    assert isinstance(spec, Spec)
    asked = {"cpu.maxVcpus": spec.cpu.vcpus, "memory.maxGuest": spec.memory.guest}.get(change.path)
    if asked is not None and asked > change.before:
        return (change.path, "cpu.topology") if change.path == "cpu.maxVcpus" else (change.path,)
    if (change.path == "cpu.topology" and spec.cpu.topology is not None) or (
        change.path == "cpu.numa" and spec.cpu.numa
    ):
        return ("cpu.maxVcpus",)
    return ("cpu.model",) if change.path == "accelerator" else ()


def _is_source(path: str, owned: frozenset[str]) -> bool:
    """A CD-ROM's source is written as ``media``, a disk's may be a ``volume``, a kernel's an ``image``."""
    if path.startswith(f"disks[{install.TRAY}]"):
        return is_owned("install", owned)
    if path.startswith(f"disks[{SEED}]"):
        return is_owned("cloudInit", owned)
    device, _, leaf = path.rpartition(".")
    if path.startswith("kernelBoot."):
        return leaf == "path" and is_owned(device, owned)
    words = {
        "path": ("media", "volume", "image", "url", "path"),
        "format": ("media", "volume", "image"),
        "authFrom": ("media",),
    }.get(leaf, ())
    return path.startswith("disks[") and any(is_owned(f"{device}.{word}", owned) for word in words)
