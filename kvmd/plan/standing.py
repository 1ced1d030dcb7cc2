"""Whose is it? Whether what the host has under an object's name may be touched, and what to say where it may not."""

from __future__ import annotations

from kvmd.api import status
from kvmd.api.mark import Mark, derived_uuid
from kvmd.api.resource import ANNOTATION_ADOPT, Ref, Resource
from kvmd.api.status import Condition
from kvmd.observed import Fact, Key, Ledger, Marked
from kvmd.plan.look import Look

OWNED = "owned"
FOREIGN = "foreign"
ABSENT = "absent"
COPIED = "copied"


def standing_of(ref: Ref, look: Look) -> tuple[str, Fact | None]:
    """Is the object of that name on the host ours, a stranger's, or not there?"""
    fact = look.fact(look.key(ref))
    if fact is None or not isinstance(fact, Marked):
        return ABSENT, fact
    mark = fact.mark
    uuid = getattr(fact, "uuid", "")
    if mark is None:
        derived = derived_uuid(look.host().machine_id, look.rules.owner, ref)
        return (OWNED if uuid == derived else FOREIGN), fact
    if mark.owner != look.rules.owner:
        return FOREIGN, fact
    if mark.object_id != uuid:
        return COPIED, fact
    return (OWNED if mark.ref == ref else FOREIGN), fact


def refusal(
    ref: Ref, resource: Resource, standing: str, fact: Fact | None, look: Look
) -> tuple[Condition, ...] | None:
    """The conditions of an object that may not be touched, or None."""
    ledger = look.fact(Key("ledger", str(ref)))
    if resource.suspended or (isinstance(ledger, Ledger) and ledger.suspended):
        message = f"left alone until resumed; type: kvmd resume {ref}"
        return (Condition(status.READY, False, "Suspended", message),)
    moved = _renamed(ref, resource, look)
    if moved:
        return (Condition(status.READY, False, "Immutable"), Condition(status.STALLED, True, "Immutable", moved))
    for claim in look.controller(ref).claims(ref, resource.spec):
        holder = next(iter(look.claimants(claim)), ref)
        if holder != ref:
            message = (
                f"{claim} belongs to {holder} (the present holder keeps it), {ref} wants it too; "
                f"change one of them: kvmd describe {holder}"
            )
            return _left_alone(status.CONFLICT, "ClaimedTwice", message)
    if standing == COPIED and not _adopts(resource, fact):
        message = (
            f"what the host has under that name carries a mark that was copied from another object; it is "
            f'left alone; to take it over, annotate {ref} with {ANNOTATION_ADOPT}: "uuid:{_uuid(fact)}"'
        )
        return _left_alone(status.COPIED_MARK, "MarkOfAnotherObject", message)
    if standing == FOREIGN and not _adopts(resource, fact):
        mark: Mark | None = getattr(fact, "mark", None)
        whose = f"belongs to {mark.ref} of owner '{mark.owner}'" if mark else "was not made by kvmd"
        message = (
            f"the host already has '{getattr(fact, 'name', '')}', which {whose}; it is left alone; to take it over "
            f'without restarting it, annotate {ref} with {ANNOTATION_ADOPT}: "true"; or choose another '
            "spec.nameOnHost"
        )
        return _left_alone(status.CONFLICT, "ExistsOnHost", message)
    return None


def _left_alone(condition: str, reason: str, message: str) -> tuple[Condition, ...]:
    return (Condition(status.READY, False, reason), Condition(condition, True, reason, message))


def _renamed(ref: Ref, resource: Resource, look: Look) -> str:
    """What to say where the spec asks for another name on the host than the object has."""
    applied = look.applied(ref)
    if applied is None or not applied.known or not applied.generation:
        return ""
    before = applied.written.get("nameOnHost") or ref.name
    after = getattr(resource.spec, "name_on_host", None) or ref.name
    there = look.controller(ref).host_key(ref, None)
    if before == after or look.fact(Key(there.type, str(before))) is None:
        return ""
    return (
        f"spec.nameOnHost cannot change from '{before}' to '{after}': nothing renames it without a disturbance; "
        f"write '{before}' back, or give the new one another metadata.name"
    )


def _uuid(fact: Fact | None) -> str:
    return str(getattr(fact, "uuid", ""))


def _adopts(resource: Resource, fact: Fact | None) -> bool:
    wish = resource.annotation(ANNOTATION_ADOPT)
    return wish == "true" or (wish is not None and wish == f"uuid:{_uuid(fact)}")
