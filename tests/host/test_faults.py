"""What goes wrong on a host: each fault says what, where, why and what to type, and nothing is lost."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hermetic import Agent, wait_until
from served import URL, ImageServer
from small import vm, wipe
from test_storage import image, pool, status, volume

from kvmd.errors import Retry
from kvmd.host.storage import qemu_img, reach

pytestmark = [pytest.mark.guest, pytest.mark.libvirt]
MEGABYTE = 1 << 20


@pytest.fixture(autouse=True)
def nothing_before(agent: Agent) -> Iterator[None]:
    """Each test ends with a host that has nothing."""
    yield
    agent.stop()
    wipe(agent.hermetic)


def told(agent: Agent, reference: str) -> str:
    """All that an object's conditions say."""
    item = agent.object(reference)
    return " ".join(c["message"] for c in item["status"]["conditions"]) if item else ""


def says(agent: Agent, reference: str, text: str, seconds: float = 30) -> str:
    """Wait until an object says that; everything that it says."""
    wait_until(lambda: text in told(agent, reference), seconds, f"{reference} says: {text}")
    return told(agent, reference)


def small_disk(agent: Agent, path: Path, size: int) -> None:
    """A directory that holds so many megabytes."""
    path.mkdir(parents=True)
    agent.hermetic.run("mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", str(path))


def make_room(agent: Agent, path: Path) -> None:
    """Ten times as much."""
    agent.hermetic.run("mount", "-o", "remount,size=64m", str(path))
    agent.kvmd("reconcile")


def listed(agent: Agent, path: Path) -> list[str]:
    """The files below a directory, as they are in the namespaces."""
    return sorted(agent.hermetic.run("find", str(path), "-type", "f", "-printf", "%f\n").split())


def test_a_full_disk_and_a_trash_that_is_emptied(agent: Agent, tmp_path: Path) -> None:
    """Of the image store while an image comes, and of a pool while a volume is made; then there is room."""
    images, disks = agent.folder / "state" / "images", agent.folder / "pool"
    small_disk(agent, images, 4)
    small_disk(agent, disks, 3)
    server = ImageServer(agent, tmp_path)
    data = os.urandom(8 * MEGABYTE)
    server.offer("big.raw", data)
    specs = image("big", f"{URL}/big.raw") + pool(disks) + volume("copy", "format: raw, from: {image: big}")
    agent.write("all.yaml", specs)
    agent.start()
    said = says(agent, "Image/big", "is full")
    assert f"the disk of {images}/.parts is full; what came is kept; make room: df {images}/.parts" in said
    make_room(agent, images)
    agent.wait_ready("Image/big")
    said = says(agent, "Volume/copy", "is full")
    assert f"the disk of {disks} is full; nothing of it is left there; make room: df {disks}" in said
    assert listed(agent, disks) == []
    agent.hermetic.run("mkdir", f"{disks}/.kvmd-trash")
    agent.hermetic.run("touch", f"{disks}/.kvmd-trash/1000000000-old.raw", f"{disks}/.kvmd-trash/9999999999-new.raw")
    make_room(agent, disks)
    agent.wait_ready("Volume/copy", "StoragePool/disks")
    assert listed(agent, disks) == ["9999999999-new.raw", "copy.raw"], "what was thrown away long ago is gone"
    agent.hermetic.run("cmp", f"{disks}/copy.raw", str(server.folder / "big.raw"))
    server.close()


def test_a_medium_that_comes_slowly_or_not_holds_up_nothing(agent: Agent, tmp_path: Path) -> None:
    """Its bytes are counted in status while a vCPU is plugged in beside it; one that is not there is told."""
    server = ImageServer(agent, tmp_path)
    server.offer("slow.iso", os.urandom(MEGABYTE))
    cpu, none = "  cpu: {{vcpus: {}, maxVcpus: 4}}\n", "  disks: [{name: cd0, device: cdrom, media: null}]"
    medium = "  disks: [{{name: cd0, device: cdrom, media: {{url: '{}', access: Cached}}}}]"
    agent.write("vm.yaml", vm("web", "Always", more=cpu.format(1) + none))
    agent.start()
    agent.wait_ready("VirtualMachine/web")
    domain_id = agent.hermetic.virsh("domid", "web").strip()
    agent.write("vm.yaml", vm("web", "Always", more=cpu.format(2) + medium.format(f"{URL}/missing/a.iso")))
    says(agent, "VirtualMachine/web", "the server answers 404")
    agent.write("vm.yaml", vm("web", "Always", more=cpu.format(2) + medium.format(f"{URL}/slow/slow.iso")))
    wait_until(lambda: 0 < progress(agent)["doneBytes"] < progress(agent)["totalBytes"] == MEGABYTE, 30)
    agent.write("vm.yaml", vm("web", "Always", more=cpu.format(3) + medium.format(f"{URL}/slow/slow.iso")))
    wait_until(lambda: "current='3'" in agent.hermetic.virsh("dumpxml", "web"), 10, "a third vCPU")
    assert "media-" not in agent.hermetic.virsh("domblklist", "web"), "it was plugged in while the medium came"
    agent.wait_ready("VirtualMachine/web", seconds=90)
    assert "media-" in agent.hermetic.virsh("domblklist", "web")
    assert sum(line.startswith("GET /slow/") for line in server.asked) == 1
    assert agent.metric("kvmd_drift_corrected_total") == 0, "that it came is nobody's drift"
    assert agent.kvmd("plan").startswith("No changes") and agent.hermetic.virsh("domid", "web").strip() == domain_id
    server.close()


def progress(agent: Agent) -> dict[str, int]:
    """How far the medium has come."""
    drives = status(agent, "VirtualMachine/web").get("drives") or [{}]
    return drives[0].get("progress") or {"doneBytes": 0, "totalBytes": 0}  # type: ignore[index, no-any-return]


def test_a_file_replaced_under_a_guest_that_ignores_the_power_button(agent: Agent) -> None:
    """What the guest has can be saved as the message says; it is not restarted; nor is it forced off unasked."""
    disk = agent.folder / "web.raw"
    disk.write_bytes(b"precious" * 65536)
    more = f"  disks: [{{name: root, path: {disk}, format: raw}}]\n  updatePolicy: {{restart: Automatic}}\n"
    deaf = "shutdown: {methods: [acpi], timeoutSeconds: 2, forceAfterTimeout: false}"
    spec = vm("web", "Always", more=more).replace("shutdown: {methods: [acpi], timeoutSeconds: 2}", deaf)
    agent.write("vm.yaml", spec)
    agent.start()
    agent.wait_ready("VirtualMachine/web")
    domain_id = agent.hermetic.virsh("domid", "web").strip()
    other = agent.folder / "other.raw"
    other.write_bytes(bytes(524288))
    other.rename(disk)
    agent.kvmd("reconcile")
    said = agent.wait_condition("VirtualMachine/web", "Degraded")
    assert said["reason"] == "FileReplaced", said
    command = re.search(r"type: (cp \S+ \S+ \S+)", said["message"])
    assert command is not None, said
    agent.hermetic.run(*command[1].split())
    assert Path(f"{disk}.rescued").read_bytes() == b"precious" * 65536
    agent.write("vm.yaml", spec.replace("64Mi", "96Mi"))
    wait_until(lambda: status(agent, "VirtualMachine/web")["pendingChanges"], 20, "more memory waits")
    assert agent.condition("VirtualMachine/web", "RestartRequired")
    agent.write("vm.yaml", spec.replace("Always", "Halted"))
    said = wait_until(lambda: "forceAfterTimeout is false" in told(agent, "VirtualMachine/web"), 30)
    assert "virsh destroy web" in told(agent, "VirtualMachine/web")
    assert agent.hermetic.virsh("domid", "web").strip() == domain_id, "neither restarted nor forced off"
    agent.hermetic.virsh("destroy", "web")
    agent.wait_ready("VirtualMachine/web")
    assert "was replaced" not in told(agent, "VirtualMachine/web")


def test_qemu_img_runs_under_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that makes it ask for the memory of the whole host gets none of it."""
    words = ("create", "-q", "-f", "qcow2", str(tmp_path / "a.qcow2"), "1M")
    qemu_img.qemu_img(*words)
    (tmp_path / "a.qcow2").unlink()
    monkeypatch.setattr(qemu_img, "MEMORY_BYTES", 16 * MEGABYTE)
    with pytest.raises(Retry):
        qemu_img.qemu_img(*words)
    assert not (tmp_path / "a.qcow2").exists()


def test_nvram_that_is_left_over(agent: Agent) -> None:
    """That of another's machine of the name is not taken up; our own of another size is told, and kept."""
    nvram = Path("/var/lib/libvirt/qemu/nvram")
    agent.hermetic.run("mkdir", "-p", str(nvram))
    agent.hermetic.run("sh", "-c", f"echo theirs > {nvram}/web_VARS.fd")
    agent.write("vm.yaml", vm("web", "Halted", more="  firmware: {type: efi}"))
    agent.start()
    agent.wait_ready("VirtualMachine/web")
    (path,) = re.findall(r"<nvram[^>]*>([^<]+)<", agent.hermetic.virsh("dumpxml", "web"))
    assert path != f"{nvram}/web_VARS.fd"
    agent.hermetic.run("sh", "-c", f"echo ours > {path}")
    agent.write("vm.yaml", vm("web", "Always", more="  firmware: {type: efi}"))
    said = says(agent, "VirtualMachine/web", "is no NVRAM of its firmware")
    assert f"it gets a fresh one after: mv {path} {path}.old" in said, said
    agent.hermetic.run("mv", path, f"{path}.old")
    assert agent.hermetic.run("cat", f"{path}.old") == "ours\n", "it was kept"
    agent.kvmd("reconcile")
    agent.wait_ready("VirtualMachine/web")
    assert agent.hermetic.run("cat", f"{nvram}/web_VARS.fd") == "theirs\n"


def test_the_way_to_a_file_is_walked_as_its_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As any other user than root, to what a disk stands on; and to the file, where libvirt leaves that to people."""
    conf = tmp_path / "qemu.conf"
    monkeypatch.setattr(reach, "QEMU_CONF", str(conf))
    folder = Path("/var/tmp") / f"kvmd-{os.getpid()}"
    (folder / "base").mkdir(parents=True)
    try:
        base, top = folder / "base" / "base.raw", folder / "top.qcow2"
        base.write_bytes(bytes(MEGABYTE))
        words = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(base), str(top)]
        subprocess.run(words, check=True)
        xml = f"<domain><devices><disk><driver type='qcow2'/><source file='{top}'/></disk></devices></domain>"
        nobody = reach.User(65534, 65534)
        assert reach.barred(xml, nobody) == ("", "")
        (folder / "base").chmod(0o700)
        why, cure = reach.barred(xml, nobody)
        assert f"may not enter {folder}/base (drwx------ root), on the way to {base}" in why and "chmod o+x" in cure
        (folder / "base").chmod(0o755)
        conf.write_text("dynamic_ownership = 0\n")
        why, cure = reach.barred(xml, nobody)
        assert f"may not write to {top} (-rw-r--r-- root)" in why and cure == f"type: setfacl -m u:nobody:rw {top}"
        top.chmod(0o666)
        assert reach.barred(xml, nobody) == ("", ""), "what a disk stands on is only read"
    finally:
        shutil.rmtree(folder)


LABEL = "<seclabel type='static' model='dac' relabel='yes'><label>+65534:+65534</label></seclabel>"


def test_a_directory_that_qemu_may_not_enter(agent: Agent) -> None:
    """This guest's QEMU runs as another user than root; the cure that the message names is the cure."""
    run, virsh = agent.hermetic.run, agent.hermetic.virsh
    run("mount", "-t", "tmpfs", "tmpfs", "/srv")
    run("install", "-d", "-m", "700", "/srv/private")
    run("sh", "-c", "truncate -s 1M /srv/private/a.raw; chown nobody /srv/private/a.raw")
    disk = "  disks: [{name: root, path: /srv/private/a.raw, format: raw}]"
    agent.write("vm.yaml", vm("web", "Halted", more=disk))
    agent.start()
    agent.wait_ready("VirtualMachine/web")
    labelled = agent.folder / "labelled.xml"
    labelled.write_text(virsh("dumpxml", "web", "--inactive").replace("</domain>", f"{LABEL}</domain>"))
    virsh("define", str(labelled))
    agent.write("vm.yaml", vm("web", "Always", more=disk))
    said = says(agent, "VirtualMachine/web", "may not enter", 90)
    assert "QEMU runs as nobody, who may not enter /srv/private (drwx------ root), on the way to /srv" in said, said
    assert "failed" not in virsh("domstate", "web", "--reason"), "it was not even tried"
    command = re.search(r"type: (chmod \S+ \S+)", said)
    assert command is not None
    run(*command[1].split())
    agent.kvmd("reconcile")
    agent.wait_ready("VirtualMachine/web")
