"""At rest it is silent, and what converged plans to nothing.

KVMD_TEST_REST_SECONDS sets how long the silence is watched (a campaign: 60 and more).
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import traffic_control
from guest import guest_files
from hermetic import REPOSITORY, Agent, Hermetic, wait_until
from served import URL, ImageServer
from small import link, network, vm, wipe

pytestmark = pytest.mark.libvirt

REST_SECONDS = float(os.environ.get("KVMD_TEST_REST_SECONDS", "15"))  # several rescans
DOMAINS = 20
RUNNING = 3
MESSAGE_TYPE = re.compile(r"nlmsg_type=(RTM_\w+|0x[0-9a-f]+)")  # strace knows the names of some only
# Messages of nftables (subsystem 10) that ask: for tables, chains, rules, sets, elements, the generation, objects and
# flow tables; and the one of its compatibility with iptables (subsystem 11).
NFT_ASKS = frozenset(0xA00 + number for number in (1, 4, 7, 10, 13, 16, 19, 23)) | {0xB00}
TUN = re.compile(r"TUNSET\w+")


@pytest.fixture
def full(hermetic: Hermetic, tmp_path: Path) -> Iterator[Agent]:
    """A host with everything on it, converged."""
    wipe(hermetic)
    agent = Agent(hermetic, tmp_path, source={"rescan": "5s"})
    for number in range(DOMAINS):
        strategy = "Always" if number < RUNNING else "Halted"
        more = f"  interfaces: [{{name: net0, network: net}}, {{name: net1, tap: tap{number}}}]"
        agent.write(f"vm{number}.yaml", vm(f"vm{number}", strategy, more=more) + link("Tap", f"tap{number}", BRIDGED))
    agent.write("links.yaml", network("net", 183) + link("Bridge", "br0", ADDRESS))
    agent.start()
    agent.wait_ready(*(f"VirtualMachine/vm{number}" for number in range(DOMAINS)), "Bridge/br0", seconds=120)
    yield agent
    agent.stop()
    wipe(hermetic)


BRIDGED = "{bridge: br0}"
ADDRESS = "{addresses: {from: Static, static: [10.88.0.1/24]}}"


def trace(agent: Agent, seconds: float) -> list[str]:
    """Every system call with which a process could change something, of every thread, seen from outside."""
    file = agent.folder / "strace.txt"
    calls = "sendto,sendmsg,sendmmsg,write,writev,ioctl,unlink,unlinkat,rename,renameat,renameat2"
    options = ["-f", "-y", "-yy", "-s", "64", "-xx", "-e", f"trace={calls}", "-o", str(file)]
    watcher = subprocess.Popen(["strace", *options, "-p", str(agent.pid())], stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    watcher.send_signal(signal.SIGINT)
    watcher.wait(20)
    return file.read_text(errors="replace").splitlines()


def mutates(line: str) -> bool:
    """True for a request that changes links: the types of rtnetlink come in fours, new, del, get, set, from 16 on."""
    return any(_changes(found[1]) for found in MESSAGE_TYPE.finditer(line)) or TUN.search(line) is not None


def _changes(name: str) -> bool:
    if name.startswith("RTM_"):
        return not name.startswith("RTM_GET")
    number = int(name, 16)
    return number not in NFT_ASKS and number >= 16 and number & 3 != 2


def libvirt_messages(lines: list[str]) -> list[bytes]:
    """What went to libvirtd's socket."""
    sent = []
    for line in lines:
        found = re.search(r'(?:write|sendto)\(\d+<UNIX[^"]*, "((?:\\x[0-9a-f]{2})*)"', line)
        if found:
            sent.append(bytes.fromhex(found[1].replace("\\x", "")))
    return sent


def test_at_rest_nothing_is_written(full: Agent) -> None:
    agent = full
    time.sleep(2)
    before = {
        "writes": agent.writes(),
        "relists": agent.metric("kvmd_libvirt_calls_total", call="listAllDomains"),
        "reads": agent.metric("kvmd_libvirt_calls_total", call="XMLDesc"),
        "operations": agent.metric("kvmd_operations_total"),
    }
    state = {path: path.stat().st_mtime_ns for path in (agent.folder / "state").rglob("*")}
    index = agent.hermetic.links()["br0"]["ifindex"]
    lines = trace(agent, REST_SECONDS)
    after = {
        "writes": agent.writes(),
        "relists": agent.metric("kvmd_libvirt_calls_total", call="listAllDomains"),
        "reads": agent.metric("kvmd_libvirt_calls_total", call="XMLDesc"),
        "operations": agent.metric("kvmd_operations_total"),
    }
    assert after == before
    assert [line for line in lines if mutates(line)] == []
    assert [message for message in libvirt_messages(lines) if not is_keepalive(message)] == []
    assert [line for line in lines if "unlink" in line or "rename" in line] == []
    assert {path: path.stat().st_mtime_ns for path in (agent.folder / "state").rglob("*")} == state
    assert agent.hermetic.links()["br0"]["ifindex"] == index
    print(f"{len(lines)} calls traced in {REST_SECONDS:g} s; none changed anything")


def is_keepalive(message: bytes) -> bool:
    """A message of libvirt's keepalive program (0x6b656570, "keep")."""
    return b"keep" in message[:12]


def test_the_trace_would_have_seen_a_change(full: Agent) -> None:
    """The watcher itself is watched: one drift, and its correction shows in the trace."""
    agent = full
    hermetic = agent.hermetic
    before = agent.writes()
    subprocess.Popen(
        hermetic.inside(
            "sh", "-c", "sleep 1; ip link set tap5 nomaster; virsh -c '" + hermetic.uri + "' autostart vm9"
        )
    )
    lines = trace(agent, 3)
    wait_until(lambda: hermetic.links()["tap5"].get("master") == "br0", 20)
    assert any(mutates(line) for line in lines)
    hermetic.virsh("destroy", "vm0")
    lines = trace(agent, 3)
    wait_until(lambda: agent.writes() > before, 20)
    assert any(not is_keepalive(message) for message in libvirt_messages(lines))


GUESTS = "/var/lib/libvirt/"


def on_this_machine(text: str, folder: Path, server: ImageServer) -> str:
    """An example with files of this test in place of those of its host, and with images that are served here."""
    files = guest_files()
    text = re.sub(r"/var/lib/kvmd/\S*/vmlinuz", files.kernel, text)
    text = re.sub(r"/var/lib/kvmd/\S*/initrd(\.img)?", files.initrd, text)
    text = re.sub(r"/var/lib/kvmd/(\S*/)?(\S+\.console)", rf"{folder}/\2", text)
    text = re.sub(r"/var/lib/kvmd/(iso|consoles)/", f"{folder}/", text).replace(GUESTS, f"{folder}/")
    for shared in re.findall(rf"path: ({folder}/\S+/shared)\b", text):
        Path(shared).mkdir(parents=True)
    for found in sorted(set(re.findall(rf"{folder}/\S+\.(?:qcow2|img|iso)\b", text))):
        make_image(Path(found))
    sums = []
    for name in re.findall(r'"https?://\S+/(\S+\.qcow2)"', text):
        make_image(server.folder / name)
        sums.append(f"{hashlib.sha512((server.folder / name).read_bytes()).hexdigest()}  {name}\n")
    with (server.folder / "SHA512SUMS").open("a") as listed:
        listed.writelines(sums)
    return re.sub(r'"https?://\S+/(\S+)"', rf'"{URL}/\1"', text)


def make_image(path: Path) -> None:
    """An empty image of the format that its ending says."""
    path.parent.mkdir(exist_ok=True)
    image = "qcow2" if path.suffix == ".qcow2" else "raw"
    subprocess.run(["qemu-img", "create", "-q", "-f", image, str(path), "8M"], check=True)


# What examples name and this machine has not: test_drives.py has real servers, test_hotplug.py shows the policy.
ELSEWHERE = {"vm-drives.yaml", "vm-host-device.yaml"}


def make_nic(hermetic: Hermetic) -> None:
    """The NIC of the examples, with an address that a bridge can take over."""
    hermetic.run("ip", "link", "add", "eno1", "type", "veth", "peer", "name", "far-end")
    hermetic.run("ip", "link", "set", "far-end", "up")
    hermetic.run("ip", "addr", "add", "192.0.2.1/24", "dev", "eno1")
    hermetic.run("ip", "link", "set", "eno1", "up")


def can_be(agent: Agent, name: str) -> bool:
    """False for a kind of link that this kernel does not have: it says so, and what to type."""
    stalled = agent.condition(name, "Stalled")
    return not stalled or stalled["reason"] != "Unsupported" or "modprobe" not in stalled["message"]


EXAMPLES = sorted(path for path in (REPOSITORY / "specs").iterdir() if any(path.rglob("*.yaml")))


@pytest.mark.guest
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_that_converged_plans_to_nothing(hermetic: Hermetic, tmp_path: Path, example: Path) -> None:
    wipe(hermetic)
    agent = Agent(hermetic, tmp_path)
    server = ImageServer(agent, tmp_path)
    make_nic(hermetic)
    traffic_control.complete(hermetic, tmp_path)
    try:
        for path in example.rglob("*.yaml") if example.is_dir() else [example]:
            if path.name in ELSEWHERE:
                continue
            agent.write(path.name, on_this_machine(path.read_text(), tmp_path, server))
        agent.kvmd("plan", "--detailed-exitcode", code=2)
        agent.start()
        names = agent.kvmd("get", "all", "-o", "name").split()
        agent.wait_ready(*(name for name in names if can_be(agent, name)), seconds=120)
        agent.kvmd("plan", "--detailed-exitcode")
        agent.stop()
        agent.kvmd("plan", "--detailed-exitcode")
        agent.kvmd("diff")
    finally:
        agent.stop()
        server.close()
        wipe(hermetic)
