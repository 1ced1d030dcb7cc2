"""Media and disks on servers, read to their last byte by a guest: Direct where that works, else fetched."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from guest import ARGS
from hermetic import Agent, wait_until
from real_servers import Servers
from served import URL, ImageServer
from small import wipe
from test_main_path import last_tick, says
from test_storage import boot_paths, image, problem

pytestmark = [pytest.mark.guest, pytest.mark.libvirt]
LONG = 90.0


@pytest.fixture
def web(agent: Agent, tmp_path: Path) -> Iterator[ImageServer]:
    """A web server beside the agent."""
    made = ImageServer(agent, tmp_path)
    yield made
    agent.stop()
    wipe(agent.hermetic)
    made.close()


@pytest.fixture
def servers(agent: Agent, web: ImageServer, tmp_path: Path) -> Iterator[Servers]:
    """The other servers; they serve the same folder."""
    made = Servers(agent, tmp_path, web.folder)
    yield made
    made.close()


def offer(web: ImageServer, name: str, size: int) -> bytes:
    """A file of random bytes on every server."""
    data = os.urandom(size)
    web.offer(name, data)
    return data


def machine(folder: Path, disks: str) -> str:
    """A guest that reads every disk and medium to the last byte and says what it found."""
    return f"""---
apiVersion: kvmd.dev/v1alpha1
kind: VirtualMachine
metadata: {{name: web}}
spec:
  accelerator: tcg
  memory: {{guest: 128Mi}}
  kernelBoot: {{{boot_paths()}, args: "{ARGS} kvmd.tick=1 kvmd.sum=1"}}
  disks: {disks}
  devices: {{serial: [{{name: console, file: {folder}/web.console}}]}}
"""


def tray(medium: str) -> str:
    """A CD-ROM with that medium."""
    return f"[{{name: cd0, device: cdrom, bus: scsi, media: {medium}}}]"


def drive(agent: Agent, name: str = "cd0") -> Mapping[str, Any]:
    """What status says of a drive."""
    found = agent.object("VirtualMachine/web")
    drives = found["status"].get("drives", []) if found else []
    return next((item for item in drives if item["name"] == name), {})


def read_by_guest(agent: Agent, device: str, data: bytes) -> None:
    """Wait until the guest has said the checksum of that very content."""
    said = f"KVMD-SUM {device} size={len(data)} sha256={hashlib.sha256(data).hexdigest()}"
    wait_until(lambda: says(agent.folder, "web", said), LONG, said)


def at_rest(agent: Agent) -> None:
    """Nothing is left to do, nothing waits, and nothing drifts."""
    agent.wait_ready("VirtualMachine/web", seconds=LONG)
    found = agent.object("VirtualMachine/web")
    assert found is not None and found["status"]["pendingChanges"] == []
    assert agent.kvmd("plan").startswith("No changes"), agent.kvmd("plan")


@pytest.mark.shows("VirtualMachine", "disks[].media.url", "disks[].media.access")
def test_media_on_servers_are_changed_under_a_running_guest(agent: Agent, web: ImageServer, servers: Servers) -> None:
    """By http with byte ranges, without, by tftp with and without options, and an empty tray; never a restart."""
    servers.script("tftp_server.py", 69, tcp=False)
    first, second = offer(web, "first.iso", 3 << 20), offer(web, "second.iso", 2 << 20)
    third, fourth = offer(web, "plain-third.iso", 40 << 10), offer(web, "lossy-fourth.iso", 150 << 10)
    media = (
        (f"{URL}/first.iso", "Direct", first, "QEMU and the server can"),
        (f"{URL}/plain/second.iso", "Cached", second, "the server does not give byte ranges"),
        ("tftp://127.0.0.1/plain-third.iso", "Cached", third, "QEMU reads no tftp"),
        ("tftp://127.0.0.1/lossy-fourth.iso", "Cached", fourth, "QEMU reads no tftp"),
    )
    domain_id = ""
    for url, access, data, why in media:
        agent.write("vm.yaml", machine(agent.folder, tray(f'{{url: "{url}"}}')))
        if not domain_id:
            planned = agent.kvmd("plan")
            assert f"ask whether QEMU can read {url}" in planned, planned
            agent.start()
        read_by_guest(agent, "sr0", data)
        at_rest(agent)
        assert (drive(agent)["access"], drive(agent)["why"]) == (access, why)
        domain_id = domain_id or agent.hermetic.virsh("domid", "web").strip()
    agent.write("vm.yaml", machine(agent.folder, tray("null")))
    wait_until(lambda: last_tick(agent.folder, "web")["media"] == "none", 30, "the tray is empty")
    at_rest(agent)
    agent.write("vm.yaml", machine(agent.folder, tray(f"{{url: {URL}/first.iso}}")))
    wait_until(lambda: "first.iso" in cdrom_of(agent), 30, "the first medium is back")
    at_rest(agent)
    assert agent.hermetic.virsh("domid", "web").strip() == domain_id


def cdrom_of(agent: Agent) -> str:
    """The CD-ROM in the XML of the running guest."""
    return agent.hermetic.virsh("dumpxml", "web").partition("device='cdrom'")[2].partition("</disk>")[0]


def test_media_come_over_tls_ftp_and_ssh(agent: Agent, web: ImageServer, servers: Servers) -> None:
    """https and ftp are read by QEMU, ftps and ssh are fetched; one guest reads them all, one after the other."""
    servers.https(8443, 8099)
    servers.ftp()
    servers.ftp(990, tls=True)
    servers.ssh()
    media = (
        ("https://127.0.0.1:8443/{}", "Direct"),
        ("ftp://127.0.0.1/{}", "Direct"),
        ("ftps://127.0.0.1/{}", "Cached"),
        (f"ssh://root@127.0.0.1:2222{web.folder}/{{}}", "Cached"),
    )
    for number, (form, access) in enumerate(media):
        data = offer(web, f"{number}.iso", (number + 1) << 20)
        url = form.format(f"{number}.iso")
        agent.write("vm.yaml", machine(agent.folder, tray(f'{{url: "{url}"}}')))
        if number == 0:
            agent.start()
        read_by_guest(agent, "sr0", data)
        at_rest(agent)
        assert drive(agent)["access"] == access, drive(agent)


@pytest.mark.shows("VirtualMachine", "disks[].url", "disks[].access", "disks[].image", "disks[].readOnly")
def test_disks_on_servers_are_read_and_claimed(agent: Agent, web: ImageServer, servers: Servers) -> None:
    """nbd, iscsi, nfs, writable; http with a qcow2 inside, an image, and a fetched disk, read-only; by one guest."""
    blocks = {
        name: offer(web, name, size << 20)
        for name, size in (("nbd", 2), ("iscsi", 3), ("raw", 4), ("image", 5), ("nfs", 6))
    }
    servers.nbd("data", web.folder / "nbd")
    servers.iscsi("iqn.2026-01.example:disk", web.folder / "iscsi")
    servers.nfs()
    words = ("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(web.folder / "raw"), str(web.folder / "q.qcow2"))
    subprocess.run(words, check=True)
    read_only = "readOnly: true"
    disks = (
        "{name: a, url: 'nbd://127.0.0.1/data', format: raw}",
        "{name: b, url: 'iscsi://127.0.0.1/iqn.2026-01.example:disk/1', format: raw}",
        f"{{name: c, url: '{URL}/q.qcow2', format: qcow2, {read_only}}}",
        f"{{name: d, image: golden, {read_only}}}",
        f"{{name: e, url: '{URL}/plain/raw', format: raw, access: Cached, {read_only}}}",
        f"{{name: f, url: 'nfs://127.0.0.1{web.folder}/nfs', format: raw}}",
    )
    agent.write("image.yaml", image("golden", f"{URL}/image"))
    agent.write("vm.yaml", machine(agent.folder, f"[{', '.join(disks)}]"))
    agent.start()
    for device, name in (
        ("vda", "nbd"),
        ("vdb", "iscsi"),
        ("vdc", "raw"),
        ("vdd", "image"),
        ("vde", "raw"),
        ("vdf", "nfs"),
    ):
        read_by_guest(agent, device, blocks[name])
    at_rest(agent)
    assert [drive(agent, name)["access"] for name in "abcef"] == ["Direct", "Direct", "Direct", "Cached", "Direct"]


def test_a_server_that_is_not_there_is_waited_for_and_holds_up_nothing_else(
    agent: Agent, web: ImageServer, servers: Servers
) -> None:
    """The guest says why it does not start, others go on, and it starts when the server comes."""
    data = offer(web, "late", 1 << 20)
    agent.write("vm.yaml", machine(agent.folder, "[{name: a, url: 'nbd://127.0.0.1/late', format: raw}]"))
    agent.write("image.yaml", image("other", f"{URL}/late"))
    agent.start()
    wait_until(lambda: "nbd://127.0.0.1/late: " in problem(agent, "VirtualMachine/web"), 20)
    assert "Connection refused" in problem(agent, "VirtualMachine/web")
    told = [line for line in agent.kvmd("events").splitlines() if "DriveNotReached" in line]
    assert told and "VirtualMachine/web" in told[0] and "Connection refused" in told[0]
    agent.wait_ready("Image/other")
    servers.nbd("late", web.folder / "late")
    agent.kvmd("reconcile")
    read_by_guest(agent, "vda", data)
    at_rest(agent)
