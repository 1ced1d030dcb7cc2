"""What is plugged into a running guest and taken out of it again: memory, shares, disks; and what it keeps."""

from __future__ import annotations

import re
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


@pytest.fixture
def running(hermetic: Hermetic, tmp_path: Path) -> Iterator[Agent]:
    """A kvmd with nothing to do yet."""
    agent = Agent(hermetic, tmp_path / "agent", prune={"maxPercent": 100})
    agent.start()
    yield agent
    agent.stop()
    wipe(hermetic)


def spec(agent: Agent, name: str, **fields: str) -> str:
    """A guest that says on its console what it has."""
    files = guest_files()
    values = {"memory": "guest: 128Mi", "disks": "[]", "more": "", "vcpus": "vcpus: 1"} | fields
    boot = f"{{kernel: {{path: {files.kernel}}}, initrd: {{path: {files.initrd}}}, args: '{SMALL} kvmd.name={name}'}}"
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


def test_virtio_mem_gives_a_running_guest_more_memory_and_takes_it_back(running: Agent) -> None:
    agent, hermetic = running, running.hermetic
    sizes = "guest: {}Mi, maxGuest: 512Mi, hotplug: VirtioMem"
    agent.write("web.yaml", spec(agent, "web", memory=sizes.format(128)))
    before = wait_until(lambda: memory(agent, "web"), 60, "it is up")
    at_rest(agent, "web")
    identity = hermetic.virsh("domid", "web")
    agent.write("web.yaml", spec(agent, "web", memory=sizes.format(384)))
    wait_until(lambda: memory(agent, "web") >= before + 256, 40, "256 MiB more")
    at_rest(agent, "web")
    agent.write("web.yaml", spec(agent, "web", memory=sizes.format(192)))
    wait_until(lambda: memory(agent, "web") <= before + 64, 40, "192 MiB less")
    assert at_rest(agent, "web")["status"]["pendingChanges"] == []
    agent.write("web.yaml", spec(agent, "web", memory=sizes.format(96)))
    found = wait_until(lambda: agent.object("VirtualMachine/web")["status"]["pendingChanges"], 20)  # type: ignore[index]
    assert [item["path"] for item in found] == ["spec.memory.guest"]
    assert hermetic.virsh("domid", "web") == identity


def test_a_dimm_gives_a_running_guest_more_memory_which_it_may_refuse_to_give_back(running: Agent) -> None:
    agent, hermetic = running, running.hermetic
    sizes = "guest: {}Mi, maxGuest: 512Mi, hotplug: Dimm"
    agent.write("web.yaml", spec(agent, "web", memory=sizes.format(128)))
    before = wait_until(lambda: memory(agent, "web"), 60, "it is up")
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
