"""Which guests may start now: what they depend on, whose turn it is, and whether the host has the memory.

A kind answers for one object alone; whether it may start follows from the plans of all of them, so it is judged here.
"""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

from kvmd.api import status
from kvmd.api.quantity import MEBIBYTE
from kvmd.api.resource import Ref
from kvmd.api.status import Condition
from kvmd.observed import HOST, Domain, Host, Key
from kvmd.ops import (
    DomainAttach,
    DomainRequestMemory,
    DomainSetOnReboot,
    DomainShutdown,
    DomainStart,
    LedgerWrite,
    Op,
)
from kvmd.plan.look import NOTHING_REMEMBERED, Look, World
from kvmd.plan.model import Boot, Bootable, ObjectMemory, ObjectPlan, Step
from kvmd.plan.order import blocked, in_order

PATIENCE_SECONDS = 60.0  # how long lower orders may hold a guest up
WIDTH = 16  # so many of the next lower order are named as what a start comes after
_MEMORY = re.compile(r"<memory(?: unit=['\"](\w+)['\"])?[^>]*>(\d+)</memory>")
# Of a virtio-mem device the guest has what is requested of it, not the whole: libvirt counts that as memory, too.
_PLUGGABLE = re.compile(
    r"<memory model=.virtio-mem.*?<size unit=.KiB.>(\d+)</size>.*?<requested unit=.KiB.>(\d+)</requested>", re.DOTALL
)
_UNITS = {"b": 1, "bytes": 1, "KiB": 2**10, "k": 2**10, "MiB": 2**20, "M": 2**20, "GiB": 2**30, "G": 2**30}


@dataclass(frozen=True, slots=True)
class Gate:
    """The plans and steps that are left, and whether something waits here that no object's own plan tells of."""

    objects: dict[Ref, ObjectPlan]
    steps: tuple[Step, ...]
    waits: bool = False
    held: tuple[Ref, ...] = ()  # whose turn has not come
    wake_at: float | None = None


def gate(objects: dict[Ref, ObjectPlan], acting: Collection[Ref], world: World, now: float) -> Gate:
    """Order the steps, and hold back every start whose time has not come; only those *acting* have steps."""
    planned = [(ref, objects[ref].step) for ref in acting]
    starting = [ref for ref, step in planned if _starts(step) or _restarts(step)]
    growing = [ref for ref, step in planned if _grows(step)]
    if not starting and not growing:
        return Gate(*in_order(objects, acting))
    judge = _Judge(objects, world, now)
    for ref in starting:
        judge.hold_for_dependencies(ref)
    judge.objects, _ = in_order(judge.objects, acting)
    judge.admit(starting, growing)
    judge.hold_for_turns(starting)
    objects, steps = in_order(judge.objects, acting)
    return Gate(objects, steps, judge.waits, tuple(judge.held), min(judge.wakes, default=None))


def _starts(step: Step | None) -> bool:
    return step is not None and any(isinstance(operation, DomainStart) for operation in step.operations)


def _restarts(step: Step | None) -> bool:
    return step is not None and any(map(_of_restart, step.operations))


def _grows(step: Step | None) -> bool:
    return step is not None and any(map(_of_growth, step.operations))


def _of_growth(operation: Op) -> bool:
    """What takes more memory of the host while the guest runs; a balloon moves within what it was started with."""
    return isinstance(operation, DomainRequestMemory) or (isinstance(operation, DomainAttach) and operation.memory)


def _of_start(operation: Op) -> bool:
    """A start, and what is noted of it: noted as begun and not begun, a guest that runs Once would never run."""
    return isinstance(operation, DomainStart) or (
        isinstance(operation, LedgerWrite) and operation.value in ("started", "")
    )


def _of_restart(operation: Op) -> bool:
    """What ends a guest so that it is started again, now or when it reboots."""
    return (
        (isinstance(operation, DomainShutdown) and operation.restart)
        or (isinstance(operation, DomainSetOnReboot) and operation.action == "destroy")
        or (isinstance(operation, LedgerWrite) and operation.entry == "restarting" and operation.value == "true")
    )


class _Judge:
    def __init__(self, objects: dict[Ref, ObjectPlan], world: World, now: float) -> None:
        self.objects, self._world, self._now = dict(objects), world, now
        self._look = Look(world, now)
        self.waits = False
        self.wakes: list[float] = []
        self.held: list[Ref] = []
        kinds = {kind: each for kind, each in world.controllers.items() if isinstance(each, Bootable)}
        self._boots: dict[Ref, Boot] = {
            ref: kinds[ref.kind].boot(item.resource.spec)
            for ref, item in objects.items()
            if ref.kind in kinds and item.resource is not None
        }

    # ------------------------------------------------------------------------------------- depends on

    def hold_for_dependencies(self, ref: Ref) -> None:
        """Wait for the conditions that its spec names; the way round a circle is told."""
        if not _starts(self.objects[ref].step):
            return
        circle = self._circle(ref)
        if circle:
            text = f"dependsOn goes in a circle: {' -> '.join(map(str, circle))}; take one of these lines out"
            self._withhold(ref, Condition(status.BLOCKED, True, "DependencyCycle", text))
            return
        for target, condition in self._unmet(ref):
            other = self.objects.get(target)
            if other is not None and other.step is not None:
                self._after(ref, target)
            elif other is None:
                self._withhold(ref, *blocked(target, "neither a spec nor the host has it")[1:])
            else:
                why = next((c.message or c.reason for c in other.conditions if c.status), "")
                text = f"waits until {target} is {condition}{f': {why}' if why else ''}; type: kvmd get {target}"
                self._withhold(ref, Condition(status.BLOCKED, True, "WaitsForCondition", text))

    def _unmet(self, ref: Ref) -> Iterator[tuple[Ref, str]]:
        for target, condition in self._boots[ref].awaits:
            other = self.objects.get(target)
            if other is not None and other.resource is not None:
                found = other.condition(condition)
                if found is None or not found.status:
                    yield target, condition
            elif condition != status.READY or not self._look.usable(target):
                yield target, condition

    def _circle(self, ref: Ref) -> tuple[Ref, ...]:
        """The way from an object back to itself along dependsOn; () where there is none."""
        ways: list[tuple[Ref, ...]] = [(ref,)]
        seen = {ref}
        while ways:
            way = ways.pop()
            for target, _ in self._boots[way[-1]].awaits if way[-1] in self._boots else ():
                if target == ref:
                    return (*way, ref)
                if target not in seen:
                    seen.add(target)
                    ways.append((*way, target))
        return ()

    # ------------------------------------------------------------------------------------- order

    def hold_for_turns(self, starting: list[Ref]) -> None:
        """Each waits for lower orders that are about to be up: not for broken ones, never longer than the bound."""
        coming = sorted((order, ref) for ref, b in self._boots.items() if (order := b.order) is not None)
        coming = [(order, ref) for order, ref in coming if self._is_coming(ref)]
        for ref in sorted(starting, key=self._order):
            order = self._boots[ref].order
            lower = coming[: bisect.bisect_left(coming, (order,))] if order is not None else []
            if lower and _starts(self.objects[ref].step):
                self._hold_for_turn(ref, lower)

    def _hold_for_turn(self, ref: Ref, lower: list[tuple[int, Ref]]) -> None:
        since = self._memory(ref).held_since
        until = (since if since is not None else self._now) + PATIENCE_SECONDS
        if self._now >= until:
            return
        self.wakes.append(until)
        self.held.append(ref)
        order = lower[-1][0]
        nearest = [other for each, other in lower[-WIDTH:] if each == order]
        more = f" and {len(lower) - 1} more" if len(lower) > 1 else ""
        text = f"waits for {nearest[0]} (startup order {order}){more}, at most {PATIENCE_SECONDS:g} s"
        turn = Condition(status.RECONCILING, True, "StartsInOrder", text)
        planned = [other for other in nearest if _starts(self.objects[other].step)]
        for other in planned:
            self._after(ref, other, turn)
        if not planned:
            self._withhold(ref, turn)

    def _order(self, ref: Ref) -> float:
        order = self._boots[ref].order
        return math.inf if order is None else order

    def _is_coming(self, ref: Ref) -> bool:
        """True while it is about to start, is being started, or was just started and asked for a pause."""
        memory = self._memory(ref)
        if memory.settling_until is not None and self._now < memory.settling_until:
            self.wakes.append(memory.settling_until)
            return True
        if memory.attempts or memory.fruitless or any(self._unmet(ref)):
            return False
        # Until its start has returned nobody knows since when its pause counts.
        starting = bool(memory.busy) and (not self._is_active(ref) or self._boots[ref].delay > 0)
        return _starts(self.objects[ref].step) or starting

    # ------------------------------------------------------------------------------------- memory

    def admit(self, starting: list[Ref], growing: list[Ref]) -> None:
        """Let start, and then grow, what fits the host's memory, in order; the others wait with the arithmetic."""
        host = self._world.facts.get(HOST)
        total = host.memory_bytes if isinstance(host, Host) else 0
        reserve = self._world.rules.memory_reserve
        if not total or reserve is None:
            return
        promised = {key: size for key, fact in self._world.facts.items() if (size := _promised(fact))}
        for ref, boot in self._boots.items():
            if self._memory(ref).busy and not self._is_active(ref):
                promised[self._key(ref)] = boot.memory
        starts = sorted(starting, key=lambda each: (self._order(each), each))
        for ref in (*starts, *sorted(set(growing) - set(starting))):
            item, key, need = self.objects[ref], self._key(ref), self._boots[ref].memory
            grows = ref not in starting
            if grows and need <= promised.get(key, 0):
                continue
            if not (grows or _starts(item.step) or (_restarts(item.step) and self._memory(ref).asked_at is None)):
                continue
            others = {name: size for name, size in promised.items() if name != key}
            left = total - reserve - sum(others.values())
            if need <= left:
                promised[key] = need
                continue
            cure = f"stop one, or lower memory.{'guest' if grows else 'maxGuest'}"
            text = (
                f"needs {_mebibytes(need)}, {_mebibytes(max(left, 0))} are left: {_mebibytes(total)} of the host "
                f"less {_mebibytes(reserve)} (admission.memoryReserve) less {_mebibytes(sum(others.values()))} for "
                f"{len(others)} guest{'s' * (len(others) != 1)}; {cure}"
            )
            withheld = _of_growth if grows else _of_restart if _restarts(item.step) else _of_start
            self._withhold(ref, Condition(status.BLOCKED, True, "NotEnoughMemory", text), withheld=withheld)

    # ------------------------------------------------------------------------------------- changing plans

    def _memory(self, ref: Ref) -> ObjectMemory:
        return self._world.memory.get(ref, NOTHING_REMEMBERED)

    def _key(self, ref: Ref) -> Key:
        return self._look.key(ref)

    def _is_active(self, ref: Ref) -> bool:
        fact = self._world.facts.get(self._key(ref))
        return isinstance(fact, Domain) and fact.active

    def _after(self, ref: Ref, other: Ref, *conditions: Condition) -> None:
        """Its start comes after the step of another object."""
        self.waits = True
        item = self.objects[ref]
        step = item.step
        assert step is not None
        known = step.needed_by or tuple(step.after for _ in step.operations)
        needed_by = tuple(
            tuple(dict.fromkeys((*needs, other))) if _of_start(operation) else needs
            for operation, needs in zip(step.operations, known, strict=True)
        )
        step = replace(step, after=tuple(dict.fromkeys((*step.after, other))), needed_by=needed_by)
        told = tuple(condition for condition in conditions if condition not in item.conditions)
        self.objects[ref] = replace(item, step=step, conditions=(*told, *item.conditions))

    def _withhold(self, ref: Ref, *conditions: Condition, withheld: Callable[[Op], bool] = _of_start) -> None:
        """Take the start (or what else is *withheld*) out of its step, and say why."""
        self.waits = True
        item = self.objects[ref]
        left = _without(item.step, withheld)
        others = tuple(c for c in item.conditions if c.type not in (status.READY, status.RECONCILING))
        first = conditions[0]
        ready = Condition(status.READY, False, first.reason, first.message)
        self.objects[ref] = replace(item, step=left, conditions=(ready, *conditions, *others))


def _without(step: Step | None, withheld: Callable[[Op], bool]) -> Step | None:
    if step is None:
        return None
    kept = [i for i, operation in enumerate(step.operations) if not withheld(operation)]
    if not kept:
        return None
    operations = tuple(step.operations[i] for i in kept)
    if not step.needed_by:
        return replace(step, operations=operations)
    needed_by = tuple(step.needed_by[i] for i in kept)
    after = tuple(ref for ref in step.after if any(ref in needs for needs in needed_by))
    return replace(step, operations=operations, needed_by=needed_by, after=after)


def _promised(fact: object) -> int:
    """What a running guest may take, whoever made it: all that it has, wherever its balloon is."""
    if not isinstance(fact, Domain) or fact.live is None:
        return 0
    found = _MEMORY.search(fact.live)
    whole = int(found[2]) * _UNITS.get(found[1] or "KiB", 2**10) if found else 0
    return whole - sum((int(size) - int(requested)) * 2**10 for size, requested in _PLUGGABLE.findall(fact.live))


def _mebibytes(size: int) -> str:
    return f"{size // MEBIBYTE} MiB"
