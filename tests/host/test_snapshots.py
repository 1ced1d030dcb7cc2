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


def written(agent: Agent, *files: Path) -> list[int]:
    """The tick that the guest has written last into each disk, read through the files under it."""
    found, sector = [], agent.folder / "sector"
    for file in files:
        words = ("qemu-img", "dd", "-U", "-O", "raw", "-f", file.suffix[1:], f"if={file}", f"of={sector}", "bs=512")
        subprocess.run([*words, "count=1"], check=True, capture_output=True)
        found.append(int(sector.read_bytes().split(b"\n")[0].removeprefix(b"tick ")))
    return found


@pytest.mark.shows("VirtualMachineSnapshot", "memory")
def test_external_snapshots_are_no_drift_are_gone_back_to_and_merge_without_a_loss(host: Agent) -> None:
    """A raw disk gets overlays; the spec's file is still the disk; what came after stays on disk."""
    agent, folder = host, host.folder
    path = disk(folder, "raw")
    agent.write("web.yaml", machine(folder, path).replace("kvmd.tick=1", "kvmd.tick=1 kvmd.write=vda"))
    agent.start()
    wait_until(lambda: tick(agent) >= 2, 60, "the guest counts")
    first = domain_id(agent)
    agent.write("one.yaml", snapshot("one", annotations="kvmd.dev/prune: enabled"))
    agent.wait_ready("VirtualMachineSnapshot/one", "VirtualMachine/web")
    moment = written(agent, path)[0]
    agent.write("two.yaml", snapshot("two", ", memory: false", annotations="kvmd.dev/prune: enabled"))
    agent.wait_ready("VirtualMachineSnapshot/two", "VirtualMachine/web")
    assert "root.one.two.qcow2" in agent.hermetic.virsh("domblklist", "web")
    wait_until(lambda: tick(agent) >= moment + 6, 30, "it goes on")
    # Another word of the spec does not point the machine back at what lies under its overlays.
    agent.write("web.yaml", (agent.specs / "web.yaml").read_text().replace("maxVcpus: 2", "maxVcpus: 3"))
    agent.wait_condition("VirtualMachine/web", "RestartRequired")
    assert "root.one.two.qcow2" in agent.hermetic.virsh("domblklist", "web", "--inactive")
    agent.stop()
    nothing_to_do(agent)
    # With memory: the counter goes on from where it was.
    agent.write("restore.yaml", restore("back", "one"))
    agent.start()
    agent.wait_ready("VirtualMachineRestore/back", "VirtualMachine/web")
    after, kept = wait_until(lambda: tick(agent), 20, "it counts"), folder / "root.one.two.qcow2"
    assert domain_id(agent) != first and moment <= after <= moment + 5, (moment, after)
    assert written(agent, path, kept)[0] == moment and written(agent, kept)[0] > moment + 4
    assert "root.one.back.qcow2" in agent.hermetic.virsh("domblklist", "web")
    wait_until(lambda: tick(agent) > after, 20, "it goes on from there")
    nothing_to_do(agent)
    # Without: as if the power had been cut at that moment.
    agent.write("three.yaml", snapshot("three", ", memory: false", annotations="kvmd.dev/prune: enabled"))
    agent.wait_ready("VirtualMachineSnapshot/three")
    cut = written(agent, folder / "root.one.back.qcow2")[0]
    wait_until(lambda: tick(agent) > cut + 3, 20, "it goes on")
    agent.write("again.yaml", restore("again", "three"))
    agent.wait_ready("VirtualMachineRestore/again", "VirtualMachine/web")
    found = wait_until(lambda: re.findall(r"KVMD-FOUND vda tick (\d+)", console(agent)), 60, "it boots")
    assert found == [str(cut)], (cut, found)
    nothing_to_do(agent)
    merge(agent, folder, path)


def console(agent: Agent) -> str:
    """What the guest has said since it was started last."""
    return (agent.folder / "web.console").read_text(errors="replace")


def merge(agent: Agent, folder: Path, path: Path) -> None:
    """Remove the snapshots of a machine that has gone back twice: nothing that stands on a file is spoilt."""
    second = domain_id(agent)
    agent.remove("restore.yaml")
    agent.remove("again.yaml")
    # The machine cannot go before its snapshots.
    text = (agent.specs / "web.yaml").read_text()
    agent.write("keep.yaml", vm("keep"))
    agent.remove("web.yaml")
    assert "still used by" in wait_until(lambda: agent.condition("VirtualMachine/web", "PruneHeld"), 20)["message"]
    agent.write("web.yaml", text)
    agent.wait_ready("VirtualMachine/web")
    # The machine does not stand on what lies over the second: that stays where it is.
    gone(agent, "two")
    files = sorted(item.name for item in folder.glob("*root*"))
    new = ["root.one.back.qcow2", "root.one.back.three.again.qcow2"]
    old = ["root.one.back.three.qcow2", "root.one.qcow2", "root.one.two.qcow2"]
    assert files == sorted([*new, *old, "root.raw"]), files
    for name, left in (("three", "root.one.back.three.qcow2"), ("one", "root.one.qcow2")):
        agent.remove(f"{name}.yaml")
        told = wait_until(lambda name=name: waiting(agent, name), 30, f"{name} waits")
        assert f"{folder}/{left}" in told, told
        (folder / left).unlink()
        agent.kvmd("reconcile", f"VirtualMachineSnapshot/{name}", code=None)
        wait_until(lambda name=name: agent.object(f"VirtualMachineSnapshot/{name}") is None, 40, f"{name} is merged")
        wait_until(lambda: agent.condition("VirtualMachine/web", "Ready"), 20)
        nothing_to_do(agent)
    assert f"{path}\n" in agent.hermetic.virsh("domblklist", "web")
    assert agent.hermetic.virsh("snapshot-list", "web", "--name").split() == []
    assert sorted(item.name for item in folder.glob("*root*")) == ["root.one.two.qcow2", "root.raw"]
    assert list(folder.glob("*.memory")) == []
    before = tick(agent)
    wait_until(lambda: tick(agent) > before + 1, 20)
    assert written(agent, path)[0] > before and domain_id(agent) == second


def gone(agent: Agent, name: str) -> None:
    """Take the spec of a snapshot away, and wait until it is gone."""
    agent.remove(f"{name}.yaml")
    wait_until(lambda: agent.object(f"VirtualMachineSnapshot/{name}") is None, 40, f"{name} goes")


def waiting(agent: Agent, name: str) -> str:
    """What is said of a snapshot that cannot go yet."""
    found = agent.object(f"VirtualMachineSnapshot/{name}") or {"status": {"conditions": []}}
    said = " ".join(condition["message"] for condition in found["status"]["conditions"])
    return said if "stands on" in said else ""


def test_a_machine_with_uefi_goes_back_with_its_memory(host: Agent) -> None:
    """libvirt keeps no snapshot inside of its disks: an overlay and a file of memory beside them."""
    agent, path = host, disk(host.folder, "qcow2")
    more = f"  firmware: {{type: efi}}\n  disks: [{{name: root, path: {path}, format: qcow2}}]"
    agent.write("web.yaml", vm("web", "Always", memory="128Mi", more=more))
    agent.start()
    agent.wait_ready("VirtualMachine/web", seconds=30)
    agent.write("moment.yaml", snapshot("moment"))
    agent.wait_ready("VirtualMachineSnapshot/moment", "VirtualMachine/web")
    found = agent.object("VirtualMachineSnapshot/moment")
    assert found is not None and (found["status"]["location"], found["status"]["restorable"]) == ("external", True)
    first = domain_id(agent)
    agent.write("restore.yaml", restore("back", "moment"))
    agent.wait_ready("VirtualMachineRestore/back", "VirtualMachine/web")
    assert domain_id(agent) != first
    assert "root.moment.back.qcow2" in agent.hermetic.virsh("domblklist", "web")
    left = (agent.object("VirtualMachineSnapshot/moment") or {})["status"]["leftBehind"]
    assert left == [{"path": f"{host.folder}/root.moment.qcow2", "by": "VirtualMachineRestore/back"}]
    nothing_to_do(agent)


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
