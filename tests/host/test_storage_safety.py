"""What a guest writes opens no file of the host, what others stand on stays, and no other's mark is lost."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hermetic import Agent, Hermetic, wait_until
from small import vm, wipe
from test_storage import image, pool, status, volume

from kvmd.api.mark import Mark
from kvmd.api.resource import Ref
from kvmd.host.attributes import mark_on, put_mark

pytestmark = [pytest.mark.guest, pytest.mark.libvirt]


@pytest.fixture(scope="module")
def agent(hermetic: Hermetic, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """One kvmd for all, with one machine that stays; it waits for less long than a careful one, without a brake."""
    folder = tmp_path_factory.mktemp("storage") / "agent"
    made = Agent(hermetic, folder, source={"settle": "50ms"}, prune={"grace": "300ms", "maxPercent": 100})
    made.write("keep.yaml", vm("keep"))
    made.start()
    yield made
    made.stop()
    wipe(hermetic)


def overlay(path: Path, backing: str, format: str = "qcow2") -> bytes:
    """A file that stands on another, made by qemu-img; what is in it."""
    words = ("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", format, "-b", backing, path, "1M")
    subprocess.run(words, check=True)
    return path.read_bytes()


def said_of(agent: Agent, reference: str) -> str:
    """All that an object's conditions say."""
    return json.dumps(agent.object(reference))


def test_a_guest_that_writes_a_header_onto_its_raw_disk_is_shown_no_file_of_the_host(agent: Agent) -> None:
    """Nor when its volume's spec is gone; its restart, which may come by itself, opens the disk as a raw one."""
    folder = agent.folder
    machine = vm("web", "Always", more="  disks: [{name: data, volume: data}]\n  updatePolicy: {restart: Automatic}")
    agent.write("pool.yaml", pool(folder / "pool"))
    agent.write("data.yaml", volume("data", "format: raw, capacity: 1Mi"))
    agent.write("vm.yaml", machine)
    agent.wait_ready("Volume/data", "VirtualMachine/web", seconds=60)
    domain_id = agent.hermetic.virsh("domid", "web")
    (folder / "secret").write_bytes(b"of the host".ljust(1 << 20))
    evil = overlay(folder / "evil", str(folder / "secret"), "raw")
    with (folder / "pool" / "data.raw").open("r+b") as file:  # as root of the guest does: dd of=/dev/vda
        file.write(evil[: 1 << 20])
    agent.write("other.yaml", volume("other", "capacity: 1Mi"))  # the pool is listed again
    agent.wait_ready("Volume/other", "Volume/data", "VirtualMachine/web")
    assert agent.kvmd("plan").startswith("No changes"), agent.kvmd("plan")
    assert status(agent, "Volume/data")["format"] == "raw"
    agent.remove("data.yaml")
    agent.wait_condition("Volume/data", "PruneHeld")
    agent.wait_condition("VirtualMachine/web", "Blocked")
    for words in (("dumpxml", "web"), ("dumpxml", "web", "--inactive")):
        xml = agent.hermetic.virsh(*words)
        assert "type='raw'" in xml and "qcow2" not in xml.replace("other.qcow2", ""), xml
    assert agent.hermetic.virsh("domid", "web") == domain_id


def test_an_image_stays_under_what_stands_on_it_whoever_made_that_and_however_it_says_so(agent: Agent) -> None:
    """An overlay in a stranger's pool, and a disk of a stranger's machine in no pool; then it goes to the trash."""
    folder, store = agent.folder, agent.folder / "state" / "images"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", folder / "base.qcow2", "1M"], check=True)
    for name in ("theirs", "nowhere"):
        (folder / name).mkdir()
    agent.write("image.yaml", image("base", str(folder / "base.qcow2"), "qcow2"))
    agent.wait_ready("Image/base")
    (base,) = store.glob("base-*.qcow2")
    inner, outer = folder / "theirs" / "top.qcow2", folder / "nowhere" / "disk"
    overlay(inner, os.path.relpath(base, folder / "theirs"))
    agent.hermetic.virsh("pool-define-as", "theirs", "dir", "--target", str(folder / "theirs"))
    agent.hermetic.virsh("pool-start", "theirs")
    (folder / "alias").symlink_to(store)
    overlay(outer, f"file:{folder}/alias/{base.name}")
    xml = agent.hermetic.virsh("dumpxml", "keep", "--inactive")
    uuid = xml.partition("<uuid>")[2].partition("</uuid>")[0]
    theirs = xml.replace(uuid, "aaaaaaaa-0000-4000-8000-000000000001").replace("<name>keep<", "<name>theirs<")
    disk = f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{outer}'/><target dev='vda'/></disk>"
    (folder / "theirs.xml").write_text(theirs.replace("</devices>", f"{disk}</devices>"))
    agent.hermetic.virsh("define", str(folder / "theirs.xml"))
    agent.remove("image.yaml")
    wait_until(lambda: str(inner) in said_of(agent, "Image/base"), 20, "it says what stands on the image")
    inner.unlink()
    agent.kvmd("reconcile")
    wait_until(lambda: "used by theirs" in said_of(agent, "Image/base"), 20, "it says who has what stands on it")
    assert base.exists()
    agent.hermetic.virsh("undefine", "theirs")
    agent.kvmd("reconcile")
    wait_until(lambda: agent.object("Image/base") is None, 30, "nobody has it any more")
    (kept,) = (store / ".kvmd-trash").iterdir()
    assert kept.name.partition("-")[2] == base.name and not base.exists()


def test_the_directory_of_anothers_pool_keeps_its_mark(agent: Agent) -> None:
    folder, uuid = agent.folder, "bbbbbbbb-0000-4000-8000-000000000001"
    theirs = folder / "other"
    theirs.mkdir()
    mark = Mark("other", Ref("StoragePool", "theirs"), "h", object_id=uuid, written={"path": str(theirs)})
    put_mark(str(theirs), mark)
    (folder / "crooked").symlink_to(theirs)
    (folder / "pool.xml").write_text(
        f"<pool type='dir'><name>another</name><uuid>{uuid}</uuid><target><path>{theirs}</path></target></pool>"
    )
    agent.hermetic.virsh("pool-define", str(folder / "pool.xml"))
    agent.write("crooked.yaml", pool(folder / "crooked").replace("disks", "crooked"))
    stalled = agent.wait_condition("StoragePool/crooked", "Stalled")
    assert "is the directory of pool another" in stalled["message"], stalled
    assert mark_on(str(theirs)) == mark
    assert "crooked" not in agent.hermetic.virsh("pool-list", "--all", "--name")
    agent.hermetic.virsh("pool-undefine", "another")
    agent.write("crooked.yaml", pool(theirs).replace("disks", "crooked"))
    agent.wait_ready("StoragePool/crooked")
    found = mark_on(str(theirs))
    assert found is not None and found.ref == Ref("StoragePool", "crooked"), (
        "a mark of a pool that is gone is in no way"
    )
