"""Guests that are held by a call of libvirt which does not end: since libvirt 11.0 their XML waits for that call.

(Since then virDomainGetXMLDesc takes a job of the domain, for up to 30 s.) What libvirt does with a guest is told
without a wait. A guest that is held keeps the fact of before, and is looked at again a little later.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import libvirt

from kvmd.host.libvirtd.connection import ABSENT

SINCE = 11_000_000  # the libvirt that waits
HELD_SECONDS = 0.5  # that long a call may be under way and be waited for
GAP_SECONDS = 0.1  # in that time a long job (a snapshot, a save) lets others come between its calls, or it hangs
AGAIN_SECONDS = 1.0  # when a guest that was held is looked at again
FIRST_SECONDS = 75.0  # two waits of 30 s: what a guest may take of which nothing is known yet, and that is held
_EVERY_SECONDS = 0.02


class Reading(NamedTuple):
    """The domain whose XML is being read, since when, and how long that may take."""

    name: str
    since: float
    limit: float


def is_held(domain: Any) -> bool:
    """True where a call on the running guest has been under way for long and has not ended."""
    begun = time.monotonic()
    until = begun + HELD_SECONDS
    while time.monotonic() < until:
        try:
            state, _details, milliseconds = domain.controlInfo()
        except libvirt.libvirtError as error:
            if error.get_error_code() in ABSENT:
                raise
            return False  # it has ended meanwhile
        if state not in (libvirt.VIR_DOMAIN_CONTROL_OCCUPIED, libvirt.VIR_DOMAIN_CONTROL_JOB):
            return False
        if milliseconds >= HELD_SECONDS * 1000:
            if state == libvirt.VIR_DOMAIN_CONTROL_OCCUPIED:
                return True
            until = min(until, begun + GAP_SECONDS)
        time.sleep(_EVERY_SECONDS)
    return True
