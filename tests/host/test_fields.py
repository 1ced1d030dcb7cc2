"""The fields of a running guest, edited one after the other: made at once, waiting for its next boot, or refused.

One guest for all rows. docs/fields.md repeats what is shown here.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import traffic_control
from edits import Edited, Guest, Spec, raw
from guest import ARGS, guest_files
from hermetic import ENVIRONMENT, Agent, Hermetic, wait_until
from small import link, network, wipe
from test_main_path import last_tick, says

pytestmark = [pytest.mark.guest, pytest.mark.libvirt]


class Row(NamedTuple):
    """An edit of one leaf, or of leaves that go together; ``{folder}`` is the test's own."""

    leaves: str
    path: str
    value: Any
    seen: str  # XPath that finds something in the definition afterwards, and not before
    boots: bool = True  # whether it is among what one boot makes real


NEW_DISK = {"path": "{folder}/new.raw", "format": "raw"}
ALL = {"bytes": "8Mi", "bytesBurst": "16Mi", "bytesBurstSeconds": 3, "iops": 100, "iopsBurst": 200}
ALL |= {"iopsBurstSeconds": 4}
OUT = {"average": "500k", "peak": "1M", "burst": "64Ki"}
LIVE = [
    Row(
        " ".join(f"disks[].ioTune.total.{leaf}" for leaf in ALL),
        "disks[data].ioTune",
        {"total": ALL},
        "devices/disk/iotune[total_bytes_sec_max_length='3'][total_iops_sec_max='200']",
    ),
    Row(
        " ".join(f"disks[].ioTune.{way}.{leaf}" for way in ("read", "write") for leaf in ALL),
        "disks[data].ioTune",
        {"read": ALL, "write": ALL},
        "devices/disk/iotune[read_iops_sec_max_length='4'][write_bytes_sec_max='16777216']",
    ),
    Row(
        " ".join(f"interfaces[].bandwidth.outbound.{leaf}" for leaf in OUT),
        "interfaces[net1].bandwidth",
        {"outbound": OUT},
        "devices/interface/bandwidth/outbound[@peak='1000'][@burst='64']",
    ),
    Row("memory.guest", "memory.guest", "160Mi", "currentMemory[.='163840']"),
    Row("disks[].path disks[].format", "disks[new]", NEW_DISK, "devices/disk/source[contains(@file,'/new.raw')]"),
    Row("disks[].name", "disks[new]", NEW_DISK | {"bus": "scsi"}, "devices/disk/alias[@name='ua-disk-new']"),
    Row("disks[].media.path", "disks[cd0].media.path", "{folder}/b.iso", "//source[contains(@file,'/b.iso')]"),
    Row("disks[].media.path", "disks[cd0].media", None, "devices/disk[@device='cdrom'][not(source/@file)]"),
    Row("interfaces[].name", "interfaces[net2]", {"bridge": "br1"}, "devices/interface/alias[@name='ua-nic-net2']"),
    Row("interfaces[].network", "interfaces[net0].network", "nat2", "devices/interface/source[@network='nat2']"),
    Row("interfaces[].bridge", "interfaces[net1].bridge", "br1", "devices/interface/source[@bridge='br1']"),
    Row("interfaces[].link", "interfaces[net1].link", "down", "devices/interface/link[@state='down']"),
]
SEED = {"userData": "#!/bin/sh\n", "metaData": {"a": "b"}, "networkConfig": {"version": 2, "ethernets": {}}}
EMPTY_TRAY = {"device": "cdrom", "bus": "scsi", "media": None}
TAP, DIRECT = {"bridge": None, "tap": "tap1"}, {"bridge": None, "direct": {"device": "up0", "mode": "private"}}
SLIRP = {"bridge": None, "user": {"backend": "slirp"}}
SHARE = {"path": "{folder}/share", "tag": "stuff", "type": "9p", "readOnly": True}
SCREEN = {"type": "vnc", "listen": "127.0.0.1", "passwordFrom": {"systemdCredential": "screen"}}
NEXT_BOOT = [
    Row("machine", "machine", "pc-q35-7.1", "os/type[@machine='pc-q35-7.1']"),
    Row("cpu.maxVcpus", "cpu.maxVcpus", 4, "vcpu[.='4']"),
    Row("cpu.model", "cpu.model", "Nehalem", "cpu/model[.='Nehalem']"),
    Row(
        "cpu.topology.sockets cpu.topology.cores cpu.topology.threads",
        "cpu.topology",
        {"sockets": 1, "cores": 1, "threads": 2},
        "cpu/topology[@threads='2']",
        boots=False,
    ),
    Row("memory.maxGuest", "memory.maxGuest", "224Mi", "memory[.='229376']"),
    Row(
        "cpu.numa[].cpus cpu.numa[].memory",
        "cpu.numa",
        [{"cpus": "0", "memory": "64Mi"}, {"cpus": "1", "memory": "128Mi"}],
        "cpu/numa/cell[@cpus='1'][@memory='131072']",
        boots=False,
    ),
    Row("memory.hugepages.size", "memory.hugepages", {"size": "2Mi"}, "memoryBacking/hugepages", boots=False),
    Row("firmware.type", "firmware", {"type": "efi"}, "os[@firmware='efi']|os/loader", boots=False),
    Row("kernelBoot.kernel.path", "kernelBoot.kernel.path", "{folder}/linux", "os/kernel[contains(.,'/linux')]"),
    Row("kernelBoot.initrd.path", "kernelBoot.initrd.path", "{folder}/cpio", "os/initrd[contains(.,'/cpio')]"),
    Row("kernelBoot.args", "kernelBoot.args", f"{ARGS} kvmd.tick=1 a=b", "os/cmdline[contains(.,'a=b')]"),
    Row("disks[].path", "disks[data].path", "{folder}/new.raw", "//source[contains(@file,'/new.raw')]"),
    Row("disks[].format", "disks[data].format", "qcow2", "devices/disk/driver[@type='qcow2']", boots=False),
    Row("disks[].bus", "disks[data].bus", "scsi", "devices/disk[@device='disk']/target[@bus='scsi']"),
    Row("disks[].device", "disks[tray]", EMPTY_TRAY, "devices/disk/alias[@name='ua-disk-tray']"),
    Row("disks[].readOnly", "disks[data].readOnly", True, "devices/disk[@device='disk']/readonly"),
    Row("disks[].bootOrder", "disks[data].bootOrder", 2, "devices/disk/boot[@order='2']"),
    Row("disks[].serial", "disks[data].serial", "data01", "devices/disk/serial[.='data01']"),
    Row("disks[].cache", "disks[data].cache", "writethrough", "devices/disk/driver[@cache='writethrough']"),
    Row("disks[].io", "disks[data].io", "threads", "devices/disk/driver[@io='threads']"),
    Row("disks[].discard", "disks[data].discard", "unmap", "devices/disk/driver[@discard='unmap']"),
    Row("interfaces[].tap", "interfaces[net1]", TAP, "devices/interface/target[@dev='tap1']", boots=False),
    Row("interfaces[].direct.device", "interfaces[net1]", DIRECT, "//interface[@type='direct']", boots=False),
    Row("interfaces[].user.backend", "interfaces[net1]", SLIRP, "//interface[@type='user']", boots=False),
    Row("interfaces[].queues", "interfaces[net1].queues", 2, "devices/interface/driver[@queues='2']", boots=False),
    Row("interfaces[].mac", "interfaces[net1].mac", "52:54:00:01:02:03", "//mac[@address='52:54:00:01:02:03']"),
    Row("interfaces[].model", "interfaces[net1].model", "e1000", "devices/interface/model[@type='e1000']"),
    Row("interfaces[].bootOrder", "interfaces[net1].bootOrder", 1, "devices/interface/boot[@order='1']"),
    Row(
        "cloudInit.userData cloudInit.metaData cloudInit.networkConfig",
        "cloudInit",
        SEED,
        "devices/disk/alias[@name='ua-disk-cloud-init']",
    ),
    Row(
        "cloudInit.userDataFrom.systemdCredential",
        "cloudInit.userDataFrom.systemdCredential",
        "seed",
        "devices/disk/alias[@name='ua-disk-cloud-init']",
        boots=False,
    ),
    Row(
        "devices.serial[].file",
        "devices.serial[log]",
        {"file": "{folder}/log"},
        "//serial/log[contains(@file,'/log')]",
    ),
    Row(
        "filesystems[].tag filesystems[].type filesystems[].readOnly",
        "filesystems[share]",
        SHARE,
        "devices/filesystem[readonly]/target[@dir='stuff']",
        boots=False,
    ),
    Row("devices.balloon.model", "devices.balloon.model", "none", "devices/memballoon[@model='none']", boots=False),
    Row(
        "devices.balloon.freePageReporting",
        "devices.balloon.freePageReporting",
        True,
        "devices/memballoon[@freePageReporting='on']",
    ),
    Row("devices.rng", "devices.rng", True, "devices/rng"),
    Row("devices.guestAgent", "devices.guestAgent", True, "devices/channel/target[@name='org.qemu.guest_agent.0']"),
    Row(
        "devices.graphics.type devices.graphics.listen devices.graphics.passwordFrom.systemdCredential",
        "devices.graphics",
        SCREEN,
        "devices/graphics[@type='vnc']",
    ),
    Row("devices.video.model", "devices.video.model", "virtio", "devices/video/model[@type='virtio']"),
    Row(
        "devices.watchdog.model devices.watchdog.action",
        "devices.watchdog",
        {"action": "none"},
        "devices/watchdog[@action='none']",
    ),
    Row("devices.tpm.model devices.tpm.version", "devices.tpm", {"version": "2.0"}, "devices/tpm"),
]
POLICIES = {
    "runStrategy": "RerunOnFailure",
    "driftPolicy": "Report",
    "deletionPolicy": "Orphan",
    "shutdown": {"methods": ["agent"], "timeoutSeconds": 9, "forceAfterTimeout": False},
    "startup": {"order": 7, "delaySeconds": 1},
    "dependsOn": [{"kind": "Network", "name": "nat"}],
    "updatePolicy": {"restart": "Never", "onGuestReboot": "Ignore"},
}


def leaves_of(rows: Sequence[Row]) -> list[str]:
    """Each leaf once."""
    return list(dict.fromkeys(leaf for row in rows for leaf in row.leaves.split()))


def spec_of(folder: Path) -> Spec:
    """A guest with something of each sort to edit."""
    files = guest_files()
    return {
        "accelerator": "tcg",
        "cpu": {"vcpus": 1, "maxVcpus": 2},
        "memory": {"guest": "128Mi", "maxGuest": "192Mi"},
        "kernelBoot": {
            "kernel": {"path": files.kernel},
            "initrd": {"path": files.initrd},
            "args": f"{ARGS} kvmd.name=web kvmd.tick=1",
        },
        "disks": [
            {"name": "data", "path": raw(folder, "data.raw", 4 << 20), "format": "raw"},
            {"name": "cd0", "device": "cdrom", "media": {"path": raw(folder, "a.iso", 1 << 20)}},
        ],
        "interfaces": [{"name": "net0", "network": "nat"}, {"name": "net1", "bridge": "br0"}],
        "devices": {"serial": [{"name": "console", "file": f"{folder}/web.console"}]},
        "shutdown": {"methods": ["acpi"], "timeoutSeconds": 20},
    }


LINKS = network("nat2", 172) + link("Bridge", "br0") + link("Bridge", "br1") + link("Tap", "tap1", "{bridge: br1}")
NAT = {"bridge": {"name": "vb-nat"}, "ips": [{"address": "192.168.171.1/24"}]}


class World(NamedTuple):
    """The guest, the network that it uses, and where its files are."""

    guest: Guest
    nat: Edited
    folder: Path

    def value(self, row: Row) -> Any:
        """What a row writes, here."""
        return json.loads(json.dumps(row.value).replace("{folder}", str(self.folder)))


@pytest.fixture(scope="module")
def world(hermetic: Hermetic, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The guest, booted."""
    folder = tmp_path_factory.mktemp("fields")
    files = guest_files()
    shutil.copy(files.kernel, folder / "linux")
    shutil.copy(files.initrd, folder / "cpio")
    raw(folder, "new.raw", 2 << 20)
    raw(folder, "b.iso", 3 << 20)
    (folder / "share").mkdir()
    traffic_control.complete(hermetic, folder)
    credentials = folder / "credentials"
    credentials.mkdir()
    for name in ("seed", "screen"):
        (credentials / name).write_text("word1234")
        (credentials / name).chmod(0o600)
    hermetic.run("ip", "link", "add", "up0", "up", "type", "veth", "peer", "name", "up1")
    agent = Agent(hermetic, folder, source={"settle": "50ms"})
    guest = Guest(agent, "web", spec_of(folder))
    made = World(guest, Edited(agent, "Network", "nat", NAT), folder)
    agent.write("links.yaml", LINKS)
    made.nat.write()
    guest.write()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENVIRONMENT, "CREDENTIALS_DIRECTORY", str(credentials))
        agent.start()
    wait_until(lambda: says(folder, "web", "KVMD-TICK"), 90, "the guest is up")
    guest.rest()
    yield made
    guest.close()
    agent.stop()
    wipe(hermetic)


@pytest.fixture
def undisturbed(world: World) -> Iterator[World]:
    """The guest, which must be the same afterwards: the same run, going on."""
    boot, uptime = world.guest.boot(), world.guest.uptime()
    yield world
    assert world.guest.boot() == boot
    wait_until(lambda: world.guest.uptime() > uptime, 10, "it goes on counting")


def pending(found: dict[str, Any]) -> list[str]:
    """The paths that wait, of the spec; every one of them tells a difference."""
    changes = found["status"]["pendingChanges"]
    assert all(change["currentValue"] != change["desiredValue"] for change in changes), changes
    return [change["path"].removeprefix("spec.") for change in changes]


@pytest.mark.shows("VirtualMachine", *leaves_of(LIVE))
def test_what_is_live_is_made_at_once_and_unmade(undisturbed: World) -> None:
    guest = undisturbed.guest
    for row in LIVE:
        assert not guest.has(row.seen), row
        guest.write({row.path: undisturbed.value(row)})
        assert (pending(guest.rest()), guest.has(row.seen)) == ([], True), row
        guest.write()
        assert (pending(guest.rest()), guest.has(row.seen)) == ([], False), row


def test_policies_change_and_nothing_waits(undisturbed: World) -> None:
    """What they do when their time comes is shown elsewhere."""
    guest = undisturbed.guest
    for values in (POLICIES, {}):
        guest.write(values)
        assert pending(guest.rest()) == []


@pytest.mark.shows("VirtualMachine", "accelerator", *leaves_of(NEXT_BOOT))
def test_what_waits_for_the_next_boot_is_listed_and_goes_away_when_reverted(undisturbed: World) -> None:
    guest = undisturbed.guest
    for row in NEXT_BOOT:
        assert not guest.has(row.seen, live=False), row
        guest.write({row.path: undisturbed.value(row)})
        found = pending(guest.rest())
        named = re.search(r"\[(\w+)\]", row.path)
        for leaf in row.leaves.split():
            path = leaf.replace("[]", named[0] if named else "")
            assert any(path == one or path.startswith(one + ".") for one in found), (row, found)
        assert (guest.has(row.seen, live=False), guest.has(row.seen)) == (True, False), row
        guest.write()
        assert (pending(guest.rest()), guest.has(row.seen, live=False)) == ([], False), row
    guest.write({"accelerator": "auto"})
    fallback = {item["reason"] for item in guest.rest()["status"]["conditions"]} & {"AcceleratorFallback"}
    assert bool(fallback) != bool(pending(guest.rest()))  # where there is no KVM it says so; else it waits
    guest.write()
    guest.rest()


@pytest.mark.shows("VirtualMachine", "nameOnHost")
def test_what_is_immutable_is_refused(undisturbed: World) -> None:
    guest = undisturbed.guest
    guest.write({"nameOnHost": "other"})
    said = guest.agent.wait_condition(guest.ref, "Stalled")
    assert "nameOnHost" in said["message"], said
    guest.write()
    guest.rest()


@pytest.mark.shows("Network", "forward.mode", "disruptionPolicy")
def test_what_replugs_waits_until_it_may_and_then_every_guest_is_plugged_in_again(undisturbed: World) -> None:
    guest, nat = undisturbed.guest, undisturbed.nat
    nat.write({"forward.mode": "route"})
    (change,) = wait_until(lambda: (found := nat.seen()) and found["status"]["pendingChanges"], 20)
    assert (change["path"], change["effect"]) == ("spec.forward.mode", "Replug")
    nat.write()
    assert pending(nat.rest()) == []
    nat.write({"forward.mode": "route", "disruptionPolicy": "Replug"})
    assert pending(nat.rest()) == []
    assert "<forward mode='route'" in guest.agent.hermetic.virsh("net-dumpxml", "nat")
    tap = guest.xml().xpath("string(devices/interface[source/@network='nat']/target/@dev)")
    wait_until(lambda: guest.agent.hermetic.links()[tap].get("master") == "vb-nat", 10, "it is plugged in again")


def test_one_restart_makes_all_of_it_real(world: World) -> None:
    guest, rows = world.guest, [row for row in NEXT_BOOT if row.boots]
    boot = guest.boot()
    values = {row.path: world.value(row) for row in rows}
    guest.write(values)
    assert len(pending(guest.rest())) >= len(rows)
    assert guest.boot() == boot
    guest.annotations["kvmd.dev/restarted-at"] = "now"
    guest.write(values)
    wait_until(lambda: (found := guest.seen()) and found["status"]["pendingChanges"] == [], 30, "it is shut down")
    assert pending(guest.rest(90)) == []
    assert [row.leaves for row in rows if not guest.has(row.seen)] == []
    wait_until(lambda: "cpus" in last_tick(world.folder, "web"), 60, "the guest boots with all of it")
    assert guest.boot() == boot + 1
