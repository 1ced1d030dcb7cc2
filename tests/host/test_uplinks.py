"""Uplinks that carry addresses, on the real kernel: moved without a loss, and put back exactly where it goes wrong.

KVMD_TEST_MOVES sets how often the move under traffic is made (a campaign: 50).
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from mortal import dies_before
from traffic import Probes, Stream
from uplink import Cable, back_again, cable, onto_bridge, run

from kvmd.daemon.assembly import Assembly, assemble
from kvmd.errors import Refused, Retry
from kvmd.host.checkpoint import watchdog_start
from kvmd.host.checkpoint.guarded import Checkpoints
from kvmd.host.checkpoint.journal import ROLLED_BACK, CheckpointFiles, Entry
from kvmd.host.checkpoint.watchdog_start import Watchdog
from kvmd.host.links.kernel import Links
from kvmd.observed import Checkpoint, Key
from kvmd.ops import Guarded, LinkDelete
from kvmd.settings import Settings

MOVES = int(os.environ.get("KVMD_TEST_MOVES", "1"))
MOST_LOST = 5  # of some 4,000
LONGEST_GAP = 0.1  # seconds
LONGEST_STALL = 0.3  # of a stream, beyond what one beside it sees: threads of a busy machine wait for their turn too

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces: run pytest as root"),
]


class Figures:
    """What traffic saw of moves: datagrams lost and the longest gap, by way and family, and how late a stream got."""

    def __init__(self) -> None:
        self.lost: dict[str, list[int]] = {}
        self.gap, self.late = 0.0, [0.0]

    @contextmanager
    def during(self, wire: Cable, way: str) -> Iterator[None]:
        """Probes both ways and a stream, by IPv4 and by IPv6, beside a stream that nothing is done to."""
        to, back = ("192.0.2.1", "2001:db8::1"), ("192.0.2.5", "2001:db8::5")
        out = [Probes(wire.net, wire.gateway, address) for address in to]
        into = [Probes(wire.gateway, wire.net, address) for address in back]
        streams = [Stream(wire.net, wire.gateway, address) for address in to]
        beside = Stream(wire.gateway, wire.gateway, "127.0.0.1")
        with ExitStack() as running:
            for traffic in (*out, *into, *streams, beside):
                running.enter_context(traffic)
            time.sleep(0.5)
            yield
            time.sleep(1.3)  # what is looked for is a loss afterwards
        for family, *pair in zip(("IPv4", "IPv6"), out, into, strict=True):
            self.lost.setdefault(f"{way} {family}", []).append(sum(probes.lost for probes in pair))
        self.gap = max(self.gap, *(probes.gap for probes in (*out, *into)))
        for stream in streams:
            assert stream.broken == "" and stream.received == stream.sent
            self.late.append(stream.latest - beside.latest)

    def __str__(self) -> str:
        lost = "; ".join(f"{way} {sorted(found)}" for way, found in self.lost.items())
        return f"lost: {lost}; gap {self.gap * 1000:.0f} ms; a stream late by {max(self.late) * 1000:.0f} ms at most"


def persist(checkpoints: Checkpoints, operation: Guarded) -> None:
    """Try again as kvmd does: on a busy machine a watchdog may start too late, and then nothing is changed."""
    for _ in range(5):
        try:
            return checkpoints.execute(operation)
        except Retry as error:
            last = error
    raise last


def there_and_back(wire: Cable, state: Path, figures: Figures) -> None:
    """Move onto the bridge and back under traffic."""
    links = Links(wire.net.path)
    checkpoints = Checkpoints(str(state), links, wire.net.path)
    before, index = wire.state(), wire.index("eno1")
    with figures.during(wire, "there"):
        persist(checkpoints, onto_bridge(index))
    assert not checkpoints.files.entries()
    assert_moved(wire)
    with figures.during(wire, "back"):
        persist(checkpoints, back_again(index, wire.index("br0")))
    assert not checkpoints.files.entries()
    bridge = links.observe()[0][Key("link", "br0")]
    assert links.execute([LinkDelete("br0", bridge.index, bridge.alias)]) == [None]
    assert wire.state() == before
    links.close()


def assert_moved(wire: Cable) -> None:
    """All of it is on the bridge, as it was on the NIC."""
    assert wire.net.addresses("eno1") == []
    assert wire.net.addresses("br0") == ["192.0.2.5/24", "192.0.2.6/24", "2001:db8::6/64", "2001:db8::5/64"]
    labels = {a["local"]: a.get("label") for a in wire.net.json("addr show dev br0")[0]["addr_info"]}
    assert labels["192.0.2.6"] == "br0:1"
    text = wire.net.ip("route show table all dev br0") + wire.net.ip("-6 route show table all dev br0")
    for route in (
        "default via 192.0.2.1 proto static src 192.0.2.5 metric 100",
        "198.51.100.0/24 via 192.0.2.1 metric 7",
        "203.0.113.0/24 proto static scope link mtu 1400",
        "default via 192.0.2.1 table 77",
        "default via 2001:db8::1 proto static metric 300",
        "2001:db8:1::/48 via 2001:db8::1 metric 1024",
    ):
        assert route in text
    assert wire.net.ip("route show dev eno1") == ""


def is_moved(wire: Cable) -> bool:
    """The same as an answer."""
    try:
        assert_moved(wire)
    except (AssertionError, subprocess.CalledProcessError):
        return False
    return True


def test_address_and_default_route_move_there_and_back_without_a_loss(tmp_path: Path) -> None:
    figures = Figures()
    for number in range(MOVES):
        with cable() as wire:
            there_and_back(wire, tmp_path / str(number), figures)
        print(figures)
    lost = [count for counts in figures.lost.values() for count in counts]
    assert statistics.median(lost) == 0
    assert max(lost) <= MOST_LOST
    assert figures.gap <= LONGEST_GAP
    assert max(figures.late) <= LONGEST_STALL


def assert_put_back(wire: Cable, state: Path, before: str, why: str) -> None:
    """As it was, and remembered as not to be tried again."""
    files = CheckpointFiles(str(state))
    wire.wait(lambda: any(entry.state == ROLLED_BACK for entry in files.entries()), 30.0)
    assert wire.state() == before
    fact = Checkpoints(str(state), Links(wire.net.path)).facts[Key("checkpoint", "Bridge/br0")]
    assert isinstance(fact, Checkpoint)
    assert (fact.state, fact.spec_hash) == (ROLLED_BACK, "1")
    assert why in fact.why


@pytest.mark.shows("Bridge", "safety.probe.defaultGateway")
def test_a_lost_default_route_is_put_back(tmp_path: Path) -> None:
    with cable() as wire:
        before = wire.state()
        answer = run(wire.net, tmp_path, die="lose the route").communicate(timeout=60)[0]
        assert "Refused" in answer and "default route through 192.0.2.1 is gone" in answer
        assert_put_back(wire, tmp_path, before, "default route")


def test_a_bridge_whose_stp_blocks_is_put_back(tmp_path: Path) -> None:
    with cable() as wire:
        before = wire.state()
        answer = run(wire.net, tmp_path, stp=True, patience=2.0).communicate(timeout=60)[0]
        assert "the gateway 192.0.2.1 does not answer" in answer or "2001:db8::1 does not answer" in answer
        assert_put_back(wire, tmp_path, before, "does not answer")


@pytest.mark.parametrize("die", ["apply", "verify", *(f"middle {count}" for count in (3, 14, 26))])
def test_the_watchdog_puts_back_what_a_killed_kvmd_left(tmp_path: Path, die: str) -> None:
    with cable() as wire:
        before = wire.state()
        process = run(wire.net, tmp_path, die=die)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        assert_put_back(wire, tmp_path, before, "kvmd ended")


def test_killed_before_any_effect_of_the_change_it_is_put_back(tmp_path: Path) -> None:
    """Each batch and each step of making its file durable; in a campaign all of them, else every fifth."""
    kills = 0
    with cable() as wire:
        before, index = wire.state(), wire.index("eno1")
        for last in itertools.count(0, 1 if MOVES >= 50 else 5):
            state = tmp_path / str(last)
            checkpoints = Checkpoints(str(state), Links(wire.net.path), wire.net.path)
            dead = dies_before(last, partial(checkpoints.execute, onto_bridge(index)))
            kills += dead
            checkpoints.recover()  # the next kvmd, or the watchdog, where there was one and it was faster
            if not dead or ("br0" in wire.net.links() and not checkpoints.files.entries()):
                break  # it was confirmed
            assert wire.state() == before, last
        assert_moved(wire)
    print(f"{kills} kills")


def test_killed_before_any_effect_of_putting_back_the_next_goes_on(tmp_path: Path) -> None:
    """One process after the other dies at it, each one request later than the one before it."""
    with cable() as wire:
        before = kill_both(wire, tmp_path)
        for last in itertools.count():
            recover = Checkpoints(str(tmp_path), Links(wire.net.path)).recover
            if not dies_before(last, recover, parts=True):
                break
        assert last > 3
        assert_put_back(wire, tmp_path, before, "kvmd ended")


@pytest.mark.parametrize("die", ["begin", "arm"])
def test_killed_before_the_first_change_nothing_was_changed(tmp_path: Path, die: str) -> None:
    with cable() as wire:
        before = wire.state()
        run(wire.net, tmp_path, die=die).communicate(timeout=60)
        assert wire.state() == before
        checkpoints = Checkpoints(str(tmp_path), Links(wire.net.path))
        checkpoints.recover()
        assert not checkpoints.files.entries() and wire.state() == before


@pytest.mark.shows("Bridge", "safety.rollbackAfterSeconds")
def test_the_watchdog_puts_back_what_a_stopped_kvmd_does_not_confirm(tmp_path: Path) -> None:
    with cable() as wire:
        before = wire.state()
        process = run(wire.net, tmp_path, die="wait", rollback_after=3.0)
        try:
            wire.wait(lambda: "br0" in wire.net.links())
            assert_put_back(wire, tmp_path, before, "not confirmed in time")
        finally:
            process.kill()
            process.wait()


def kill_both(wire: Cable, state: Path) -> str:
    """A kvmd and its watchdog killed after the change; the state before it."""
    before = wire.state()
    process = run(wire.net, state, die="wait")
    assert process.stdout is not None
    watchdog = int(process.stdout.readline())
    wire.wait(lambda: "br0" in wire.net.links() and not wire.net.addresses("eno1"))
    os.kill(watchdog, signal.SIGKILL)
    process.kill()
    process.wait()
    process.stdout.close()
    assert wire.state() != before
    return before


def test_the_next_start_puts_back_what_killed_both_kvmd_and_watchdog(tmp_path: Path) -> None:
    with cable() as wire:
        before = kill_both(wire, tmp_path)
        told = Checkpoints(str(tmp_path), Links(wire.net.path)).recover()
        assert "rolled back" in told[0]
        assert_put_back(wire, tmp_path, before, "kvmd ended")


def test_after_a_boot_nothing_is_put_back_but_nothing_is_tried_again(tmp_path: Path) -> None:
    with cable() as wire:
        before = wire.state()
        kill_both(wire, tmp_path)
        file = tmp_path / "checkpoints" / "Bridge-br0.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "boot": "another"}))
    with cable() as wire:  # the machine as its own configuration makes it
        fresh = wire.state()
        told = Checkpoints(str(tmp_path), Links(wire.net.path)).recover()
        assert "started anew" in told[0]
        assert wire.state() == fresh
        assert_put_back(wire, tmp_path, fresh, "kvmd ended")
        assert len(before) > 0


SYSTEMD_RUN = """#!/bin/sh
echo "$@" >> {folder}/said
[ -e {folder}/works ] || exit 1
while [ "$1" != -- ]; do shift; done
shift
exec "$@"
"""


def test_the_watchdog_is_in_no_unit_of_kvmd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scope of its own where systemd runs and makes one, else a session of its own."""
    tool, isdir, seen = tmp_path / "systemd-run", os.path.isdir, []
    tool.write_text(SYSTEMD_RUN.format(folder=tmp_path))
    tool.chmod(0o755)

    class Watched(Checkpoints):
        def _arm(self, entry: Entry) -> Watchdog:
            watchdog = super()._arm(entry)
            assert watchdog._process is not None
            seen.append((watchdog._process.pid, os.getsid(watchdog._process.pid), watchdog._process.args))
            return watchdog

    with cable() as wire:
        checkpoints = Watched(str(tmp_path / "state"), Links(wire.net.path), wire.net.path)
        index = wire.index("eno1")
        monkeypatch.setattr(watchdog_start.shutil, "which", lambda _: str(tool))
        monkeypatch.setattr(os.path, "isdir", lambda path: path == "/run/systemd/system" or isdir(path))
        checkpoints.execute(onto_bridge(index))
        (tmp_path / "works").touch()
        checkpoints.execute(back_again(index, wire.index("br0")))
    assert all(pid == session for pid, session, _ in seen)
    assert [words[0] for _, _, words in seen] == [sys.executable, str(tool)]
    lines = (tmp_path / "said").read_text().splitlines()
    assert len(lines) == 2
    for line in lines:
        assert re.match(r"--scope --quiet --collect --unit=kvmd-checkpoint-\w{12} --description=.* -- ", line)


@pytest.mark.shows("Bridge", "safety.probe.addresses")
def test_a_probe_that_does_not_answer_even_before_changes_nothing(tmp_path: Path) -> None:
    with cable() as wire:
        before = wire.state()
        checkpoints = Checkpoints(str(tmp_path), Links(wire.net.path), wire.net.path)
        with pytest.raises(Refused, match=r"192\.0\.2\.99 of safety"):
            checkpoints.execute(onto_bridge(wire.index("eno1"), probes=("192.0.2.1", "192.0.2.99")))
        assert wire.state() == before and not checkpoints.files.entries()
        checkpoints.execute(onto_bridge(wire.index("eno1"), probes=("192.0.2.1", "2001:db8::1")))
        assert_moved(wire)


@pytest.mark.parametrize("rule", ["rule add iif eno1 table 77", "-6 rule add oif eno1 table 77"])
def test_a_routing_rule_that_names_the_uplink_is_not_left_behind(tmp_path: Path, rule: str) -> None:
    with cable() as wire:
        wire.net.ip(rule)
        before = wire.state()
        checkpoints = Checkpoints(str(tmp_path), Links(wire.net.path), wire.net.path)
        with pytest.raises(Refused, match=r"a routing rule says [io]if eno1"):
            checkpoints.execute(onto_bridge(wire.index("eno1")))
        assert wire.state() == before and not checkpoints.files.entries()


SPEC = """
apiVersion: kvmd.dev/v1alpha1
kind: Bridge
metadata: {name: br0}
spec: {uplinks: [{name: eno1}], addresses: {from: Uplink}%s}
"""


@pytest.mark.shows("Bridge", "uplinks[].name", "addresses.from", "mtu")
def test_from_a_file_to_the_bridge_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way: a saved file, a change of it, a rest without a plan, and its removal."""
    specs, state = tmp_path / "specs", tmp_path / "state"
    specs.mkdir()
    settings = Settings.model_validate(
        {
            "source": {"path": str(specs), "settle": "20ms"},
            "libvirt": {"uri": "test:///default"},
            "paths": {"state": str(state), "cache": str(tmp_path / "cache"), "run": str(tmp_path / "run")},
            "prune": {"grace": "100ms", "maxPercent": 100},
        }
    )
    with cable() as wire:
        assembly = assemble(settings, namespace=wire.net.path)
        observe = assembly.host.observe
        # libvirt has no part in this, and without it nothing would be removed.
        monkeypatch.setattr(assembly.host, "observe", lambda *words: replace(observe(*words), missing=frozenset()))

        def until(condition: Callable[[], bool]) -> None:
            wire.wait(lambda: condition() if assembly.reconciler.cycle() else False, 60.0)

        try:
            (specs / "other.yaml").write_text(SPEC.replace("br0", "br9").replace("{name: eno1}", "") % "")
            until(lambda: ready(assembly) and "NO-CARRIER" in wire.state())
            before = wire.state()
            (specs / "br0.yaml").write_text(SPEC % "")
            until(lambda: ready(assembly) and "br0" in wire.net.links())
            assert_moved(wire)
            until(lambda: assembly.executor.idle)  # what is harmed while it is still being proven is put back
            assert assembly.reconciler.cycle().plan.empty
            for harm in ("link del br0", "link set br0 down", "addr flush dev br0", "route del default dev br0"):
                wire.net.ip(harm)
                until(lambda: ready(assembly) and is_moved(wire))
                assert_moved(wire)
            (specs / "br0.yaml").write_text(SPEC % ", mtu: 1400")
            until(lambda: ready(assembly) and wire.net.links()["br0"]["mtu"] == 1400)
            assert_moved(wire)
            (specs / "br0.yaml").unlink()
            until(lambda: "br0" not in wire.net.links())
            assert wire.state() == before
        finally:
            assembly.executor.stop(10)
            assembly.close()


def ready(assembly: Assembly) -> bool:
    """True where everything is as its spec asks."""
    return all(item.ready for item in assembly.reconciler.cycle(act=False).plan.objects.values())
