"""Handing a confirmed plan to the running daemon, and following what it does."""

from __future__ import annotations

import os
import time
from typing import Any

from kvmd.cli.client import Client
from kvmd.cli.context import EXIT_FAILED, EXIT_REFUSED, EXIT_TIMEOUT, Failure, message
from kvmd.cli.progress import Progress, progress
from kvmd.render.tables import condition_of, is_true, state_of
from kvmd.settings import Settings

_POLL_SECONDS = 0.25
_READ_SECONDS = 10.0
_STUCK = frozenset({"Stalled", "Conflict", "SpecInvalid", "CopiedMark", "Blocked"})
_LEFT_ALONE = frozenset({"Suspended", "Drifted"})  # why an object is not Ready that somebody wants left as it is


def hand_over(client: Client, settings: Settings, digest: str, prune: bool, timeout: float) -> int:
    """Give the daemon the digest of the tree and the confirmation, then follow until all is ready."""
    source = client.get("/api/v1/source")
    if os.path.realpath(source["path"]) != os.path.realpath(settings.source.path):
        raise Failure(
            EXIT_REFUSED,
            f"the running kvmd keeps this host to {source['path']}, not to {settings.source.path}",
            hint="put the files there, or stop it first: sudo systemctl stop kvmd",
        )
    _wait_until_read(client, digest, _READ_SECONDS + settings.source.settle)
    deadline = time.monotonic() + timeout
    options = {"digest": digest, "specs": source["path"], "confirm": True, "prune": prune}
    before = max((event["sequence"] for event in client.events()), default=0)
    sequence = int(client.act("apply", "", options).get("data", {}).get("sequence", before))
    with progress("kvmd applies …") as shown:
        return _follow(client, sequence, deadline, shown)


def _wait_until_read(client: Client, digest: str, seconds: float) -> None:
    """Wait until the daemon has read the tree that was planned: a file just saved must settle first."""
    deadline = time.monotonic() + seconds
    while client.get("/api/v1/source").get("digest") != digest:
        if time.monotonic() > deadline:
            raise Failure(
                EXIT_REFUSED,
                "the running kvmd sees other specs than were planned just now",
                hint="somebody is changing the files: look, then kvmd apply again",
            )
        time.sleep(_POLL_SECONDS)


def _follow(client: Client, sequence: int, deadline: float, shown: Progress) -> int:
    while True:
        for event in client.events(sequence):
            sequence = event["sequence"]
            shown.event(event)
        done = not client.get("/api/v1/plan")["steps"]
        objects = client.objects()
        unready = [item for item in objects if not is_true(item, "Ready") and not is_true(item, "PruneHeld")]
        if done and not unready:
            held = sum(is_true(item, "PruneHeld") for item in objects)
            message(f"Done, but for {held} held removals." if held else "Done. The host agrees with the specs.")
            return 0
        if done and all(map(_is_stuck, unready)):
            _name(unready)
            return EXIT_FAILED
        if time.monotonic() > deadline:
            _name(unready)
            raise Failure(EXIT_TIMEOUT, "not everything is ready yet", hint="kvmd get, kvmd events -w")
        time.sleep(_POLL_SECONDS)


def _is_stuck(item: dict[str, Any]) -> bool:
    """True where time alone brings it no further."""
    ready = condition_of(item, "Ready") or {}
    return state_of(item) in _STUCK or ready.get("reason") in _LEFT_ALONE


def _name(objects: list[dict[str, Any]]) -> None:
    for item in objects:
        state = state_of(item)
        condition = condition_of(item, "Ready" if state == "NotReady" else state) or {}
        why = condition.get("message") or condition.get("reason") or ""
        message(f"{item['kind']}/{item['metadata']['name']} is not ready ({state}{': ' + why if why else ''})")
