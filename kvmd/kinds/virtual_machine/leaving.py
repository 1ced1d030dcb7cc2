"""Leaves that were taken out of the spec of a running guest and may still stand in its running self.

The definition's mark no longer has them, and the mark of the boot only what the spec said then. They are noted in the
mark for this one run of the guest, so that what was set live goes live, too: at once, or once it can.
"""

from __future__ import annotations

import re

from kvmd.api.mark import Mark
from kvmd.api.resource import Resource, leaf_paths
from kvmd.observed import Domain
from kvmd.plan.model import Applied

KEY = "leaving"  # in what the mark has resolved: the run's number, then the paths
_RUN = re.compile(r"<domain\b[^>]*?\bid=['\"](\d+)['\"]")


def _run_of(domain: Domain) -> str:
    match = _RUN.search(domain.live or "")
    return match[1] if match else ""


def _noted(mark: Mark | None, run: str) -> list[str]:
    of, *paths = mark.resolved.get(KEY, "").split() if mark is not None and KEY in mark.resolved else [""]
    return paths if run and of == run else []


def to_leave(domain: Domain) -> frozenset[str]:
    """The leaves that its spec had when it was started, or since: one taken out has still to leave."""
    written = leaf_paths(domain.boot_mark.written) if domain.boot_mark is not None else ()
    return frozenset((*written, *_noted(domain.mark, _run_of(domain))))


def note(domain: Domain | None, before: Mark | None, resource: Resource, applied: Applied | None) -> dict[str, str]:
    """What the next mark is to have resolved; as it is while nothing more was taken out."""
    kept = {KEY: before.resolved[KEY]} if before is not None and KEY in before.resolved else {}
    if domain is None or applied is None or not (run := _run_of(domain)):
        return kept
    noted = _noted(before, run)
    more = sorted(applied.owned - resource.owned - set(noted))
    return {KEY: " ".join([run, *noted, *more])} if more else kept
