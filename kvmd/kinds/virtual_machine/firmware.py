"""Firmware: asked for by features, chosen by libvirt; an NVRAM file of its own for each machine.

https://libvirt.org/formatdomain.html#bios-bootloader: libvirt 9.0 keeps the features in the definition and resolves
them at each start; newer ones write the files that they chose into the definition beside the features.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import model_validator

from kvmd import xmlmap
from kvmd.api.quantity import Boolean
from kvmd.api.resource import SpecModel
from kvmd.api.schema import Update, branch, leaf
from kvmd.xmlmap import Element, Place

# What packages bring lies here: an NVRAM file below it is a distribution's template, whatever a definition says.
_TEMPLATES = ("/usr/", "/nix/", "/opt/")


class Nvram(SpecModel):
    """The variables of UEFI: boot entries and keys."""

    reclaim_policy: Literal["Retain", "Delete"] = leaf(
        "Retain",
        about="Whether its file outlives the machine; a machine of the same name then finds it again.",
        example="Retain",
    )


class Firmware(SpecModel):
    """What the machine boots with; libvirt chooses the files by what is asked for."""

    type: Literal["bios", "efi"] = leaf("bios", about="SeaBIOS or UEFI.", example="efi", update=Update.NEXT_BOOT)
    secure_boot: Boolean = leaf(
        False,
        about="UEFI that runs only what is signed with the keys that the distribution enrolled; machine q35 only. An "
        "NVRAM file that exists keeps the keys that it has.",
        example=True,
        update=Update.NEXT_BOOT,
    )
    nvram: Nvram = branch(factory=Nvram, about="The variables of UEFI.")

    @model_validator(mode="after")
    def _agree(self) -> Firmware:
        if self.secure_boot and self.type != "efi":
            raise ValueError("secureBoot needs `type: efi`")
        return self

    def agree_with(self, machine: str) -> None:
        """Raise ValueError where that machine has no such firmware."""
        if self.secure_boot and "q35" not in machine:
            raise ValueError(f"secureBoot needs a machine q35: {machine} has no system management mode for it")


def _is_efi(root: Element) -> bool:
    system, loader = root.find("os"), xmlmap.find(root, "os/loader")
    return (system is not None and system.get("firmware") == "efi") or (
        loader is not None and loader.get("type") == "pflash"
    )


def _type_get(root: Element) -> str:
    return "efi" if _is_efi(root) else "bios"


def _choose_anew(root: Element) -> None:
    """Take away the files that were chosen; an NVRAM file that a machine has stays its own."""
    xmlmap.cut(root, "os/loader")
    nvram = root.find("os/nvram")
    if nvram is not None:
        nvram.attrib.clear()


def _type_put(root: Element, type: str) -> None:
    system = xmlmap.reach(root, "os")
    _choose_anew(root)
    if type == "efi":
        system.set("firmware", "efi")
        _secure_put(root, False)
        return
    system.attrib.pop("firmware", None)
    for path in ("os/firmware", "os/nvram", "features/smm"):
        xmlmap.cut(root, path)


def _secure_get(root: Element) -> bool | None:
    """None where nobody has said it and libvirt has not chosen yet."""
    if not _is_efi(root):
        return False
    feature = root.find("os/firmware/feature[@name='secure-boot']")
    if feature is not None:
        return feature.get("enabled") == "yes"
    loader = root.find("os/loader")
    return None if loader is None else loader.get("secure") == "yes"


def _secure_put(root: Element, secure: bool) -> None:
    """Say it either way: left alone, libvirt was seen to choose secure boot on q35."""
    if not _is_efi(root):
        return
    _choose_anew(root)
    xmlmap.reach(root, "os").set("firmware", "efi")
    xmlmap.cut(root, "os/firmware")
    firmware = xmlmap.reach(root, "os/firmware")
    for name in ("secure-boot", "enrolled-keys") if secure else ("secure-boot",):
        ElementTree.SubElement(firmware, "feature", {"enabled": "yes" if secure else "no", "name": name})
    xmlmap.cut(root, "features/smm")  # it follows from the choice
    if secure:
        ElementTree.SubElement(xmlmap.reach(root, "features"), "smm", {"state": "on"})


TYPE = Place(_type_get, _type_put)
SECURE_BOOT = Place(_secure_get, _secure_put)


def place_nvram(root: Element, path: str) -> None:
    """Name the NVRAM file of a machine with UEFI that has none yet."""
    if _is_efi(root) and not (root.findtext("os/nvram") or "").strip():
        xmlmap.reach(root, "os/nvram").text = path


def nvram_path(directory: str, name: str, uuid: str) -> str:
    """By name and UUID: what another machine of that name left behind is never taken up."""
    return f"{directory}/{name}-{uuid}_VARS.fd"


def deletes_nvram(written: Mapping[str, Any], config: str | None) -> bool:
    """True where the spec asks for it and the file is the machine's own, never a distribution's template."""
    firmware = written.get("firmware")
    nvram = firmware.get("nvram") if isinstance(firmware, Mapping) else None
    if config is None or not isinstance(nvram, Mapping) or nvram.get("reclaimPolicy") != "Delete":
        return False
    path = (xmlmap.parse(config).findtext("os/nvram") or "").strip()
    return not path.startswith(_TEMPLATES)
