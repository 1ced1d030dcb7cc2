"""The metrics of API.md in a registry of their own; callers hand over plain data, scraping waits for nobody."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from kvmd import __version__
from kvmd.api.resource import Ref
from kvmd.api.status import CONDITION_TYPES, READY
from kvmd.ops import Op
from kvmd.plan.model import ObjectPlan, Plan
from kvmd.plan.safety import PASSING
from kvmd.telemetry.domains import DomainStats, exposition

# controller-runtime's buckets, so that people's queries carry over
_CYCLE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_PROPAGATION_BUCKETS = (0.05, 0.1, 0.25, 0.35, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
OK = "ok"
_FAILURES = ("Retry", "BackendUnavailable", "Unknown", "Stale", "Blocked", "Refused", "Unsupported")


class Metrics:
    """Everything that ``/metrics`` says.

    *kinds* get their series at once, so that a rate over a counter that never moved is zero and not absent.
    """

    def __init__(self, kinds: Iterable[str] = (), version: str = __version__) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double every counter
        self.registry = CollectorRegistry()
        self._objects: dict[Ref, ObjectPlan] = {}
        self._held = -1
        self._tally: Tally[tuple[str, str]] = Tally()
        self._domains: tuple[DomainStats, ...] = ()
        self._revision = ""
        self._gauges()
        self._counters()
        self._build.labels(version).set(1)
        self._start_at_zero(tuple(kinds))

    def _gauges(self) -> None:
        def gauge(name: str, about: str, *labels: str) -> Gauge:
            return Gauge(f"kvmd_{name}", about, labels, registry=self.registry)

        self._build = gauge("build_info", "The running version of kvmd; always 1.", "version")
        self._libvirt = gauge("libvirt_up", "1 where libvirt answers.")
        self._revision_info = gauge("source_revision_info", "The revision of the specs; always 1.", "revision")
        self._resources = gauge("resources", "Objects by condition that is true.", "kind", "condition")
        self._ready = gauge("resource_ready", "1 where the object is what its spec asks for.", "kind", "name")
        self._pending = gauge(
            "resource_pending_changes", "Changes that wait for a restart or an approval.", "kind", "name"
        )
        self._prune_held = gauge("prune_held", "Objects without a spec whose removal is held back.")
        self._invalid = gauge("source_invalid_files", "Spec files that cannot be used.")
        self._success = gauge(
            "source_last_success_timestamp_seconds", "When the specs were last read without a fault."
        )

    def _counters(self) -> None:
        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"kvmd_{name}", about, labels, registry=self.registry)

        def histogram(name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"kvmd_{name}", about, buckets=buckets, registry=self.registry)

        self._reconciled = counter("reconcile_total", "Steps carried out.", "kind", "result")
        self._drift = counter("drift_corrected_total", "Changes by others that were put right.", "kind")
        self._operations = counter("operations_total", "Operations carried out.", "operation", "result")
        self._forced = counter("forced_stops_total", "Guests that were powered off by force.")
        self._calls = counter("libvirt_calls_total", "Calls to libvirt.", "call", "mode", "result")
        self._cycle = histogram("reconcile_duration_seconds", "Duration of one cycle.", _CYCLE_BUCKETS)
        self._propagation = histogram(
            "propagation_seconds", "From a file seen to its objects converged.", _PROPAGATION_BUCKETS
        )

    def _start_at_zero(self, kinds: tuple[str, ...]) -> None:
        for kind in kinds:
            self._drift.labels(kind)
            for result in (OK, *_FAILURES):
                self._reconciled.labels(kind, result)
            for condition in CONDITION_TYPES:
                self._resources.labels(kind, condition)
        for operation in _operation_names(Op):
            for result in (OK, "error"):
                self._operations.labels(operation, result)

    # ------------------------------------------------------------------------------------ what others tell

    def observe_cycle(self, seconds: float) -> None:
        """One cycle took that long."""
        self._cycle.observe(seconds)

    def observe_plan(self, plan: Plan) -> None:
        """Take over the state of every object; costs a comparison of identities where nothing changed."""
        before = self._objects
        changed = [item for ref, item in plan.objects.items() if before.get(ref) is not item]
        gone = [item for ref, item in before.items() if ref not in plan.objects]
        if changed or gone:
            touched: set[tuple[str, str]] = set()
            for item in gone:
                self._forget(item, touched)
            for item in changed:
                self._take(item, before.get(item.ref), touched)
            for kind, condition in touched:
                self._resources.labels(kind, condition).set(self._tally[kind, condition])
            self._objects = dict(plan.objects)
        held = sum(hold.reason not in PASSING for hold in plan.holds)
        if held != self._held:
            self._held = held
            self._prune_held.set(held)

    def _take(self, item: ObjectPlan, old: ObjectPlan | None, touched: set[tuple[str, str]]) -> None:
        ref = item.ref
        if old is None:
            touched.update((ref.kind, condition) for condition in CONDITION_TYPES)
        else:
            self._count(old, -1, touched)
        self._count(item, 1, touched)
        if old is None or old.ready != item.ready:
            self._ready.labels(ref.kind, ref.name).set(item.ready)
        if old is None or len(old.pending) != len(item.pending):
            self._pending.labels(ref.kind, ref.name).set(len(item.pending))

    def _forget(self, item: ObjectPlan, touched: set[tuple[str, str]]) -> None:
        self._count(item, -1, touched)
        self._ready.remove(item.ref.kind, item.ref.name)
        self._pending.remove(item.ref.kind, item.ref.name)

    def _count(self, item: ObjectPlan, by: int, touched: set[tuple[str, str]]) -> None:
        true = {condition.type for condition in item.conditions if condition.status and condition.type != READY}
        for condition in true | ({READY} if item.ready else set()):
            self._tally[item.ref.kind, condition] += by
            touched.add((item.ref.kind, condition))

    def reconciled(self, kind: str, result: str) -> None:
        """A step of that kind ended: ok, or the name of the error."""
        self._reconciled.labels(kind, result).inc()

    def drift_corrected(self, kind: str) -> None:
        """Somebody else's change was put right."""
        self._drift.labels(kind).inc()

    def operation(self, name: str, result: str) -> None:
        """An operation ended: ok or error."""
        self._operations.labels(name, result).inc()

    def forced_stop(self) -> None:
        """A guest did not power off in time and was."""
        self._forced.inc()

    def propagated(self, seconds: float) -> None:
        """A changed file has become what it asks for, that long after it was seen."""
        self._propagation.observe(seconds)

    def libvirt_call(self, call: str, mode: Literal["read", "write"], result: str) -> None:
        """A call to libvirt returned."""
        self._calls.labels(call, mode, result).inc()

    def libvirt_up(self, up: bool) -> None:
        """libvirt answers, or not."""
        self._libvirt.set(up)

    def source(self, problems: int, revision: str, success_time: float | None) -> None:
        """How many files are invalid, which revision was read, and when reading last went without a fault."""
        self._invalid.set(problems)
        if revision != self._revision:
            if self._revision:
                self._revision_info.remove(self._revision)
            self._revision = revision
            if revision:
                self._revision_info.labels(revision).set(1)
        if success_time is not None:
            self._success.set(success_time)

    def domains(self, stats: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Take over libvirt's bulk statistics: pairs of domain name and typed parameters."""
        self._domains = tuple(stats)

    def exposition(self) -> bytes:
        """The text format 0.0.4."""
        return generate_latest(self.registry) + exposition(self._domains)


def _operation_names(base: type[Op]) -> Iterable[str]:
    below = base.__subclasses__()
    if not below:
        yield base.__name__
    for item in below:
        yield from _operation_names(item)
