"""``kvmd run``: the loop, its signals, and what it tells systemd."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kvmd.daemon.agent import DaemonAgent
from kvmd.daemon.assembly import Assembly, assemble
from kvmd.daemon.lock import Lock
from kvmd.daemon.once import converge, print_rest
from kvmd.engine.executor import SlowCall
from kvmd.engine.memory import is_drift
from kvmd.engine.reconciler import Report, rules_of
from kvmd.errors import KvmdError, SettingsError
from kvmd.host import LIBVIRT
from kvmd.ops import DomainDestroy
from kvmd.server import Server
from kvmd.settings import Settings
from kvmd.sources.watch import Watch
from kvmd.telemetry import log
from kvmd.telemetry.notify import Notify

COALESCE_SECONDS = 0.005  # events come in bursts: one cycle for all of one
BUSY_LOOK_SECONDS = 0.5  # while operations run, look for slow ones this often
DRAIN_SECONDS = 30.0
RELOADABLE = frozenset({"admission", "prune", "defaults", "policy", "log"})


def run_daemon(settings: Settings, *, once: bool, reload: Callable[[], Settings] | None = None) -> int:
    """Run until SIGTERM, or with *once* until the host agrees; returns the exit code.

    *reload* reads the settings anew (SIGHUP); it raises SettingsError where they are wrong.
    """
    log.configure(settings.log)
    logger = log.get("daemon")
    lock = Lock(settings)

    def note(message: str, **fields: Any) -> None:
        (logger.warning if fields.pop("warning", False) else logger.info)(message, **fields)

    assembly = assemble(settings, log=note)
    try:
        for told in assembly.host.recover():
            logger.warning(told)
        if once:
            report = converge(assembly)
            return print_rest(report)
        Daemon(assembly, lock, logger, reload).run()
        return 0
    finally:
        assembly.executor.stop(DRAIN_SECONDS)
        assembly.close()
        lock.close()


class Daemon:
    """The loop: wake, cycle, tell."""

    def __init__(
        self, assembly: Assembly, lock: Lock, logger: Any, reload: Callable[[], Settings] | None = None
    ) -> None:
        self._assembly, self._lock, self._log, self._load = assembly, lock, logger, reload
        self._settings = assembly.settings
        self._agent = DaemonAgent(assembly)
        self._server = Server(self._agent, assembly.settings)
        self._notify = Notify()
        self._stopping = threading.Event()
        self._reload = threading.Event()
        self._problems: tuple[object, ...] = ()
        self._missing: frozenset[str] = frozenset()
        self._slow: dict[tuple[str, str], float] = {}

    def run(self) -> None:
        """Serve, watch and turn until told to stop. Guests are left running."""
        self._catch_signals()
        settings = self._assembly.settings
        watch = Watch(settings.source.path, self._assembly.wake.set, self._assembly.heard)
        watch.start()
        self._server.start()
        self._log.info(
            "started", specs=settings.source.path, libvirt=settings.libvirt.uri, listen=settings.http.listen
        )
        ready = False
        try:
            while not self._stopping.is_set():
                self._turn()
                if not ready:
                    ready = True
                    self._notify.ready("looking after the specs in " + settings.source.path)
        finally:
            self._notify.stopping("letting running operations end; guests go on")
            self._log.info("stopping; guests go on")
            self._server.stop()
            watch.stop()

    def _turn(self) -> None:
        self._assembly.wake.clear()
        if self._reload.is_set():
            self._reload.clear()
            self._notify.reloading()
            self._read_settings_again()
            self._assembly.host.forget_everything()
            self._assembly.heard.doubt()
            self._notify.ready("reloaded")
        self._stay_reachable()
        self._agent.serve_requests()
        report = self._assembly.reconciler.cycle()
        self._agent.publish(report)
        self._tell(report)
        self._notify.watchdog()
        self._sleep(report)

    def _stay_reachable(self) -> None:
        """The run directory may be deleted at any time; raises Refused where another kvmd took the lock meanwhile."""
        self._lock.renew()
        try:
            self._server.renew()
        except SettingsError as error:
            self._log.error(f"nobody can ask this kvmd: {error.message}", hint=error.hint)

    def _read_settings_again(self) -> None:
        """Take over what can change while running; say what needs a restart; keep the old ones if they are wrong."""
        if self._load is None:
            return
        try:
            fresh = self._load()
        except KvmdError as error:
            self._log.error(f"the settings are not taken over: {error.message}", hint=error.hint)
            return
        changed = {name for name in Settings.model_fields if getattr(fresh, name) != getattr(self._settings, name)}
        self._settings = fresh
        log.configure(fresh.log)
        # The owner stays what it was: marks of another would make strangers of everything at once.
        self._assembly.reconciler.set_rules(replace(rules_of(fresh), owner=self._assembly.settings.owner))
        later = sorted(changed - RELOADABLE)
        self._log.info("settings read again", changed=sorted(changed & RELOADABLE))
        if later:
            self._log.warning(f"these settings count from the next start on: {', '.join(later)}")

    def _sleep(self, report: Report) -> None:
        """Until the next event, the earliest time at which something changes by itself, or the rescan."""
        settings, ended = self._assembly.settings, time.monotonic()
        limit = settings.source.rescan
        if self._notify.active:
            limit = min(limit, 15.0)
        if report.wake_at is not None:
            limit = min(limit, max(0.0, report.wake_at - time.monotonic()))
        while limit > 0 and not self._assembly.wake.is_set() and not self._stopping.is_set():
            idle = self._assembly.executor.idle
            step = limit if idle else min(limit, BUSY_LOOK_SECONDS)
            begun = time.monotonic()
            self._assembly.wake.wait(step)
            limit -= time.monotonic() - begun
            self._tell_slow()
            self._notify.watchdog()
        # Not busier than the cycle is long, so that a burst of a thousand events is a few dozen cycles; who has
        # rested for long enough already does not keep a file waiting that has settled.
        rest = min(0.2, report.seconds) - (time.monotonic() - ended)
        time.sleep(max(COALESCE_SECONDS, rest))

    def _tell_slow(self) -> None:
        """Say once that a call is slow, and again each time its age has doubled; say where its deadline passed."""
        slow = {(str(call.ref), call.operation): call for call in self._assembly.executor.slow()}
        for key, call in slow.items():
            if call.seconds >= 2 * self._slow.get(key, 0.0):
                self._slow[key] = call.seconds
                self._log.warning(f"{call.operation}: no answer for {call.seconds:.0f} s", object=key[0])
            if call.overdue:
                self._tell_overdue(call)
        self._slow = {key: age for key, age in self._slow.items() if key in slow}

    def _tell_overdue(self, call: SlowCall) -> None:
        """The call cannot be taken back, and no second one may overtake it: the object waits, and says why."""
        message = (
            f"{call.operation}: no answer within {call.deadline:g} s; nothing else is done to it until libvirt "
            "answers; see: virsh list --all, kvmd check"
        )
        if self._assembly.reconciler.memory.note_overdue(call.ref, message):
            self._assembly.events.add(str(call.ref), "DeadlinePassed", message, warning=True)
            self._assembly.wake.set()

    def _tell(self, report: Report) -> None:
        metrics = self._assembly.metrics
        metrics.observe_cycle(report.seconds)
        metrics.observe_plan(report.plan)
        metrics.libvirt_up(LIBVIRT not in report.observed.missing)
        snapshot = report.snapshot
        sound = snapshot.complete and not snapshot.invalid_files and not snapshot.duplicates
        metrics.source(len(snapshot.invalid_files), snapshot.revision, time.time() if sound else None)
        for seconds in report.propagated:
            metrics.propagated(seconds)
        for outcome in report.outcomes:
            kind = outcome.step.ref.kind
            metrics.reconciled(kind, "ok" if outcome.error is None else type(outcome.error).__name__)
            for operation in outcome.done:
                metrics.operation(type(operation).__name__, "ok")
                if isinstance(operation, DomainDestroy):
                    metrics.forced_stop()
            if outcome.error is not None and len(outcome.done) < len(outcome.step.operations):
                metrics.operation(type(outcome.step.operations[len(outcome.done)]).__name__, "error")
            if is_drift(outcome):
                metrics.drift_corrected(kind)
        self._tell_problems(report)

    def _tell_problems(self, report: Report) -> None:
        if report.snapshot.problems != self._problems:
            self._problems = report.snapshot.problems
            for problem in report.snapshot.problems:
                self._assembly.events.add("Source", problem.rule, str(problem), warning=True)
                self._log.warning(str(problem), rule=problem.rule)
        if report.observed.missing != self._missing:
            self._missing = report.observed.missing
            if self._missing:
                self._log.warning("cannot be read: " + ", ".join(sorted(self._missing)), hint="kvmd check")
            else:
                self._log.info("the host is read completely again")

    def _catch_signals(self) -> None:
        def stop(_number: int, _frame: Any) -> None:
            self._stopping.set()
            self._assembly.wake.set()

        def reload(_number: int, _frame: Any) -> None:
            self._reload.set()
            self._assembly.wake.set()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGHUP, reload)
