"""What a machine has on its board, one of each: firmware, screen, watchdog, TPM, the pages of its memory."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from pydantic import model_validator

from kvmd import xmlmap
from kvmd.api.quantity import Memory
from kvmd.api.resource import SpecModel
from kvmd.api.schema import Update, leaf
from kvmd.kinds.virtual_machine import balloon as memory_balloon
from kvmd.kinds.virtual_machine import firmware as uefi
from kvmd.kinds.virtual_machine import graphics as screen
from kvmd.kinds.virtual_machine import processor
from kvmd.kinds.virtual_machine.io_threads import IO_THREADS
from kvmd.plan.difference import Change, at, is_owned
from kvmd.xmlmap import Element, Place


class Watchdog(SpecModel):
    """A watchdog that acts when the guest no longer feeds it."""

    model: Literal["i6300esb", "ib700"] = leaf(
        "i6300esb",
        about="Its model; the guest needs its driver. ib700 is for machine pc only.",
        example="i6300esb",
        update=Update.NEXT_BOOT,
    )
    action: Literal["reset", "shutdown", "poweroff", "pause", "none", "dump", "inject-nmi"] = leaf(
        "reset", about="What it does.", example="poweroff", update=Update.NEXT_BOOT
    )

    def agree_with(self, machine: str) -> None:
        """Raise where the machine cannot have it: libvirt 9.0 took ib700 for any, 11.3 refuses it but for pc."""
        if self.model == "ib700" and "q35" in machine:
            raise ValueError(f"libvirt gives the watchdog ib700 to a machine pc only; {machine} takes i6300esb")


class Tpm(SpecModel):
    """A TPM, emulated by swtpm; its state stays on the host when the machine is removed."""

    model: Literal["tpm-crb", "tpm-tis"] = leaf(
        "tpm-crb", about="Its interface; tpm-crb is 2.0 only.", example="tpm-crb", update=Update.NEXT_BOOT
    )
    version: Literal["2.0", "1.2"] = leaf("2.0", about="Its version.", example="2.0", update=Update.NEXT_BOOT)

    @model_validator(mode="after")
    def _agree(self) -> Tpm:
        if self.model == "tpm-crb" and self.version == "1.2":
            raise ValueError("tpm-crb is version 2.0 only; use model tpm-tis for 1.2")
        return self


class HugePages(SpecModel):
    """Huge pages, which the host must have set aside."""

    size: Memory = leaf(about="Size of a page.", example="2Mi", update=Update.NEXT_BOOT)


def _watchdog(root: Element) -> Element | None:
    """Never the itco: libvirt 9.1 and newer write it down for each q35, whose chipset has one."""
    return next((item for item in xmlmap.children(root, "devices/watchdog") if item.get("model") != "itco"), None)


def _watchdog_model_put(root: Element, model: str | None) -> None:
    devices, found = xmlmap.reach(root, "devices"), _watchdog(root)
    action = None if found is None else found.get("action")
    if found is not None:
        devices.remove(found)  # another model is another bus
    forget_itco(devices)
    if model is not None:
        ElementTree.SubElement(devices, "watchdog", {"model": model, **({"action": action} if action else {})})


def _watchdog_action_put(root: Element, action: str | None) -> None:
    if (found := _watchdog(root)) is not None and action is not None:
        found.set("action", action)
        forget_itco(xmlmap.reach(root, "devices"))


def forget_itco(devices: Element) -> None:
    """libvirt writes it anew, with the action of the other: there is one for all, and libvirt refuses two."""
    for itco in devices.findall("watchdog[@model='itco']"):
        devices.remove(itco)


def _tpm_model_put(root: Element, model: str | None) -> None:
    if model is None:
        xmlmap.cut(root, "devices/tpm")
        return
    tpm = xmlmap.reach(root, "devices/tpm")
    tpm.set("model", model)
    if tpm.find("backend") is None:
        ElementTree.SubElement(tpm, "backend", {"type": "emulator"})


def _tpm_version_put(root: Element, version: str | None) -> None:
    backend = root.find("devices/tpm/backend")
    if backend is not None and version is not None:
        backend.set("version", version)


def _pages_get(root: Element) -> int | None:
    """0 for pages of the size that the host prefers."""
    if xmlmap.find(root, "memoryBacking/hugepages") is None:
        return None
    return xmlmap.size("size").get(_as_size(root.find("memoryBacking/hugepages/page"))) or 0


def _as_size(page: Element | None) -> Element:
    holder = ElementTree.Element("pages")
    if page is not None:
        size = ElementTree.SubElement(holder, "size", {"unit": page.get("unit", "KiB")})
        size.text = page.get("size")
    return holder


def _pages_put(root: Element, size: int | None) -> None:
    xmlmap.cut(root, "memoryBacking/hugepages")
    if size is not None:
        pages = xmlmap.reach(root, "memoryBacking/hugepages")
        ElementTree.SubElement(pages, "page", {"size": str(size // 2**10), "unit": "KiB"})
    elif (backing := root.find("memoryBacking")) is not None and not len(backing):
        xmlmap.cut(root, "memoryBacking")


_WATCHDOG_MODEL = Place(lambda r: None if (w := _watchdog(r)) is None else w.get("model"), _watchdog_model_put)
_WATCHDOG_ACTION = Place(lambda r: None if (w := _watchdog(r)) is None else w.get("action"), _watchdog_action_put)
_TPM_MODEL = Place(xmlmap.attribute("devices/tpm", "model").get, _tpm_model_put)
_TPM_VERSION = Place(xmlmap.attribute("devices/tpm/backend", "version").get, _tpm_version_put)


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """The part of a machine's state that it has one of; the base of the whole state."""

    firmware: str = field(default="bios", metadata=at("firmware.type", xml=uefi.TYPE))
    secure_boot: bool | None = field(default=False, metadata=at("firmware.secureBoot", xml=uefi.SECURE_BOOT))
    nvram: str = ""  # where its NVRAM file is made; never compared
    cpu_features: processor.Features | None = field(default=None, metadata=at("cpu.features", xml=processor.FEATURES))
    io_threads: int | None = field(default=None, metadata=at("ioThreads", xml=IO_THREADS))
    huge_pages: int | None = field(
        default=None, metadata=at("memory.hugepages.size", xml=Place(_pages_get, _pages_put))
    )
    graphics: str | None = field(default=None, metadata=at("devices.graphics.type", xml=screen.TYPE))
    listen: str | None = field(default=None, metadata=at("devices.graphics.listen", xml=screen.LISTEN))
    password: str | None = field(
        default=None, repr=False, metadata=at("devices.graphics.passwordFrom", xml=screen.PASSWORD)
    )
    secrets: tuple[str, ...] = ()  # where the password is read; never compared
    video: str | None = field(default=None, metadata=at("devices.video.model", xml=screen.VIDEO))
    balloon: str = field(
        default=memory_balloon.DEFAULT, metadata=at("devices.balloon.model", xml=memory_balloon.MODEL)
    )
    balloon_period: int | None = field(
        default=None, metadata=at("devices.balloon.statsPeriodSeconds", xml=memory_balloon.PERIOD)
    )
    free_page_reporting: bool = field(
        default=False, metadata=at("devices.balloon.freePageReporting", xml=memory_balloon.REPORTING)
    )
    watchdog: str | None = field(default=None, metadata=at("devices.watchdog.model", xml=_WATCHDOG_MODEL))
    watchdog_action: str | None = field(default=None, metadata=at("devices.watchdog.action", xml=_WATCHDOG_ACTION))
    tpm: str | None = field(default=None, metadata=at("devices.tpm.model", xml=_TPM_MODEL))
    tpm_version: str | None = field(default=None, metadata=at("devices.tpm.version", xml=_TPM_VERSION))


_PASSWORD = "devices.graphics.passwordFrom"
_FOLLOWERS = {
    "firmware.type": ("firmware.secureBoot",),
    "devices.graphics.type": ("devices.graphics.listen", _PASSWORD, "devices.video.model"),
    "devices.watchdog.model": ("devices.watchdog.action",),
    "devices.tpm.model": ("devices.tpm.version",),
}


def followers(found: Iterable[Change], owned: frozenset[str]) -> set[str]:
    """Leaves of a device that comes or goes whole, where somebody wrote any leaf of it."""
    changes = {change.path: change for change in found}
    follows: set[str] = set()
    for head, rest in _FOLLOWERS.items():
        change = changes.get(head)
        whole = change is not None and (head == "firmware.type" or None in (change.before, change.after))
        group = {head, *(path for path in rest if path.startswith(head.rpartition(".")[0]))}
        if change is None or not whole or not any(is_owned(path, owned) for path in group if path in changes):
            continue
        # A card that was there before the screen stays when the screen goes.
        follows |= {head, *(path for path in rest if path in group or change.before is None)}
    return follows


def is_password_alone(changes: tuple[Change, ...]) -> bool:
    """True where nothing differs but the password: its file has another, which is no change of spec and no drift."""
    return bool(changes) and all(change.path == _PASSWORD for change in changes)


def hidden(change: Change) -> Change:
    """The change as people may see it: of a password only whether there is one."""
    if change.path != _PASSWORD:
        return change
    words = {None: None, change.before: "a password"}
    return Change(change.path, words[change.before], change.after and "the password of the spec", change.always)
