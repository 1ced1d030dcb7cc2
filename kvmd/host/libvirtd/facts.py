"""Facts of libvirt: domains, networks and pools; kept between looks, stale by events, listed now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import cast

from kvmd.errors import BackendUnavailable, KvmdError
from kvmd.host.libvirtd.connection import Recorder
from kvmd.host.libvirtd.reader import Capabilities, Reader, Stale
from kvmd.host.libvirtd.stuck import AGAIN_SECONDS
from kvmd.host.links.ports import Plugged
from kvmd.identity import kept
from kvmd.observed import Fact, Key
from kvmd.settings import Libvirt


class LibvirtFacts:
    """The facts of the last answer, and the thread that gets the next one."""

    def __init__(self, settings: Libvirt, recorder: Recorder, wake: Callable[[], None]) -> None:
        self._settings, self._recorder, self._wake = settings, recorder, wake
        self._lock = threading.Condition()
        self._stale = Stale()
        self._requested = 1  # libvirt is asked at once, while the specs are still being read
        self._answered = 0
        self._late = False  # somebody went on without the answer and must be woken by it
        self._busy_since: float | None = None
        self._later: threading.Timer | None = None
        self._error: KvmdError | None = BackendUnavailable("libvirt was not asked yet")
        self._facts: Mapping[Key, Fact] = {}
        self._ports: Plugged = {}
        self.holders: Mapping[str, tuple[str, ...]] = {}  # the domains that name a file
        with self._lock:  # a reader asks whether it still is the one: not before it is named
            self._reader = self._new_reader(None)

    @property
    def capabilities(self) -> Capabilities:
        """What libvirt said of itself when it was last connected to."""
        return self._reader.capabilities

    # ------------------------------------------------------------------------------ seen from the cycle

    def look(self, patience: float) -> tuple[Mapping[Key, Fact], Plugged, KvmdError | None]:
        """Refresh what is stale; facts, guests' links by what is below, and what went wrong.

        Waits at most *patience* seconds, and not again until the answer that did not come in time is there.
        """
        with self._lock:
            if time.monotonic() - self._reader.relisted > self._settings.relist:
                self._stale.everything = True
            # What was asked for before and gone on without is still being read: the facts are older than that.
            reading = self._requested > self._answered
            news = bool(self._stale) or (self._error is not None and not reading)
            if news or reading:
                self._requested += news
                wanted = self._requested
                self._lock.notify_all()
                if not self._lock.wait_for(lambda: self._answered >= wanted, 0 if self._late else patience):
                    self._late = True
                    self._replace_stuck_reader()
                    return self._facts, self._ports, self._unanswered(patience)
            return self._facts, self._ports, self._error

    def _unanswered(self, patience: float) -> KvmdError:
        """What is said of an answer that has not come; one guest may be what keeps it (lock held)."""
        reading = self._reader.reading
        if reading is None:
            return BackendUnavailable(f"libvirt has not answered for {patience:g} s", hint="see: virsh list --all")
        self._call_later(max(0.0, reading.since + reading.limit - time.monotonic()) + 0.01, self._wake)
        text = f"domain {reading.name} is held by a call that does not end; libvirt gives its definition after that"
        return BackendUnavailable(text, hint=f"see: virsh domcontrol {reading.name}")

    def mark_stale(self, kind: str, uuid: str) -> None:
        """That object may have changed; "" means any of its kind."""
        with self._lock:
            if not uuid:
                self._stale.everything = True
            else:
                tables = {"domain": self._stale.domains, "network": self._stale.networks, "pool": self._stale.pools}
                tables[kind].add(uuid)

    # ------------------------------------------------------------------------------------ reader thread

    def _new_reader(self, before: Reader | None) -> Reader:
        reader = Reader(self._settings, self._recorder, self._on_event, self._on_close, before)
        threading.Thread(target=self._read_for_ever, args=(reader,), name="libvirt-facts", daemon=True).start()
        return reader

    def _replace_stuck_reader(self) -> None:
        """Give up a reader that hangs in one call for longer than keepalive takes to notice (lock held)."""
        limit: float = self._settings.keepalive_interval * (self._settings.keepalive_count + 1) + 5
        since, reading = self._busy_since, self._reader.reading
        if reading is not None:
            since, limit = reading.since, reading.limit
        if since is not None and time.monotonic() - since > limit:
            self._busy_since = None
            self._stale.everything = True
            self._reader = self._new_reader(self._reader)

    def _read_for_ever(self, reader: Reader) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._requested > self._answered or self._reader is not reader)
                if self._reader is not reader:
                    return
                wanted, stale, self._stale = self._requested, self._stale, Stale(everything=False)
                self._busy_since = time.monotonic()
            error = reader.refresh(stale)
            with self._lock:
                if self._reader is not reader:
                    return
                late = self._take(error, wanted)
            if late:
                self._wake()

    def _take(self, error: KvmdError | None, wanted: int) -> bool:
        """An answer is there (lock held); True where somebody no longer waits for it."""
        self._busy_since = None
        self._error = error
        if error is not None:
            self._stale.everything = True
        elif self._reader.held:
            self._call_later(AGAIN_SECONDS, partial(self._look_again_at, frozenset(self._reader.held)))
        self._answered = max(self._answered, wanted)
        self._publish()
        self._lock.notify_all()
        late, self._late = self._late, False
        return late

    def _look_again_at(self, held: frozenset[str]) -> None:
        for uuid in held:
            self.mark_stale("domain", uuid)
        self._wake()

    def _call_later(self, seconds: float, call: Callable[[], None]) -> None:
        """One call at a time: the last that was asked for (lock held)."""
        if self._later is not None:
            self._later.cancel()
        self._later = threading.Timer(seconds, call)
        self._later.daemon = True
        self._later.start()

    def _on_event(self, kind: str, uuid: str) -> None:
        self.mark_stale(kind, uuid)
        self._wake()

    def _on_close(self) -> None:
        self.mark_stale("", "")
        self._wake()

    def _publish(self) -> None:
        """Rebuild the tables, keeping every object (and the whole) where nothing changed (lock held)."""
        facts: dict[Key, Fact] = {}
        plugged: dict[Key, list[tuple[str, str]]] = {}
        for entry in self._reader.domains.values():
            facts[Key("domain", entry.fact.name)] = entry.fact
            for below, own in entry.ports:
                plugged.setdefault(below, []).append((own, entry.fact.name))
            for snapshot in entry.snapshots:
                key, fact = Key("snapshot", snapshot.name), cast(Fact, snapshot)
                facts[key] = kept(self._facts.get(key), fact)
        for entry in self._reader.networks.values():
            facts[Key("network", entry.fact.name)] = entry.fact
        holders: dict[str, list[str]] = {}
        for entry in self._reader.domains.values():
            for path in entry.files:
                holders.setdefault(path, []).append(entry.fact.name)
        self.holders = {path: tuple(sorted(names)) for path, names in holders.items()}
        for entry in self._reader.pools.values():
            facts[Key("pool", entry.fact.name)] = entry.fact
        if facts.keys() != self._facts.keys() or any(facts[key] is not self._facts[key] for key in facts):
            self._facts = facts
            self._ports = {below: tuple(sorted(found)) for below, found in plugged.items()}
