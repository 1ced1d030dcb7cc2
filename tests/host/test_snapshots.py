"""Snapshots and restores on the real QEMU driver: the guest goes on from where it was, and nothing is lost."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hermetic import Agent, wait_until
from small import vm, wipe
from test_main_path import guest_spec, last_tick, says

pytestmark = [pytest.mark.guest, pytest.mark.libvirt]

DISK_SIZE = 32 << 20


@pytest.fixture
def host(agent: Agent) -> Iterator[Agent]:
    """An agent on a host with nothing on it, without a brake."""
    settings = json.loads(agent.config.read_text())
    settings["prune"]["maxPercent"] = 100
    agent.config.write_text(json.dumps(settings))
    yield agent
    agent.stop()
    for name in agent.hermetic.virsh("list", "--all", "--name").split():
        for snapshot in agent.hermetic.virsh("snapshot-list", name, "--name").split():
            agent.hermetic.virsh("snapshot-delete", name, snapshot, "--metadata", check=False)
    wipe(agent.hermetic)


def snapshot(name: str, spec: str = "", annotations: str = "") -> str:
    """A snapshot of `web`."""
    notes = f", annotations: {{{annotations}}}" if annotations else ""
    return f"""---
apiVersion: kvmd.dev/v1alpha1
kind: VirtualMachineSnapshot
metadata: {{name: {name}{notes}}}
spec: {{virtualMachine: web{spec}}}
"""


def restore(name: str, of: str) -> str:
    """A restore of `web`."""
    return f"""---
apiVersion: kvmd.dev/v1alpha1
kind: VirtualMachineRestore
metadata: {{name: {name}}}
spec: {{virtualMachine: web, snapshot: {of}}}
"""


def disk(folder: Path, format: str) -> Path:
    """An empty disk."""
    path = folder / f"root.{format}"
    subprocess.run(["qemu-img", "create", "-q", "-f", format, path, str(DISK_SIZE)], check=True)
    return path


def machine(folder: Path, path: Path, more: str = "") -> str:
    """A guest that counts on its console, with that disk."""
    format = path.suffix.removeprefix(".")
    disks = f"[{{name: root, path: {path}, format: {format}}}]"
    return guest_spec("web", folder, disks=disks, interfaces="[]", more=more)


def tick(agent: Agent) -> int:
    """What the guest counted last."""
    match = says(agent.folder, "web", r"KVMD-TICK (\d+) ")
    return int(match[1]) if match else 0


def domain_id(agent: Agent) -> str:
    return agent.hermetic.virsh("domid", "web").strip()


def nothing_to_do(agent: Agent) -> None:
    plan = agent.kvmd("plan")
    assert "No changes" in plan, plan  # what waits for the guest's next boot may be listed before


@pytest.mark.shows("VirtualMachineSnapshot", "virtualMachine")
@pytest.mark.shows("VirtualMachineRestore", "virtualMachine", "snapshot")
@pytest.mark.shows("VirtualMachine", "devices.rng")
def test_a_guest_goes_on_from_its_snapshot_once(host: Agent) -> None:
    """Its counter and its uptime go on; the spec of now rules the definition; nothing repeats or restarts."""
    agent, folder = host, host.folder
    agent.write("web.yaml", machine(folder, disk(folder, "qcow2")))
    agent.start()
    wait_until(lambda: tick(agent) >= 12, 90, "the guest counts")
    before = tick(agent)
    agent.write("snapshot.yaml", snapshot("before-upgrade"))
    agent.wait_ready("VirtualMachineSnapshot/before-upgrade", "VirtualMachine/web")
    after, first = tick(agent), domain_id(agent)
    nothing_to_do(agent)
    found = agent.object("VirtualMachineSnapshot/before-upgrade")
    assert found is not None and found["status"]["memory"] and found["status"]["location"] == "internal", found
    changed = machine(folder, folder / "root.qcow2", "  updatePolicy: {restart: Manual}")
    changed = changed.replace("devices: {", "devices: {rng: true, ")
    changed = changed.replace("{name: web}", '{name: web, annotations: {kvmd.dev/restarted-at: "1"}}')
    agent.write("web.yaml", changed)
    wait_until(lambda: 2 <= tick(agent) < 10 and domain_id(agent) != first, 90, "it was started anew, with the rng")
    agent.wait_ready("VirtualMachine/web")
    first = domain_id(agent)
    agent.stop()
    agent.write("restore.yaml", restore("back", "before-upgrade"))
    plan = agent.kvmd("plan")
    assert "data loss" in plan and "go back to snapshot web/before-upgrade" in plan, plan
    agent.start()
    agent.wait_ready("VirtualMachineRestore/back", "VirtualMachine/web")
    second = domain_id(agent)
    wait_until(lambda: tick(agent) > before, 10, "the counter is where it was")
    resumed = tick(agent)
    assert resumed <= after + 5, (before, after, resumed)
    uptime = float(last_tick(folder, "web")["uptime"])
    wait_until(lambda: tick(agent) >= resumed + 3, 20, "and goes on")
    assert float(last_tick(folder, "web")["uptime"]) > uptime
    # The spec of now rules the definition; the restart that was asked for after the snapshot is not made again.
    assert second == domain_id(agent) != first
    assert "<rng" in agent.hermetic.virsh("dumpxml", "web", "--inactive")
    assert "<rng" not in agent.hermetic.virsh("dumpxml", "web")
    assert agent.condition("VirtualMachine/web", "RestartRequired") is not None
    nothing_to_do(agent)
    # The same object once more: written anew, taken away and brought back, and by another process.
    agent.write("restore.yaml", restore("back", "before-upgrade") + "# again\n")
    # Automatic: what waits does not throw the restored guest away.
    agent.write("web.yaml", changed.replace("Manual", "Automatic"))
    time.sleep(2)
    agent.remove("restore.yaml")
    wait_until(lambda: agent.object("VirtualMachineRestore/back") is None, 20)
    agent.stop()
    agent.write("restore.yaml", restore("back", "before-upgrade"))
    agent.start()
    agent.wait_ready("VirtualMachineRestore/back")
    time.sleep(2)
    assert domain_id(agent) == second and tick(agent) > resumed
    agent.write("restore.yaml", restore("back", "another"))
    assert "happens once" in agent.wait_condition("VirtualMachineRestore/back", "Stalled")["message"]
    assert domain_id(agent) == second


def test_a_restore_whose_end_nobody_saw_asks(host: Agent) -> None:
    agent, folder = host, host.folder
    ledger = folder / "state" / "ledger"
    agent.write("web.yaml", machine(folder, disk(folder, "qcow2")))
    agent.start()
    wait_until(lambda: tick(agent) >= 2, 60, "the guest counts")
    agent.write("snapshot.yaml", snapshot("moment"))
    agent.wait_ready("VirtualMachineSnapshot/moment")
    agent.write("restore.yaml", restore("back", "moment"))
    wait_until(lambda: "started web/moment" in ledger.read_text(), 20)
    agent.kill()
    assert "done web/moment" not in ledger.read_text()
    wait_until(lambda: "running" in agent.hermetic.virsh("domstate", "web"), 20)
    agent.start()
    asks = agent.wait_condition("VirtualMachineRestore/back", "Stalled")
    assert asks["reason"] == "RestoreNotDone" and "kvmd approve VirtualMachineRestore/back" in asks["message"]
    agent.wait_ready("VirtualMachine/web")
    first = domain_id(agent)
    time.sleep(2)
    assert domain_id(agent) == first
    agent.kvmd("approve", "VirtualMachineRestore/back")
    agent.wait_ready("VirtualMachineRestore/back", "VirtualMachine/web")
    assert domain_id(agent) != first
    assert ledger.read_text().count('"done web/moment"') == 1
    nothing_to_do(agent)


def qemu_io(agent: Agent, command: str) -> None:
    """Write into the disk of the running guest, through QEMU."""
    words = f'qemu-io -d /machine/peripheral/ua-disk-root/virtio-backend "{command}"'
    answer = agent.hermetic.virsh("qemu-monitor-command", "web", "--hmp", words)
    assert "error" not in answer.casefold() and "failed" not in answer, answer


@pytest.mark.shows("VirtualMachineSnapshot", "memory")
def test_an_external_snapshot_is_no_drift_and_merges_without_a_loss(host: Agent) -> None:
    """A raw disk gets an overlay; the spec's file is still the disk; removing the snapshot brings all into it."""
    agent, folder = host, host.folder
    path = disk(folder, "raw")
    agent.write("web.yaml", machine(folder, path))
    agent.start()
    wait_until(lambda: tick(agent) >= 1, 60, "the guest counts")
    first = domain_id(agent)
    qemu_io(agent, "write -P 0xab 0 64k")
    agent.write("one.yaml", snapshot("one", annotations="kvmd.dev/prune: enabled"))
    agent.wait_ready("VirtualMachineSnapshot/one", "VirtualMachine/web")
    qemu_io(agent, "write -P 0xcd 1M 64k")
    agent.write("two.yaml", snapshot("two", ", memory: false", annotations="kvmd.dev/prune: enabled"))
    agent.wait_ready("VirtualMachineSnapshot/two", "VirtualMachine/web")
    qemu_io(agent, "write -P 0xef 2M 64k")
    assert "root.one.two.qcow2" in agent.hermetic.virsh("domblklist", "web")
    nothing_to_do(agent)
    agent.stop()
    nothing_to_do(agent)
    assert agent.kvmd("diff") == ""
    agent.write("restore.yaml", restore("back", "one"))
    agent.start()
    assert "is external" in agent.wait_condition("VirtualMachineRestore/back", "Stalled")["message"]
    agent.remove("restore.yaml")
    wait_until(lambda: agent.object("VirtualMachineRestore/back") is None, 20)
    # The machine cannot go before its snapshots.
    agent.write("keep.yaml", vm("keep"))
    text = (agent.specs / "web.yaml").read_text()
    agent.remove("web.yaml")
    assert "still used by" in wait_until(lambda: agent.condition("VirtualMachine/web", "PruneHeld"), 20)["message"]
    agent.write("web.yaml", text)
    agent.wait_ready("VirtualMachine/web")
    for name in ("one", "two"):
        agent.remove(f"{name}.yaml")
        wait_until(lambda name=name: agent.object(f"VirtualMachineSnapshot/{name}") is None, 40, f"{name} is merged")
        wait_until(lambda: agent.condition("VirtualMachine/web", "Ready"), 20)
        nothing_to_do(agent)
    assert f"{path}\n" in agent.hermetic.virsh("domblklist", "web")
    assert agent.hermetic.virsh("snapshot-list", "web", "--name").split() == []
    assert sorted(item.name for item in folder.glob("*root*")) == ["root.raw"]
    assert list(folder.glob("*.memory")) == []
    data = path.read_bytes()
    for offset, byte in ((0, 0xAB), (1 << 20, 0xCD), (2 << 20, 0xEF)):
        assert data[offset : offset + 65536] == bytes([byte]) * 65536, offset
    assert domain_id(agent) == first


def test_a_machine_that_is_off(host: Agent) -> None:
    """Disks alone: kept inside of qcow2, brought back, and removed only when somebody approves."""
    agent, folder = host, host.folder
    path = disk(folder, "qcow2")
    disks = f"  disks: [{{name: root, path: {path}, format: qcow2}}]"
    subprocess.run(["qemu-io", "-c", "write -P 0x11 0 64k", path], check=True, capture_output=True)
    agent.write("web.yaml", vm("web", more=disks))
    agent.write("wants-memory.yaml", snapshot("wants-memory"))
    agent.write("off.yaml", snapshot("off", ", memory: false"))
    agent.start()
    agent.wait_ready("VirtualMachineSnapshot/off", "VirtualMachine/web")
    assert "running guest" in agent.wait_condition("VirtualMachineSnapshot/wants-memory", "Blocked")["message"]
    agent.remove("wants-memory.yaml")
    subprocess.run(["qemu-io", "-c", "write -P 0x22 0 64k", path], check=True, capture_output=True)
    agent.write("restore.yaml", restore("back", "off"))
    agent.wait_ready("VirtualMachineRestore/back", "VirtualMachine/web")
    read = subprocess.run(["qemu-io", "-c", "read -P 0x11 0 64k", path], check=True, capture_output=True, text=True)
    assert "verification failed" not in read.stdout
    assert agent.hermetic.virsh("domstate", "web").strip() == "shut off"
    nothing_to_do(agent)
    # Without the state directory nothing is noted any more, and the snapshot itself still says who went back to it.
    agent.stop()
    shutil.rmtree(folder / "state")
    subprocess.run(["qemu-io", "-c", "write -P 0x33 0 64k", path], check=True, capture_output=True)
    agent.start()
    assert agent.wait_condition("VirtualMachineRestore/back", "Stalled")["reason"] == "RestoreNotDone"
    read = subprocess.run(["qemu-io", "-c", "read -P 0x33 0 64k", path], check=True, capture_output=True, text=True)
    assert "verification failed" not in read.stdout
    agent.remove("restore.yaml")
    agent.remove("off.yaml")
    held = agent.wait_condition("VirtualMachineSnapshot/off", "PruneHeld")
    assert held["reason"] == "ConfirmationRequired", held
    agent.write("off.yaml", snapshot("off", ", memory: false", annotations="kvmd.dev/prune: enabled"))
    wait_until(
        lambda: re.search(r"prune.{1,20}enabled", agent.hermetic.virsh("snapshot-dumpxml", "web", "off")),
        20,
        "the new order is in the mark",
    )
    agent.wait_ready("VirtualMachineSnapshot/off")
    agent.hermetic.virsh("snapshot-create-as", "web", "by-hand")
    agent.remove("off.yaml")
    wait_until(lambda: agent.object("VirtualMachineSnapshot/off") is None, 30)
    agent.write("keep.yaml", vm("keep"))
    agent.remove("web.yaml")
    blocked = agent.wait_condition("VirtualMachine/web", "Blocked")
    assert "by-hand" in blocked["message"], blocked
    assert "by-hand" in agent.hermetic.virsh("snapshot-list", "web", "--name")
    agent.hermetic.virsh("snapshot-delete", "web", "by-hand")
    agent.kvmd("reconcile", "VirtualMachine/web", code=None)
    wait_until(lambda: "web" not in agent.hermetic.virsh("list", "--all", "--name").split(), 60, "the machine goes")
