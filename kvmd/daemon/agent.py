"""The running daemon as its front doors see it: answers from memory, and requests handed to the loop."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from typing import Any

from kvmd import ops
from kvmd.api.resource import ANNOTATION_SUSPEND, API_VERSION, Ref
from kvmd.api.secrecy import shown
from kvmd.daemon.assembly import Assembly
from kvmd.daemon.request import PATIENCE_SECONDS, Request
from kvmd.engine.facade import Answer, Event
from kvmd.engine.reconciler import Report
from kvmd.host.libvirtd.stats import DomainStats
from kvmd.kinds import CONTROLLERS
from kvmd.kinds.virtual_machine.spec import Spec as VirtualMachineSpec
from kvmd.observed import Domain
from kvmd.plan.model import ObjectPlan, Plan

STUCK_SECONDS = 60.0
# Reasons of Stalled that a person may end.
APPROVABLE = frozenset({"VolumeLost", "SnapshotLost", "RestoreNotDone", "RolledBack"})


class DaemonAgent:
    """Implements ``kvmd.engine.facade.Agent`` over the last report of the loop."""

    def __init__(self, assembly: Assembly) -> None:
        self._assembly = assembly
        self._report: Report | None = None
        self._turned_at = time.monotonic()
        self._failure = ""
        self._requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._stats = DomainStats(assembly.settings.libvirt, assembly.metrics)

    # ------------------------------------------------------------------------------- called by the loop

    def publish(self, report: Report) -> None:
        """A cycle has ended."""
        self._report = report
        self._turned_at = time.monotonic()
        self._failure = ""

    def note_failure(self, message: str) -> None:
        """A cycle broke off; what was published before still counts."""
        self._failure = message

    def serve_requests(self) -> None:
        """Carry out what people asked for, on the loop's own thread: memory has one writer."""
        while True:
            try:
                request = self._requests.get_nowait()
            except queue.Empty:
                return
            request.serve()

    # ------------------------------------------------------------------------------------------ reading

    def objects(self) -> list[dict[str, Any]]:
        """Every object with its status."""
        report = self._report
        return [] if report is None else [as_data(item) for item in report.plan.objects.values()]

    def events(self, after: int = 0) -> list[Event]:
        """Events above a sequence number."""
        return self._assembly.events.after(after)

    def plan(self) -> Plan:
        """The plan of the last cycle."""
        return self._report.plan if self._report is not None else Plan({})

    def source(self) -> dict[str, Any]:
        """The state of the directory of specs."""
        settings, report = self._assembly.settings, self._report
        if report is None:
            return {"path": settings.source.path, "complete": False, "reason": "not read yet", "problems": []}
        return report.source_data(settings.source.path)

    def healthy(self) -> tuple[bool, dict[str, Any]]:
        """True while the loop turns."""
        age = time.monotonic() - self._turned_at
        failure = {"lastCycleFailed": self._failure} if self._failure else {}
        return age < STUCK_SECONDS, {"secondsSinceLastCycle": round(age, 3), **failure}

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """True once specs and host were read completely, and while libvirt answers."""
        report = self._report
        if report is None:
            return False, {"reason": "no cycle has ended yet"}
        missing = sorted(report.observed.missing)
        if missing:
            return False, {"reason": f"cannot be read: {', '.join(missing)}", "hint": "kvmd check"}
        return True, {"objects": len(report.plan.objects)}

    def metrics(self) -> bytes:
        """The exposition."""
        self._assembly.metrics.domains(self._stats.look())
        return self._assembly.metrics.exposition()

    # ------------------------------------------------------------------------------------------- acting

    def act(self, verb: str, reference: str, options: dict[str, Any]) -> Answer:
        """Hand a request to the loop and wait for its answer."""
        acts: dict[str, Callable[[str, dict[str, Any]], Answer]] = {
            "approve": self._approve,
            "suspend": self._suspend,
            "resume": self._suspend,
            "reconcile": self._reconcile,
            "start": self._power,
            "stop": self._power,
            "restart": self._restart,
            "apply": self._apply,
        }
        chosen = acts.get(verb)
        if chosen is None:
            return Answer(64, f"'{verb}' is not an act", f"one of: {', '.join(acts)}")
        request = Request(lambda: chosen(reference, options | {"verb": verb}))
        self._assembly.heard.doubt()  # who has just saved a file and asks means that very file
        self._requests.put(request)
        self._assembly.wake.set()
        return request.answer(PATIENCE_SECONDS)

    def _item(self, reference: str) -> ObjectPlan | Answer:
        item = self.plan().objects.get(Ref.parse(reference))
        return item or Answer(3, f"{reference} is not among the specs", "see: kvmd get all")

    def _approve(self, reference: str, options: dict[str, Any]) -> Answer:
        memory = self._assembly.reconciler.memory
        if reference == "prune":
            digest = self.plan().prune_digest
            if not digest:
                return Answer(0, "no removal waits for approval")
            given = options.get("digest")
            if given and given != digest:
                return Answer(
                    6,
                    f"the list of removals has changed since {given} was shown; now it is {digest}",
                    "look again: kvmd plan",
                )
            memory.prune_approved = self._departing()
            return Answer(0, f"approved: the removals of list {digest}")
        item = self._item(reference)
        if isinstance(item, Answer):
            return item
        lost = item.condition("Stalled")
        if item.resource is None or not (item.pending or (lost is not None and lost.reason in APPROVABLE)):
            return Answer(0, f"{reference} has no pending change; nothing to approve")
        if item.ref.kind in ("Tap", "Tun"):
            return Answer(
                6, f"{reference} changes by itself once no process holds it", "kvmd topology shows who does"
            )
        policy = getattr(getattr(item.resource.spec, "update_policy", None), "restart", "Manual")
        if policy == "Never":
            return Answer(
                6,
                f"{reference} has updatePolicy.restart Never: its changes wait for its next start",
                f"kvmd restart {reference}",
            )
        memory.change(item.ref, approved_hash=item.resource.spec_hash)
        return Answer(0, f"approved: {len(item.pending)} pending change(s) of {reference}")

    def _suspend(self, reference: str, options: dict[str, Any]) -> Answer:
        item = self._item(reference)
        if isinstance(item, Answer):
            return item
        if options["verb"] == "resume" and item.resource is not None and item.resource.suspended:
            return Answer(
                6, f"the spec of {reference} suspends it", f"take the annotation {ANNOTATION_SUSPEND} out of its file"
            )
        value = "true" if options["verb"] == "suspend" else ""
        self._assembly.host.ledger.write(ops.LedgerWrite(reference, "suspended", value))
        return Answer(0, f"{reference} {'is left alone from now on' if value else 'is looked after again'}")

    def _reconcile(self, reference: str, options: dict[str, Any]) -> Answer:
        item = self._item(reference) if reference else None
        if isinstance(item, Answer):
            return item
        for ref in [item.ref] if item is not None else list(self.plan().objects):
            self._assembly.reconciler.memory.retry_now(ref)
        self._assembly.host.forget_everything()
        return Answer(0, f"looking again at {reference or 'everything'}")

    def _power(self, reference: str, options: dict[str, Any]) -> Answer:
        item, verb = self._item(reference), str(options["verb"])
        if isinstance(item, Answer):
            return item
        if item.resource is None or not isinstance(item.resource.spec, VirtualMachineSpec):
            return Answer(64, f"{reference} is not a virtual machine with a spec", "kvmd get vm")
        strategy = item.resource.spec.run_strategy
        if (strategy, verb) == ("Always", "stop"):
            return Answer(
                6,
                f"{reference} has runStrategy Always and would be started again",
                "write runStrategy: Halted in its spec",
            )
        if (strategy, verb) == ("Halted", "start"):
            return Answer(
                6, f"{reference} has runStrategy Halted", "write runStrategy: Always (or Manual) in its spec"
            )
        running = self._running(item.ref)
        if running == (verb == "start"):
            return Answer(0, f"{reference} is {'running' if running else 'off'} already")
        if strategy == "Once" and verb == "start":
            self._assembly.host.ledger.write(ops.LedgerWrite(reference, "once", "again"))
        self._assembly.reconciler.memory.change(item.ref, power=verb)
        return Answer(0, f"{reference}: {verb} asked for; follow it: kvmd events {reference} -w")

    def _restart(self, reference: str, options: dict[str, Any]) -> Answer:
        item = self._item(reference)
        if isinstance(item, Answer):
            return item
        if not self._running(item.ref):
            return Answer(6, f"{reference} is not running", f"kvmd start {reference}")
        self._assembly.reconciler.memory.change(item.ref, restart=True)
        return Answer(0, f"{reference}: restart asked for; follow it: kvmd events {reference} -w")

    def _departing(self) -> frozenset[Ref]:
        """What the last plan would remove, held or not."""
        return frozenset(ref for ref, item in self.plan().objects.items() if item.resource is None)

    def _running(self, ref: Ref) -> bool:
        report = self._report
        if report is None:
            return False
        facts = (report.observed.facts.get(key) for key in report.observed.marks.get(ref, ()))
        return any(isinstance(fact, Domain) and fact.active for fact in facts)

    def _apply(self, reference: str, options: dict[str, Any]) -> Answer:
        report, settings = self._report, self._assembly.settings
        specs = options.get("specs")
        if specs and str(specs) != settings.source.path:
            return Answer(
                6,
                f"the daemon watches {settings.source.path}, not {specs}",
                f"kvmd apply --specs {settings.source.path}",
            )
        digest = options.get("digest")
        if report is not None and digest and digest != report.snapshot.digest:
            return Answer(6, "the directory has changed since it was planned", "look again: kvmd plan")
        if not options.get("prune", True) and self._departing():
            left = ", ".join(sorted(map(str, self._departing()))[:4])
            return Answer(
                6,
                f"--no-prune cannot keep {left}: the running kvmd removes what its rules allow",
                "put the specs back, annotate them with kvmd.dev/prune: disabled, or type: kvmd suspend KIND/NAME",
            )
        if options.get("prune", True):
            for ref in self._departing():  # these, and none that goes later
                self._assembly.reconciler.memory.change(ref, missing_since=float("-inf"))
        return Answer(0, "confirmed", data={"sequence": self._assembly.events.last})


def as_data(item: ObjectPlan) -> dict[str, Any]:
    """One object as users see it."""
    resource, applied = item.resource, item.applied
    metadata: dict[str, Any] = {"name": item.ref.name}
    if resource is not None:
        metadata |= {
            key: value
            for key, value in (("labels", resource.metadata.labels), ("annotations", resource.metadata.annotations))
            if value
        }
    written = resource.written if resource is not None else (applied.written if applied else {})
    return {
        "apiVersion": API_VERSION,
        "kind": item.ref.kind,
        "metadata": metadata,
        "spec": dict(shown(CONTROLLERS[item.ref.kind].Spec, written)),
        "status": {
            "generation": item.generation,
            "observedGeneration": item.observed_generation,
            "source": str(resource.position) if resource is not None else None,
            "conditions": [condition.as_data() for condition in item.conditions],
            "pendingChanges": [pending.as_data() for pending in item.pending],
            **item.status,
        },
    }
