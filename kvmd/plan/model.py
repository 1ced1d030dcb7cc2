"""The values of planning: states, changes, drafts, steps and plans, and what a kind must offer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from kvmd.api.mark import Mark
from kvmd.api.resource import EMPTY, Claim, Ref, Reference, Resource, SpecModel, leaf_paths
from kvmd.api.status import Condition, Pending
from kvmd.observed import Key
from kvmd.ops import Impact, Op
from kvmd.plan.difference import Change

if TYPE_CHECKING:
    from kvmd.plan.look import Look


class Cause(StrEnum):
    """Why a step is planned."""

    CREATE = "create"
    SPEC = "spec"
    DRIFT = "drift"
    PRUNE = "prune"
    ADOPT = "adopt"
    REQUEST = "request"
    RECORD = "record"  # something was seen that must not be forgotten


@dataclass(frozen=True)
class Applied:
    """What was last applied of an object: from its mark, else from the store, else unknown."""

    ref: Ref
    spec_hash: str = ""
    generation: int = 0
    written: Mapping[str, Any] = field(default_factory=lambda: EMPTY, hash=False)
    annotations: Mapping[str, str] = field(default_factory=lambda: EMPTY, hash=False)
    resolved: Mapping[str, str] = field(default_factory=lambda: EMPTY, hash=False)
    known: bool = False

    @classmethod
    def of(cls, mark: Mark) -> Applied:
        """What a mark with a whole spec in it says."""
        return cls(
            mark.ref,
            mark.spec_hash,
            mark.generation,
            mark.written,
            mark.annotations,
            mark.resolved,
            known=True,
        )

    def of_this(self, resource: Resource) -> bool:
        """True where that very spec was applied (links keep only the first 16 digits of its hash)."""
        hashes = (resource.spec_hash, resource.former_hash)
        return self.generation > 0 and any(found.startswith(self.spec_hash or "-") for found in hashes)

    def records(self, resource: Resource, generation: int) -> bool:
        """True where that spec, with these annotations, is what was noted as applied."""
        return (
            self.generation == generation
            and self.of_this(resource)
            and self.annotations == resource.metadata.annotations
        )

    @cached_property
    def owned(self) -> frozenset[str]:
        """The paths of every leaf that was written then."""
        return frozenset(leaf_paths(self.written)) if self.written else frozenset()


@dataclass(frozen=True, slots=True)
class Draft:
    """What a kind answers: operations in order, and everything that people should know.

    *needs* are objects that must be usable before the first operation; *settled* is False while the object is
    not yet what its spec asks for although nothing can be done now (a shutdown under way).
    """

    operations: tuple[Op, ...] = ()
    changes: tuple[Change, ...] = ()
    pending: tuple[Pending, ...] = ()
    conditions: tuple[Condition, ...] = ()
    needs: tuple[Ref, ...] = ()
    status: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    wake_at: float | None = None
    settled: bool = True
    reason: str = ""
    asked_elsewhere: bool = False  # another object's spec asks for this change: it is no drift
    later: tuple[Op, ...] = ()  # what follows once the operations have had their effect
    needed_by: tuple[tuple[Ref, ...], ...] = ()  # of each operation its own part of *needs*; empty: all need all
    stopping: bool = False  # a shutdown is under way, or about to be asked for
    noticed: str = ""  # what it will cost whom once what waits is let through


@dataclass(frozen=True, slots=True)
class Step:
    """All that will happen to one object, in order; *after* names steps that must have succeeded before."""

    ref: Ref
    operations: tuple[Op, ...]
    cause: Cause
    reason: str
    changes: tuple[Change, ...] = ()
    after: tuple[Ref, ...] = ()
    later: tuple[Op, ...] = ()  # what follows once the operations have had their effect; planned anew then
    needed_by: tuple[tuple[Ref, ...], ...] = ()  # of each operation its own part of *after*; empty: all need all

    def without(self, need: Ref) -> Step | None:
        """The same step without what needs that object; None where nothing is left."""
        kept = [i for i, needs in enumerate(self.needed_by) if need not in needs]
        if not kept:
            return None
        after = tuple(ref for ref in self.after if any(ref in self.needed_by[i] for i in kept))
        operations, needed_by = (tuple(values[i] for i in kept) for values in (self.operations, self.needed_by))
        return replace(self, operations=operations, needed_by=needed_by, after=after)  # type: ignore[arg-type]

    @property
    def impact(self) -> Impact:
        """The highest impact of its operations."""
        return max((operation.impact for operation in self.operations), default=Impact.NONE)

    @property
    def action(self) -> str:
        """create | change | remove: the sign in front of a plan's line."""
        return {Cause.CREATE: "create", Cause.PRUNE: "remove"}.get(self.cause, "change")

    def as_data(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "object": str(self.ref),
            "action": self.action,
            "cause": self.cause.value,
            "reason": self.reason,
            "impact": self.impact.word,
            "after": [str(ref) for ref in self.after],
            "changes": [change.as_data() for change in self.changes],
            "operations": [_operation_data(operation) for operation in self.operations],
            "later": [_operation_data(operation) for operation in self.later],
        }


def _operation_data(operation: Op) -> dict[str, Any]:
    return {"operation": type(operation).__name__, "does": operation.describe(), "impact": operation.impact.word}


@dataclass(frozen=True, slots=True)
class ObjectPlan:
    """The outcome for one object: a step or none, and its status."""

    ref: Ref
    resource: Resource | None = None
    applied: Applied | None = None
    step: Step | None = None
    conditions: tuple[Condition, ...] = ()
    pending: tuple[Pending, ...] = ()
    status: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    wake_at: float | None = None
    ready: bool = False
    generation: int = 0
    observed_generation: int = 0
    stopping: bool = False  # a shutdown is under way: the time that it was asked at counts

    def condition(self, type_: str) -> Condition | None:
        """Return the condition of that type, or None."""
        return next((condition for condition in self.conditions if condition.type == type_), None)


@dataclass(frozen=True, slots=True)
class Hold:
    """An object whose removal waits; *approve* is the command to type, where a person may end the wait."""

    ref: Ref
    reason: str
    message: str
    approve: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that will be done, in an order that respects *after*, and what every object is."""

    objects: Mapping[Ref, ObjectPlan]
    steps: tuple[Step, ...] = ()
    holds: tuple[Hold, ...] = ()
    prune_digest: str = ""  # what `kvmd approve prune` approves
    wake_at: float | None = None
    held: tuple[Ref, ...] = ()  # whose turn to start has not come

    @property
    def empty(self) -> bool:
        """True where nothing is to be done."""
        return not self.steps

    @property
    def impact(self) -> Impact:
        """The highest impact of all steps."""
        return max((step.impact for step in self.steps), default=Impact.NONE)

    def as_data(self) -> dict[str, Any]:
        """The JSON form (`kvmd plan -o json`)."""
        return {
            "apiVersion": "kvmd.dev/v1alpha1",
            "kind": "Plan",
            "impact": self.impact.word,
            "summary": {
                action: sum(step.action == action for step in self.steps) for action in ("create", "change", "remove")
            },
            "steps": [step.as_data() for step in self.steps],
            "pendingChanges": [
                {"object": str(ref), **pending.as_data()}
                for ref, item in sorted(self.objects.items())
                for pending in item.pending
            ],
            "held": [
                {
                    "object": str(hold.ref),
                    "reason": hold.reason,
                    "message": hold.message,
                    "approve": hold.approve,
                }
                for hold in self.holds
            ],
            "conditions": [
                {"object": str(ref), **condition.as_data()}
                for ref, item in sorted(self.objects.items())
                for condition in item.conditions
                if condition.status and condition.type not in ("Ready", "Reconciling")
            ],
        }


@dataclass(frozen=True, slots=True)
class ObjectMemory:
    """What the engine remembers of one object. Losing it only makes kvmd slower to destroy.

    Times are monotonic seconds.
    """

    missing_since: float | None = None  # its spec went away then
    asked_at: float | None = None  # a shutdown was asked for then
    asked_last: float | None = None  # and last repeated then
    attempts: int = 0
    next_try: float = 0.0
    error: str = ""
    error_class: str = ""
    busy: str = ""  # the operation under way
    overdue: str = ""  # what to say of it once its deadline has passed
    approved_hash: str = ""  # the spec hash whose disruption somebody approved
    restart: bool = False  # somebody asked for one restart
    power: str = ""  # start | stop: somebody asked for it (runStrategy Manual)
    balloon_until: float | None = None  # its memory was asked for; give the guest until then
    fruitless: int = 0  # how often the same operations succeeded without having their effect
    settling_until: float | None = None  # it was started; higher startup orders wait until then
    held_since: float | None = None  # its start waits for its turn since then
    window: tuple[float, float] | None = None  # the maintenance window that is open, or the next one


@dataclass(frozen=True, slots=True)
class Memory:
    """What the engine remembers; only it writes this."""

    objects: Mapping[Ref, ObjectMemory] = field(default_factory=lambda: MappingProxyType({}))
    prune_approved: frozenset[Ref] = frozenset()  # the objects of an approved list of removals
    # What somebody saw go and confirmed; None: all (a plan that only shows). In for the grace, never for the brake.
    confirmed: frozenset[Ref] | None = frozenset()
    pruned: tuple[tuple[float, Ref], ...] = ()  # what was removed within the last hour, and when
    complete_since: float | None = None  # first complete look at source and host after the start


@dataclass(frozen=True, slots=True)
class Rules:
    """The part of the settings that planning obeys."""

    owner: str = "kvmd"
    prune_grace: float = 15.0
    prune_percent: int = 30
    prune_minimum: int = 2
    accelerator: str = "auto"
    allowed_paths: tuple[str, ...] = ("/",)
    own_paths: tuple[str, ...] = ("/var/lib/kvmd", "/var/cache/kvmd", "/run/kvmd")  # where kvmd keeps what is its own
    uplinks: str | tuple[str, ...] = "*"
    host_devices: tuple[str, ...] = ()  # pci:0000:01:00.0, usb:046d:c52b, or patterns of them
    images: str = "/var/lib/kvmd/images"  # the image store
    seeds: str = "/var/lib/kvmd/seeds"  # the seeds of cloud-init
    memory_reserve: int | None = 0  # bytes that no guest is promised; None: any guest may start
    nvram: str = "/var/lib/libvirt/qemu/nvram"  # where UEFI keeps the variables of each machine
    prune: bool = True  # False: remove nothing (`kvmd apply --no-prune`)
    validate_only: bool = False


@dataclass(frozen=True, slots=True)
class Desired:
    """What the source asks for: the part of a snapshot that planning needs."""

    resources: Mapping[Ref, Resource] = field(default_factory=lambda: MappingProxyType({}))
    applied: Mapping[Ref, Applied] = field(default_factory=lambda: MappingProxyType({}))  # from the store
    complete: bool = True
    reason: str = ""
    empty: bool = False
    invalid_files: tuple[str, ...] = ()
    duplicates: Mapping[Ref, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))


@runtime_checkable
class SecretUser(Protocol):
    """A kind whose specs name secrets."""

    def secrets(self, spec: Any) -> tuple[str, ...]:
        """Paths, and ``credential:NAME`` of systemd."""


@dataclass(frozen=True, slots=True)
class Boot:
    """What the start of a guest waits for beside its own parts."""

    memory: int = 0  # bytes that it may take
    order: int | None = None  # lower ones first; None: without waiting
    awaits: tuple[tuple[Ref, str], ...] = ()  # objects, and which condition must be True of each
    delay: float = 0.0  # seconds after its start in which higher orders wait


@runtime_checkable
class Bootable(Protocol):
    """A kind whose objects start."""

    def boot(self, spec: Any) -> Boot:
        """What its start waits for."""


@dataclass(frozen=True, slots=True)
class Window:
    """When a guest may be restarted: a cron expression, for how many seconds each time, and in whose time."""

    schedule: str
    seconds: float
    time_zone: str


@runtime_checkable
class WindowUser(Protocol):
    """A kind whose specs name maintenance windows."""

    def window(self, spec: Any) -> Window | None:
        """Its window, or None."""


@runtime_checkable
class FileProvider(Protocol):
    """A kind whose objects are files that others stand on."""

    def file_of(self, ref: Ref, look: Look) -> tuple[str, str] | None:
        """Path and format of the file, there or not yet; None where nobody knows the object."""


class Controller(Protocol):
    """All that kvmd knows of one kind, without I/O; a module in ``kvmd.kinds`` satisfies it."""

    KIND: str
    PLURAL: str
    SHORT: str
    Spec: type[SpecModel]

    def host_key(self, ref: Ref, spec: Any, look: Look | None = None) -> Key:
        """The fact that this object is on the host; *spec* is None for a stranger of that name.

        Without *look* the names of other objects on the host are taken to be those in their metadata.
        """

    def references(self, ref: Ref, spec: Any) -> tuple[Reference, ...]:
        """The objects that this spec names."""

    def claims(self, ref: Ref, spec: Any) -> tuple[Claim, ...]:
        """What this object holds exclusively."""

    def files(self, spec: Any) -> tuple[str, ...]:
        """The files that planning wants to know about."""

    def usable(self, ref: Ref, look: Look) -> bool:
        """True where others can build on it now."""

    def plan(self, ref: Ref, look: Look) -> Draft:
        """What to do so that the host agrees with the spec."""

    def remove(self, ref: Ref, key: Key, look: Look) -> Draft:
        """What to do so that the object goes; the planner has checked that it may."""


# ------------------------------------------------------------------------------------------------- diff
