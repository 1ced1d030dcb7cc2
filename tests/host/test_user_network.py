"""NICs without a link of the host: out by TCP, not in but by what is forwarded; and what this host's libvirt can."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest import ARGS, guest_files
from hermetic import Agent, wait_until
from small import wipe

pytestmark = [pytest.mark.guest, pytest.mark.libvirt]

PORT, FORWARDED, WITHIN = 8098, 8097, 7
SERVER = f"""
import socketserver
class Hello(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"hello")
socketserver.TCPServer.allow_reuse_address = True
socketserver.TCPServer(("0.0.0.0", {PORT}), Hello).serve_forever()
"""
# slirp has a network of its own. passt gives the guest the address and the gateway of the host, and is the gateway.
SLIRP_HOST, SLIRP_GUEST = "10.0.2.2", "10.0.2.15"
GATEWAY = "198.51.100.1"
ASK = """
import socket, sys
link = socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)
print(link.recv(64).decode(), end="")
"""


def spec(folder: Path, host: str, user: str) -> str:
    """A guest that dials the host, and answers on a port of its own."""
    files = guest_files()
    return f"""
apiVersion: kvmd.dev/v1alpha1
kind: VirtualMachine
metadata: {{name: alone}}
spec:
  accelerator: tcg
  memory: {{guest: 96Mi}}
  kernelBoot:
    kernel: {{path: {files.kernel}}}
    initrd: {{path: {files.initrd}}}
    args: "{ARGS} kvmd.name=alone kvmd.dial={host}:{PORT} kvmd.serve={WITHIN}"
  interfaces: [{{name: net0, user: {user}}}]
  devices: {{serial: [{{name: console, file: {folder}/alone.console}}]}}
  shutdown: {{methods: [acpi], timeoutSeconds: 2}}
"""


@pytest.fixture
def served(agent: Agent) -> Iterator[Agent]:
    """A host with a way out, and a TCP server on it."""
    agent.hermetic.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    for words in (("address", "add", "198.51.100.9/24", "dev", "up0"), ("link", "set", "up0", "up")):
        agent.hermetic.run("ip", *words)
    agent.hermetic.run("ip", "link", "set", "up1", "up")
    agent.hermetic.run("ip", "route", "add", "default", "via", GATEWAY)
    server = subprocess.Popen(agent.hermetic.inside(sys.executable, "-c", SERVER), stderr=subprocess.DEVNULL)
    try:
        yield agent
    finally:
        agent.stop()
        server.kill()
        server.wait()
        wipe(agent.hermetic)


def ask(agent: Agent, host: str, port: int) -> str:
    """What the host hears from a TCP port; "" where nobody answers."""
    command = agent.hermetic.inside(sys.executable, "-c", ASK, host, str(port))
    return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout


def reached(agent: Agent, host: str) -> bool:
    """True once the guest has said that the host answered."""
    text = (agent.folder / "alone.console").read_text(errors="replace")
    return f"KVMD-DIAL {host}:{PORT} ok hello" in text


@pytest.mark.shows("VirtualMachine", "interfaces[].user.backend")
def test_a_guest_on_user_reaches_out_and_cannot_be_reached(served: Agent) -> None:
    agent = served
    agent.write("alone.yaml", spec(agent.folder, SLIRP_HOST, "{backend: slirp}"))
    agent.start()
    wait_until(lambda: reached(agent, SLIRP_HOST), 90, "the guest has its answer")
    agent.wait_ready("VirtualMachine/alone")
    assert ask(agent, "127.0.0.1", WITHIN) == ask(agent, SLIRP_GUEST, WITHIN) == ""
    conditions = agent.object("VirtualMachine/alone")["status"]["conditions"]  # type: ignore[index]
    limits = next(item for item in conditions if item["reason"] == "UserModeNetwork")
    assert limits["status"] == "False" and "no ICMP" in limits["message"]
    assert "No changes" in agent.kvmd("plan")
    number = agent.hermetic.virsh("domid", "alone")
    forward = f"{{portForward: [{{protocol: tcp, host: {FORWARDED}, guest: {WITHIN}}}]}}"
    agent.write("alone.yaml", spec(agent.folder, GATEWAY, forward))
    if (
        not re.search(r"<value>passt</value>", agent.hermetic.virsh("domcapabilities"))
        or shutil.which("passt") is None
    ):
        stalled = agent.wait_condition("VirtualMachine/alone", "Stalled")
        assert stalled["reason"] == "Unsupported" and "needs passt" in stalled["message"]
        assert agent.hermetic.virsh("domid", "alone") == number, "the guest goes on as it was"
        return
    agent.wait_condition("VirtualMachine/alone", "RestartRequired")
    if subprocess.run(agent.hermetic.inside("unshare", "-U", "true"), capture_output=True).returncode:
        return  # passt shuts itself in a namespace of users, which a chroot does not give it
    agent.kvmd("restart", "alone")
    wait_until(lambda: ask(agent, "127.0.0.1", FORWARDED) == "KVMD-SERVED name=alone\n", 90, "in by the port")
    wait_until(lambda: reached(agent, GATEWAY), 30, "out by passt")
    assert ask(agent, "127.0.0.1", WITHIN) == ""
    agent.wait_ready("VirtualMachine/alone")
    assert "No changes" in agent.kvmd("plan")
