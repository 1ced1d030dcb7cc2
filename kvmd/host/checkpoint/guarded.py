"""Changes that could cut the host off: recorded, watched, proven, confirmed, or else put back exactly.

At every instant one of two things holds. The file of the checkpoint is not armed: the change is not begun, or proven.
Or it is armed: whoever comes first of this process, the watchdog and the next kvmd puts everything back.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Mapping
from dataclasses import replace

from kvmd.errors import KvmdError, Refused, Retry
from kvmd.host.checkpoint.journal import ARMED, MOVED, ROLLED_BACK, CheckpointFiles, Entry, boot_id
from kvmd.host.checkpoint.neighbours import Neighbours
from kvmd.host.checkpoint.record import boot_seconds
from kvmd.host.checkpoint.watchdog_start import Watchdog
from kvmd.host.links.facts import parse_address, parse_route
from kvmd.host.links.kernel import Links
from kvmd.observed import Checkpoint, Fact, Key, Moved
from kvmd.ops import AddressesMove, BridgeCreate, Guarded

BEFORE_SECONDS = 3.0  # a gateway that does not answer for so long does not have to afterwards
MARGIN_SECONDS = 1.0  # before the deadline of the watchdog, which must not find us at it


class Checkpoints:
    """The checkpoints of one kvmd; one at a time."""

    def __init__(self, state: str, links: Links, namespace: str | None = None) -> None:
        self.files = CheckpointFiles(state)
        self.moves = CheckpointFiles(state, "moved")
        self._links, self._namespace = links, namespace
        self._lock = threading.Lock()
        self.facts: Mapping[Key, Fact] = {}
        self._publish()

    def recover(self) -> list[str]:
        """At the start: put back what nobody confirmed; says what was done. The caller holds the lock of the host."""
        told = []
        with self._lock:
            for entry in self.files.entries():
                if entry.state == ARMED:
                    told.append(self._roll_back(entry, "kvmd ended before it was confirmed"))
            self._publish()
        return [text for text in told if text]

    def execute(self, operation: Guarded) -> None:
        """Carry out the operations and prove them.

        Raises Refused after they were put back, or before where one of them may not be done; Retry before.
        """
        with self._lock:
            self._links.check(operation.operations)
            neighbours = self._links.neighbours()
            try:
                before = self._who_answers(operation, neighbours)
                entry = self._begin(operation)
                with self._arm(entry):
                    self._carry_out(operation, entry, neighbours, before)
                self._remember(operation)
            except OSError as error:
                raise Retry(
                    f"no checkpoint can be made in {self.files.folder}: {error.strerror}", hint="make room there"
                ) from error
            finally:
                neighbours.close()
                self._publish()

    def _carry_out(self, operation: Guarded, entry: Entry, neighbours: Neighbours, before: list[str]) -> None:
        try:
            self._apply(operation, entry)
            self._verify(operation, entry, neighbours, before)
            self._confirm(entry)
        except (KvmdError, OSError) as error:
            told = self._roll_back(entry, getattr(error, "message", str(error)))
            if not told and isinstance(error, Retry):
                self.files.remove(entry.object)  # it had not begun
                raise
            raise Refused(
                f"{operation.object}: {told or error}",
                hint=f"it is not tried again until the spec changes, or: kvmd approve {operation.object}",
            ) from error

    def _who_answers(self, operation: Guarded, neighbours: Neighbours) -> list[str]:
        """The gateways that answer now. Raises Refused where a probe of the spec does not even now."""
        silent = neighbours.echoes(operation.probes, BEFORE_SECONDS) if operation.probes else []
        if silent:
            raise Refused(
                f"{operation.object}: {', '.join(silent)} of safety.probe.addresses does not answer even now, so "
                "nothing could be proven",
                hint=f"see: ping {silent[0]}",
            )
        if not operation.default_gateway:
            return []
        gateways = neighbours.gateways().items()
        return [gateway for gateway, index in gateways if neighbours.answers(gateway, index, BEFORE_SECONDS)]

    def _begin(self, operation: Guarded) -> Entry:
        """Record what is, durably, before the first change."""
        names = [name for act in operation.operations for name in (act.name, getattr(act, "source", "")) if name]
        created = [(act.name, act.alias) for act in operation.operations if isinstance(act, BridgeCreate)]
        record = self._links.record(names, created)
        if taken := {state.name for state in record.links} & {name for name, _ in created}:
            raise Retry(f"{operation.object}: {', '.join(taken)} is there already", hint="kvmd plans again")
        deadline = boot_seconds() + operation.rollback_after
        entry = Entry(
            uuid.uuid4().hex,
            operation.object,
            operation.spec_hash,
            ARMED,
            boot_id(),
            deadline,
            "",
            record,
        )
        self.files.write(entry)
        return entry

    def _arm(self, entry: Entry) -> Watchdog:
        """Nothing is changed before the watchdog says that it watches."""
        try:
            return Watchdog(self.files.folder, entry.object, entry.id, self._namespace)
        except (OSError, Retry):
            self.files.remove(entry.object)
            raise

    def _apply(self, operation: Guarded, entry: Entry) -> None:
        with self.files.decision():
            self._still_armed(entry)
            errors = [error for error in self._links.execute(operation.operations) if error is not None]
        if errors:
            raise errors[0]

    def _verify(self, operation: Guarded, entry: Entry, neighbours: Neighbours, before: list[str]) -> None:
        """Who answered before answers now; a static gateway of the spec stands for the one that it replaces."""
        gateways = {act.gateway for act in operation.operations if isinstance(act, AddressesMove) and act.gateway}
        until = min(boot_seconds() + operation.patience, entry.deadline - MARGIN_SECONDS)
        for gateway in gateways or before:
            index = neighbours.gateways().get(gateway)
            if index is None:
                raise Refused(f"the default route through {gateway} is gone")
            if not neighbours.answers(gateway, index, max(0.0, until - boot_seconds())):
                raise Refused(f"the gateway {gateway} does not answer any more")
        if operation.probes:
            silent = neighbours.echoes(operation.probes, max(0.0, until - boot_seconds()))
            if silent:
                raise Refused(f"{', '.join(silent)} does not answer any more")

    def _confirm(self, entry: Entry) -> None:
        with self.files.decision():
            self._still_armed(entry)
            self.files.remove(entry.object)

    def _remember(self, operation: Guarded) -> None:
        """What is proven on the bridge now, so that it can be put back where somebody deletes the bridge."""
        moves = [act for act in operation.operations if isinstance(act, AddressesMove)]
        if moves and moves[-1].name != operation.name:  # back to its uplink
            self.moves.remove(operation.object)
        elif moves:
            record = self._links.record([operation.name], ())
            self.moves.write(
                Entry(uuid.uuid4().hex, operation.object, operation.spec_hash, MOVED, boot_id(), 0.0, "", record)
            )

    def _still_armed(self, entry: Entry) -> None:
        """The watchdog may have been faster: this process was stopped, or the machine slept."""
        found = self.files.find(entry.object)
        if found is None or found.id != entry.id or found.state != ARMED or boot_seconds() >= entry.deadline:
            raise Refused("its time was up before it was confirmed")

    def _roll_back(self, entry: Entry, why: str) -> str:
        return roll_back(self.files, self._links, entry, why)

    def _publish(self) -> None:
        found: dict[Key, Fact] = {
            Key("checkpoint", entry.object): Checkpoint(entry.object, entry.spec_hash, entry.state, entry.why)
            for entry in self.files.entries()
        }
        boot = boot_id()  # after another one it is the machine's own configuration that says where addresses are
        found |= {Key("moved", e.object): _moved(e) for e in self.moves.entries() if e.boot == boot}
        facts = {
            key: known if (known := self.facts.get(key)) == fact and known else fact for key, fact in found.items()
        }
        if facts.keys() != self.facts.keys() or any(facts[key] is not self.facts[key] for key in facts):
            self.facts = facts


def _moved(entry: Entry) -> Moved:
    addresses = ((parse_address(body), body) for body in entry.record.addresses)
    routes = ((parse_route(body), body) for body in entry.record.routes)
    return Moved(
        entry.object,
        tuple((parsed[1], body) for parsed, body in addresses if parsed),
        tuple((parsed[1] if parsed else None, body) for parsed, body in routes),
        entry.record.taken_at,
    )


def roll_back(files: CheckpointFiles, links: Links, entry: Entry, why: str) -> str:
    """Put everything back, whoever it is that does; says what was done, "" where nothing had to be.

    It stays armed until all of it is back: whoever dies here leaves it to the next.
    """
    with files.decision():
        found = files.find(entry.object)
        if found is None or found.id != entry.id:
            return ""
        if found.state == ROLLED_BACK:
            return f"rolled back: {found.why}"
        if found.boot != boot_id():
            files.write(
                found.rolled_back(f"{why}; the machine was started anew since, so nothing had to be put back")
            )
            return f"{entry.object}: not tried again: {why}, and the machine was started anew since"
        begun, why = bool(found.why), found.why or why
        restored = links.restore(found.record, lambda: _note(files, replace(found, why=why)))
        if not restored.changed and not begun:
            files.remove(entry.object)
            return ""
        left = f"; could not be put back: {', '.join(restored.left)}" if restored.left else ""
        files.write(found.rolled_back(why + left))
        return f"rolled back: {why}{left}"


def _note(files: CheckpointFiles, entry: Entry) -> None:
    """Write down that putting back begins: who finds all of it back knows then that it was not always so."""
    with contextlib.suppress(OSError):  # a full disk must not keep the network away
        files.write(entry)
