"""Images, pools and volumes on the real QEMU driver: fetched once, grown live, never lost."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest import ARGS, guest_files
from hermetic import Agent, wait_until
from served import URL, ImageServer
from small import wipe
from test_main_path import last_tick, says

pytestmark = [pytest.mark.guest, pytest.mark.libvirt]


@pytest.fixture
def server(agent: Agent, tmp_path: Path) -> Iterator[ImageServer]:
    """An image server beside the agent."""
    made = ImageServer(agent, tmp_path)
    yield made
    made.close()
    agent.stop()
    wipe(agent.hermetic)


def image(name: str, source: str, format: str = "raw", more: str = "") -> str:
    """An Image from a URL or a path."""
    word = "url" if "://" in source else "path"
    return f"""---
apiVersion: kvmd.dev/v1alpha1
kind: Image
metadata: {{name: {name}}}
spec:
  source: {{{word}: "{source}"}}
  format: {format}
{more}
"""


def pool(path: Path) -> str:
    """The pool `disks`."""
    return f"""---
apiVersion: kvmd.dev/v1alpha1
kind: StoragePool
metadata: {{name: disks}}
spec: {{path: {path}}}
"""


def volume(name: str, spec: str, annotations: str = "") -> str:
    """A Volume in that pool."""
    notes = f", annotations: {{{annotations}}}" if annotations else ""
    return f"""---
apiVersion: kvmd.dev/v1alpha1
kind: Volume
metadata: {{name: {name}{notes}}}
spec: {{pool: disks, {spec}}}
"""


def guest(folder: Path, disks: str, boot: str, strategy: str = "Always") -> str:
    """A guest that reads every disk and medium to the last byte and says what it found."""
    return f"""---
apiVersion: kvmd.dev/v1alpha1
kind: VirtualMachine
metadata: {{name: web}}
spec:
  runStrategy: {strategy}
  accelerator: tcg
  memory: {{guest: 128Mi}}
  kernelBoot: {{{boot}, args: "{ARGS} kvmd.tick=1 kvmd.sum=1"}}
  disks: {disks}
  devices: {{serial: [{{name: console, file: {folder}/web.console}}]}}
"""


def boot_paths() -> str:
    files = guest_files()
    return f"kernel: {{path: {files.kernel}}}, initrd: {{path: {files.initrd}}}"


def status(agent: Agent, reference: str) -> dict[str, object]:
    found = agent.object(reference)
    assert found is not None
    return found["status"]  # type: ignore[no-any-return]


def qemu_img_info(path: str) -> dict[str, object]:
    done = subprocess.run(["qemu-img", "info", "-U", "--output=json", path], capture_output=True, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.shows("VirtualMachine", "kernelBoot.kernel.image", "kernelBoot.initrd.image", "disks[].volume")
@pytest.mark.shows("Image", "source.url", "source.path", "checksumFrom.url", "format")
@pytest.mark.shows("Volume", "capacity", "format", "from.image")
@pytest.mark.shows("StoragePool", "path")
def test_a_guest_boots_from_images_and_its_volume_grows_under_it(agent: Agent, server: ImageServer) -> None:
    """Kernel and initrd from a URL, an overlay on a downloaded image, a blank disk that grows, and the plan first."""
    folder, files = agent.folder, guest_files()
    base = os.urandom(3 << 20) + bytes(5 << 20)
    (folder / "base.raw").write_bytes(base)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", folder / "base.raw", folder / "base.qcow2"], check=True)
    checksum = server.offer("base.qcow2", (folder / "base.qcow2").read_bytes())
    server.offer("SHA256SUMS", f"{checksum.removeprefix('sha256:')} *base.qcow2\n".encode())
    specs = (
        image("kernel", files.kernel)
        + image("initrd", files.initrd)
        + image("base", f"{URL}/base.qcow2", "qcow2", f"  checksumFrom: {{url: {URL}/SHA256SUMS}}")
        + pool(folder / "pool")
        + volume("root", "from: {image: base}")
        + volume("data", "format: raw, capacity: 8Mi")
        + guest(
            folder,
            "[{name: root, volume: root}, {name: data, volume: data}]",
            "kernel: {image: kernel}, initrd: {image: initrd}",
        )
    )
    agent.write("all.yaml", specs)
    planned = agent.kvmd("plan")
    assert "create volume disks/root.qcow2 (qcow2) on " in planned and "start domain web" in planned, planned
    agent.start()
    digest = hashlib.sha256(base).hexdigest()
    wait_until(
        lambda: says(folder, "web", f"KVMD-SUM vd. size={8 << 20} sha256={digest}"), 90, "the overlay was read"
    )
    agent.wait_ready(
        *(f"{kind}/{name}" for kind, name in (("Volume", "root"), ("Image", "base"), ("VirtualMachine", "web")))
    )
    domain_id = agent.hermetic.virsh("domid", "web").strip()
    assert [line for line in server.asked if "base.qcow2" in line] == ["GET /base.qcow2 -"]
    assert status(agent, "Image/base")["digest"] == checksum
    assert "data.raw" in agent.hermetic.virsh("vol-list", "disks")
    assert agent.kvmd("plan").startswith("No changes"), agent.kvmd("plan")
    agent.write("all.yaml", specs.replace("capacity: 8Mi", "capacity: 24Mi"))
    wait_until(lambda: f":{24 << 20}" in last_tick(folder, "web")["disks"], 30, "the guest sees the larger disk")
    agent.wait_ready("Volume/data")
    agent.write("all.yaml", specs.replace("capacity: 8Mi", "capacity: 16Mi"))
    stalled = agent.wait_condition("Volume/data", "Stalled")
    assert (
        "never shrinks" in stalled["message"] and qemu_img_info(f"{folder}/pool/data.raw")["virtual-size"] == 24 << 20
    )
    assert agent.hermetic.virsh("domid", "web").strip() == domain_id


@pytest.mark.shows("Image", "checksum")
def test_a_download_goes_on_where_it_broke_off_and_a_false_one_is_thrown_away(
    agent: Agent, server: ImageServer
) -> None:
    data = os.urandom(6 << 20)
    checksum = server.offer("big.raw", data)
    wrong = "sha256:" + "0" * 64
    agent.write(
        "images.yaml",
        image("half", f"{URL}/half/big.raw", more=f"  checksum: {checksum}")
        + image("changing", f"{URL}/changing/big.raw", more=f"  checksum: {checksum}")
        + image("wrong", f"{URL}/plain/big.raw", more=f"  checksum: {wrong}")
        + image("gone", f"{URL}/missing/big.raw")
        + image("other", f"{URL}/big.raw", "qcow2"),
    )
    agent.start()
    agent.wait_ready("Image/half", "Image/changing", seconds=40)
    assert "GET /half/big.raw bytes=3145728-" in server.asked
    for name in ("half", "changing"):
        assert Path(str(status(agent, f"Image/{name}")["path"])).read_bytes() == data
    message = agent.wait_condition("Image/wrong", "Stalled")["message"]
    assert checksum in message and wrong in message
    assert "the server answers 404" in wait_until(lambda: problem(agent, "Image/gone"), 20)
    assert "the server answers 404" in agent.kvmd("events")
    assert "is raw, not qcow2" in agent.wait_condition("Image/other", "Stalled")["message"]
    stored = sorted(path.name for path in (agent.folder / "state" / "images").glob("*.raw"))
    assert [name.partition("-")[0] for name in stored] == ["changing", "half"]


def without_brake(agent: Agent) -> None:
    """Let everything go within an hour: the brake has tests of its own."""
    settings = json.loads(agent.config.read_text())
    settings["prune"]["maxPercent"] = 100
    agent.config.write_text(json.dumps(settings))


def problem(agent: Agent, reference: str) -> str:
    """Every message of an object's conditions."""
    item = agent.object(reference)
    return " ".join(c["message"] for c in item["status"]["conditions"] if "attempt" in c["message"]) if item else ""


def test_what_reads_other_files_of_the_host_is_no_image(agent: Agent, server: ImageServer, tmp_path: Path) -> None:
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", tmp_path / "e.qcow2", "1M"],
        check=True,
    )
    data = ["-o", f"data_file={tmp_path}/d.raw,data_file_raw=on"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *data, tmp_path / "d.qcow2", "1M"], check=True)
    two = (image("evil", str(tmp_path / "e.qcow2"), "qcow2"), image("split", str(tmp_path / "d.qcow2"), "qcow2"))
    agent.write("image.yaml", "".join(two))
    agent.start()
    assert "stands on /etc/passwd" in agent.wait_condition("Image/evil", "Stalled")["message"]
    assert "keeps its data in another file" in agent.wait_condition("Image/split", "Stalled")["message"]
    stored = (agent.folder / "state" / "images").iterdir()
    assert not [path.name for path in stored if path.name.startswith(("evil", "split"))]


@pytest.mark.shows("Volume", "reclaimPolicy", "pool")
def test_a_volume_outlives_its_spec_its_guest_and_a_mistake(agent: Agent, server: ImageServer) -> None:
    """Retain keeps it for the same name, Delete moves it to the trash; what is lost stays lost."""
    folder = agent.folder
    kept, thrown = (
        volume("kept", "capacity: 4Mi, format: raw"),
        volume("thrown", "capacity: 4Mi, format: raw, reclaimPolicy: Delete", "kvmd.dev/prune: enabled"),
    )
    without_brake(agent)
    keeper = pool(folder / "pool") + volume("other", "capacity: 1Mi")
    machine = guest(folder, "[{name: kept, volume: kept}]", boot_paths())
    agent.write("base.yaml", keeper)
    agent.write("vols.yaml", kept + thrown)
    agent.write("vm.yaml", machine)
    agent.start()
    agent.wait_ready("Volume/kept", "Volume/thrown", "Volume/other", "VirtualMachine/web", seconds=60)
    path = folder / "pool" / "kept.raw"
    wait_until(lambda: says(folder, "web", "KVMD-SUM vda"), 60)
    agent.write("vols.yaml", kept)
    wait_until(lambda: not (folder / "pool" / "thrown.raw").exists(), 30, "it is in the trash")
    assert [file.name.partition("-")[2] for file in (folder / "pool" / ".kvmd-trash").iterdir()] == ["thrown.raw"]
    (folder / "specs" / "vols.yaml").unlink()
    held = agent.wait_condition("Volume/kept", "PruneHeld")
    assert path.exists() and ("StillUsed" in held["reason"] or "Confirm" in held["reason"]), held
    agent.remove("vm.yaml")
    wait_until(lambda: "web" not in agent.hermetic.virsh("list", "--all"), 60, "the guest is gone")
    assert path.exists()
    wait_until(
        lambda: (
            agent.condition("Volume/kept", "PruneHeld") and "kvmd approve prune" in str(agent.object("Volume/kept"))
        ),
        20,
    )
    agent.kvmd("approve", "prune", "--yes")
    wait_until(lambda: agent.object("Volume/kept") is None, 30)
    inode = path.stat().st_ino
    agent.write("vols.yaml", kept)
    agent.wait_ready("Volume/kept")
    assert path.stat().st_ino == inode, "the same file was taken back"
    moved = folder / "elsewhere.raw"
    os.rename(path, moved)
    agent.kvmd("reconcile")
    lost = agent.wait_condition("Volume/kept", "Stalled", 30)
    assert lost["reason"] == "VolumeLost" and not path.exists()
    os.rename(moved, path)
    agent.kvmd("reconcile")
    agent.wait_ready("Volume/kept")


@pytest.mark.shows("Image", "deletionPolicy")
def test_a_file_that_is_there_is_never_overwritten_and_an_image_in_use_stays(
    agent: Agent, server: ImageServer
) -> None:
    folder = agent.folder
    without_brake(agent)
    (folder / "pool").mkdir()
    (folder / "pool" / "mine.raw").write_bytes(b"precious" * 1024)
    base = folder / "base.raw"
    base.write_bytes(os.urandom(1 << 20))
    agent.write("pool.yaml", pool(folder / "pool") + volume("mine", "capacity: 4Mi, format: raw"))
    agent.write("top.yaml", volume("top", "from: {image: base}"))
    agent.write("image.yaml", image("base", str(base)))
    agent.start()
    agent.wait_ready("Volume/top")
    assert agent.wait_condition("Volume/mine", "Conflict")["reason"] == "ExistsOnHost"
    assert (folder / "pool" / "mine.raw").read_bytes() == b"precious" * 1024
    stored = Path(str(status(agent, "Image/base")["path"]))
    shutil.copy(folder / "pool" / "top.qcow2", folder / "pool" / "stranger.qcow2")
    agent.remove("top.yaml")
    agent.remove("image.yaml")
    time.sleep(4)
    agent.kvmd("approve", "prune", "--yes")
    wait_until(lambda: agent.object("Volume/top") is None, 30)
    wait_until(
        lambda: "stranger.qcow2" in json.dumps(agent.object("Image/base")), 20, "it says what stands on the image"
    )
    assert stored.exists()


@pytest.mark.shows(
    "VirtualMachine", "disks[].device", "disks[].media.path", "disks[].media.image", "disks[].media.volume"
)
@pytest.mark.shows("Volume", "from.copy")
def test_media_of_every_origin_are_changed_under_a_running_guest(agent: Agent, server: ImageServer) -> None:
    """A path, an image, a volume of another format, nothing, and a path again; the guest reads each to its end."""
    folder = agent.folder
    media = {name: os.urandom((2 + number) << 20) for number, name in enumerate(("path", "image", "volume"))}
    for name, data in media.items():
        (folder / f"{name}.iso").write_bytes(data)
    common = (
        image("tools", str(folder / "image.iso"))
        + image("source", str(folder / "volume.iso"))
        + pool(folder / "pool")
        + volume("cd", "from: {image: source, copy: Full}")
    )
    words = {"path": f"{{path: {folder}/path.iso}}", "image": "{image: tools}", "volume": "{volume: cd}"}

    def insert(medium: str) -> None:
        machine = guest(folder, f"[{{name: cd0, device: cdrom, bus: scsi, media: {medium}}}]", boot_paths())
        agent.write("all.yaml", common + machine.replace("kvmd.sum=1", "kvmd.sum=1 kvmd.hold=10"))

    insert(words["path"])
    agent.start()
    agent.wait_ready("Volume/cd", "Image/tools", "VirtualMachine/web", seconds=60)
    domain_id = agent.hermetic.virsh("domid", "web").strip()
    wait_until(lambda: last_tick(folder, "web"), 60, "it is up, and holds its tray")
    insert(words["image"])
    told = wait_until(lambda: problem(agent, "VirtualMachine/web"), 30, "that the tray is locked")
    assert "the guest keeps the tray locked" in told and "eject the medium in the guest" in told, told
    for name, data in media.items():
        insert(words[name])
        said = f"KVMD-SUM sr0 size={len(data)} sha256={hashlib.sha256(data).hexdigest()}"
        wait_until(lambda said=said: says(folder, "web", said), 60, said)  # type: ignore[misc]
        agent.wait_ready("VirtualMachine/web")
        assert status(agent, "VirtualMachine/web")["pendingChanges"] == []
    insert("null")
    wait_until(lambda: last_tick(folder, "web")["media"] == "none", 30, "the tray is empty")
    insert(words["path"])
    wait_until(lambda: last_tick(folder, "web")["media"] == str(2 << 20), 30, "the first medium is back")
    assert agent.hermetic.virsh("domid", "web").strip() == domain_id


@pytest.mark.shows("VirtualMachine", "cloudInit.userDataFrom.file", "cloudInit.onChange")
def test_a_seed_is_made_once_waits_for_a_boot_and_shows_its_secret_to_nobody(
    agent: Agent, server: ImageServer
) -> None:
    folder = agent.folder
    secret = folder / "user-data"
    secret.write_text("#cloud-config\npassword: first-secret\n")
    secret.chmod(0o644)

    def seeded(more: str = "") -> str:
        return guest(folder, "[]", boot_paths()) + f"  cloudInit: {{userDataFrom: {{file: {secret}}}{more}}}\n"

    agent.write("vm.yaml", seeded())
    agent.start()
    assert "chmod 600" in agent.wait_condition("VirtualMachine/web", "Blocked")["message"]
    secret.chmod(0o600)
    wait_until(lambda: says(folder, "web", "KVMD-SUM sr0"), 60, "the guest has read the seed")
    agent.wait_ready("VirtualMachine/web")
    (seed,) = (folder / "state" / "seeds").glob("*.iso")
    assert says(
        folder,
        "web",
        f"KVMD-SUM sr0 size={seed.stat().st_size} sha256={hashlib.sha256(seed.read_bytes()).hexdigest()}",
    )
    assert files_of_iso(seed)["user-data"] == secret.read_bytes()
    uuid = agent.hermetic.virsh("domuuid", "web").strip()
    assert json.loads(files_of_iso(seed)["meta-data"]) == {"instance-id": uuid, "local-hostname": "web"}
    secret.write_text("#cloud-config\npassword: second-secret\n")
    pending = wait_until(lambda: status(agent, "VirtualMachine/web")["pendingChanges"], 30)
    assert [change["path"] for change in pending] == ["spec.cloudInit"]
    assert last_tick(folder, "web")["media"] == str(seed.stat().st_size), "the running guest keeps its seed"
    said = agent.hermetic.virsh("dumpxml", "web") + agent.kvmd("plan") + agent.log.read_text()
    said += agent.http("/api/v1/objects")[1] + agent.http("/api/v1/events")[1]
    assert "first-secret" not in said and "second-secret" not in said
    assert all(
        "secret" not in file.read_text(errors="replace") for file in (folder / "state").glob("*") if file.is_file()
    )
    agent.write("vm.yaml", seeded(", onChange: Rerun"))
    wait_until(lambda: "-" + uuid[:8] not in str(instance_ids(folder)) and len(instance_ids(folder)) >= 2, 30)
    assert {name[:36] for name in instance_ids(folder)} == {uuid}
    agent.write("vm.yaml", seeded(", onChange: Rerun").replace("Always", "Halted"))
    agent.wait_ready("VirtualMachine/web", seconds=60)
    without_brake(agent)
    agent.write("other.yaml", volume("other", "capacity: 1Mi, pool: nowhere").replace("pool: disks, ", ""))
    agent.remove("vm.yaml")
    wait_until(lambda: not list((folder / "state" / "seeds").glob("*.iso")), 60, "its seeds are gone with it")


def files_of_iso(path: Path) -> dict[str, bytes]:
    """The files of a seed, as mounting it would show them; it must be labelled cidata."""
    import io

    import pycdlib

    assert subprocess.run(["blkid", "-o", "value", "-s", "LABEL", path], capture_output=True).stdout == b"cidata\n"
    iso = pycdlib.PyCdlib()
    iso.open(str(path))
    found = {}
    for entry in iso.list_children(joliet_path="/"):
        if entry.is_file():
            name = entry.file_identifier().decode("utf-16-be")
            target = io.BytesIO()
            iso.get_file_from_iso_fp(target, joliet_path=f"/{name}")
            found[name] = target.getvalue()
    iso.close()
    return found


def instance_ids(folder: Path) -> list[str]:
    """The instances that the seeds name."""
    seeds = (folder / "state" / "seeds").glob("*.iso")
    return sorted(json.loads(files_of_iso(seed)["meta-data"])["instance-id"] for seed in seeds)
