"""Leaves that were taken out of the spec of something that runs, and may still stand in its running self.

The definition's mark no longer has them, and the mark of the start only what the spec said then. They are noted in
the mark for this one run, so that they leave the running self, too: at once, or once they can.
"""

from __future__ import annotations

from kvmd.api.mark import Mark
from kvmd.api.resource import Resource, leaf_paths
from kvmd.plan.model import Applied

KEY = "leaving"  # in what the mark has resolved: which run, then the paths


def to_leave(start: Mark | None, mark: Mark | None, run: str) -> frozenset[str]:
    """The leaves that its spec had when it was started, or since: one taken out has still to leave.

    *start* is the mark that the running self was started with, *mark* the one of the definition, *run* names the run.
    """
    written = leaf_paths(start.written) if start is not None else ()
    return frozenset((*written, *_noted(mark, run)))


def note(run: str, before: Mark | None, resource: Resource, applied: Applied | None) -> dict[str, str]:
    """What the next mark is to have resolved; as it is while nothing more was taken out. *run* is "" for none."""
    kept = {KEY: before.resolved[KEY]} if before is not None and KEY in before.resolved else {}
    if applied is None or not run:
        return kept
    noted = _noted(before, run)
    more = sorted(applied.owned - resource.owned - set(noted))
    return {KEY: " ".join([run, *noted, *more])} if more else kept


def _noted(mark: Mark | None, run: str) -> list[str]:
    of, *paths = mark.resolved.get(KEY, "").split() if mark is not None and KEY in mark.resolved else [""]
    return paths if run and of == run else []
