"""Networks that change under ten running guests: what no guest notices, and what only the listed ones do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest import ARGS, guest_files
from hermetic import Agent, Hermetic, wait_until
from small import link, vm, wipe

pytestmark = [pytest.mark.guest, pytest.mark.libvirt, pytest.mark.timeout(600)]

IDLE = [f"idle{number}" for number in range(8)]
TALKERS = ("one", "two")
SUBNET = "192.168.172"
OUTSIDE = "198.51.100.1"


def network(subnet: str = SUBNET, *, dhcp: str = "", ip: str = "", more: str = "") -> str:
    """The network of all ten."""
    ranges = f"ranges: [{{start: {subnet}.100, end: {subnet}.199}}]"
    return f"""
apiVersion: kvmd.dev/v1alpha1
kind: Network
metadata: {{name: lab}}
spec:
  ips: [{{address: {subnet}.1/24{ip}, dhcp: {{{ranges}{dhcp}}}}}]
{more or "  bridge: {name: vb-lab}"}
"""


def talker(name: str, target: str, folder: Path) -> str:
    """A guest that pings five times a second."""
    files, addresses = guest_files(), {"one": 11, "two": 12}
    return f"""
apiVersion: kvmd.dev/v1alpha1
kind: VirtualMachine
metadata: {{name: {name}}}
spec:
  accelerator: tcg
  memory: {{guest: 96Mi}}
  kernelBoot:
    kernel: {{path: {files.kernel}}}
    initrd: {{path: {files.initrd}}}
    args: "{ARGS} kvmd.name={name} kvmd.ping={target}"
  interfaces: [{{name: net0, network: lab, ip: {SUBNET}.{addresses[name]}}}]
  devices: {{serial: [{{name: console, file: {folder}/{name}.console}}]}}
  shutdown: {{methods: [acpi], timeoutSeconds: 2}}
"""


def world(hermetic: Hermetic) -> subprocess.Popen[bytes]:
    """Somebody outside, whom guests reach by NAT alone: he knows no way to their addresses."""
    keeper = subprocess.Popen(hermetic.inside("unshare", "-n", "sleep", "600"), stdin=subprocess.DEVNULL)
    wait_until(lambda: Path(f"/proc/{keeper.pid}/comm").read_text() == "sleep\n", 10)
    hermetic.run("ip", "link", "add", "out0", "type", "veth", "peer", "name", "out1", "netns", str(keeper.pid))
    hermetic.run("ip", "address", "add", "198.51.100.2/24", "dev", "out0")
    hermetic.run("ip", "link", "set", "out0", "up")
    there = ("nsenter", "-t", str(keeper.pid), "-n", "ip")
    hermetic.run(*there, "address", "add", f"{OUTSIDE}/24", "dev", "out1")
    hermetic.run(*there, "link", "set", "out1", "up")
    return keeper


class Watch:
    """What the kernel says of links, and what becomes of the echoes between the two talkers."""

    def __init__(self, agent: Agent) -> None:
        hermetic = agent.hermetic
        taps = [agent.object(f"VirtualMachine/{name}")["status"]["interfaces"][0]["tap"] for name in TALKERS]  # type: ignore[index]
        links = [*taps, "out0"]
        counter = hermetic.inside(sys.executable, str(Path(__file__).with_name("echo_counter.py")), *links)
        self._counter = subprocess.Popen(counter, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._counter.stdout is not None and self._counter.stdout.readline() == "ready\n"
        wait_until(lambda: _all_forward(hermetic), 40, "every port forwards: until then the kernel has news of them")
        self._links = agent.folder / "links.log"
        monitor = hermetic.inside("ip", "-o", "monitor", "link")
        self._monitor = subprocess.Popen(monitor, stdin=subprocess.DEVNULL, stdout=self._links.open("wb"))
        wait_until(lambda: self.count()[0] >= 4, 20, "echoes")

    def count(self) -> tuple[int, list[str]]:
        """Echoes that came in so far, and of those that did not go out again where they came in."""
        assert self._counter.stdin is not None and self._counter.stdout is not None
        self._counter.stdin.write("\n")
        self._counter.stdin.flush()
        sent, *lost = self._counter.stdout.readline().split()
        return int(sent), lost

    def end(self) -> tuple[list[str], str]:
        """Once twenty more echoes are through: those lost, and what was said of links."""
        sent, _ = self.count()
        wait_until(lambda: self.count()[0] >= sent + 40, 25, "more echoes")
        _, lost = self.count()
        for process in (self._counter, self._monitor):
            process.kill()
            process.wait()
        return lost, self._links.read_text()


def _all_forward(hermetic: Hermetic) -> bool:
    ports = json.loads(hermetic.run("bridge", "-j", "link", "show"))
    return {port["state"] for port in ports if port["ifname"].startswith("vnet")} == {"forwarding"}


def pings(agent: Agent, name: str) -> list[str]:
    """What a guest says of its pings: ok or lost."""
    return re.findall(r"KVMD-PING \S+ (ok|lost) \d+", (agent.folder / f"{name}.console").read_text(errors="replace"))


def dnsmasq(hermetic: Hermetic) -> str:
    """The process that serves the network."""
    return hermetic.run("cat", "/run/libvirt/network/lab.pid").strip()


@pytest.fixture
def ten(agent: Agent) -> Iterator[Agent]:
    """Ten guests on one network, one of which talks to another and that one to somebody outside; and one apart."""
    outside = world(agent.hermetic)
    agent.write("net.yaml", network())
    agent.write("other.yaml", network("192.168.173").replace("lab", "other"))
    agent.write("one.yaml", talker("one", f"{SUBNET}.12", agent.folder))
    agent.write("two.yaml", talker("two", OUTSIDE, agent.folder))
    nic = "  interfaces: [{name: net0, network: %s}]"
    idle = [vm(name, "Manual", memory="16Mi", more=nic % "lab") for name in IDLE]
    agent.write("idle.yaml", "".join([*idle, vm("apart", "Manual", memory="16Mi", more=nic % "other")]))
    try:
        agent.start()
        agent.wait_ready(*(f"VirtualMachine/{name}" for name in (*IDLE, "apart")), seconds=60)
        for name in (*IDLE, "apart"):  # as a person does; paused, they leave the processors to the two that talk
            agent.hermetic.virsh("start", name, "--paused")
        for name in TALKERS:
            wait_until(lambda name=name: "ok" in pings(agent, name), 90, f"{name} reaches the other")  # type: ignore[misc]
        agent.wait_ready("Network/lab", *(f"VirtualMachine/{name}" for name in (*TALKERS, *IDLE, "apart")))
        yield agent
    finally:
        agent.stop()
        outside.kill()
        outside.wait()
        wipe(agent.hermetic)


@pytest.mark.shows(
    "Network",
    "bridge.forwardDelaySeconds",
    "forward.repair",
    "dns.hosts[].ip",
    "dns.hosts[].names",
    "dns.txt[].name",
    "dns.txt[].value",
    "dns.srv[].service",
    "dns.srv[].protocol",
    "dns.srv[].target",
    "dns.srv[].port",
    "portgroups[].name",
    "portgroups[].default",
    "disruptionPolicy",
    "bridge.stp",
)
def test_networks_change_under_ten_guests(ten: Agent) -> None:
    agent, hermetic = ten, ten.hermetic
    _leases_are_in_the_status(agent)
    _a_reservation_costs_nobody_a_packet(agent)
    _names_and_spanning_tree_change_in_place(agent)
    _what_packets_need_is_watched_and_put_back(agent)
    _what_a_dead_kvmd_held_is_let_go_of(agent)
    _another_subnet_waits_and_blips_only_its_guests(agent)
    assert "No changes" in agent.kvmd("plan")
    assert hermetic.virsh("list", "--name").split().sort() == [*TALKERS, *IDLE, "apart"].sort()


def _leases_are_in_the_status(agent: Agent) -> None:
    wanted = {(f"{SUBNET}.11", "one"), (f"{SUBNET}.12", "two")}
    wait_until(lambda: wanted == {(item["address"], item["name"]) for item in _leases(agent)}, 30, "their leases")
    nic = agent.object("VirtualMachine/one")["status"]["interfaces"][0]  # type: ignore[index]
    assert nic["addresses"] == [f"{SUBNET}.11"]
    assert f"{SUBNET}.11" in agent.kvmd("get", "vm", "one")


def _leases(agent: Agent) -> list[dict[str, str]]:
    found: list[dict[str, str]] = agent.object("Network/lab")["status"]["leases"]  # type: ignore[index]
    return found


def _a_reservation_costs_nobody_a_packet(agent: Agent) -> None:
    hermetic, pid = agent.hermetic, dnsmasq(agent.hermetic)
    watch = Watch(agent)
    host = f", hosts: [{{mac: 52:54:00:00:00:09, ip: {SUBNET}.9, name: printer}}]"
    agent.write("net.yaml", network(dhcp=host))
    wait_until(lambda: f"ip='{SUBNET}.9'" in hermetic.virsh("net-dumpxml", "lab"), 20, "the reservation")
    agent.wait_ready("Network/lab")
    lost, links = watch.end()
    assert lost == []
    assert "vnet" not in links, "a TAP was touched"
    assert dnsmasq(hermetic) == pid
    assert "No changes" in agent.kvmd("plan")


def _names_and_spanning_tree_change_in_place(agent: Agent) -> None:
    hermetic = agent.hermetic
    watch = Watch(agent)
    names = """
  bridge: {name: vb-lab, stp: false}
  dns:
    hosts: [{ip: 192.168.172.7, names: [printer, lp]}]
    txt: [{name: release, value: "2"}]
    srv: [{service: ldap, protocol: tcp, target: lp, port: 389}]
  portgroups: [{name: staff, default: true}]
"""
    agent.write("net.yaml", network(more=names))
    for word in ("<hostname>lp</hostname>", "name='release'", "service='ldap'", "portgroup name='staff'"):
        wait_until(lambda word=word: word in hermetic.virsh("net-dumpxml", "lab"), 20, word)  # type: ignore[misc]
    wait_until(lambda: hermetic.links()["vb-lab"]["linkinfo"]["info_data"]["stp_state"] == 0, 20, "no STP")
    agent.wait_ready("Network/lab")
    assert f"ip='{SUBNET}.9'" not in hermetic.virsh("net-dumpxml", "lab"), "taken out, the reservation is gone"
    hermetic.run("ip", "link", "set", "vb-lab", "type", "bridge", "stp_state", "1")
    wait_until(lambda: hermetic.links()["vb-lab"]["linkinfo"]["info_data"]["stp_state"] == 0, 20, "put right")
    agent.write("net.yaml", network())
    wait_until(lambda: "release" not in hermetic.virsh("net-dumpxml", "lab"), 20, "taken out")
    wait_until(lambda: hermetic.links()["vb-lab"]["linkinfo"]["info_data"]["stp_state"] == 1, 20, "the default")
    agent.wait_ready("Network/lab")
    lost, _links = watch.end()
    assert lost == []
    assert "No changes" in agent.kvmd("plan")


def six(repair: bool) -> str:
    """A network with both versions of IP, and nobody on it."""
    forward = f"forward: {{mode: nat, repair: {str(repair).lower()}}}"
    ips = "ips: [{address: 192.168.176.1/24}, {address: 'fd00:176::1/64'}]"
    return link("Network", "six", f"{{bridge: {{name: vb-six}}, {forward}, {ips}}}")


def _what_packets_need_is_watched_and_put_back(agent: Agent) -> None:
    hermetic = agent.hermetic
    agent.write("six.yaml", six(False))
    agent.wait_ready("Network/six")
    hermetic.run("iptables", "-w", "-t", "nat", "-F", "LIBVIRT_PRT")
    hermetic.run("ip6tables", "-w", "-F", "LIBVIRT_FWI")
    for switch in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
        hermetic.run("sysctl", "-q", "-w", f"net.{switch}=0")
    agent.write("net.yaml", network(more="  bridge: {name: vb-lab, forwardDelaySeconds: 2}"))  # it wakes the loop
    wait_until(lambda: {"ForwardingOff", "RulesMissing"} <= _troubles(agent).keys(), 30, "said")
    told, more = _troubles(agent), _troubles(agent, "six")
    assert "sysctl -w net.ipv4.ip_forward=1" in told["ForwardingOff"]
    assert f"nat -A LIBVIRT_PRT -s {SUBNET}.0/24 ! -d {SUBNET}.0/24 -j MASQUERADE" in told["RulesMissing"]
    assert "net.ipv6.conf.all.forwarding=1" in more["ForwardingOff"] and "ipv6" not in told["ForwardingOff"]
    assert "ip6 filter -A LIBVIRT_FWI -d fd00:176::/64 -o vb-six -j ACCEPT" in more["RulesMissing"]
    assert hermetic.run("sysctl", "-n", "net.ipv4.ip_forward") == "0\n", "only said: nobody asked for more"
    agent.write("six.yaml", six(True))
    agent.write("net.yaml", network(more="  bridge: {name: vb-lab}\n  forward: {repair: true}"))
    wait_until(lambda: not _troubles(agent) and not _troubles(agent, "six"), 30, "put back")
    rule = "-A LIBVIRT_FWI -d fd00:176::/64 -o vb-six -j ACCEPT"
    wait_until(lambda: rule in hermetic.run("ip6tables-save"), 30, "of IPv6, too")
    assert hermetic.run("sysctl", "-n", "net.ipv6.conf.all.forwarding") == "1\n"
    began = pings(agent, "two").count("ok")
    hermetic.run("nft", "flush", "ruleset")  # rules, chains and tables, of both versions
    agent.write("net.yaml", network(more="  bridge: {name: vb-lab}\n  forward: {repair: true, mode: nat}"))
    wait_until(lambda: "-A POSTROUTING -j LIBVIRT_PRT" in hermetic.run("iptables-save"), 30, "chains, too")
    wait_until(lambda: pings(agent, "two").count("ok") > began + 3, 30, "out again")
    wait_until(lambda: "-s fd00:176::/64 -i vb-six" in hermetic.run("ip6tables-save"), 30, "of the other, too")
    agent.wait_ready("Network/lab", "Network/six")
    agent.remove("six.yaml")


def _what_a_dead_kvmd_held_is_let_go_of(agent: Agent) -> None:
    """Copies of rules that it made for the time of a change, and was killed before it took them away."""
    hermetic = agent.hermetic
    agent.kill()
    for tool, bridge in (("iptables", "vb-lab"), ("ip6tables", "vb-gone")):
        copy = ("-i", bridge, "-m", "comment", "--comment", f"kvmd-hold-{bridge}", "-j", "ACCEPT")
        hermetic.run(tool, "-w", "-I", "LIBVIRT_FWX", *copy)
    agent.start()
    assert "kvmd-hold" not in hermetic.run("iptables-save") + hermetic.run("ip6tables-save")
    agent.wait_ready("Network/lab")


def _troubles(agent: Agent, name: str = "lab") -> dict[str, str]:
    conditions = agent.object(f"Network/{name}")["status"]["conditions"]  # type: ignore[index]
    return {c["reason"]: c["message"] for c in conditions if c["type"] == "Degraded" and c["status"] == "True"}


def _another_subnet_waits_and_blips_only_its_guests(agent: Agent) -> None:
    hermetic = agent.hermetic
    apart = next(tap for tap, link in hermetic.links().items() if link.get("master") == "vb-other")
    agent.write("net.yaml", network("192.168.174"))
    waits = wait_until(lambda: agent.condition("Network/lab", "RestartRequired"), 20)
    names = ", ".join(sorted([*TALKERS, *IDLE]))
    assert waits["message"] == f"1 change waits: spec.ips; when let through: network blip: 10 VMs: {names}"
    assert f"network blip: 10 VMs: {names}" in agent.kvmd("plan")
    watch = Watch(agent)
    agent.write("net.yaml", network("192.168.174", more="  bridge: {name: vb-lab}\n  disruptionPolicy: Replug"))
    shown = ("ip", "addr", "show", "vb-lab")  # for a moment it is not there
    wait_until(lambda: "192.168.174.1" in hermetic.run(*shown, check=False), 30, "the other subnet")
    agent.wait_ready("Network/lab")
    began = pings(agent, "one").count("ok")
    wait_until(lambda: pings(agent, "one").count("ok") > began + 5, 30, "a blip, not an outage")
    _, links = watch.end()
    assert apart not in links, "a guest of another network was touched"
    ports = [name for name, link in hermetic.links().items() if link.get("master") == "vb-lab"]
    assert len([port for port in ports if port.startswith("vnet")]) == 10, "all are back"
