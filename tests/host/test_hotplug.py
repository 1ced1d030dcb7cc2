"""What is plugged into a running guest and taken out of it again: memory, shares, disks; and what it keeps."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from guest import ARGS, guest_files
from hermetic import Agent, Hermetic, wait_until
from small import vm, wipe

pytestmark = [pytest.mark.guest, pytest.mark.libvirt]

# Memory that is plugged lies above 4 GiB: Linux then sets 64 MiB aside for devices, which a small guest has not.
SMALL = f"{ARGS} kvmd.tick=1 swiotlb=512 memhp_default_state=online_movable"


@pytest.fixture(scope="module")
def agent_of_all(hermetic: Hermetic, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """A kvmd with one machine that stays, so that the removal of all others is no empty directory."""
    agent = Agent(hermetic, tmp_path_factory.mktemp("hotplug") / "agent", prune={"maxPercent": 100})
    agent.write("stays.yaml", vm("stays"))
    agent.start()
    yield agent
    agent.stop()
    wipe(hermetic)


@pytest.fixture
def running(agent_of_all: Agent) -> Iterator[Agent]:
    """The same kvmd for each test, without the machine of the test before."""
    yield agent_of_all
    agent_of_all.remove("web.yaml")
    wait_until(lambda: agent_of_all.hermetic.virsh("list", "--all", "--name").split() == ["stays"], 60, "web is gone")
    (agent_of_all.folder / "web.console").unlink(missing_ok=True)


def spec(agent: Agent, name: str, **fields: str) -> str:
    """A guest that says on its console what it has."""
    files = guest_files()
    values = {"memory": "guest: 128Mi", "disks": "[]", "more": "", "vcpus": "vcpus: 1"} | fields
    arguments = f"{SMALL} kvmd.name={name} kvmd.share=work"
    boot = f"{{kernel: {{path: {files.kernel}}}, initrd: {{path: {files.initrd}}}, args: '{arguments}'}}"
    more = f"""  cpu: {{{values["vcpus"]}, maxVcpus: 2}}
  kernelBoot: {boot}
  disks: {values["disks"]}
  devices: {{serial: [{{name: console, file: {agent.folder}/{name}.console}}]}}
{values["more"]}"""
    return vm(name, "Always", more=more).replace("{guest: 64Mi}", f"{{{values['memory']}}}")


def tick(agent: Agent, name: str) -> dict[str, str]:
    """What the guest said last of itself."""
    text = (agent.folder / f"{name}.console").read_text(errors="replace")
    found = re.findall(r"KVMD-TICK \d+ (.* media=\S+)\s", text)
    return dict(part.partition("=")[::2] for part in found[-1].split()) if found else {}


def memory(agent: Agent, name: str) -> int:
    """MiB that the guest sees."""
    return int(tick(agent, name).get("mem", "0")) // 1024


def at_rest(agent: Agent, name: str, seconds: float = 40) -> Any:
    """Wait until nothing is left to do; the object."""
    agent.wait_ready(f"VirtualMachine/{name}", seconds=seconds)
    agent.kvmd("plan", "--detailed-exitcode")
    return agent.object(f"VirtualMachine/{name}")


@pytest.mark.shows("VirtualMachine", "memory.hotplug", "filesystems[].name", "filesystems[].path")
def test_virtio_mem_and_a_share_of_a_running_guest(running: Agent, tmp_path: Path) -> None:
    """Memory comes and goes without a restart; the guest reads and writes a folder of the host."""
    agent, hermetic = running, running.hermetic
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "hello").write_text("from the host\n")
    share = f"  filesystems: [{{name: work, path: {tmp_path}/work}}]"
    sizes = "guest: {}Mi, maxGuest: 512Mi, hotplug: VirtioMem"
    agent.write("web.yaml", spec(agent, "web", memory=sizes.format(128), more=share))
    before = wait_until(lambda: memory(agent, "web"), 120, "it is up")
    assert "KVMD-SHARE work hello=from the host" in (agent.folder / "web.console").read_text(errors="replace")
    assert (tmp_path / "work" / "answer").read_text() == "from web\n"
    at_rest(agent, "web")
    identity = hermetic.virsh("domid", "web")
    two = "vcpus: 2"
    agent.write("web.yaml", spec(agent, "web", memory=sizes.format(384), more=share, vcpus=two))
    wait_until(lambda: memory(agent, "web") >= before + 256, 40, "256 MiB more")
    assert hermetic.virsh("vcpucount", "web", "--live", "--current").strip() == "2"
    at_rest(agent, "web")
    agent.write("web.yaml", spec(agent, "web", memory=sizes.format(192), more=share, vcpus=two))
    wait_until(lambda: memory(agent, "web") <= before + 64, 40, "192 MiB less")
    assert at_rest(agent, "web")["status"]["pendingChanges"] == []
    agent.write("web.yaml", spec(agent, "web", memory=sizes.format(96)))
    waiting = {"spec.memory.guest", "spec.filesystems[work]", "spec.cpu.vcpus"}
    wait_until(lambda: pending(agent) == waiting, 20, "less than it was booted with, no share, and one CPU less")
    assert hermetic.virsh("domid", "web") == identity


def pending(agent: Agent) -> set[str]:
    """What waits for a restart of web."""
    found = agent.object("VirtualMachine/web")
    assert found is not None
    return {item["path"] for item in found["status"]["pendingChanges"]}


def test_dimms_give_a_running_guest_more_memory_and_take_it_back(running: Agent) -> None:
    agent, hermetic = running, running.hermetic
    sizes = "guest: {}Mi, maxGuest: 512Mi, hotplug: Dimm"
    agent.write("web.yaml", spec(agent, "web", memory=sizes.format(128)))
    before = wait_until(lambda: memory(agent, "web"), 120, "it is up")
    identity = hermetic.virsh("domid", "web")
    agent.write("web.yaml", spec(agent, "web", memory=sizes.format(256)))
    wait_until(lambda: memory(agent, "web") >= before + 128, 40, "128 MiB more")
    at_rest(agent, "web")
    agent.write("web.yaml", spec(agent, "web", memory=sizes.format(128)))
    at_rest(agent, "web", 60)
    assert hermetic.virsh("dumpxml", "web").count("<memory model='dimm'") == 0
    assert hermetic.virsh("domid", "web") == identity


def test_a_guest_that_never_lets_go_of_its_disk_is_asked_again_and_holds_up_nothing(
    running: Agent, tmp_path: Path
) -> None:
    agent, hermetic = running, running.hermetic
    (tmp_path / "data.raw").write_bytes(bytes(8 << 20))
    disk = f"  disks: [{{name: data, path: {tmp_path}/data.raw, format: raw}}]"
    agent.write("web.yaml", vm("web", "Always", more=disk))  # firmware only: nobody there answers
    at_rest(agent, "web")
    agent.write("web.yaml", vm("web", "Always", more="  interfaces: [{name: net0, user: {}}]"))
    wait_until(lambda: "user" in hermetic.virsh("domiflist", "web"), 30, "the NIC beside it")
    said = agent.wait_condition("VirtualMachine/web", "Degraded", 60)
    assert said["reason"] == "DetachUnanswered" and "the disk data" in said["message"]
    assert "data.raw" in hermetic.virsh("domblklist", "web")
    assert "data.raw" not in hermetic.virsh("domblklist", "web", "--inactive")
    agent.kvmd("restart", "web")
    wait_until(lambda: "data.raw" not in hermetic.virsh("domblklist", "web"), 60, "the next start is without")
    at_rest(agent, "web")


@pytest.mark.shows("VirtualMachine", "hostDevices[].name", "hostDevices[].usb")
def test_a_device_of_the_host_is_refused_until_policy_names_it(running: Agent) -> None:
    agent, hermetic = running, running.hermetic
    agent.write("web.yaml", vm("web", more="  hostDevices: [{name: key, usb: '046d:c52b'}]"))
    said = agent.wait_condition("VirtualMachine/web", "Stalled")
    assert said["reason"] == "Refused" and "policy: {hostDevices: ['usb:046d:c52b']}" in said["message"]
    settings = json.loads(agent.config.read_text())
    settings["policy"]["hostDevices"] = ["usb:046d:*"]
    agent.config.write_text(json.dumps(settings))
    os.kill(agent.pid(), signal.SIGHUP)
    at_rest(agent, "web")
    assert "<product id='0xc52b'/>" in hermetic.virsh("dumpxml", "web")


HUGE = Path("/proc/sys/vm/nr_hugepages")


@pytest.fixture
def huge_pages(hermetic: Hermetic) -> Iterator[None]:
    """48 pages of 2 MiB that the kernel has set aside, where it does."""
    before = HUGE.read_text()
    try:
        HUGE.write_text(str(int(before) + 48))
    except OSError as error:
        pytest.skip(f"this kernel sets no huge pages aside: {error}")
    if int(HUGE.read_text()) < int(before) + 48:
        HUGE.write_text(before)
        pytest.skip("this host has no 96 MiB in one piece left for huge pages")
    hermetic.run("mkdir", "-p", "/dev/hugepages")
    hermetic.run("mount", "-t", "hugetlbfs", "hugetlbfs", "/dev/hugepages")
    process = Path(f"/proc/{hermetic.libvirtd_pid}")
    hermetic.kill_libvirtd(signal.SIGTERM)
    wait_until(lambda: not process.exists(), 20, "libvirtd is gone")
    hermetic.start_libvirtd()  # it looks for huge pages when it starts
    yield
    hermetic.run("umount", "/dev/hugepages")
    HUGE.write_text(before)


@pytest.mark.shows("VirtualMachine", "memory.hugepages.size", "devices.tablet", "devices.sound")
@pytest.mark.shows("VirtualMachine", "filesystems[].tag", "filesystems[].type", "filesystems[].readOnly")
@pytest.mark.usefixtures("huge_pages")
@pytest.mark.shows("VirtualMachine", "devices.tablet", "devices.sound")
def test_huge_pages_spice_tablet_sound_and_9p_in_one_machine(running: Agent, tmp_path: Path) -> None:
    agent, hermetic = running, running.hermetic
    secret = tmp_path / "spice"
    secret.write_text("word1234")
    secret.chmod(0o600)
    graphics = f"graphics: {{type: spice, passwordFrom: {{file: {secret}}}}}"
    share = f"  filesystems: [{{name: old, tag: past, path: {tmp_path}, type: 9p, readOnly: true}}]"
    screen = f"  devices: {{{graphics}, tablet: true, sound: ich9}}\n{share}"
    agent.write("web.yaml", vm("web", "Always", memory="64Mi, hugepages: {size: 2Mi}", more=screen))
    at_rest(agent, "web", 60)
    live = hermetic.virsh("dumpxml", "web")
    assert "<hugepages>" in live and "type='spice'" in live
    assert "<input type='tablet' bus='usb'>" in live and "<sound model='ich9'>" in live
    assert "<target dir='past'/>" in live and "<readonly/>" in live
    free = int(re.findall(r"HugePages_Free: *(\d+)", Path("/proc/meminfo").read_text())[0])
    assert free <= 48 - 32
