"""Connections to libvirt: the event loop, keepalive, and libvirt's errors in kvmd's words.

A connection is dead for good once libvirtd went away: every object of it fails from then on. Whoever holds one
asks for a new one. ``open`` has no time limit of its own, so it is only called on threads that may be given up.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

import libvirt

from kvmd.errors import BackendUnavailable, KvmdError, Refused, Retry, Unsupported
from kvmd.settings import Libvirt

_START = "start it: systemctl start libvirtd (or libvirtd -d); then: kvmd check"

# How a domain's XML is asked for: with its passwords, of the running self or of the definition.
SECURE = libvirt.VIR_DOMAIN_XML_SECURE
DEFINITION = libvirt.VIR_DOMAIN_XML_INACTIVE | SECURE
# https://libvirt.org/html/libvirt-virterror.html#virErrorNumber
ABSENT = frozenset(
    {
        libvirt.VIR_ERR_NO_DOMAIN,
        libvirt.VIR_ERR_NO_NETWORK,
        libvirt.VIR_ERR_NO_STORAGE_POOL,
        libvirt.VIR_ERR_NO_STORAGE_VOL,
    }
)
_PERMANENT = frozenset(
    {
        libvirt.VIR_ERR_NO_SUPPORT,
        libvirt.VIR_ERR_XML_ERROR,
        libvirt.VIR_ERR_XML_DETAIL,
        libvirt.VIR_ERR_XML_INVALID_SCHEMA,
        libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
        libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
        libvirt.VIR_ERR_INVALID_ARG,
    }
)
# What tc says through libvirt where the kernel lacks a queue, a filter or an action that limits need.
_TRAFFIC = re.compile(r"Specified qdisc kind is unknown|TC classifier not found|Failed to load TC action module")
_LOAD_TRAFFIC = "modprobe -a sch_htb sch_sfq sch_ingress cls_u32 cls_fw act_police"
_LOST = ("client socket is closed", "keepalive timeout", "Cannot write data", "End of file", "connection closed")


class Recorder(Protocol):
    """Who counts the calls: ``kvmd_libvirt_calls_total``."""

    def libvirt_call(self, call: str, mode: Literal["read", "write"], result: str) -> None:
        """Count one call; *mode* is read or write, *result* ok or error."""


_loop_lock = threading.Lock()
_loop_started = False


def start_event_loop() -> None:
    """Register libvirt's default event loop and run it for ever, once a process, before any connection.

    A loop that is registered and does not run makes libvirtd drop the connection after 30 s.
    """
    global _loop_started
    with _loop_lock:
        if _loop_started:
            return
        libvirt.virEventRegisterDefaultImpl()
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        threading.Thread(target=_turn, name="libvirt-events", daemon=True).start()
        _loop_started = True


def _turn() -> None:
    # Without a timer the loop would sleep until the next event and miss a handle that is added meanwhile.
    libvirt.virEventAddTimeout(1000, lambda _timer, _opaque: None, None)
    while True:
        libvirt.virEventRunDefaultImpl()


def connect(settings: Libvirt) -> Any:
    """Open a connection with keepalive; raises BackendUnavailable."""
    start_event_loop()
    try:
        connection = libvirt.open(settings.uri)
    except libvirt.libvirtError as error:
        raise BackendUnavailable(f"libvirt does not answer at {settings.uri}: {error}", hint=_START) from None
    with contextlib.suppress(libvirt.libvirtError):  # the embedded driver has no socket to keep alive
        connection.setKeepAlive(settings.keepalive_interval, settings.keepalive_count)
    return connection


def is_lost(error: libvirt.libvirtError) -> bool:
    """True where the connection (not the object) is the trouble."""
    text = str(error)
    code, domain = error.get_error_code(), error.get_error_domain()
    if code == libvirt.VIR_ERR_INTERNAL_ERROR and domain in (libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE):
        return True
    if code in (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_ERR_RPC) and domain in (
        libvirt.VIR_FROM_RPC,
        libvirt.VIR_FROM_REMOTE,
    ):
        return True
    return code == libvirt.VIR_ERR_INVALID_CONN or any(part in text for part in _LOST)


def translate(error: libvirt.libvirtError, what: str) -> KvmdError:
    """The error of kvmd that says what the loop does next."""
    text = f"{what}: {error}"
    code = error.get_error_code()
    if is_lost(error):
        return BackendUnavailable(text, hint=_START)
    if _TRAFFIC.search(text):
        return Unsupported(text, hint="this kernel cannot limit a NIC; take bandwidth out, or: " + _LOAD_TRAFFIC)
    if code in _PERMANENT:
        return Unsupported(text, hint="change the spec; see: kvmd render")
    if code == libvirt.VIR_ERR_OPERATION_FAILED and "already exists" in text:
        return Refused(text, hint="to take it over annotate the spec with kvmd.dev/adopt")
    return Retry(text)


@contextlib.contextmanager
def counted(recorder: Recorder, call: str, mode: Literal["read", "write"]) -> Iterator[None]:
    """Count a call of libvirt and its outcome."""
    try:
        yield
    except libvirt.libvirtError:
        recorder.libvirt_call(call, mode, "error")
        raise
    recorder.libvirt_call(call, mode, "ok")


def register_events(connection: Any, wake: Callable[[str, str], None], closed: Callable[[], None]) -> None:
    """Register every event that makes a fact stale; *wake* gets ``domain`` or ``network`` and the UUID.

    Callbacks only pass on names: a call of libvirt inside one could wait for the loop that runs it.
    """

    def domain_event(_connection: Any, domain: Any, *_details: Any) -> None:
        wake("domain", domain.UUIDString())

    def network_event(_connection: Any, network: Any, *_details: Any) -> None:
        wake("network", network.UUIDString())

    def pool_event(_connection: Any, pool: Any, *_details: Any) -> None:
        wake("pool", pool.UUIDString())

    names: tuple[str, ...] = ("LIFECYCLE", "REBOOT", "BALLOON_CHANGE", "DEVICE_ADDED", "DEVICE_REMOVED")
    names += (
        "DEVICE_REMOVAL_FAILED",
        "TRAY_CHANGE",
        "DISK_CHANGE",
        "METADATA_CHANGE",
        "TUNABLE",
        "IO_ERROR",
        "AGENT_LIFECYCLE",
        "CONTROL_ERROR",
        "MEMORY_DEVICE_SIZE_CHANGE",
    )
    for name in names:
        event = getattr(libvirt, f"VIR_DOMAIN_EVENT_ID_{name}")
        with contextlib.suppress(libvirt.libvirtError):
            connection.domainEventRegisterAny(None, event, domain_event, None)
    with contextlib.suppress(libvirt.libvirtError):  # the embedded driver has no networks
        connection.networkEventRegisterAny(None, libvirt.VIR_NETWORK_EVENT_ID_LIFECYCLE, network_event, None)
        metadata = getattr(libvirt, "VIR_NETWORK_EVENT_ID_METADATA_CHANGE", None)
        if metadata is not None:
            connection.networkEventRegisterAny(None, metadata, network_event, None)
    with contextlib.suppress(libvirt.libvirtError):
        connection.storagePoolEventRegisterAny(None, libvirt.VIR_STORAGE_POOL_EVENT_ID_LIFECYCLE, pool_event, None)
    with contextlib.suppress(libvirt.libvirtError):
        connection.registerCloseCallback(lambda *_details: closed(), None)
