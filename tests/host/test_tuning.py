"""What libvirt tunes in a running guest, on the real QEMU driver: one guest, one boot, many leaves."""

from __future__ import annotations

import re
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest
import traffic_control
import yaml
from guest import ARGS, guest_files
from hermetic import Agent, Hermetic, wait_until
from small import link, wipe
from test_main_path import says

from kvmd.kinds.virtual_machine.live import PORTGROUP_STAYS_SINCE

pytestmark = [pytest.mark.guest, pytest.mark.libvirt]

VM = "VirtualMachine/web"
MIB = 2**20
CELLS = [{"cpus": "0", "memory": "96Mi"}, {"cpus": "1", "memory": "32Mi"}]


class Tuned:
    """The guest: its spec, changed leaf by leaf, and what libvirt, QEMU and the guest say."""

    def __init__(self, agent: Agent, folder: Path) -> None:
        self.agent, self.hermetic, self.folder = agent, agent.hermetic, folder
        files = guest_files()
        (folder / "data.raw").write_bytes(bytes(8 * MIB))
        args = f"{ARGS} kvmd.name=web kvmd.tick=1 kvmd.agent=stubborn kvmd.ip=10.9.9.9/24 kvmd.timeout=1"
        (folder / "setup.iso").write_bytes(bytes(MIB))
        self.disk: dict[str, Any] = {"name": "data", "path": f"{folder}/data.raw", "format": "raw", "bootOrder": 1}
        self.nic: dict[str, Any] = {"name": "net0", "bridge": "br0", "queues": 2}
        self.balloon: dict[str, Any] = {"model": "virtio", "freePageReporting": True}
        self.devices: dict[str, Any] = {
            "guestAgent": True,
            "balloon": self.balloon | {"statsPeriodSeconds": 5},
            "serial": [{"name": "console", "file": f"{folder}/web.console"}],
        }
        boot = {"kernel": {"path": files.kernel}, "initrd": {"path": files.initrd}, "args": args}
        self.spec: dict[str, Any] = {
            "accelerator": "tcg",
            "cpu": {
                "vcpus": 2,
                "numa": CELLS,
                "model": "qemu64",
                "features": [{"name": "x2apic", "policy": "disable"}, {"name": "aes"}],
            },
            "memory": {"guest": "128Mi"},
            "kernelBoot": boot,
            "disks": [self.disk],
            "interfaces": [self.nic],
            "devices": self.devices,
            "install": {"from": {"path": f"{folder}/setup.iso"}, "doneWhen": "GuestAgent"},
            "shutdown": {"timeouts": {"agent": 6, "acpi": 30}},
        }

    def apply(self) -> None:
        """Write the spec and wait until it is so and nothing is left to do."""
        before = self.agent.object(VM)
        self.write()
        wait_until(lambda: self._is_applied(before), 180, f"the spec is applied: {self.agent.object(VM)}")

    def write(self) -> None:
        """Write the spec."""
        document = {"apiVersion": "kvmd.dev/v1alpha1", "kind": "VirtualMachine", "metadata": {"name": "web"}}
        self.agent.write("web.yaml", yaml.safe_dump(document | {"spec": self.spec}))

    def _is_applied(self, before: dict[str, Any] | None) -> bool:
        found = self.agent.object(VM)
        if found is None or self.agent.condition(VM, "Ready") is None:
            return False
        observed: int = found["status"]["observedGeneration"]
        return before is None or observed > before["status"]["observedGeneration"]

    def at_rest(self) -> None:
        """Nothing is left to do, by a planner that remembers nothing."""
        self.agent.kvmd("plan", "--detailed-exitcode")

    def pending(self) -> set[str]:
        """What waits for the next boot."""
        found = self.agent.object(VM)
        assert found is not None
        return {item["path"].removeprefix("spec.") for item in found["status"]["pendingChanges"]}

    def live(self) -> ElementTree.Element:
        """The running self as libvirt shows it."""
        return ElementTree.fromstring(self.hermetic.virsh("dumpxml", "web"))

    def limits(self) -> dict[str, int]:
        """The limits of the disk that QEMU holds to."""
        text = self.hermetic.virsh("blkdeviotune", "web", "vda", "--live")
        found = dict(re.findall(r"(\w+) *: (\d+)", text))
        return {name: int(value) for name, value in found.items() if int(value)}

    def said(self, pattern: str) -> re.Match[str] | None:
        """The last line of the console that matches."""
        return says(self.folder, "web", pattern)

    def uptime(self) -> float:
        """How long the guest says it has been up."""
        match = self.said(r"KVMD-TICK \d+ uptime=([0-9.]+)")
        return float(match[1]) if match else 0.0


@pytest.fixture
def tuned(hermetic: Hermetic, tmp_path: Path) -> Iterator[Tuned]:
    """The guest on a bridge, booted."""
    traffic_control.complete(hermetic, tmp_path)
    agent = Agent(hermetic, tmp_path / "agent", source={"settle": "50ms"})
    agent.write("br0.yaml", link("Bridge", "br0"))
    agent.start()
    found = Tuned(agent, tmp_path)
    found.apply()
    wait_until(lambda: found.said("KVMD-GUEST-UP"), 60, "the guest is up")
    yield found
    agent.stop()
    wipe(hermetic)


@pytest.mark.shows(
    "VirtualMachine",
    *(
        f"disks[].ioTune.{way}.{word}{more}"
        for way in ("total", "read", "write")
        for word in ("bytes", "iops")
        for more in ("", "Burst", "BurstSeconds")
    ),
    *(
        f"interfaces[].bandwidth.{way}.{leaf}"
        for way in ("inbound", "outbound")
        for leaf in ("average", "peak", "burst")
    ),
    *(f"devices.balloon.{leaf}" for leaf in ("model", "statsPeriodSeconds", "freePageReporting")),
    *(f"disks[].{leaf}" for leaf in ("ioTune.iopsSize", "ioThread", "detectZeroes")),
    *("cpu.features[].name", "cpu.features[].policy", "ioThreads", "interfaces[].queues", "interfaces[].link"),
    "interfaces[].portgroup",
    *("shutdown.timeouts.agent", "shutdown.timeouts.acpi", "devices.guestAgent", "install.doneWhen"),
)
def test_leaves_change_in_a_running_guest_and_the_guest_runs_on(tuned: Tuned) -> None:
    """Each row: a leaf of the spec, and what libvirt, QEMU, the kernel or the guest then say of it."""
    identity, up = tuned.hermetic.virsh("domid", "web"), tuned.uptime()
    install_is_done_once_the_agent_answers(tuned)
    what_it_was_booted_with(tuned)
    limits_of_a_disk(tuned)
    bandwidth_and_link_of_a_nic(tuned)
    portgroup_of_a_nic(tuned)
    threads_and_statistics(tuned)
    assert tuned.pending() == set()
    tuned.at_rest()
    assert tuned.hermetic.virsh("domid", "web") == identity
    wait_until(lambda: tuned.uptime() > up + 1, 20, "the guest runs on")
    the_power_button_follows_an_agent_that_did_not_bring_it_about(tuned)


def install_is_done_once_the_agent_answers(tuned: Tuned) -> None:
    """The medium leaves the running guest, and nothing waits for the next boot."""
    wait_until(lambda: (tuned.agent.object(VM) or {})["status"].get("guestAgent") == "connected", 30, "the agent")
    found = wait_until(lambda: says_by_its_agent(tuned), 20, "what its agent says")
    assert found["guestSays"]["hostName"] == "web" and found["guestSays"]["os"] == "kvmd small guest 1", found
    assert found["interfaces"][0]["agentAddresses"] == ["10.9.9.9/24"] and not found["interfaces"][0]["addresses"]
    assert "10.9.9.9/24 (agent)" in tuned.agent.kvmd("get", "vm")
    wait_until(lambda: "setup.iso" not in tuned.hermetic.virsh("domblklist", "web"), 20, "the medium is out")
    assert "setup.iso" not in tuned.hermetic.virsh("domblklist", "web", "--inactive")
    assert tuned.pending() == set()
    tuned.at_rest()


def says_by_its_agent(tuned: Tuned) -> dict[str, Any]:
    """The status, once it has what the agent says of NICs."""
    status: dict[str, Any] = (tuned.agent.object(VM) or {})["status"]
    return status if any("agentAddresses" in nic for nic in status["interfaces"]) else {}


def what_it_was_booted_with(tuned: Tuned) -> None:
    """What no running guest can be given."""
    live = tuned.live()
    features = {item.get("name"): item.get("policy") for item in live.findall("cpu/feature")}
    assert (features["x2apic"], features["aes"]) == ("disable", "require")
    cells = [(cell.get("cpus"), cell.get("memory")) for cell in live.findall("cpu/numa/cell")]
    assert cells == [("0", str(96 * 1024)), ("1", str(32 * 1024))]
    queues, balloon = live.find("devices/interface/driver"), live.find("devices/memballoon")
    assert queues is not None and queues.get("queues") == "2"
    assert balloon is not None and (balloon.get("model"), balloon.get("freePageReporting")) == ("virtio", "on")


def limit(number: int) -> dict[str, Any]:
    """Every leaf of one direction, each with a value of its own."""
    found: dict[str, Any] = {"bytes": f"{number}Mi", "bytesBurst": f"{10 * number}Mi", "bytesBurstSeconds": number}
    return found | {"iops": 100 * number, "iopsBurst": 1000 * number, "iopsBurstSeconds": number + 1}


def in_libvirt(way: str, number: int) -> dict[str, int]:
    """The same, under libvirt's names."""
    found = {f"{way}_bytes_sec": number * MIB, f"{way}_bytes_sec_max": 10 * number * MIB}
    found |= {f"{way}_iops_sec": 100 * number, f"{way}_iops_sec_max": 1000 * number}
    return found | {f"{way}_bytes_sec_max_length": number, f"{way}_iops_sec_max_length": number + 1}


def limits_of_a_disk(tuned: Tuned) -> None:
    """In total, for each direction with a burst, by hand, and none."""
    tuned.disk["ioTune"] = {"read": limit(3), "write": limit(4), "iopsSize": "4Ki"}
    tuned.apply()
    assert tuned.limits() == in_libvirt("read", 3) | in_libvirt("write", 4) | {"size_iops_sec": 4096}
    tuned.disk["ioTune"] = {"total": limit(5)}
    tuned.apply()
    assert tuned.limits() == in_libvirt("total", 5)
    tuned.disk["ioTune"] = {"total": {"bytes": "5Mi", "iops": 300}}
    tuned.apply()
    tuned.at_rest()
    tuned.hermetic.virsh("blkdeviotune", "web", "vda", "--live", "--total-iops-sec", "7")
    wait_until(lambda: tuned.limits()["total_iops_sec"] == 300, 20, "what somebody limited by hand is put right")
    del tuned.disk["ioTune"]
    tuned.apply()
    assert tuned.limits() == {}


def bandwidth_and_link_of_a_nic(tuned: Tuned) -> None:
    """Both in one call; the kernel's own class has the rate."""
    hermetic = tuned.hermetic
    outbound = {"average": "500k", "peak": "600k", "burst": "32Ki"}
    limits = {"inbound": {"average": "1M", "peak": "2M", "burst": "64Ki"}, "outbound": outbound}
    tuned.nic |= {"bandwidth": limits, "link": "down"}
    tuned.apply()
    tap = tuned.live().find("devices/interface/target")
    assert tap is not None
    found = dict(re.findall(r"([\w.]+) *: (\d+)", hermetic.virsh("domiftune", "web", tap.get("dev", ""), "--live")))
    assert (found["inbound.average"], found["inbound.peak"], found["inbound.burst"]) == ("1000", "2000", "64")
    assert (found["outbound.average"], found["outbound.peak"], found["outbound.burst"]) == ("500", "600", "32")
    assert re.search(r"rate 8Mbit ceil 16Mbit", hermetic.run("tc", "class", "show", "dev", tap.get("dev", "")))
    tuned.at_rest()
    del tuned.nic["bandwidth"], tuned.nic["link"]
    tuned.apply()
    assert tuned.live().find("devices/interface/bandwidth") is None
    assert "htb" not in hermetic.run("tc", "qdisc", "show", "dev", tap.get("dev", ""))


def portgroup_of_a_nic(tuned: Tuned) -> None:
    """It gets the limits of the group that it is plugged into, loses those of the one that it left, and no other."""
    hermetic = tuned.hermetic
    groups = "{name: fast, bandwidth: {inbound: {average: 2M}}}, {name: slow, bandwidth: {inbound: {average: 1M}}}"
    network = link("Network", "plan", f"{{forward: {{mode: isolated}}, portgroups: [{groups}, {{name: free}}]}}")

    def rate() -> list[str]:
        tap = tuned.live().find("devices/interface/target")
        assert tap is not None
        return re.findall(r"rate (\w+) ceil", hermetic.run("tc", "class", "show", "dev", tap.get("dev", "")))

    tuned.agent.write("plan.yaml", network)
    tuned.agent.wait_ready("Network/plan")
    del tuned.nic["bridge"]
    others = (("slow", ["8Mbit"]), ("free", []), ("fast", ["16Mbit"]))
    moves = libvirt.getVersion() < PORTGROUP_STAYS_SINCE
    for group, rates in (("fast", ["16Mbit"]), *(others if moves else ())):
        tuned.nic |= {"network": "plan", "portgroup": group}
        tuned.apply()
        source = tuned.live().find("devices/interface/source")
        assert source is not None and (source.get("network"), source.get("portgroup")) == ("plan", group)
        assert rate() == rates, group
        tuned.at_rest()
    if not moves:
        tuned.nic["portgroup"] = "slow"
        tuned.write()
        tuned.agent.wait_condition(VM, "RestartRequired")
        tuned.nic["portgroup"] = "fast"
        tuned.apply()
        tuned.at_rest()
    tuned.nic["bandwidth"] = None  # none of its own: those of the group are no difference
    tuned.apply()
    tuned.at_rest()
    assert rate() == ["16Mbit"]
    tuned.nic |= {"portgroup": "none"}
    del tuned.nic["bandwidth"]
    tuned.write()
    blocked = tuned.agent.wait_condition(VM, "Blocked")
    assert "portgroup none, which network plan does not have (it has: fast, free, slow)" in blocked["message"]
    del tuned.nic["network"], tuned.nic["portgroup"]
    tuned.nic["bridge"] = "br0"
    tuned.apply()
    tuned.at_rest()
    assert rate() == [] and tuned.live().find("devices/interface/bandwidth") is None


def threads_and_statistics(tuned: Tuned) -> None:
    """A disk that is plugged in with a thread and limits of its own; what the balloon tells of memory."""
    (tuned.folder / "fast.raw").write_bytes(bytes(4 * MIB))
    fast = {"name": "fast", "path": f"{tuned.folder}/fast.raw", "format": "raw", "ioThread": 2, "detectZeroes": "on"}
    fast["ioTune"] = {"total": {"iops": 100}}
    tuned.spec |= {"ioThreads": 2, "disks": [tuned.disk, fast]}
    tuned.devices["balloon"] = tuned.balloon | {"statsPeriodSeconds": 2}
    tuned.apply()
    wait_until(lambda: tuned.said(r"disks=\S*vdb:4194304"), 20, "the guest has the disk")
    driver = tuned.live().find("devices/disk/driver[@iothread='2']")
    assert driver is not None and driver.get("detect_zeroes") == "on"
    period = tuned.live().find("devices/memballoon/stats")
    assert period is not None and period.get("period") == "2"
    wait_until(lambda: "usable" in tuned.hermetic.virsh("dommemstat", "web"), 20, "the guest tells of its memory")
    tuned.at_rest()
    tuned.spec["disks"] = [tuned.disk]
    del tuned.spec["ioThreads"]
    tuned.devices["balloon"] = tuned.balloon
    tuned.apply()
    wait_until(lambda: tuned.live().find("iothreadids") is None, 30, "the threads are gone")
    assert tuned.live().find("devices/memballoon/stats") is None


def the_power_button_follows_an_agent_that_did_not_bring_it_about(tuned: Tuned) -> None:
    """Each in its time, and nobody is forced."""
    tuned.spec["runStrategy"] = "Halted"
    began = time.monotonic()
    tuned.apply()
    assert tuned.said("KVMD-AGENT asked to power off") and tuned.said("KVMD-POWEROFF name=web")
    assert time.monotonic() - began > tuned.spec["shutdown"]["timeouts"]["agent"]
    assert tuned.agent.metric("kvmd_forced_stops_total") == 0
