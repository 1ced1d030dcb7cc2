"""One batch of link operations: what may be done, in which order, and whether it was done.

rtnetlink has no transactions, but what goes out in one system call survives our own death whole.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple, TypeGuard, TypeVar

from kvmd.errors import KvmdError, Refused, Retry, Stale
from kvmd.host.links.checks import (
    Expectation,
    Presence,
    Snapshot,
    check_free,
    check_tap_owner,
    what_is_missing,
)
from kvmd.host.links.errors import explain
from kvmd.host.links.rtnetlink import Failure, Request
from kvmd.ops import (
    BridgeCreate,
    LinkDelete,
    LinkOp,
    StackedCreate,
    TapCreate,
    TapOwner,
)

Creation = BridgeCreate | TapCreate | StackedCreate
Operation = TypeVar("Operation", bound=LinkOp)


class Phase(IntEnum):
    """The order within a batch: new before old, ports before their bridge comes up, deletion last."""

    CREATE = 0
    MARK = 1
    MOVE_BACK = 2
    RELEASE = 3
    ENSLAVE = 4
    ATTRIBUTE = 5
    PORT_UP = 6
    BRIDGE_UP = 7
    ADDRESS_ADD = 8
    ADDRESS_DELETE = 9
    ROUTE_ADD = 10
    ROUTE_DELETE = 11
    DELETE = 12


class Step(NamedTuple):
    """One request, for which operation it is, which links it names, and which errnos are no failure."""

    phase: Phase
    position: int
    request: Request
    links: tuple[int, ...]
    tolerated: frozenset[int] = frozenset()


class Batch:
    """Operations against one fresh *before*; *errors* holds what is known of each of them."""

    def __init__(self, operations: Sequence[LinkOp], before: Snapshot) -> None:
        self.operations = operations
        self.before = before
        self.errors: list[KvmdError | None] = [None] * len(operations)
        self.steps: list[Step] = []
        self.all_routes: Sequence[bytes] = ()  # of every table, where addresses are to be moved
        self.neighbours: Sequence[bytes] = ()  # the same
        self.rules: Sequence[bytes] = ()  # the same
        self.awaited: set[tuple[int, bytes]] = set()  # link and address of IPv6 that must be heard at before old goes
        self._created: dict[str, int] = {}  # name and index of what this batch creates
        self._creators = {
            operation.name: position
            for position, operation in reversed(list(enumerate(operations)))
            if isinstance(operation, Creation)
        }
        self.bridges = {operation.name for operation in operations if isinstance(operation, BridgeCreate)}
        self.released: set[int] = set()  # by an operation of this batch that was already seen
        self._expected: dict[tuple[int, str], Expectation] = {}
        for position, operation in enumerate(operations):
            if isinstance(operation, Creation):
                self.attempt(position, operation, self._reserve)

    # ------------------------------------------------------------------------------------------ names

    def attempt(self, position: int, operation: Operation, function: Callable[[int, Operation], None]) -> None:
        """Call *function* and keep what it raises as the result of the operation."""
        try:
            function(position, operation)
        except KvmdError as error:
            self.errors[position] = error
        except OSError as error:
            self.errors[position] = explain(operation, error.errno or 0)
        except Exception as error:  # what cannot be said to the kernel is one operation's failure, not the batch's
            text = f"cannot {operation.describe()}: {error}"
            self.errors[position] = Refused(text, hint="change its spec; if that is as it should be, report this")

    def _reserve(self, position: int, operation: Creation) -> None:
        """Choose the index of a new link: a create that fails can then touch nobody else's link."""
        if self._creators[operation.name] != position:
            raise Refused(f"cannot {operation.describe()}: the batch creates it twice", hint="report this")
        check_free(operation, self.before)
        taken = self.before.by_index.keys() | set(self._created.values())
        index = random.randrange(1 << 20, 1 << 30)
        while index in taken:
            index = random.randrange(1 << 20, 1 << 30)
        self._created[operation.name] = index

    def index_of(self, name: str) -> int:
        """The index of the link that the batch creates, else of the one that is there."""
        if name in self._creators:
            error = self.errors[self._creators[name]]
            if error is not None or name not in self._created:
                raise Stale(f"{name} was not created: {error and error.message}", hint="kvmd plans again")
            return self._created[name]
        link = self.before.links.get(name)
        if link is None:
            raise Stale(f"there is no link {name}", hint="kvmd plans again; to look: ip link")
        return link.index

    def target(self, name: str, index: int) -> int:
        """The index of the link that an operation is about. Raises Stale where it is another one by now."""
        if index == 0:
            return self.index_of(name)
        link = self.before.by_index.get(index)
        if link is None or link.name != name:
            found = f"is now {link.name}" if link else "is gone"
            raise Stale(
                f"link {index}, {name} when it was planned, {found}", hint="kvmd plans again; to look: ip link"
            )
        return index

    def add(
        self, phase: Phase, position: int, request: Request, *links: int, tolerated: frozenset[int] = frozenset()
    ) -> None:
        """Append a request that names *links*; an errno in *tolerated* is no failure."""
        self.steps.append(Step(phase, position, request, links, tolerated))

    def expect(self, position: int, index: int, what: str, value: object) -> None:
        """Only the last wish for one property of one link can be met."""
        self._expected[index, what] = Expectation(position, index, what, value)

    def expect_presence(self, position: int, index: int, value: Presence) -> None:
        """The same for an address or a route."""
        what = f"route {value.to} {value.via} {value.metric}" if value.to else f"address {value.cidr}"
        self.expect(position, index, what, value)

    # ----------------------------------------------------------------------------------------- settle

    def expect_tap(self, position: int, operation: TapCreate | TapOwner) -> None:
        """Remember what the ioctls have set."""
        index = self.target(operation.name, 0)
        properties: dict[str, object] = {"owner": operation.owner, "group": operation.group}
        properties["vnet_hdr"] = operation.vnet_hdr
        if isinstance(operation, TapCreate):
            properties |= {"alias": operation.alias, "tun_mode": operation.mode, "persistent": True}
            properties["multi_queue"] = operation.multi_queue
        for what, value in properties.items():
            if value is not None:
                self.expect(position, index, what, value)

    def is_bridge_delete(self, operation: LinkOp) -> TypeGuard[LinkDelete]:
        """True for what is not part of the batch, since each costs the whole host some 30 ms."""
        if not isinstance(operation, LinkDelete):
            return False
        link = self.before.by_index.get(operation.index)
        return link is not None and link.kind == "bridge"

    def check_tap_owner(self, operation: TapOwner) -> None:
        """Raise where nobody may attach to the TAP now."""
        self.target(operation.name, operation.index)
        check_tap_owner(operation, self.before)

    def unmarked(self, failures: Sequence[Failure | None]) -> list[int]:
        """The links that were made but not marked: they must not stay."""
        made = [
            step.links[0]
            for step, failure in zip(self.steps, failures, strict=True)
            if step.phase == Phase.CREATE and failure is None and step.request.flags
        ]
        return [
            step.links[0]
            for step, failure in zip(self.steps, failures, strict=True)
            if step.phase == Phase.CREATE and failure is not None and step.links[0] in made
        ]

    def take(self, failures: Sequence[Failure | None]) -> None:
        """Give each operation the first thing that the kernel held against it."""
        lost: dict[int, str] = {}
        for step, failure in zip(self.steps, failures, strict=True):
            if failure is None or failure.errno in step.tolerated or self.errors[step.position] is not None:
                continue
            operation = self.operations[step.position]
            gone = [lost[index] for index in step.links if index in lost]
            if gone and failure.errno in (errno.ENODEV, errno.EINVAL, errno.ENXIO):
                error: KvmdError = Stale(f"cannot {operation.describe()}: {gone[0]}", hint="kvmd plans again")
            else:
                error = explain(operation, failure.errno, failure.text)
            self.errors[step.position] = error
            if isinstance(operation, BridgeCreate | StackedCreate) and step.phase == Phase.CREATE:
                lost[step.links[0]] = f"{operation.name} was not created: {error.message}"

    def verify(self, after: Snapshot) -> None:
        """Compare what was asked with what is there: the kernel acknowledges and ignores some requests."""
        for expectation in self._expected.values():
            if self.errors[expectation.position] is not None:
                continue
            missing = what_is_missing(expectation, after)
            if missing:
                operation = self.operations[expectation.position]
                self.errors[expectation.position] = Retry(
                    f"the kernel acknowledged but did not {operation.describe()}: {missing}",
                    hint=f"kvmd looks again; to look: ip -d link show {operation.name}",
                )
