"""PCI and USB devices of the host that a guest has to itself, where policy.hostDevices lets it."""

from __future__ import annotations

import fnmatch
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import AfterValidator, model_validator

from kvmd import xmlmap
from kvmd.api.quantity import DeviceName, Text
from kvmd.api.resource import Ref, SpecModel
from kvmd.api.schema import Update, leaf
from kvmd.api.status import BLOCKED, DEGRADED, Condition
from kvmd.errors import Refused
from kvmd.observed import File, Key
from kvmd.plan.difference import at
from kvmd.plan.look import Look
from kvmd.xmlmap import Element, Place

ALIAS = "ua-host-"
_PCI = re.compile(r"([0-9a-f]{4}):([0-9a-f]{2}):([01][0-9a-f])\.([0-7])")
_USB = re.compile(r"[0-9a-f]{4}:[0-9a-f]{4}")
_SYSFS = "/sys/bus/pci/devices"


def _pci(value: str) -> str:
    if not _PCI.fullmatch(value.lower()):
        raise ValueError(f"'{value}' is no PCI address; write it as lspci -D does, such as 0000:01:00.0")
    return value.lower()


def _usb(value: str) -> str:
    if not _USB.fullmatch(value.lower()):
        raise ValueError(f"'{value}' is no USB device; write vendor and product as lsusb does, such as 046d:c52b")
    return value.lower()


class HostDevice(SpecModel):
    """A device of the host; while the guest runs nobody else has it."""

    name: DeviceName = leaf(about="Name of the device.", example="gpu", update=Update.IMMUTABLE)
    pci: Annotated[Text, AfterValidator(_pci)] | None = leaf(
        None, about="Address of a PCI device.", example="0000:01:00.0", update=Update.NEXT_BOOT
    )
    usb: Annotated[Text, AfterValidator(_usb)] | None = leaf(
        None, about="Vendor and product of a USB device.", example="046d:c52b", update=Update.NEXT_BOOT
    )

    @model_validator(mode="after")
    def _agree(self) -> HostDevice:
        if (self.pci is None) == (self.usb is None):
            raise ValueError("write exactly one of `pci` and `usb`")
        return self

    @property
    def id(self) -> str:
        """What policy.hostDevices and conflicts call it."""
        return f"pci:{self.pci}" if self.pci else f"usb:{self.usb}"


def _pci_get(root: Element) -> str | None:
    address = root.find("source/address")
    if root.get("type") != "pci" or address is None:
        return None
    numbers = [int(address.get(word, "0"), 0) for word in ("domain", "bus", "slot", "function")]
    return "{:04x}:{:02x}:{:02x}.{:x}".format(*numbers)


def _become(root: Element, kind: str) -> None:
    """Another device; one on another bus has another place in the guest, which is libvirt's to find."""
    xmlmap.cut(root, "source")
    if root.get("type") not in (None, kind):
        xmlmap.cut(root, "address")
    root.set("type", kind)


def _pci_put(root: Element, value: str | None) -> None:
    found = _PCI.fullmatch(value or "")
    if found is None:
        return
    _become(root, "pci")
    root.set("managed", "yes")  # libvirt takes it from its driver at the start, and gives it back
    names = ("domain", "bus", "slot", "function")
    numbers = {name: f"0x{number}" for name, number in zip(names, found.groups(), strict=True)}
    ElementTree.SubElement(xmlmap.reach(root, "source"), "address", numbers)


def _usb_get(root: Element) -> str | None:
    vendor, product = root.find("source/vendor"), root.find("source/product")
    if root.get("type") != "usb" or vendor is None or product is None:
        return None
    return ":".join(f"{int(item.get('id', '0'), 0):04x}" for item in (vendor, product))


def _usb_put(root: Element, value: str | None) -> None:
    if value is None:
        return
    _become(root, "usb")
    root.attrib.pop("managed", None)
    for word, number in zip(("vendor", "product"), value.split(":"), strict=True):
        ElementTree.SubElement(xmlmap.reach(root, "source"), word, {"id": f"0x{number}"})


@dataclass(frozen=True, slots=True)
class HostDeviceState:
    """A device of the host as it is or should be."""

    name: str
    pci: str | None = field(metadata=at("pci", xml=Place(_pci_get, _pci_put)))
    usb: str | None = field(metadata=at("usb", xml=Place(_usb_get, _usb_put)))

    @property
    def id(self) -> str:
        """What it is."""
        return self.pci or self.usb or ""


def states_of(devices: Iterable[HostDevice]) -> tuple[HostDeviceState, ...]:
    """What the devices of a spec ask for."""
    return tuple(HostDeviceState(device.name, device.pci, device.usb) for device in devices)


def elements(root: Element, known: Mapping[str, str]) -> list[tuple[str, Element]]:
    """Every device with its name: its alias, else what the spec calls it (*known*), else ``@`` and its place."""
    found = []
    for number, element in enumerate(root.findall("devices/hostdev")):
        alias = element.find("alias")
        name = "" if alias is None else alias.get("name", "")
        what = _pci_get(element) or _usb_get(element) or ""
        found.append((name.removeprefix(ALIAS) if name.startswith(ALIAS) else known.get(what, f"@{number}"), element))
    return found


def add(root: Element, device: HostDeviceState) -> None:
    """A new device."""
    element = ElementTree.SubElement(xmlmap.reach(root, "devices"), "hostdev", {"mode": "subsystem"})
    xmlmap.write(device, element)
    ElementTree.SubElement(element, "alias", {"name": ALIAS + device.name})


# --------------------------------------------------------------------------------------------------- the host


def paths_of(devices: Iterable[HostDevice]) -> tuple[str, ...]:
    """Where the kernel shows a PCI device, and its IOMMU group."""
    return tuple(path for device in devices if device.pci for path in _paths(device.pci))


def _paths(pci: str) -> tuple[str, str]:
    return f"{_SYSFS}/{pci}", f"{_SYSFS}/{pci}/iommu_group"


def refuse_forbidden(ref: Ref, devices: Iterable[HostDevice], look: Look) -> None:
    """Raise Refused for a device that policy.hostDevices does not name."""
    for device in devices:
        if not any(fnmatch.fnmatchcase(device.id, pattern) for pattern in look.rules.host_devices):
            raise Refused(
                f"{ref}: {device.id} is not among the devices that specs may take from this host",
                hint=f"to allow it write into kvmd.yaml: policy: {{hostDevices: ['{device.id}']}}",
            )


def conditions(devices: Iterable[HostDevice], running: bool, look: Look) -> tuple[Condition, ...]:
    """Say of a PCI device that it is not there, or that this host has no IOMMU for it, before the start fails."""
    found, type_ = [], DEGRADED if running else BLOCKED
    for device in devices:
        if device.pci is None:
            continue
        path, group = _paths(device.pci)
        if not _is_there(path, look):
            text = f"this host has no PCI device {device.pci}; see: lspci -D"
            found.append(Condition(type_, True, "HostDeviceMissing", text))
        elif not _is_there(group, look):
            text = (
                f"the IOMMU is off, without which {device.pci} cannot be given to a guest; switch VT-d or AMD-Vi on "
                "in the firmware setup, write intel_iommu=on on the kernel's command line (Intel), and boot"
            )
            found.append(Condition(type_, True, "IommuOff", text))
    return tuple(found)


def _is_there(path: str, look: Look) -> bool:
    fact = look.fact(Key("file", path))
    return isinstance(fact, File) and fact.kind != "missing"
