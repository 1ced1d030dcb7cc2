"""A look at libvirt never takes for present what it knows to be older than what was asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("libvirt")

from kvmd.host.libvirtd import facts as libvirt_facts
from kvmd.host.libvirtd import reader as libvirt_reader
from kvmd.host.libvirtd.facts import LibvirtFacts
from kvmd.host.libvirtd.reader import Capabilities, Stale
from kvmd.host.libvirtd.stuck import Reading
from kvmd.host.links.ports import ports_of
from kvmd.observed import Key, Link, Ports
from kvmd.settings import Libvirt


class SlowReader:
    """Answers when it is told to, and remembers what it was asked for."""

    def __init__(self, *_given: Any) -> None:
        self.domains: dict[str, Any] = {}
        self.networks: dict[str, Any] = {}
        self.pools: dict[str, Any] = {}
        self.capabilities = Capabilities()
        self.relisted = time.monotonic()
        self.reading: Reading | None = None
        self.held: set[str] = set()
        self.asked: list[set[str]] = []
        self.may_answer = threading.Semaphore(0)

    def refresh(self, stale: Stale) -> None:
        self.asked.append(set(stale.domains))
        self.may_answer.acquire()


def asked_first(monkeypatch: pytest.MonkeyPatch, wake: Callable[[], None]) -> tuple[LibvirtFacts, Any]:
    """The facts and their reader, which has been asked: that happens before anybody looks."""
    monkeypatch.setattr(libvirt_facts, "Reader", SlowReader)
    facts = LibvirtFacts(Libvirt(), None, wake)  # type: ignore[arg-type]
    reader: Any = facts._reader
    wait_for(lambda: len(reader.asked) == 1)
    return facts, reader


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5.0
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)


def test_what_is_still_being_read_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    woken = threading.Event()
    facts, reader = asked_first(monkeypatch, woken.set)
    reader.may_answer.release()
    assert facts.look(5.0)[2] is None

    facts.mark_stale("domain", "first")
    assert facts.look(0.01)[2] is not None  # the cycle goes on without that answer
    facts.mark_stale("domain", "second")
    assert facts.look(0.01)[2] is not None
    reader.may_answer.release()
    assert woken.wait(5.0)
    wait_for(lambda: len(reader.asked) == 3)
    assert reader.asked[1:] == [{"first"}, {"second"}]

    # Nothing is stale any more, but "second" is still being read: the facts of before are not the present ones.
    woken.clear()
    assert facts.look(0.01)[2] is not None
    reader.may_answer.release()
    assert woken.wait(5.0)
    assert facts.look(5.0)[2] is None


def test_a_macvtap_is_known_by_what_it_stands_on_and_by_its_guest() -> None:
    live = """<domain><devices>
      <interface type='direct'><source dev='v100' mode='bridge'/><target dev='macvtap0'/></interface>
      <interface type='bridge'><source bridge='br0'/><target dev='vnet0'/></interface>
      <interface type='user'/>
    </devices></domain>"""
    plugged = {below: ((own, "web"),) for below, own in libvirt_reader._ports(live)}
    # What was macvtap1 of a guest and is now somebody else's is no guest's; a TAP is a port only where it says so.
    links = [
        Link("macvtap0", 5, "macvtap", parent="v100"),
        Link("macvtap1", 6, "macvtap", parent="v100"),
        Link("vnet0", 7, "tun", master="br0"),
    ]
    found = ports_of(links, plugged, {})
    assert found == {
        Key("ports", "v100"): Ports("v100", above=(("macvtap0", "web"), ("macvtap1", ""))),
        Key("ports", "br0"): Ports("br0", (("vnet0", "web"),), ("vnet0",)),
    }
    again = ports_of(links, plugged, found)
    assert all(again[key] is fact for key, fact in found.items())


def test_a_guest_that_is_held_is_looked_at_again_soon_without_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirt_facts, "AGAIN_SECONDS", 0.01)
    woken = threading.Event()
    facts, reader = asked_first(monkeypatch, woken.set)
    reader.may_answer.release()
    assert facts.look(5.0)[2] is None
    facts.mark_stale("domain", "stuck")
    reader.held = {"stuck"}
    for _ in range(2):
        woken.clear()
        reader.may_answer.release()
        assert facts.look(5.0)[2] is None, "the others are known"
        assert woken.wait(5.0), "nothing else would wake the loop"
    assert reader.asked[1:] == [{"stuck"}, {"stuck"}]


def test_a_reader_that_one_guest_keeps_waiting_is_replaced_sooner_than_a_libvirt_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    woken = threading.Event()
    facts, first = asked_first(monkeypatch, woken.set)
    first.reading = Reading("stuck", time.monotonic(), 0.05)
    error = facts.look(0.01)[2]
    assert error is not None and "virsh domcontrol stuck" in str(error)
    assert woken.wait(5.0), "nothing else would wake the loop"
    facts.look(0.01)
    assert facts._reader is not first
