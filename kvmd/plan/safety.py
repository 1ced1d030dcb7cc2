"""Absence is not deletion: every rule that an object's removal must pass, and the brake on many at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from kvmd.api.resource import ANNOTATION_PRUNE, Ref, hash_of
from kvmd.observed import Observed
from kvmd.plan.look import NOTHING_REMEMBERED, World
from kvmd.plan.model import Desired, Hold, Memory, Rules

# What the brake counts: losing one of these is losing work. Links and networks that served them follow.
WEIGHTY = frozenset({"VirtualMachine", "Volume"})
CONFIRM_BY_DEFAULT = frozenset({"Volume", "VirtualMachineSnapshot"})
HOUR_SECONDS = 3600.0

GRACE = "Grace"
STARTING = "FirstLookNotComplete"
PASSING = frozenset({GRACE, STARTING})


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which removals wait, and why; *digest* names the list that a person may approve."""

    holds: Mapping[Ref, Hold]
    digest: str = ""
    wake_at: float | None = None


def judge(desired: Desired, observed: Observed, memory: Memory, rules: Rules, now: float, world: World) -> Verdict:
    """Hold every removal that any rule speaks against."""
    departing = sorted(world.departing)
    if not departing:
        return Verdict({})
    digest = hash_of([str(ref) for ref in departing])[:16]
    general = _general_reason(desired, observed, memory, rules)
    if general is not None:
        reason, message = general
        return Verdict({ref: Hold(ref, reason, message) for ref in departing}, digest)
    holds: dict[Ref, Hold] = {}
    wakes: list[float] = []
    for ref in departing:
        hold, wake = _own_reason(ref, memory, rules, now, world, digest)
        if hold is not None:
            holds[ref] = hold
        if wake is not None:
            wakes.append(wake)
    brake = _brake(departing, memory, rules, now, world)
    if brake:
        approve = f"kvmd approve prune --digest {digest}"
        for ref in departing:
            if ref not in memory.prune_approved and (ref not in holds or holds[ref].reason == GRACE):
                holds[ref] = Hold(ref, "Brake", f"{brake}; if that is meant type: {approve}", approve)
    _hold_what_is_used(holds, departing, world)
    return Verdict(holds, digest, min(wakes, default=None))


def _hold_what_is_used(holds: dict[Ref, Hold], departing: list[Ref], world: World) -> None:
    """What a held object uses is held with it: its removal would wait for ever."""
    todo = list(holds)
    users = {ref: {user.source for user in world.users.get(ref, ())} for ref in departing}
    while todo:
        user = todo.pop()
        for ref in departing:
            if ref not in holds and user in users[ref]:
                reason = holds[user].reason if holds[user].reason in PASSING else "StillUsed"
                message = f"still used by {user}, which is held itself: {holds[user].message}"
                holds[ref] = Hold(ref, reason, message)
                todo.append(ref)


def _general_reason(desired: Desired, observed: Observed, memory: Memory, rules: Rules) -> tuple[str, str] | None:
    """A reason that speaks against removing anything at all now."""
    if not rules.prune:
        return "PruneDisabled", "nothing is removed in this run (--no-prune)"
    if not desired.complete:
        return "SourceIncomplete", (
            f"the specs could not be read completely ({desired.reason}), so nothing is removed; "
            "type: kvmd validate on the directory, or look whether it is mounted"
        )
    if desired.empty:
        return "SourceEmpty", (
            "the directory holds no spec at all; an empty directory never removes anything; put the specs back, "
            "or leave one valid spec in it to confirm that the rest shall go"
        )
    if desired.invalid_files:
        names = ", ".join(desired.invalid_files[:3])
        return "InvalidFiles", (
            f"{names} cannot be used and may be where the object went, so nothing is removed; "
            f"type: kvmd validate {desired.invalid_files[0]}"
        )
    if desired.duplicates:
        ref, files = next(iter(sorted(desired.duplicates.items())))
        return "ClaimedByTwoFiles", (
            f"{ref} stands in {' and '.join(files)}; nothing is removed until one of them goes"
        )
    if not observed.complete:
        return "HostIncomplete", (
            f"the host could not be read completely ({', '.join(sorted(observed.missing))}), so nothing is removed"
        )
    if memory.complete_since is None and memory.confirmed == frozenset():
        return STARTING, "waits for the first complete look at specs and host after the start"
    return None


def _own_reason(
    ref: Ref, memory: Memory, rules: Rules, now: float, world: World, digest: str
) -> tuple[Hold | None, float | None]:
    """A reason that speaks against removing this object, and when to look again."""
    applied = world.applied.get(ref)
    approved = ref in memory.prune_approved
    approve = f"kvmd approve prune --digest {digest}"
    if applied is None or not applied.known:
        if approved:
            return None, None
        message = f"nothing is known of the spec that made {ref}, so it stays; to remove it type: {approve}"
        return Hold(ref, "LastAppliedUnknown", message, approve), None
    default = "confirm" if ref.kind in CONFIRM_BY_DEFAULT else "enabled"
    policy = applied.annotations.get(ANNOTATION_PRUNE, default)
    if policy == "disabled":
        message = f"its spec said {ANNOTATION_PRUNE}: disabled; it stays until a spec of that name says otherwise"
        return Hold(ref, "PruneDisabled", message), None
    if policy != "enabled" and not approved:
        message = f"its spec said {ANNOTATION_PRUNE}: {policy}; to remove it type: {approve}"
        return Hold(ref, "ConfirmationRequired", message, approve), None
    living = sorted({str(user.source) for user in world.users.get(ref, ()) if user.source in world.specs})
    if living:
        message = f"still used by {', '.join(living)}; change or remove that first: kvmd describe {living[0]}"
        return Hold(ref, "StillUsed", message), None
    since = (world.memory.get(ref) or NOTHING_REMEMBERED).missing_since
    if memory.confirmed is None or ref in memory.confirmed or approved:
        return None, None
    if since is None:
        return Hold(ref, GRACE, "its spec went away; waits for the grace"), None
    if now < since + rules.prune_grace:
        left = math.ceil(since + rules.prune_grace - now)
        return Hold(ref, GRACE, f"its spec went away; removed in {left} s"), since + rules.prune_grace
    return None, None


def _brake(departing: list[Ref], memory: Memory, rules: Rules, now: float, world: World) -> str:
    """Say so where too much of what matters would be gone within one hour; "" where it would not."""
    recent = {ref for when, ref in memory.pruned if ref.kind in WEIGHTY and now - when < HOUR_SECONDS}
    leaving = {ref for ref in departing if ref.kind in WEIGHTY}
    owned = {ref for ref in world.keys if ref.kind in WEIGHTY} | recent
    limit = max(rules.prune_minimum, rules.prune_percent * len(owned) / 100)
    count = len(leaving | recent)
    if count <= limit or not leaving:
        return ""
    return (
        f"{count} of {len(owned)} virtual machines and volumes would be gone within an hour; the brake lets "
        f"{math.floor(limit)} go by themselves"
    )
