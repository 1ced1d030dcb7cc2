"""Statistics of guests for metrics: a connection of their own, never more than one call under way.

More than 30 statistics calls on one stuck guest were measured to block a healthy one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import libvirt

from kvmd.errors import KvmdError
from kvmd.host.libvirtd.connection import Recorder, connect, is_lost
from kvmd.settings import Libvirt

FRESH_SECONDS = 5.0
PATIENCE_SECONDS = 0.5  # whoever scrapes gets an answer within a second, whatever libvirt does
_NO_WAIT = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
_GROUPS = (
    libvirt.VIR_DOMAIN_STATS_STATE
    | libvirt.VIR_DOMAIN_STATS_CPU_TOTAL
    | libvirt.VIR_DOMAIN_STATS_BALLOON
    | libvirt.VIR_DOMAIN_STATS_VCPU
    | libvirt.VIR_DOMAIN_STATS_INTERFACE
    | libvirt.VIR_DOMAIN_STATS_BLOCK
)


class DomainStats:
    """Asked by a scrape, answered from what a background thread last read; nobody scrapes, nothing is read."""

    def __init__(self, settings: Libvirt, recorder: Recorder) -> None:
        self._settings, self._recorder = settings, recorder
        self._lock = threading.Condition()
        self._stats: tuple[tuple[str, Mapping[str, Any]], ...] = ()
        self._read_at = float("-inf")
        self._busy = False

    def look(self) -> tuple[tuple[str, Mapping[str, Any]], ...]:
        """Names and statistics, at most a few seconds old, older where a guest does not answer."""
        with self._lock:
            if time.monotonic() - self._read_at < FRESH_SECONDS:
                return self._stats
            if not self._busy:
                self._busy = True
                threading.Thread(target=self._read, name="libvirt-stats", daemon=True).start()
            self._lock.wait_for(lambda: not self._busy, PATIENCE_SECONDS)
            return self._stats

    def _read(self) -> None:
        """A fresh connection each time: it costs 1 ms, and no dead one is ever kept."""
        found: tuple[tuple[str, Mapping[str, Any]], ...] | None = None
        try:
            connection = connect(self._settings)
            try:
                records = connection.getAllDomainStats(_GROUPS, _NO_WAIT)
                found = tuple((domain.name(), values) for domain, values in records)
                self._recorder.libvirt_call("getAllDomainStats", "read", "ok")
            finally:
                connection.close()
        except KvmdError:
            self._recorder.libvirt_call("open", "read", "error")
        except libvirt.libvirtError as error:
            self._recorder.libvirt_call("getAllDomainStats", "read", "lost" if is_lost(error) else "error")
        with self._lock:
            if found is not None:
                self._stats, self._read_at = found, time.monotonic()
            self._busy = False
            self._lock.notify_all()
