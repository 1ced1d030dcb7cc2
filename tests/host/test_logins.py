"""Drives behind a login: real servers that refuse everybody else, and a secret that shows up nowhere."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hermetic import Agent, Hermetic, wait_until
from real_servers import Servers
from served import ImageServer
from small import wipe
from test_drives import at_rest, drive, machine, read_by_guest

pytestmark = [pytest.mark.guest, pytest.mark.libvirt]
WORD, WRONG = "hunter2222", "hunter1111"  # CHAP wants twelve letters of some targets; tgt takes ten
TARGET = "iqn.2026-01.example:disk"


@pytest.fixture
def servers(agent: Agent, tmp_path: Path) -> Iterator[Servers]:
    """Servers beside the agent; a web server is one of them."""
    web = ImageServer(agent, tmp_path)
    made = Servers(agent, tmp_path, web.folder)
    yield made
    agent.stop()
    wipe(agent.hermetic)
    made.close()
    web.close()


@contextmanager
def command_lines(hermetic: Hermetic) -> Iterator[set[str]]:
    """Every command line that is seen in the namespaces while the block lasts."""
    seen: set[str] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            for pid in hermetic.processes():
                with suppress(OSError):
                    seen.add(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def told(agent: Agent) -> str:
    """All that an object's conditions say."""
    item = agent.object("VirtualMachine/web")
    return " ".join(c["message"] for c in item["status"]["conditions"]) if item else ""


def secret(servers: Servers, name: str, text: str) -> str:
    """A file that only root may read, as a reference."""
    path = servers.folder / f"secret-{name}"
    path.write_text(text)
    path.chmod(0o600)
    return f"file: {path}"


def everything_said(agent: Agent) -> str:
    """Whatever anybody can read of the guest, of kvmd and of libvirt."""
    said = [agent.log.read_text(), agent.kvmd("plan"), agent.kvmd("plan", "-o", "json", code=None)]
    said += [agent.http(f"/api/v1/{what}")[1] for what in ("objects", "events")]
    said += [agent.http("/metrics")[1], agent.hermetic.virsh("dumpxml", "web", "--security-info")]
    said += [agent.hermetic.virsh("dumpxml", "web", "--inactive", "--security-info")]
    state = [path for path in (agent.folder / "state").rglob("*") if path.is_file() and path.suffix != ".raw"]
    said += [path.read_text(errors="replace") for path in state]
    folders = "/run/libvirt/qemu/* /var/log/libvirt/qemu/* /etc/libvirt/qemu/* /etc/libvirt/secrets/*"
    said.append(agent.hermetic.run("sh", "-c", f"cat {folders} 2>/dev/null; true"))
    return "\n".join(said)


@pytest.mark.shows(
    "VirtualMachine",
    "disks[].authFrom.user",
    "disks[].authFrom.file",
    "disks[].media.authFrom.user",
    "disks[].media.authFrom.file",
    "disks[].media.cookiesFrom.file",
    "disks[].media.tls.caFile",
    "disks[].media.tls.insecure",
)
def test_drives_behind_a_login(agent: Agent, servers: Servers) -> None:
    """CHAP, basic auth and a cookie over TLS, ftp and ssh: wrong words are told apart, right ones shown to nobody."""
    blocks = {name: offer_of(servers, name) for name in ("disk", "a", "b", "c", "d")}
    servers.iscsi(TARGET, servers.files / "disk", "web", WORD)
    servers.https(8443, 8099, own=True)
    servers.ftp(user="web", password=WORD)
    servers.ssh(known=False)
    chap, web = secret(servers, "chap", WRONG), secret(servers, "web", WRONG)
    cookie, key = secret(servers, "cookie", f"pass={WORD}; a=b\n"), f"file: {servers.folder}/ssh/client"
    own, ftp = f"tls: {{caFile: {servers.folder}/own.pem}}", secret(servers, "ftp", WORD)
    trays = (
        f"{{url: 'https://127.0.0.1:8443/private/a', authFrom: {{user: web, {web}}}, {own}}}",
        f"{{url: 'https://127.0.0.1:8443/members/b', cookiesFrom: {{{cookie}}}, tls: {{insecure: true}}}}",
        f"{{url: 'ftp://127.0.0.1/c', authFrom: {{user: web, {ftp}}}}}",
        f"{{url: 'ssh://root@127.0.0.1:2222{servers.files}/d', authFrom: {{{key}}}}}",
    )
    disks = [f"{{name: root, url: 'iscsi://127.0.0.1/{TARGET}/1', format: raw, authFrom: {{user: web, {chap}}}}}"]
    disks += [f"{{name: cd{n}, device: cdrom, bus: scsi, media: {tray}}}" for n, tray in enumerate(trays)]
    agent.write("vm.yaml", machine(agent.folder, f"[{', '.join(disks)}]"))
    with command_lines(agent.hermetic) as seen:
        agent.start()
        wait_until(lambda: "the server answers 401" in told(agent), 30, "the web server refuses the wrong word")
        assert "see whether it knows web" in told(agent)
        secret(servers, "web", WORD + "\n")
        agent.kvmd("reconcile")
        wait_until(lambda: "og in to target" in told(agent), 60, "the target refuses it")
        secret(servers, "chap", WORD)
        agent.kvmd("reconcile")
        read_by_guest(agent, "vda", blocks["disk"])
        at_rest(agent)
        said = everything_said(agent)
    for word in (WORD, WRONG, "aHVudGVy", "d2ViOm"):  # as it is, and in base64
        assert word not in said and not any(word in line for line in seen), word
    assert any("qemu-system" in line for line in seen) and any(line.startswith("scp ") for line in seen)
    assert agent.hermetic.virsh("secret-list").split()[-1].startswith("-"), "libvirt has none left"
    assert [drive(agent, name)["access"] for name in ("root", "cd0", "cd1")] == ["Direct", "Cached", "Cached"]
    media = list((agent.folder / "state" / "images").glob("media-*.raw"))
    assert {path.read_bytes() for path in media} == {blocks[name] for name in "abcd"}
    assert {path.stat().st_mode & 0o777 for path in media} == {0o400}, "nobody but QEMU may read them"


def offer_of(servers: Servers, name: str) -> bytes:
    """Random bytes that every server has."""
    data = os.urandom(1 << 20)
    (servers.files / name).write_bytes(data)
    return data
