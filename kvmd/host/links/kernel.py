"""The kernel's links: look at all of them, and carry out operations on them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from threading import Lock
from typing import Any, Final

from kvmd.errors import KvmdError, Refused, Retry
from kvmd.host.checkpoint.move import ALL_NEIGHBOURS, ALL_ROUTES, ALL_RULES, LOCAL_ROUTES, local_routes
from kvmd.host.checkpoint.neighbours import Neighbours
from kvmd.host.checkpoint.record import Record, Restored, record_of, restore
from kvmd.host.links import messages as encode
from kvmd.host.links import taps
from kvmd.host.links.announce import announced
from kvmd.host.links.batch import Batch, Phase
from kvmd.host.links.checks import Snapshot, check_removable, check_without_ports
from kvmd.host.links.compile import compile_batch
from kvmd.host.links.errors import explain
from kvmd.host.links.facts import (
    ADDRESS_DUMP,
    LINK_DUMP,
    ROUTE_DUMP,
    LinkMemo,
    Memo,
    parse_address,
    parse_route,
)
from kvmd.host.links.rtnetlink import GETADDR, GETLINK, GETNEIGH, GETROUTE, GETRULE, Namespace, RouteSocket
from kvmd.observed import Address, Key, Link, Route
from kvmd.ops import AddressesMove, LinkDelete, LinkOp, LinkSet, TapCreate, TapOwner

# Deleting a bridge holds the kernel's network lock for 20 to 45 ms: at most 4 a second.
BRIDGE_DELETE_PAUSE_SECONDS: Final = 0.25
LOCAL_ROUTE_SECONDS: Final = 0.5


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no other process come first, where that may be had.

    From the moment that a NIC becomes a port until its bridge is up the kernel drops what comes in: on a busy machine
    that was measured to last 21 ms.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))  # of this thread
    except OSError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


class LinkReader:
    """Reads all links; what reads as before stays the very same object."""

    def __init__(self, namespace: Namespace) -> None:
        self._socket = RouteSocket(namespace)
        self._lock = Lock()
        self._links = LinkMemo()
        self._addresses = Memo(parse_address)
        self._routes = Memo(parse_route)
        self._known: dict[int, tuple[tuple[Any, ...], Link]] = {}

    def close(self) -> None:
        """Close the socket."""
        with self._lock:
            self._socket.close()

    def read(self) -> Snapshot:
        """List links, addresses and routes."""
        with self._lock:
            links = self._socket.dump(GETLINK, LINK_DUMP)
            addresses = self._socket.dump(GETADDR, ADDRESS_DUMP)
            routes = self._socket.dump(GETROUTE, ROUTE_DUMP)
            by_index = self._assemble(
                self._links.read(links.bodies),
                _by_index(self._addresses.read(addresses.bodies)),
                _by_index(self._routes.read(routes.bodies)),
            )
        return Snapshot(
            {link.name: link for link in by_index.values()},
            by_index,
            addresses.bodies,
            routes.bodies,
            links.complete and addresses.complete and routes.complete,
        )

    def _assemble(
        self,
        parsed: list[dict[str, Any]],
        addresses: dict[int, tuple[Address, ...]],
        routes: dict[int, tuple[Route, ...]],
    ) -> dict[int, Link]:
        names = {parts["index"]: parts["name"] for parts in parsed}
        known: dict[int, tuple[tuple[Any, ...], Link]] = {}
        for parts in parsed:
            index = parts["index"]
            master = names.get(parts.get("master_index", 0), "")
            parent = names.get(parts.get("parent_index", 0), "")
            its_addresses, its_routes = addresses.get(index, ()), routes.get(index, ())
            key = (id(parts), master, parent, its_addresses, its_routes)
            before = self._known.get(index)
            if before is None or before[0] != key:
                own = {name: value for name, value in parts.items() if name != "parent_index"}
                link = Link(**own, master=master, parent=parent, addresses=its_addresses, routes=its_routes)
                before = key, before[1] if before is not None and before[1] == link else link
            known[index] = before
        self._known = known
        return {index: link for index, (_, link) in known.items()}


def _by_index(pairs: list[tuple[int, Any]]) -> dict[int, tuple[Any, ...]]:
    grouped: dict[int, list[Any]] = {}
    for index, value in pairs:
        grouped.setdefault(index, []).append(value)
    return {index: tuple(values) for index, values in grouped.items()}


class Links:
    """The links of one network namespace: None is that of the process."""

    def __init__(self, namespace: str | None = None) -> None:
        self._namespace = Namespace(namespace)
        self._reader = LinkReader(self._namespace)
        self._writer = RouteSocket(self._namespace)
        self._lock = Lock()  # from the look before a batch to the look after it
        self._next_bridge_delete = 0.0

    def close(self) -> None:
        """Close sockets; a batch under way ends first."""
        with self._lock:
            self._reader.close()
            self._writer.close()
            self._namespace.close()

    def observe(self) -> tuple[Mapping[Key, Link], bool]:
        """All links, and whether the look is complete. Raises BackendUnavailable."""
        snapshot = self._reader.read()
        return {Key("link", link.name): link for link in snapshot.by_index.values()}, snapshot.complete

    def check(self, operations: Sequence[LinkOp]) -> None:
        """Raise Refused where one of them may not be done at all: the others of a batch would be, without it."""
        with self._lock:
            batch = self._batch(operations)
            compile_batch(batch)
        refused = [error for error in batch.errors if isinstance(error, Refused)]
        if refused:
            raise refused[0]

    def _batch(self, operations: Sequence[LinkOp]) -> Batch:
        batch = Batch(operations, self._reader.read())
        if any(isinstance(operation, AddressesMove) for operation in operations):
            batch.all_routes = self._all_routes()
            batch.neighbours = self._writer.dump(GETNEIGH, ALL_NEIGHBOURS).bodies
            batch.rules = self._writer.dump(GETRULE, ALL_RULES).bodies
        return batch

    def execute(self, operations: Sequence[LinkOp]) -> list[KvmdError | None]:
        """Carry out *operations* as one batch; one result each, None where facts prove it done."""
        with self._lock:
            try:
                batch = self._batch(operations)
            except KvmdError as error:
                return [error for _ in operations]
            try:
                self._make_taps(batch)
                self._send(batch)
                batch.verify(self._reader.read())
            except KvmdError as error:
                batch.errors = [known or error for known in batch.errors]
        for position, operation in enumerate(operations):
            if batch.errors[position] is None and batch.is_bridge_delete(operation):
                batch.errors[position] = self._delete_bridge(operation)
        return batch.errors

    def _all_routes(self) -> list[bytes]:
        """Those of every table. Raises Retry where they changed while they were listed."""
        routes = self._writer.dump(GETROUTE, ALL_ROUTES)
        if not routes.complete:
            raise Retry(
                "the routes changed while they were listed", hint="kvmd looks again; to look: ip monitor route"
            )
        return routes.bodies

    def record(self, names: Sequence[str], created: Sequence[tuple[str, str]]) -> Record:
        """The exact state of links, and names and marks of bridges that are about to be made. Raises Retry."""
        with self._lock:
            return record_of(self._reader.read(), self._all_routes(), names, created)

    def restore(self, record: Record, begin: Callable[[], object]) -> Restored:
        """Bring links back to a record, from wherever they are now; *begin* is called before the first change."""
        with self._lock:
            return restore(record, lambda: (self._reader.read(), self._all_routes()), self._writer.batch, begin)

    def neighbours(self) -> Neighbours:
        """Who answers on the links of this namespace."""
        return Neighbours(self._namespace)

    def _make_taps(self, batch: Batch) -> None:
        for position, operation in enumerate(batch.operations):
            if batch.errors[position] is None and isinstance(operation, TapCreate | TapOwner):
                batch.attempt(position, operation, partial(self._make_tap, batch))

    def _make_tap(self, batch: Batch, position: int, operation: TapCreate | TapOwner) -> None:
        if isinstance(operation, TapCreate):
            index = batch.index_of(operation.name)
            taps.create(self._namespace, operation, index, partial(self._mark, operation, index))
        else:
            batch.check_tap_owner(operation)
            taps.set_holder(self._namespace, operation)
        batch.expect_tap(position, operation)

    def _mark(self, operation: TapCreate, index: int) -> None:
        failure = self._writer.batch([encode.set_alias(index, operation.alias)])[0]
        if failure is not None:
            raise explain(operation, failure.errno, failure.text)

    def _send(self, batch: Batch) -> None:
        steps = compile_batch(batch)
        if not steps:
            return
        new = [step.request for step in steps if step.phase < Phase.ADDRESS_DELETE or not batch.awaited]
        old = [step.request for step in steps[len(new) :]]
        moves = any(isinstance(operation, AddressesMove) for operation in batch.operations)
        renewed = [o.name for o in batch.operations if isinstance(o, LinkSet) and o.mac is not None]
        with announced(self._namespace, renewed), _undisturbed() if moves else contextlib.nullcontext():
            failures = self._writer.batch(new)
        if old:
            self._await_local_routes(batch.awaited)
            failures += self._writer.batch(old)
        unmarked = batch.unmarked(failures)
        if unmarked:
            self._writer.batch([encode.delete_link(index) for index in unmarked])
        batch.take(failures)

    def _await_local_routes(self, awaited: set[tuple[int, bytes]]) -> None:
        """A work queue of the kernel gives a new address of IPv6 its local route: before that nobody hears at it."""
        deadline = time.monotonic() + LOCAL_ROUTE_SECONDS
        while not awaited <= local_routes(self._writer.dump(GETROUTE, LOCAL_ROUTES).bodies):
            if time.monotonic() > deadline:
                return  # a few packets are lost; what is there afterwards is looked at in any case
            time.sleep(0.001)

    def _delete_bridge(self, operation: LinkDelete) -> KvmdError | None:
        """Delete one bridge after another look, not sooner than 0.25 s after the one before."""
        while True:
            with self._lock:
                wait = self._next_bridge_delete - time.monotonic()
                if wait <= 0:
                    try:
                        return self._delete_bridge_now(operation)
                    except KvmdError as error:
                        return error
                    finally:
                        self._next_bridge_delete = time.monotonic() + BRIDGE_DELETE_PAUSE_SECONDS
            time.sleep(wait)

    def _delete_bridge_now(self, operation: LinkDelete) -> KvmdError | None:
        now = self._reader.read()
        check_removable(operation, now)
        check_without_ports(operation, now)
        failure = self._writer.batch([encode.delete_link(operation.index)])[0]
        if failure is not None:
            return explain(operation, failure.errno, failure.text)
        if operation.index in self._reader.read().by_index:
            return Retry(
                f"the kernel acknowledged but did not {operation.describe()}",
                hint=f"kvmd looks again; to look: ip -d link show {operation.name}",
            )
        return None
