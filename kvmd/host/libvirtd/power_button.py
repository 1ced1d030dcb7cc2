"""Asking a guest to power off. An agent answers by the guest's end; libvirt waits for it up to 60 s, kvmd not."""

from __future__ import annotations

import threading
from typing import Any

import libvirt

# An agent that is not there is known at once, and one that does not listen after 5 s; more than that is slow.
PATIENCE_SECONDS = 1.0

_METHODS = {
    "agent": libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT,
    "acpi": libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN,
}
_lock = threading.Lock()
_asking: dict[str, threading.Thread] = {}


def ask(domain: Any, methods: tuple[str, ...]) -> None:
    """Ask by the first method that can be used; one that takes its time goes on by itself, never twice at once."""
    if methods[0] != "agent":
        _ask(domain, methods)
        return
    uuid, failed = domain.UUIDString(), []

    def run() -> None:
        try:
            _ask(domain, methods)
        except libvirt.libvirtError as error:
            failed.append(error)

    with _lock:
        if (before := _asking.get(uuid)) is not None and before.is_alive():
            return
        for ended in [name for name, thread in _asking.items() if not thread.is_alive()]:
            del _asking[ended]
        thread = _asking[uuid] = threading.Thread(target=run, name="guest-agent", daemon=True)
        thread.start()
    thread.join(PATIENCE_SECONDS)
    if failed:
        raise failed[0]


def _ask(domain: Any, methods: tuple[str, ...]) -> None:
    failure: libvirt.libvirtError | None = None
    for method in methods:
        try:
            domain.shutdownFlags(_METHODS[method])
            return
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID and "is not running" in str(error):
                return
            failure = error
    if failure is not None:
        raise failure
