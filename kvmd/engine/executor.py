"""Daemon threads that carry out steps: one mutating call per object, a slow call never holds up the others.

Not a ThreadPoolExecutor: that one keeps the interpreter from exiting behind a hung call.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kvmd.api.resource import Ref
from kvmd.errors import KvmdError, Retry
from kvmd.ops import DomainDefine, DomainDestroy, DomainStart, DomainUndefine, LinkOp, NetworkDefine, Op
from kvmd.plan.model import Step
from kvmd.settings import Libvirt

MOST_SLOW_CALLS = 16
# What may wait, in units of a quick call; a start costs as much as some hundred definitions.
QUEUE_PER_WORKER = 256
START_WEIGHT = 64

_LONG = (DomainDefine, DomainUndefine, DomainDestroy, DomainStart, NetworkDefine)


class Hand(Protocol):
    """What a worker works with (``kvmd.host.Hand``)."""

    def execute(self, operation: Op) -> None:
        """Carry out one operation; raises a KvmdError."""

    def execute_links(self, operations: Sequence[LinkOp]) -> list[KvmdError | None]:
        """Carry out link operations as one batch."""

    def close(self) -> None:
        """Give back what it holds."""


@dataclass(frozen=True, slots=True)
class Job:
    """Steps that run together: one step, or link steps as one batch."""

    steps: tuple[Step, ...]
    batch: bool = False

    @property
    def weight(self) -> int:
        """How much of the queue it takes."""
        starts = any(isinstance(operation, DomainStart) for step in self.steps for operation in step.operations)
        return START_WEIGHT if starts else 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one step: the operations that were carried out, and the error that ended it."""

    step: Step
    done: tuple[Op, ...]
    error: KvmdError | None
    seconds: float


@dataclass(frozen=True, slots=True)
class SlowCall:
    """A call that takes longer than it should; *overdue* once its deadline (in seconds) has passed."""

    ref: Ref
    operation: str
    seconds: float
    deadline: float

    @property
    def overdue(self) -> bool:
        """True where nobody should count on its answer any more."""
        return self.seconds >= self.deadline


@dataclass(slots=True)
class _Worker:
    number: int
    job: Job | None = None
    since: float = 0.0  # when its present call began
    deadline: float = 0.0  # how long that may take
    operation: str = ""
    given_up: bool = False
    threads: list[threading.Thread] = field(default_factory=list)


class Executor:
    """A fixed number of hands; one that hangs is replaced at once."""

    def __init__(
        self,
        make_hand: Callable[[], Hand],
        workers: int,
        patience: Libvirt,
        done: Callable[[], None],
        too_many_slow: Callable[[], None],
    ) -> None:
        self._make_hand, self._limit, self._patience, self._done = make_hand, workers, patience, done
        self._too_many_slow = too_many_slow
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._workers: dict[int, _Worker] = {}
        self._numbers = 0
        self._waiting = 0
        for _ in range(workers):
            self._add_worker()

    @property
    def room(self) -> int:
        """How much weight may still be given without anyone waiting long."""
        with self._lock:
            return max(0, self._limit * QUEUE_PER_WORKER - self._waiting)

    @property
    def idle(self) -> bool:
        """True where no job waits or runs."""
        with self._lock:
            return self._waiting == 0

    def submit(self, job: Job) -> None:
        """Queue a job; its outcomes come out of ``outcomes()``."""
        with self._lock:
            self._waiting += job.weight
        self._jobs.put(job)

    def outcomes(self) -> list[Outcome]:
        """Everything that ended since the last call."""
        found: list[Outcome] = []
        while True:
            try:
                found.append(self._outcomes.get_nowait())
            except queue.Empty:
                return found

    def slow(self) -> list[SlowCall]:
        """Present calls that take longer than the limit; their workers are replaced here."""
        now = time.monotonic()
        found: list[SlowCall] = []
        with self._lock:
            for worker in list(self._workers.values()):
                job, age = worker.job, now - worker.since
                if job is None or age < self._patience.slow:
                    continue
                if worker.deadline != math.inf:
                    found += [SlowCall(step.ref, worker.operation, age, worker.deadline) for step in job.steps]
                if not worker.given_up:
                    worker.given_up = True
                    self._add_worker()
            hanging = sum(w.given_up and w.deadline != math.inf for w in self._workers.values())
        if hanging >= MOST_SLOW_CALLS:
            self._too_many_slow()
        return found

    def stop(self, patience: float) -> bool:
        """Let running calls end, for at most *patience* seconds; True where all did."""
        deadline = time.monotonic() + patience
        with self._lock:
            count = len(self._workers)
        for _ in range(count):
            self._jobs.put(None)
        while time.monotonic() < deadline:
            with self._lock:
                # A transfer is gone on with by the next process.
                if all(worker.job is not None and worker.deadline == math.inf for worker in self._workers.values()):
                    return True
            time.sleep(0.02)
        return False

    def _add_worker(self) -> None:
        self._numbers += 1
        worker = _Worker(self._numbers)
        self._workers[worker.number] = worker
        thread = threading.Thread(target=self._work, args=(worker,), name=f"worker-{worker.number}", daemon=True)
        thread.start()

    def _work(self, worker: _Worker) -> None:
        hand = self._make_hand()
        try:
            while not worker.given_up:
                job = self._jobs.get()
                if job is None:
                    return
                outcomes = (
                    self._run_batch(job, hand, worker) if job.batch else [self._run(job.steps[0], hand, worker)]
                )
                with self._lock:
                    worker.job = None
                    self._waiting -= job.weight
                for outcome in outcomes:
                    self._outcomes.put(outcome)
                self._done()
        finally:
            with self._lock:
                self._workers.pop(worker.number, None)
            hand.close()

    def _run(self, step: Step, hand: Hand, worker: _Worker) -> Outcome:
        """Carry out a step's operations in order, up to the first that fails."""
        begun = time.monotonic()
        done: list[Op] = []
        for operation in step.operations:
            self._begin(worker, Job((step,)), operation)
            try:
                hand.execute(operation)
            except KvmdError as error:
                return Outcome(step, tuple(done), error, time.monotonic() - begun)
            except Exception as error:
                broken = Retry(
                    f"{operation.describe()}: {type(error).__name__}: {error}", hint="please report this as a bug"
                )
                return Outcome(step, tuple(done), broken, time.monotonic() - begun)
            done.append(operation)
        return Outcome(step, tuple(done), None, time.monotonic() - begun)

    def _run_batch(self, job: Job, hand: Hand, worker: _Worker) -> list[Outcome]:
        """Carry out the link operations of several steps as one batch."""
        begun = time.monotonic()
        operations = [operation for step in job.steps for operation in step.operations]
        links = [operation for operation in operations if isinstance(operation, LinkOp)]
        self._begin(worker, job, links[0])
        try:
            answers = hand.execute_links(links)
        except KvmdError as error:
            answers = [error] * len(links)
        except Exception as error:
            answers = [
                Retry(f"link operations: {type(error).__name__}: {error}", hint="please report this as a bug")
            ] * len(links)
        seconds = time.monotonic() - begun
        outcomes: list[Outcome] = []
        at = 0
        for step in job.steps:
            mine = answers[at : at + len(step.operations)]
            at += len(step.operations)
            done = tuple(op for op, error in zip(step.operations, mine, strict=True) if error is None)
            failure = next((error for error in mine if error is not None), None)
            outcomes.append(Outcome(step, done, failure, seconds))
        return outcomes

    def _begin(self, worker: _Worker, job: Job, operation: Op) -> None:
        """Note what is called now, and how long that may take."""
        patience = self._patience
        with self._lock:
            worker.job, worker.since, worker.operation = job, time.monotonic(), operation.describe()
            worker.deadline = patience.define_deadline if isinstance(operation, _LONG) else patience.modify_deadline
            if not operation.bounded:
                worker.deadline = math.inf
