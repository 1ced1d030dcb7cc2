"""Whatever somebody does to the network of running guests is seen by event and put right; nothing foreign is touched.

One daemon, one guest, one table: a row harms, and everything must be as before the first of them.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from guest import ARGS, guest_files
from hermetic import Agent, Hermetic, wait_until
from small import Strangers, link, network, wipe

pytestmark = [pytest.mark.guest, pytest.mark.libvirt]

OBJECTS = ("Network/nat", "Bridge/br0", "Tap/tap1", "Tun/tun0", "Vxlan/vx7", "VirtualMachine/web")
LINKS = (
    network("nat", 171)
    + link(
        "Bridge",
        "br0",
        "{mtu: 1400, ageingTimeSeconds: 60, uplinks: [{name: up0, cost: 7}],"
        " addresses: {from: Static, static: [10.171.0.1/24]}}",
    )
    + link("Tap", "tap1", "{bridge: br0, mtu: 1400, port: {isolated: true}}")
    + link("Tun", "tun0", "{addresses: [10.9.0.1/30], routes: [{to: 10.20.0.0/16}]}")
    + link("Vxlan", "vx7", "{id: 7, remote: 10.171.0.9, bridge: br0, mtu: 1400}")
)
HARMS = [
    "ip link del br0",
    "ip link set br0 down",
    "ip link set br0 mtu 1300",
    "ip link set br0 name br7",
    "ip link set br0 type bridge ageing_time 30000",
    "ip addr del 10.171.0.1/24 dev br0",
    "ip addr flush dev br0",
    "ip link set NIC nomaster",
    "ip link set NIC down",
    "ip link set up0 nomaster",
    "ip link set up0 down",
    "ip link set up0 type bridge_slave cost 99",
    "ip link set tap1 nomaster",
    "ip link set tap1 down",
    "ip link set tap1 name mine",
    "ip link set tap1 type bridge_slave isolated off",
    "ip link del tun0",
    "ip route del 10.20.0.0/16",
    "ip link del vx7",
    "ip link del vb-nat",
    "virsh net-destroy nat",
    "virsh net-destroy nat; virsh net-start nat",
    "restart libvirtd",
]


def machine(folder: Path) -> str:
    """A guest on a network, a TAP and a bridge, which pings the bridge all the time."""
    files = guest_files()
    words = f"{ARGS} kvmd.name=web kvmd.ip=10.171.0.2/24 kvmd.ip.eth1=10.171.1.2/24 kvmd.ping=10.171.0.1"
    return f"""---
apiVersion: kvmd.dev/v1alpha1
kind: VirtualMachine
metadata: {{name: web}}
spec:
  accelerator: tcg
  memory: {{guest: 96Mi}}
  kernelBoot: {{kernel: {{path: {files.kernel}}}, initrd: {{path: {files.initrd}}}, args: "{words}"}}
  interfaces: [{{name: net0, bridge: br0}}, {{name: net1, tap: tap1}}, {{name: net2, network: nat}}]
  devices: {{serial: [{{name: console, file: {folder}/web.console}}]}}
"""


class Scene:
    """The host with everything in place, and what it looked like then."""

    def __init__(self, agent: Agent, folder: Path) -> None:
        self.agent, self.hermetic = agent, agent.hermetic
        self.hermetic.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "far0")
        for name in ("up0", "far0"):
            self.hermetic.run("ip", "link", "set", name, "up")
        self.strangers = Strangers(self.hermetic, folder / "hand")
        agent.write("links.yaml", LINKS)
        agent.write("web.yaml", machine(agent.folder))
        agent.start()
        agent.wait_ready(*OBJECTS, seconds=60)
        wait_until(lambda: self.answered > 0, 90, "the guest reaches the bridge")
        wait_until(self.every_port_forwards, 30, "the bridge of the network has learned where its ports lead")
        self.domain = self.hermetic.virsh("domid", "web")
        self.before = self.look()
        self.nic = next(name for name, item in self.hermetic.links().items() if self._is_net0(name, item))

    @staticmethod
    def _is_net0(name: str, item: dict[str, Any]) -> bool:
        return name.startswith("vnet") and item.get("master") == "br0"

    @property
    def answered(self) -> int:
        """How many pings of the guest were answered."""
        return (self.agent.folder / "web.console").read_text(errors="replace").count(" ok ")

    def every_port_forwards(self) -> bool:
        """No port still listens or learns, as one does for two forward delays after it joined a bridge with STP."""
        ports = (item.get("linkinfo", {}).get("info_slave_data", {}) for item in self.hermetic.links().values())
        return not any(port.get("state") in ("listening", "learning") for port in ports)

    def look(self) -> dict[str, Any]:
        """What matters of every link and route."""
        found: dict[str, Any] = {}
        for item in self.hermetic.ip("addr", "show"):
            data = item.get("linkinfo", {}).get("info_data", {})
            port = item.get("linkinfo", {}).get("info_slave_data", {})
            addresses = [f"{a['local']}/{a['prefixlen']}" for a in item["addr_info"] if a["scope"] != "link"]
            found[item["ifname"]] = {
                "up": "UP" in item["flags"],
                "addresses": sorted(addresses),
                # With STP, as libvirt's own bridges have it, a change of the topology shows another one for a while.
                "settings": [
                    None if data.get("stp_state") else data.get("ageing_time"),
                    port.get("cost"),
                    port.get("isolated"),
                    port.get("state"),
                ],
                **{name: item.get(name) for name in ("master", "mtu", "ifalias", "altnames")},
            }
        routes = self.hermetic.ip("route", "show")
        return found | {"routes": sorted(f"{route['dst']} {route['dev']}" for route in routes)}

    def harm(self, row: str) -> None:
        """Do what a row says."""
        if row == "restart libvirtd":
            self.hermetic.kill_libvirtd(signal.SIGTERM)
            self.hermetic.start_libvirtd()
        for command in row.split("; "):
            words = command.replace("NIC", self.nic).split()
            if words[0] == "virsh":
                self.hermetic.virsh(*words[1:], check=False)  # kvmd may be faster
            elif words[0] == "ip":
                self.hermetic.run(*words)

    def assert_healed(self) -> None:
        """Everything is as it was, the guest never noticed a restart, and what a person made is as it was, too."""
        with contextlib.suppress(pytest.fail.Exception):
            wait_until(lambda: self.look() == self.before, 20)
        self.assert_as_before()
        self.agent.wait_ready(*OBJECTS)
        answered = self.answered
        wait_until(lambda: self.answered > answered, 20, "the guest reaches the bridge again")
        self.assert_as_before()
        assert self.hermetic.virsh("domid", "web") == self.domain
        self.strangers.unharmed()

    def assert_as_before(self) -> None:
        """Say what is otherwise."""
        now = self.look()
        keys = now.keys() | self.before.keys()
        differing = {
            key: (self.before.get(key), now.get(key)) for key in keys if now.get(key) != self.before.get(key)
        }
        assert not differing


@pytest.fixture(scope="module")
def scene(hermetic: Hermetic, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("healing")
    agent = Agent(hermetic, folder)
    yield Scene(agent, folder)
    agent.stop()
    wipe(hermetic)


@pytest.mark.shows("Tap", "bridge")
@pytest.mark.shows("Network", "bridge.name")
@pytest.mark.parametrize("row", HARMS)
def test_it_is_put_right(scene: Scene, row: str) -> None:
    before = scene.agent.metric("kvmd_drift_corrected_total")
    scene.harm(row)
    scene.assert_healed()
    if row != "restart libvirtd":
        assert scene.agent.metric("kvmd_drift_corrected_total") > before


def test_afterwards_nothing_is_left_to_do(scene: Scene) -> None:
    assert "No changes" in scene.agent.kvmd("plan")
