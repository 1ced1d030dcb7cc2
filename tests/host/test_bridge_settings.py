"""Settings of bridges, ports and TAPs on the real kernel: set, read back, compared without false drift, put back."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from netns import NetNamespace, namespace
from small import link

from kvmd.api import bridge_settings
from kvmd.api.resource import Ref
from kvmd.daemon.assembly import Assembly, assemble
from kvmd.daemon.importing import import_object
from kvmd.host.links.kernel import Links
from kvmd.host.preflight.rows import lacking_links
from kvmd.kinds import CONTROLLERS
from kvmd.observed import Key
from kvmd.plan.model import Rules
from kvmd.settings import Settings

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces: run pytest as root"),
]

EVERY = """cost: 10, priority: 8, learning: false, flood: false, multicastFlood: false, broadcastFlood: false,
  isolated: true, hairpin: true, bpduGuard: true, rootGuard: true, fastLeave: true"""
BRIDGE = f"""{{mac: 02:00:00:00:00:05, mtu: 1400, stp: true, priority: 4096, forwardDelaySeconds: 4,
  helloTimeSeconds: 1, maxAgeSeconds: 10, ageingTimeSeconds: 60, groupForwardMask: 16384, multicastSnooping: true,
  multicastQuerier: true, uplinks: [{{name: up0, {EVERY}}}]}}"""
TAP = f"""{{bridge: br0, owner: 1000, group: 1001, multiQueue: true, vnetHdr: false, mtu: 1300,
  port: {{{EVERY}}}}}"""


class Loop:
    """A kvmd in this process for one namespace; libvirt has no part in it."""

    def __init__(self, net: NetNamespace, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.net, self.specs = net, folder / "specs"
        self.specs.mkdir()
        settings = Settings.model_validate(
            {
                "source": {"path": str(self.specs), "settle": "20ms"},
                "libvirt": {"uri": "test:///default"},
                "paths": {name: str(folder / name) for name in ("state", "cache", "run")},
                "prune": {"grace": "100ms", "maxPercent": 100},
            }
        )
        self.assembly: Assembly = assemble(settings, namespace=net.path)
        observe = self.assembly.host.observe
        monkeypatch.setattr(
            self.assembly.host, "observe", lambda *words: replace(observe(*words), missing=frozenset())
        )

    def until(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        """Turn until that is true."""
        end = time.monotonic() + seconds
        while True:
            report = self.assembly.reconciler.cycle()
            if condition():
                return
            assert time.monotonic() < end, [
                (str(s.ref), [o.describe() for o in s.operations]) for s in report.plan.steps
            ]
            time.sleep(0.02)

    def settled(self) -> bool:
        """Is everything as its spec asks, and nothing left to do?"""
        plan = self.assembly.reconciler.cycle(act=False).plan
        return plan.empty and bool(plan.objects) and all(item.ready for item in plan.objects.values())

    def write(self, text: str) -> None:
        """The specs from now on, used."""
        (self.specs / "all.yaml").write_text(text)
        time.sleep(0.05)
        self.until(self.settled)

    def info(self, name: str, part: str = "info_data") -> dict[str, object]:
        """What ``ip`` says of a link."""
        found: dict[str, object] = self.net.links()[name]["linkinfo"][part]
        return found

    def close(self) -> None:
        """End it."""
        self.assembly.executor.stop(10)
        self.assembly.close()


@pytest.fixture
def loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    with namespace() as net:
        net.shell("ip link add up0 type veth peer far0; ip link set up0 up; ip link set far0 up")
        opened = Loop(net, tmp_path, monkeypatch)
        yield opened
        opened.close()


PORT = [setting.leaf for setting in bridge_settings.PORT]
FILTERS = ("vlanFiltering", "defaultPvid")


@pytest.mark.shows("Bridge", "mac", *(s.leaf for s in bridge_settings.BRIDGE if s.leaf not in FILTERS))
@pytest.mark.shows("Bridge", *(f"uplinks[].{leaf}" for leaf in PORT))
@pytest.mark.shows("Tap", "vnetHdr", *(f"port.{leaf}" for leaf in PORT))
def test_every_setting_is_made_kept_and_taken_back(loop: Loop) -> None:
    loop.write(link("Bridge", "br0", BRIDGE) + link("Tap", "tap1", TAP))
    made = loop.net.links()["br0"]
    data = loop.info("br0")
    assert (made["address"], made["mtu"]) == ("02:00:00:00:00:05", 1400)
    expected = {"stp_state": 1, "priority": 4096, "forward_delay": 400, "hello_time": 100, "max_age": 1000}
    expected |= {"ageing_time": 6000, "mcast_snooping": 1, "mcast_querier": 1}
    assert {name: data[name] for name in expected} == expected
    assert int(str(data["group_fwd_mask"]), 0) == 0x4000
    on = ("isolated", "hairpin", "guard", "root_block", "fastleave")
    off = ("learning", "flood", "mcast_flood", "bcast_flood")
    for name in ("up0", "tap1"):
        port = loop.info(name, "info_slave_data")
        assert (port["cost"], port["priority"]) == (10, 8)
        assert all(port[name] for name in on) and not any(port[name] for name in off)
    tap = loop.info("tap1")
    assert (tap["multi_queue"], tap["vnet_hdr"], tap["group"]) == (True, False, 1001)

    loop.net.shell(
        "ip link set br0 type bridge ageing_time 100 hello_time 300 mcast_querier 0 priority 7;"
        "ip link set br0 type bridge stp_state 0; ip link set br0 address 02:00:00:00:00:99;"
        "ip link set up0 type bridge_slave cost 99 isolated off learning on; ip link set up0 down;"
        "ip link set tap1 type bridge_slave isolated off"
    )
    loop.until(lambda: loop.settled() and loop.info("br0")["stp_state"] == 1)
    assert {name: loop.info("br0")[name] for name in expected} == expected
    again = loop.info("up0", "info_slave_data")
    assert (again["cost"], again["isolated"], again["learning"]) == (10, True, False)
    assert loop.info("tap1", "info_slave_data")["isolated"] and "UP" in loop.net.links()["up0"]["flags"]

    loop.write(link("Bridge", "br0", "{uplinks: [{name: up0}]}") + link("Tap", "tap1", "{bridge: br0}"))
    data, port = loop.info("br0"), loop.info("up0", "info_slave_data")
    kernels = {"stp_state": 0, "priority": 32768, "forward_delay": 1500, "hello_time": 200, "max_age": 2000}
    kernels |= {"ageing_time": 30000, "mcast_snooping": 1, "mcast_querier": 0}
    assert {name: data[name] for name in kernels} == kernels
    assert all(port[name] for name in off) and not any(port[name] for name in on)
    assert loop.net.links()["br0"]["address"] == loop.net.links()["up0"]["address"]
    assert loop.net.links()["tap1"]["mtu"] == 1500 and not loop.info("tap1", "info_slave_data")["isolated"]


def test_what_the_root_of_the_tree_says_is_no_drift(loop: Loop) -> None:
    """The kernel shows the root's times, and while the topology changes another ageing time."""
    loop.net.shell(
        "ip link add br9 type bridge stp_state 1 priority 1 hello_time 300 max_age 1500 forward_delay 200;"
        "ip link set far0 master br9; ip link set br9 up"
    )
    times = "forwardDelaySeconds: 4, helloTimeSeconds: 1, maxAgeSeconds: 10, ageingTimeSeconds: 60"
    loop.write(link("Bridge", "br0", f"{{stp: true, {times}, uplinks: [{{name: up0}}]}}"))
    loop.until(lambda: loop.info("br0")["hello_time"] == 300)
    fact = loop.assembly.host.links.observe()[0][Key("link", "br0")]
    assert fact.root.startswith("0001.") and "hello_time" not in dict(fact.settings)
    for _ in range(20):  # through listening and learning, and the change of topology at their end
        assert loop.assembly.reconciler.cycle().plan.empty
        time.sleep(0.25)
    loop.net.ip("link set far0 down")
    loop.until(lambda: loop.info("br0")["hello_time"] == 100)
    assert loop.settled()


@pytest.mark.skipif("bridge-vlan" not in lacking_links(), reason="this kernel's bridges filter VLANs")
def test_what_the_kernel_lacks_is_said_once_and_not_tried(loop: Loop) -> None:
    (loop.specs / "all.yaml").write_text(link("Bridge", "br0", "{vlanFiltering: true}"))
    time.sleep(0.05)
    ref = Ref("Bridge", "br0")
    loop.until(lambda: loop.assembly.reconciler.cycle(act=False).plan.objects.get(ref) is not None)
    found = loop.assembly.reconciler.cycle().plan.objects[ref].condition("Stalled")
    assert found is not None and found.reason == "Unsupported" and "CONFIG_BRIDGE_VLAN_FILTERING" in found.message
    assert "br0" not in loop.net.links() and Links(loop.net.path).observe()[1]


def test_what_a_person_set_is_said_by_import(loop: Loop) -> None:
    loop.net.shell(
        "ip link add br1 type bridge stp_state 1 priority 7 ageing_time 6000 group_fwd_mask 16384 mcast_snooping 0;"
        "ip link set br1 up;"
        "ip link add vx1 type vxlan id 9 local 10.1.0.1 remote 10.1.0.2 dstport 4790; ip link set vx1 up;"
        "ip tuntap add tap9 mode tap multi_queue; ip link set tap9 master br1 up;"
        "ip link set tap9 type bridge_slave learning off hairpin on"
    )
    observed, said = loop.assembly.host.observe(), {}
    for kind, name in (("Bridge", "br1"), ("Vxlan", "vx1"), ("Tap", "tap9")):
        found = import_object(CONTROLLERS[kind], Key("link", name), observed, Rules())
        assert found is not None
        said[name] = found.document["spec"]
    assert said["br1"] == {
        "stp": True,
        "priority": 7,
        "ageingTimeSeconds": 60,
        "groupForwardMask": 16384,
        "multicastSnooping": False,
    }
    assert said["vx1"] == {"id": 9, "local": "10.1.0.1", "remote": "10.1.0.2", "port": 4790, "mtu": 1500}
    port = {"learning": False, "hairpin": True}
    assert {"multiQueue": True, "vnetHdr": False, "bridge": "br1", "port": port}.items() <= said["tap9"].items()


def test_a_renamed_link_gets_its_name_back(loop: Loop) -> None:
    loop.write(link("Bridge", "br0") + link("Tap", "tap1", "{bridge: br0}"))
    before = {name: entry["ifindex"] for name, entry in loop.net.links().items()}
    loop.net.shell("ip link set br0 name br7; ip link set tap1 name mine")
    loop.until(lambda: {"br0", "tap1"} <= loop.net.links().keys() and loop.settled())
    assert {name: entry["ifindex"] for name, entry in loop.net.links().items()} == before
