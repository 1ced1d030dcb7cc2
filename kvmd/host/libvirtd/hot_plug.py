"""Devices of a definition, plugged into the running guest."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import libvirt

from kvmd.errors import Stale
from kvmd.host.libvirtd.connection import DEFINITION
from kvmd.host.libvirtd.disk_keys import lent
from kvmd.host.libvirtd.unplug import attached

LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE
# What libvirt answers where an address of the definition is not free, or not there, in the running guest.
_NO_SUCH_PLACE = frozenset(
    {libvirt.VIR_ERR_XML_ERROR, libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_ERR_CONFIG_UNSUPPORTED}
)


def attach(domain: Any, alias: str) -> None:
    """Plug in the device that the definition holds under an alias; a SCSI disk brings its controller along."""
    root = ElementTree.fromstring(domain.XMLDesc(DEFINITION))
    device = next((item for item in root.findall("devices/*") if _alias_of(item) == alias), None)
    if device is None:
        raise Stale(f"the definition of {domain.name()} no longer has a device {alias}")
    boot, target = device.find("boot"), device.find("target")
    if boot is not None:  # it means something at the next boot only, and libvirt refuses it where <os> has an order
        device.remove(boot)
    if device.tag == "disk" and target is not None and target.get("bus") == "scsi":
        _bring_controller(domain, root)
    _attach(domain, device)
    attached(domain, alias)


def _alias_of(device: ElementTree.Element) -> str | None:
    found = device.find("alias")
    return None if found is None else found.get("name")


def _bring_controller(domain: Any, root: ElementTree.Element) -> None:
    """Left alone libvirt takes one that q35 has no slot for, and that Linux guests lack."""
    controller = root.find("devices/controller[@type='scsi']")
    live = ElementTree.fromstring(domain.XMLDesc(0))
    if controller is not None and live.find("devices/controller[@type='scsi']") is None:
        _attach(domain, controller)


def _attach(domain: Any, device: ElementTree.Element) -> None:
    """With the address of the definition, so that it stays there at the next boot; else where there is room.

    While a change waits that places everything anew, such as another machine, the two have little in common.
    """
    try:
        _plug_in(domain, device)
    except libvirt.libvirtError as error:
        address = device.find("address[@type='pci']")
        if address is None or error.get_error_code() not in _NO_SUCH_PLACE or "PCI" not in str(error):
            raise
        device.remove(address)
        _plug_in(domain, device)


def _plug_in(domain: Any, device: ElementTree.Element) -> None:
    xml = ElementTree.tostring(device, encoding="unicode")
    with lent(domain.connect(), xml):
        domain.attachDeviceFlags(xml, LIVE)
