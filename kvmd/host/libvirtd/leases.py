"""The leases of libvirt's networks, from the files that its lease helper keeps: no call, and no wait for anybody.

https://libvirt.org/nss.html reads the same files. A renewal changes only a time in them, so it is no news here.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from typing import Any

from kvmd.identity import kept
from kvmd.observed import Key, Lease, Leases

FOLDER = "/var/lib/libvirt/dnsmasq"
_SUFFIX = ".status"


class LeaseFiles:
    """What was read of each file, and until when it counts."""

    def __init__(self, folder: str = FOLDER) -> None:
        self._folder = folder
        self._known: dict[str, tuple[tuple[int, int, int], float, Leases]] = {}
        self._facts: Mapping[Key, Leases] = {}

    def look(self) -> Mapping[Key, Leases]:
        """The leases by bridge; the same object as before where nobody got or lost an address."""
        known, self._known = self._known, {}
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.endswith(_SUFFIX):
                    self._look_at(entry, known)
        facts = {Key("leases", bridge): fact for bridge, (_, _, fact) in self._known.items()}
        if facts.keys() != self._facts.keys() or any(facts[key] is not self._facts[key] for key in facts):
            self._facts = facts
        return self._facts

    def _look_at(
        self, entry: os.DirEntry[str], known: Mapping[str, tuple[tuple[int, int, int], float, Leases]]
    ) -> None:
        bridge = entry.name.removesuffix(_SUFFIX)
        before = known.get(bridge)
        try:
            status = entry.stat()
            stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
            if before is not None and before[0] == stamp and time.time() < before[1]:
                self._known[bridge] = before
                return
            with open(entry.path, encoding="utf-8", errors="replace") as file:
                text = file.read()
        except OSError:
            return
        fact, expires = parsed(bridge, text, time.time())
        self._known[bridge] = stamp, expires, kept(before[2] if before is not None else None, fact)


def parsed(bridge: str, text: str, now: float) -> tuple[Leases, float]:
    """The leases that have not run out, and when the next one does."""
    try:
        items: Any = json.loads(text) if text.strip() else []
    except (ValueError, RecursionError):  # it is being written
        items = []
    found: set[Lease] = set()
    ends = [float("inf")]
    for item in items if isinstance(items, list) else ():
        expiry = _expiry(item)
        if expiry is None or (expiry and expiry <= now):
            continue
        ends += [expiry] if expiry else []
        address, mac, name = (str(item.get(key, "")) for key in ("ip-address", "mac-address", "hostname"))
        found.add(Lease(address, mac.lower(), name))
    return Leases(bridge, tuple(sorted(found))), min(ends)


def _expiry(item: Any) -> float | None:
    """When a lease runs out, 0 for never; None where that is no lease."""
    try:
        return float(item.get("expiry-time", 0))
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None
