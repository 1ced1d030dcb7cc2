"""Devices that a running guest is asked to let go of.

libvirtd dies (qemuDomainDetachDeviceLive uses what it has freed: seen with 11.3; 9.0 reads alike) when it is asked to
detach a device that QEMU has removed and whose removal it has not yet worked off. Once a guest was asked, that may be
so at any moment. Asked again, therefore, is QEMU itself: to it a device that has gone is an error like others, and
libvirt hears of its removal as ever.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from typing import Any

import libvirt

from kvmd import ops
from kvmd.errors import Retry

LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE
_UNDER_WAY = ("in the process of unplug", "guest is busy")  # QEMU: asked before, and no answer yet
_asked: dict[str, tuple[int, set[str]]] = {}  # by UUID: the run of the guest, and what it was asked for in that run


def detach(domain: Any, operation: ops.DomainDetach) -> None:
    """Ask the guest to let go; by alias libvirt does not wait for its answer."""
    seen = _noted(domain)
    again = operation.again or operation.alias in seen
    seen.add(operation.alias)
    if again:
        _ask_qemu(domain, operation)
    else:
        _ask_libvirt(domain, operation)


def attached(domain: Any, alias: str) -> None:
    """It is a new device, whatever became of one of that name."""
    _noted(domain).discard(alias)


def _noted(domain: Any) -> set[str]:
    run, uuid = domain.ID(), domain.UUIDString()
    if _asked.get(uuid, (None,))[0] != run:
        _asked[uuid] = (run, set())
    return _asked[uuid][1]


def _ask_libvirt(domain: Any, operation: ops.DomainDetach) -> None:
    try:
        if operation.xml:
            domain.detachDeviceFlags(operation.xml, LIVE)
        else:
            domain.detachDeviceAlias(operation.alias, LIVE)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_DEVICE_MISSING:
            return
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_FAILED and _UNDER_WAY[0] in str(error):
            return  # somebody else asked before, and it has not answered yet: the next look decides
        raise


def _ask_qemu(domain: Any, operation: ops.DomainDetach) -> None:
    import libvirt_qemu

    element = ElementTree.fromstring(operation.xml).find("alias") if operation.xml else None
    name = operation.alias if element is None else element.get("name", "")
    command = json.dumps({"execute": "device_del", "arguments": {"id": name}})
    error = json.loads(libvirt_qemu.qemuMonitorCommand(domain, command, 0)).get("error")
    if error is None or error.get("class") == "DeviceNotFound":
        return
    text = str(error.get("desc", error))
    if not any(words in text for words in _UNDER_WAY):
        raise Retry(f"{operation.describe()}: QEMU says: {text}", hint="the next start is without it")
