"""Power: what the run strategy asks for, and the next act towards it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvmd import ops
from kvmd.api.resource import ANNOTATION_RESTARTED_AT, Ref, Resource
from kvmd.api.status import DEGRADED, STALLED, Condition
from kvmd.kinds.virtual_machine import install
from kvmd.kinds.virtual_machine.shutdown import Shutdown
from kvmd.kinds.virtual_machine.spec import Spec
from kvmd.observed import Domain, Key, Ledger
from kvmd.plan.look import Look

RESEND_SECONDS = 5.0  # a power button pressed in early boot is lost
CRASHES = frozenset({"crashed", "failed", "panicked"})
ENDED = CRASHES | frozenset({"shutdown", "destroyed", "saved", "from snapshot", "daemon"})
AT_WORK = frozenset({"saving", "snapshot", "migration", "dump"})  # libvirt lets it on by itself
RUN, OFF, LEAVE = "run", "off", "leave"


@dataclass(frozen=True, slots=True)
class Power:
    """Operations, and how far the power state is from what is asked."""

    operations: tuple[ops.Op, ...] = ()
    conditions: tuple[Condition, ...] = ()
    settled: bool = True
    reason: str = ""
    wake_at: float | None = None
    stops: bool = False


def decide(resource: Resource, domain: Domain | None, restart: bool, uuid: str, look: Look) -> Power:
    """The next act: start, ask to shut down, ask again, pull the plug, or nothing."""
    ref, name = resource.ref, look.key(resource.ref).name
    spec = resource.spec
    assert isinstance(spec, Spec)
    ledger = ledger_of(ref, look)
    active = domain is not None and domain.active
    notes = _notes(ref, spec, domain, ledger)
    if active and ledger.restarting and not restart:
        notes = (*notes, ops.LedgerWrite(str(ref), "restarting", ""))  # nobody wants it any more
    at = install.stage(spec, domain, ledger)
    if over := install.ended(ref, spec, at, domain):
        return Power((*notes, *over), (), False, "its installer has ended")
    wish, why = _wish(ref, spec, domain, ledger, look)
    if active and (restart or wish == OFF):
        power = stop(ref, spec, domain, look, "a restart was asked for" if restart else why, restart)
        if restart and power.operations and not ledger.restarting:
            notes = (*notes, ops.LedgerWrite(str(ref), "restarting", "true"))  # a new process must start it again
        notes = (*notes, *install.before_stop(ref, at))
        return Power((*notes, *power.operations), power.conditions, False, power.reason, power.wake_at, True)
    if active:
        assert domain is not None
        running, installs = _running(name, domain, wish, notes), install.running(at)
        return replace(running, conditions=(*running.conditions, *installs), settled=running.settled and not installs)
    if wish == RUN or (wish == LEAVE and (ledger.restarting or look.memory(ref).restart)):
        question = install.asks(ref, at, domain, look.memory(ref).power == "start")
        if question is not None:
            return Power(notes, (question,), False)
        started = (*_before_start(ref, spec, ledger), *install.before_start(ref, at))
        return Power((*notes, *started, ops.DomainStart(name, uuid, spec.startup.delay_seconds)), (), False, why)
    if wish == "ask":
        text = f"it was started once and its end was not seen; to run it again type: kvmd start {ref.name}"
        return Power(notes, (Condition(STALLED, True, "OnceNotDone", text),), False)
    return Power(notes)


def before_definition(resource: Resource, domain: Domain | None, look: Look) -> tuple[ops.Op, ...]:
    """Note that a guest that runs once has yet to: defined and without any note it may have run, and nobody knows."""
    spec, ref = resource.spec, resource.ref
    assert isinstance(spec, Spec)
    if domain is not None or spec.run_strategy != "Once" or ledger_of(ref, look).once:
        return ()
    return (ops.LedgerWrite(str(ref), "once", "waiting"),)


def stop(ref: Ref, spec: Spec | None, domain: Domain | None, look: Look, why: str, restart: bool = False) -> Power:
    """Ask by each method in its time, ask again while it does not answer, then (only if allowed) pull the plug."""
    assert domain is not None
    shutdown = spec.shutdown if spec is not None else Shutdown()
    timeout, memory = shutdown.seconds, look.memory(ref)
    asked = look.now if memory.asked_at is None else memory.asked_at
    methods, since, until = shutdown.way(look.now - asked)
    ask = ops.DomainShutdown(domain.name, domain.uuid, methods, restart)
    if domain.state == "crashed":
        return Power((ops.DomainDestroy(domain.name, domain.uuid, "the guest crashed"),), (), False, why)
    if memory.asked_at is None:
        return Power((ask,), (), False, why)
    if look.now >= asked + timeout:
        if shutdown.force_after_timeout:
            text = f"the guest did not power off within {timeout} s"
            return Power((ops.DomainDestroy(domain.name, domain.uuid, text),), (), False, text)
        text = (
            f"the guest did not power off within {timeout} s and forceAfterTimeout is false; power it off inside, or "
            f"type: virsh destroy {domain.name}"
        )
        return Power((), (Condition(DEGRADED, True, "GuestIgnoresShutdown", text),), False)
    last = memory.asked_last if memory.asked_last is not None else asked
    again = look.now >= last + RESEND_SECONDS or last < asked + since
    wake = min((look.now if again else last) + RESEND_SECONDS, asked + until)
    reason = "asked to power off, not yet off" + (f"; it is the turn of {methods[0]}" if since else "")
    return Power((ask,) if again else (), (), False, reason, wake)


def restart_asked(resource: Resource, domain: Domain, look: Look) -> bool:
    """True where the annotation restarted-at has a value that the running guest was not started with."""
    wish = resource.annotation(ANNOTATION_RESTARTED_AT)
    if wish is None or domain.boot_mark is None:
        return False
    return domain.boot_mark.annotations.get(ANNOTATION_RESTARTED_AT) != wish


def ledger_of(ref: Ref, look: Look) -> Ledger:
    """What must not be forgotten of it."""
    fact = look.fact(Key("ledger", str(ref)))
    return fact if isinstance(fact, Ledger) else Ledger(ref)


def _wish(ref: Ref, spec: Spec, domain: Domain | None, ledger: Ledger, look: Look) -> tuple[str, str]:
    """run, off, leave or ask; and why."""
    memory = look.memory(ref)
    strategy = spec.run_strategy
    if strategy == "Halted":
        return OFF, "runStrategy is Halted"
    if strategy == "Always":
        return RUN, _why_off(domain)
    if memory.power:
        return (RUN if memory.power == "start" else OFF), f"somebody asked for {memory.power}"
    if strategy == "Manual":
        return LEAVE, ""
    reason = _last_stop(domain, ledger)
    if strategy == "RerunOnFailure":
        ended = reason in ENDED and reason not in CRASHES
        return (LEAVE, "") if ended else (RUN, _why_off(domain))
    if ledger.once == "done":
        return LEAVE, ""
    if not ledger.once and domain is not None and not domain.active and _was_once(ref, look):
        return "ask", ""  # the ledger is lost, and it may have run
    if ledger.once == "started" and domain is not None and domain.reason == "failed" and not domain.active:
        return RUN, "its start failed"
    if ledger.once == "started":
        running_or_ended = domain is not None and (domain.active or domain.reason in ENDED)
        return (LEAVE, "") if running_or_ended else ("ask", "")
    return RUN, "to run once"


def _was_once(ref: Ref, look: Look) -> bool:
    applied = look.applied(ref)
    return applied is not None and applied.written.get("runStrategy") == "Once"


def _last_stop(domain: Domain | None, ledger: Ledger) -> str:
    if domain is not None and not domain.active and domain.reason in ENDED:
        return domain.reason
    return ledger.last_stop


def _why_off(domain: Domain | None) -> str:
    if domain is None or domain.active:
        return ""
    return f"it is off ({domain.reason})" if domain.reason not in ("", "unknown") else "it is off"


def _notes(ref: Ref, spec: Spec, domain: Domain | None, ledger: Ledger) -> tuple[ops.Op, ...]:
    """Record the end of a run where the strategy must know it later; libvirt forgets it with its own restart."""
    if spec.run_strategy not in ("Once", "RerunOnFailure") or domain is None or domain.active:
        return ()
    if domain.reason not in ENDED or ledger.last_stop == domain.reason:
        return ()
    notes: list[ops.Op] = [ops.LedgerWrite(str(ref), "last_stop", domain.reason)]
    if spec.run_strategy == "Once" and ledger.once == "started" and domain.reason != "failed":
        notes.append(ops.LedgerWrite(str(ref), "once", "done"))
    return tuple(notes)


def _before_start(ref: Ref, spec: Spec, ledger: Ledger) -> tuple[ops.Op, ...]:
    notes: list[ops.Op] = []
    if spec.run_strategy == "Once":
        notes.append(ops.LedgerWrite(str(ref), "once", "started"))
    if ledger.last_stop:
        notes.append(ops.LedgerWrite(str(ref), "last_stop", ""))
    if ledger.restarting:
        notes.append(ops.LedgerWrite(str(ref), "restarting", ""))
    return tuple(notes)


def _running(name: str, domain: Domain, wish: str, notes: tuple[ops.Op, ...]) -> Power:
    """It runs; a paused guest is let on, unless QEMU itself stopped it for an error."""
    if domain.state != "paused" or wish != RUN:
        return Power(notes)
    if domain.reason in AT_WORK:
        return Power(notes, (), False, f"libvirt holds the guest still ({domain.reason})")
    if domain.reason in ("I/O error", "ioerror"):
        text = "the guest is paused because a disk of it failed or is full; mend that and type: virsh resume " + name
        return Power(notes, (Condition(DEGRADED, True, "PausedByIoError", text),), False)
    return Power((*notes, ops.DomainResume(name, domain.uuid)), (), False, f"it is paused ({domain.reason})")
