"""The definition of a guest: what is to be written into it, and when."""

from __future__ import annotations

from dataclasses import dataclass

from kvmd import ops
from kvmd.api.mark import Mark
from kvmd.kinds.virtual_machine import document, graphics, install
from kvmd.kinds.virtual_machine.guest import Guest
from kvmd.kinds.virtual_machine.ownership import owned_changes
from kvmd.plan import leaving
from kvmd.plan.difference import Change, differences
from kvmd.plan.look import Look


@dataclass(frozen=True, slots=True)
class Definition:
    """The operations on it, and the changes that they make; a definition that is new has no changes."""

    operations: tuple[ops.Op, ...] = ()
    changes: tuple[Change, ...] = ()


def definition(guest: Guest, look: Look) -> Definition:
    """Write it where it differs, and keep libvirt's own autostart off."""
    domain = guest.domain
    if domain is None or guest.config is None or domain.config is None:
        return _new(guest, look)
    state = guest.want.state
    also = install.owns(guest.spec, guest.installing) | graphics.owns(domain.config)
    changes = owned_changes(differences(guest.config, state), guest.resource, guest.applied, also)
    own = domain.mark if domain.mark is not None and domain.mark.ref == guest.ref else None
    before = own or _recorded(guest, look)
    mark = _mark(guest, before, look)
    is_marked = domain.mark is not None and domain.mark.says_the_same_as(mark) and before is not None
    operations: list[ops.Op] = []
    if changes or not is_marked or not domain.persistent:
        xml = document.overlay(domain.config, state, changes, guest.known, mark, domain.live)
        operations.append(ops.DomainDefine(domain.name, domain.uuid, xml, domain.config, secrets=state.secrets))
    if domain.autostart:
        operations.append(ops.DomainSetAutostart(domain.name, domain.uuid, False))
    return Definition(tuple(operations), changes)


def _new(guest: Guest, look: Look) -> Definition:
    name, state = look.key(guest.ref).name, guest.want.state
    mark = _mark(guest, _recorded(guest, look), look)
    xml = document.create(name, guest.uuid, look.host().architecture, state, mark)
    return Definition((ops.DomainDefine(name, guest.uuid, xml, creates=True, secrets=state.secrets),))


def _recorded(guest: Guest, look: Look) -> Mark | None:
    """What the store says was applied last, where the domain itself does not: generations go on from there."""
    applied = guest.applied
    if applied is None or not applied.generation:
        return None
    return Mark(look.rules.owner, guest.ref, applied.spec_hash, applied.generation)


def _mark(guest: Guest, before: Mark | None, look: Look) -> Mark:
    run = guest.domain.run if guest.domain is not None else ""
    left = leaving.note(run, before, guest.resource, guest.applied)
    resolved = {**guest.want.resolved, **left}
    return Mark.of(guest.resource, look.rules.owner, guest.uuid, before).with_resolved(resolved)
