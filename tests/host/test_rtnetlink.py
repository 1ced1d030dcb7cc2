"""The netlink layer on the real kernel, in a namespace of its own, and against broken bytes."""

from __future__ import annotations

import os
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from netns import NetNamespace, namespace

from kvmd.errors import BackendUnavailable
from kvmd.host.links import messages as encode
from kvmd.host.links.facts import LINK_DUMP, LinkMemo, Memo, name_of, parse_address, parse_route
from kvmd.host.links.monitor import LinkMonitor
from kvmd.host.links.rtnetlink import GETLINK, Namespace, RouteSocket, attributes, failure_of, messages, spans

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces: run pytest as root"),
]


@pytest.fixture
def net() -> Iterator[NetNamespace]:
    with namespace() as opened:
        yield opened


@pytest.fixture
def sock(net: NetNamespace) -> Iterator[RouteSocket]:
    where = Namespace(net.path)
    opened = RouteSocket(where)
    yield opened
    opened.close()
    where.close()


def test_a_batch_goes_on_after_an_error_and_passes_the_extended_ack(net: NetNamespace, sock: RouteSocket) -> None:
    results = sock.batch(
        [
            encode.create_bridge(70001, "br0"),
            encode.create_bridge(70002, "br0"),
            encode.set_master(70001, 70001),
            encode.set_mtu(70001, 1400),
        ]
    )
    assert [result and result.errno for result in results] == [None, 17, 40, None]
    assert results[2] is not None and "bridge" in results[2].text
    assert net.links()["br0"]["mtu"] == 1400


def test_many_requests_are_answered_one_by_one(net: NetNamespace, sock: RouteSocket) -> None:
    net.ip("link add br0 type bridge")
    index = net.links()["br0"]["ifindex"]
    results = sock.batch([encode.set_mtu(index, 1000 + number % 400) for number in range(5000)])
    assert len(results) == 5000 and set(results) == {None}


def test_a_namespace_that_is_not_there_is_not_created() -> None:
    with pytest.raises(BackendUnavailable, match="ip netns list"):
        Namespace("kvmd-no-such-namespace")
    assert not Path("/run/netns/kvmd-no-such-namespace").exists()


def test_a_dump_of_changing_links_is_retried_or_said_to_be_incomplete(net: NetNamespace, sock: RouteSocket) -> None:
    net.shell("for i in $(seq 200); do echo link add d$i type veth peer e$i; done | ip -batch -")
    stopping = threading.Event()

    def churn() -> None:
        for _ in range(20):
            if stopping.is_set():
                return
            net.shell(
                "{ for i in 1 2 3 4 5 6; do echo link add x$i type veth peer y$i; done;"
                "for i in 1 2 3 4 5 6; do echo link del x$i; done; } | ip -batch -"
            )

    thread = threading.Thread(target=churn)
    thread.start()
    for _ in range(30):
        found = sock.dump(GETLINK, LINK_DUMP)
        names = {link[1] for link in map(name_of, found.bodies) if link}
        assert not found.complete or {f"d{number}" for number in range(1, 201)} <= names
    stopping.set()
    thread.join()
    assert sock.dump(GETLINK, LINK_DUMP).complete


# -------------------------------------------------------------------------------------- broken bytes


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_parse_to_something(data: bytes) -> None:
    for message in messages(data):
        failure_of(message)
    list(attributes(data))
    name_of(data)
    LinkMemo().read([data])
    parse_address(data)
    parse_route(data)


def test_real_messages_survive_being_cut_anywhere(net: NetNamespace, sock: RouteSocket) -> None:
    net.ip("link add br0 type bridge")
    net.shell("ip tuntap add tap0 mode tap; ip link set tap0 master br0; ip link property add dev tap0 altname other")
    for body in sock.dump(GETLINK, LINK_DUMP).bodies:
        whole = name_of(body)
        assert whole is not None
        for length in range(len(body)):
            assert name_of(body[:length]) in (None, whole)
            for part in LinkMemo().read([body[:length]]):
                assert (part["index"], part["name"]) == whole
        for position in range(16, len(body) - 1, 2):  # lengths that lie
            LinkMemo().read([body[:position] + b"\xff\xff" + body[position + 2 :]])


def test_counters_do_not_make_a_link_look_changed(sock: RouteSocket) -> None:
    body = sock.dump(GETLINK, LINK_DUMP).bodies[0]
    start, end = spans(body, 16, frozenset({23}))[23]
    changed = body[:start] + b"\x07" * (end - start) + body[end:]
    memo = LinkMemo()
    before = memo.read([body])[0]
    assert body != changed and memo.read([changed])[0] is before
    up = body[:8] + struct.pack("=I", struct.unpack_from("=I", body, 8)[0] ^ 1) + body[12:]
    assert memo.read([up])[0] is not before


def test_timers_do_not_make_a_bridge_and_its_port_look_changed(net: NetNamespace, sock: RouteSocket) -> None:
    net.shell("ip link add br0 type bridge; ip tuntap add tap0 mode tap; ip link set tap0 master br0")
    bodies = sock.dump(GETLINK, LINK_DUMP).bodies[-2:]
    memo = LinkMemo()
    before = memo.read(bodies)
    for number, (data, timer, setting) in enumerate(((2, 19, 4), (5, 22, 3))):  # the timer at work; ageing time, cost

        def with_other(attribute_: int, body: bytes = bodies[number], data: int = data) -> list[bytes]:
            info = spans(body, 16, frozenset({18}))[18]
            parts = spans(body[: info[1]], info[0], frozenset({data}))[data]
            start, end = spans(body[: parts[1]], parts[0], frozenset({attribute_}))[attribute_]
            return [body[:start] + b"\x07" * (end - start) + body[end:]]

        assert with_other(timer) != [bodies[number]] and memo.read(with_other(timer))[0] is before[number]
        assert memo.read(with_other(setting))[0] != before[number]
        memo.read(bodies)
        before = memo.read(bodies)


def test_a_memo_forgets_what_is_gone() -> None:
    calls: list[bytes] = []

    def parse(body: bytes) -> bytes:
        calls.append(body)
        return body

    memo = Memo(parse)
    memo.read([b"a", b"b"])
    memo.read([b"a"])
    memo.read([b"a", b"b"])
    assert calls == [b"a", b"b", b"b"]


# ------------------------------------------------------------------------------------------- monitor


class Heard:
    """What a monitor said."""

    def __init__(self) -> None:
        self.calls: list[frozenset[str] | None] = []

    def __call__(self, names: frozenset[str] | None) -> None:
        self.calls.append(names)

    def wait_for(self, name: str | None) -> None:
        """Wait, at most 3 s, until *name* was said, and start anew."""
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            if any(call is None if name is None else call and name in call for call in list(self.calls)):
                time.sleep(0.03)
                self.calls.clear()
                return
            time.sleep(0.002)
        raise AssertionError(f"{name} was never said, only {self.calls}")


def test_the_monitor_names_what_was_touched(net: NetNamespace) -> None:
    heard = Heard()
    monitor = LinkMonitor(heard, net.path)
    monitor.start()
    try:
        net.shell("ip link add br0 type bridge; ip tuntap add tap0 mode tap")
        heard.wait_for("tap0")
        for command, name in (
            ("ip link set tap0 master br0", "tap0"),
            ("ip link set tap0 nomaster", "tap0"),
            ("ip addr add 10.9.0.1/24 dev br0", "br0"),
            ("ip link set br0 up", "br0"),
            ("ip route add 10.8.0.0/16 dev br0", "br0"),
            ("ip addr add fd00::1/64 dev br0 nodad", "br0"),
            ("ip link set tap0 name tap1", "tap0"),
            ("ip link set tap1 mtu 1400", "tap1"),
            ("ip link del tap1", "tap1"),
        ):
            heard.calls.clear()
            net.shell(command)
            heard.wait_for(name)
        assert monitor.overflows == 0
    finally:
        monitor.stop()
    assert not monitor.is_alive()


def test_leaving_a_bridge_is_not_the_end_of_a_link(net: NetNamespace) -> None:
    net.shell("ip link add br0 type bridge; ip tuntap add tap0 mode tap; ip link set tap0 master br0")
    heard = Heard()
    monitor = LinkMonitor(heard, net.path)
    monitor.start()
    try:
        net.ip("link del br0")
        heard.wait_for("tap0")
        net.ip("addr add 10.9.0.1/24 dev tap0")  # an address says only the index: the name is still known
        heard.wait_for("tap0")
    finally:
        monitor.stop()


def test_lost_events_mean_that_anything_may_have_changed(net: NetNamespace, sock: RouteSocket) -> None:
    net.ip("link add br0 type bridge")
    index = net.links()["br0"]["ifindex"]
    heard = Heard()
    busy, go_on = threading.Event(), threading.Event()

    def listen(names: frozenset[str] | None) -> None:
        heard(names)
        busy.set()
        go_on.wait(3)

    monitor = LinkMonitor(listen, net.path, receive_bytes=4096)
    monitor.start()
    try:
        net.ip("link set br0 mtu 1400")
        assert busy.wait(3)
        sock.batch([encode.set_mtu(index, 1000 + number) for number in range(300)])
        go_on.set()
        heard.wait_for(None)
        assert monitor.overflows >= 1
        net.ip("link set br0 mtu 1300")  # it goes on
        heard.wait_for("br0")
    finally:
        go_on.set()
        monitor.stop()


def test_a_failing_listener_does_not_end_the_monitor(net: NetNamespace) -> None:
    heard = Heard()

    def listen(names: frozenset[str] | None) -> None:
        heard(names)
        raise RuntimeError("on purpose")

    monitor = LinkMonitor(listen, net.path)
    monitor.start()
    try:
        for name in ("v0", "v1"):
            net.ip(f"link add {name} type bridge")
            heard.wait_for(name)
    finally:
        monitor.stop()
