"""kill -9 at random moments, of kvmd and of libvirtd, while specs change: it always ends as the specs ask.

KVMD_TEST_CHANGES sets how many changes are made (a campaign: 200 and more), KVMD_TEST_SEED repeats a run.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hermetic import Agent, Hermetic, wait_until
from small import MARK, Strangers, inventory, link, network, vm, wipe

pytestmark = pytest.mark.libvirt

CHANGES = int(os.environ.get("KVMD_TEST_CHANGES", "40"))
SEED = int(os.environ.get("KVMD_TEST_SEED", "0")) or random.randrange(1 << 30)
STRANGERS = {"domains": {"hand"}, "networks": {"handnet"}, "links": {"handbr", "handtap", "virbr-hand"}}
QUICK = {
    "source": {"settle": "100ms", "rescan": "5s"},
    "prune": {"grace": "300ms", "maxPercent": 100},
    "backoff": {"first": "200ms", "limit": "2s"},
}


class Specs:
    """Random changes of a directory: objects in files, references that may lead nowhere for a while."""

    def __init__(self, agent: Agent, chance: random.Random) -> None:
        self.agent, self.chance = agent, chance
        self.files: dict[str, dict[str, str]] = {}
        self.count = 0

    def write(self, file: str) -> None:
        """Write a file as it should be, or remove it."""
        objects = self.files.get(file)
        if objects:
            self.agent.write(file, "".join(objects.values()))
        else:
            self.files.pop(file, None)
            (self.agent.specs / file).unlink(missing_ok=True)

    def objects(self) -> dict[str, str]:
        """Every object that is asked for."""
        return {name: text for objects in self.files.values() for name, text in objects.items()}

    def change(self) -> None:
        """Add, edit, remove, rename or move one thing."""
        act = self.chance.choice([self.add, self.add, self.edit, self.edit, self.remove, self.rename, self.move])
        act()

    def add(self) -> None:
        """A new object, in a file of its own or beside another."""
        kind = self.chance.choice(list(NAMES))
        free = [name for name in NAMES[kind] if f"{kind}/{name}" not in self.objects()]
        if not free:
            return self.remove()
        self.count += 1
        file = self.chance.choice([f"f{self.count}.yaml", *self.files])
        name = self.chance.choice(free)
        self.files.setdefault(file, {})[f"{kind}/{name}"] = self.text(kind, name)
        return self.write(file)

    def text(self, kind: str, name: str) -> str:
        """A spec with something random in it."""
        chance = self.chance
        if kind == "VirtualMachine":
            strategy = chance.choice(["Halted", "Manual", "Always"] if name in ("a", "b") else ["Halted", "Manual"])
            nics = [
                f"{{name: net0, network: {chance.choice(NAMES['Network'])}}}",
                f"{{name: net1, bridge: {chance.choice(NAMES['Bridge'])}}}",
                f"{{name: net2, tap: tap-{name}}}",
            ]
            more = f"  interfaces: [{', '.join(chance.sample(nics, chance.randrange(3)))}]"
            text = vm(name, strategy, more=f"{more}\n  cpu: {{vcpus: {chance.choice([1, 2])}}}")
            return text.replace("timeoutSeconds: 2", "timeoutSeconds: 1")
        if kind == "Network":
            return network(
                name, 180 + NAMES[kind].index(name), more=f"  domain: {{name: d{chance.randrange(9)}.test}}"
            )
        if kind == "Bridge":
            number = NAMES[kind].index(name)
            static = f"{{from: Static, static: [10.66.{number}.{chance.randrange(1, 200)}/24]}}"
            return link(kind, name, f"{{stp: {chance.choice(['true', 'false'])}, addresses: {static}}}")
        return link(kind, name, f"{{bridge: {chance.choice(NAMES['Bridge'])}, mtu: {chance.choice([1400, 1500])}}}")

    def pick(self) -> tuple[str, str] | None:
        """Some object and its file."""
        found = [(file, name) for file, objects in self.files.items() for name in objects]
        return self.chance.choice(found) if found else None

    def edit(self) -> None:
        """Another meaning for an object that is there."""
        if (found := self.pick()) is not None:
            file, name = found
            self.files[file][name] = self.text(*name.split("/"))
            self.write(file)

    def remove(self) -> None:
        """Take an object out, or a whole file away."""
        if (found := self.pick()) is not None:
            file, name = found
            if self.chance.random() < 0.3:
                self.files[file].clear()
            else:
                del self.files[file][name]
            self.write(file)

    def rename(self) -> None:
        """The same file under another name."""
        if self.files:
            self.count += 1
            old, new = self.chance.choice(list(self.files)), f"r{self.count}.yaml"
            self.files[new] = self.files.pop(old)
            (self.agent.specs / old).rename(self.agent.specs / new)

    def move(self) -> None:
        """The same object in another file: there first, here afterwards."""
        if (found := self.pick()) is not None and len(self.files) > 1:
            file, name = found
            target = self.chance.choice([other for other in self.files if other != file])
            self.files[target][name] = self.files[file].pop(name)
            self.write(target)
            self.write(file)

    def mend(self) -> None:
        """Ask for everything that something names, so that nothing waits."""
        text = "".join(self.objects().values())
        for kind in ("Network", "Bridge", "Tap"):
            for name in NAMES[kind]:
                named = f"{kind.lower()}: {name}}}" in text or f"{kind.lower()}: {name}," in text
                if named and f"{kind}/{name}" not in self.objects():
                    self.files.setdefault("mend.yaml", {})[f"{kind}/{name}"] = self.text(kind, name)
        self.write("mend.yaml")
        text = "".join(self.objects().values())
        for name in NAMES["Bridge"]:  # the TAPs that were just added name bridges too
            if f"bridge: {name}," in text and f"Bridge/{name}" not in self.objects():
                self.files.setdefault("mend.yaml", {})[f"Bridge/{name}"] = self.text("Bridge", name)
        self.write("mend.yaml")


NAMES = {
    "VirtualMachine": list("abcdef"),
    "Network": ["n0", "n1"],
    "Bridge": ["br0", "br1", "br2"],
    "Tap": [f"tap-{name}" for name in "abcdef"],
}


@pytest.fixture
def world(hermetic: Hermetic, tmp_path: Path) -> Iterator[tuple[Agent, Specs, Strangers]]:
    wipe(hermetic)
    strangers = Strangers(hermetic, tmp_path / "strangers")
    agent = Agent(hermetic, tmp_path / "kvmd", **QUICK)
    agent.write("keep.yaml", link("Bridge", "keepbr"))
    print(f"KVMD_TEST_SEED={SEED}")
    yield agent, Specs(agent, random.Random(SEED)), strangers
    agent.stop()
    wipe(hermetic)


def converged(agent: Agent) -> bool:
    """Every object that is told of is Ready."""
    items = json.loads(agent.http("/api/v1/objects")[1])["items"]
    return all(
        any(c["type"] == "Ready" and c["status"] == "True" for c in item["status"]["conditions"]) for item in items
    )


def settled(agent: Agent, specs: Specs) -> None:
    """Wait until the daemon knows exactly what the specs ask for, and all of it is as asked."""
    wanted = {*specs.objects(), "Bridge/keepbr"}

    def there() -> bool:
        items = json.loads(agent.http("/api/v1/objects")[1])["items"]
        return {f"{item['kind']}/{item['metadata']['name']}" for item in items} == wanted and converged(agent)

    try:
        wait_until(there, 90, "all as asked")
    except pytest.fail.Exception:
        plan = agent.kvmd("plan", code=None)
        items = json.loads(agent.http("/api/v1/objects")[1])["items"]
        left = {f"{i['kind']}/{i['metadata']['name']}": i["status"]["conditions"] for i in items}
        lost = {name: found for name, found in left.items() if "AsAsked" not in str(found)}
        pytest.fail(f"not converged; wanted {sorted(wanted)}; left: {json.dumps(lost, indent=1)}\n{plan}")


def check(agent: Agent, specs: Specs, strangers: Strangers) -> None:
    """Compare all that is on the host with the specs and the strangers; what is ours is marked."""
    hermetic, asked = agent.hermetic, specs.objects()
    agent.kvmd("plan", "--detailed-exitcode")
    found = inventory(hermetic)
    names = {kind: {ref.split("/")[1] for ref in asked if ref.startswith(f"{kind}/")} for kind in NAMES}
    assert found["domains"] == names["VirtualMachine"] | STRANGERS["domains"]
    assert found["networks"] == names["Network"] | STRANGERS["networks"]
    assert found["links"] == names["Bridge"] | names["Tap"] | {"keepbr"} | STRANGERS["links"]
    for name in names["VirtualMachine"]:
        assert MARK in hermetic.virsh("dumpxml", name, "--inactive")
    for name in names["Network"]:
        assert MARK in hermetic.virsh("net-dumpxml", name, "--inactive")
    links = hermetic.links()
    for name in found["links"] - STRANGERS["links"]:
        assert links[name].get("ifalias", "").startswith("kvmd:v1:kvmd:"), name
    for name in names["Bridge"]:
        addresses = [item["local"] for item in hermetic.ip("-4", "addr", "show", "dev", name)[0]["addr_info"]]
        assert all(f"[{address}/24]" in asked[f"Bridge/{name}"] for address in addresses), (name, addresses)
        assert len(addresses) == 1
    for name in names["Tap"]:
        assert f"bridge: {links[name]['master']}" in asked[f"Tap/{name}"]
    strangers.unharmed()


def test_kvmd_killed_at_any_moment(world: tuple[Agent, Specs, Strangers]) -> None:
    agent, specs, strangers = world
    chance, kills = specs.chance, 0
    agent.start()
    for _ in range(CHANGES):
        specs.change()
        time.sleep(chance.random() * 0.25)
        if chance.random() < 0.25:
            agent.kill()
            kills += 1
            if chance.random() < 0.5:
                specs.change()
            agent.launch()
            time.sleep(chance.random() * 2.5)  # anywhere from the interpreter's start to a few cycles
    specs.mend()
    agent.kill()
    agent.start()
    settled(agent, specs)
    check(agent, specs, strangers)
    print(f"{CHANGES} changes, {kills} kills")


def test_libvirtd_killed_at_any_moment(world: tuple[Agent, Specs, Strangers]) -> None:
    agent, specs, strangers = world
    chance, kills = specs.chance, 0
    agent.start()
    for _ in range(CHANGES):
        specs.change()
        time.sleep(chance.random() * 0.4)
        if chance.random() < 0.15:
            agent.hermetic.kill_libvirtd()
            kills += 1
            specs.change()
            time.sleep(chance.random())
            agent.hermetic.start_libvirtd()
    specs.mend()
    settled(agent, specs)
    check(agent, specs, strangers)
    print(f"{CHANGES} changes, {kills} kills of libvirtd")


def test_what_a_dying_libvirtd_left_of_a_network_is_cleared_away(agent: Agent) -> None:
    """Its bridge and its dnsmasq; a bridge that only has the name is somebody's."""
    hermetic = agent.hermetic
    wipe(hermetic)
    agent.write("net.yaml", network("n0", 180) + network("n1", 181))
    agent.write("gone.yaml", network("n2", 182))
    agent.write("keep.yaml", link("Bridge", "keepbr"))
    agent.start()
    agent.wait_ready("Network/n0", "Network/n1", "Network/n2")
    agent.kill()
    hermetic.virsh("net-destroy", "n1")
    hermetic.run("ip", "link", "add", "vb-n1", "type", "bridge")
    stranger = hermetic.links()["vb-n1"]["ifindex"]
    hermetic.kill_libvirtd()
    hermetic.run("rm", "/run/libvirt/network/n0.xml", "/run/libvirt/network/n2.xml")  # as if it had not got so far
    hermetic.start_libvirtd()
    assert "n0" not in hermetic.virsh("net-list", "--name").split()
    agent.remove("gone.yaml")
    agent.start()
    agent.wait_ready("Network/n0")
    wait_until(lambda: "vb-n2" not in hermetic.links(), 20)
    wait_until(lambda: len(dnsmasqs(hermetic)) == 2, 10, "one network, its dnsmasq and that one's helper")
    agent.remove("net.yaml")
    wait_until(lambda: inventory(hermetic)["networks"] == set(), 30)
    assert hermetic.links()["vb-n1"]["ifindex"] == stranger


def test_a_bridge_that_only_has_the_name_outlives_every_start_of_the_network(agent: Agent) -> None:
    """libvirt 11 deletes it when a start fails; kvmd does not start before it is gone, and then at once."""
    hermetic = agent.hermetic
    wipe(hermetic)
    hermetic.run("ip", "link", "add", "vb-n1", "type", "bridge")
    stranger = hermetic.links()["vb-n1"]["ifindex"]
    agent.write("net.yaml", network("n1", 181))
    agent.start()
    agent.wait_condition("Network/n1", "Blocked", 20)
    assert hermetic.links()["vb-n1"]["ifindex"] == stranger
    hermetic.run("ip", "link", "del", "vb-n1")
    agent.wait_ready("Network/n1")


def dnsmasqs(hermetic: Hermetic) -> list[int]:
    """Every dnsmasq in the namespaces."""
    return [pid for pid in hermetic.processes() if Path(f"/proc/{pid}/comm").read_text() == "dnsmasq\n"]


def timed(act: Callable[[], Any]) -> float:
    """How long something takes."""
    begun = time.monotonic()
    act()
    return time.monotonic() - begun


@pytest.fixture
def watchful(hermetic: Hermetic, tmp_path: Path) -> Iterator[Agent]:
    """A kvmd that takes a silent libvirtd for dead after 4 s instead of 20 s."""
    wipe(hermetic)
    agent = Agent(hermetic, tmp_path, libvirt={"keepaliveInterval": 1, "keepaliveCount": 3})
    yield agent
    agent.stop()


def test_a_stopped_libvirtd_leaves_the_socket_and_the_links_alive(watchful: Agent) -> None:
    agent, hermetic = watchful, watchful.hermetic
    agent.write("all.yaml", vm("web") + link("Bridge", "br0") + link("Tap", "tap0", "{bridge: br0}"))
    agent.start()
    agent.wait_ready("VirtualMachine/web", "Bridge/br0", "Tap/tap0")
    hermetic.kill_libvirtd(signal.SIGSTOP)
    try:
        agent.write("web.yaml", vm("late"))
        hermetic.run("ip", "link", "del", "br0")
        slowest, unavailable, deadline = 0.0, None, time.monotonic() + 30
        while time.monotonic() < deadline and not (unavailable and hermetic.links().get("tap0", {}).get("master")):
            slowest = max(
                slowest, timed(lambda: agent.http("/healthz")), timed(lambda: agent.http("/api/v1/objects"))
            )
            unavailable = agent.condition("VirtualMachine/web", "BackendUnavailable")
            time.sleep(0.05)
        assert unavailable is not None and "kvmd check" in unavailable["message"]
        assert agent.http("/healthz")[0] == 200
        assert agent.http("/readyz")[0] != 200
        assert hermetic.links()["tap0"]["master"] == "br0", "links are looked after meanwhile"
        assert agent.condition("Bridge/br0", "BackendUnavailable") is None
        assert "web" in agent.kvmd("get", "vm")
        hold = time.monotonic() + 5
        while time.monotonic() < hold:
            slowest = max(slowest, timed(lambda: agent.http("/healthz")), timed(lambda: agent.http("/metrics")))
        assert slowest < 1.0
    finally:
        hermetic.kill_libvirtd(signal.SIGCONT)
    agent.wait_ready("VirtualMachine/web", "VirtualMachine/late", "Tap/tap0", seconds=60)
    wait_until(lambda: agent.http("/readyz")[0] == 200)


@pytest.fixture
def impatient(hermetic: Hermetic, tmp_path: Path) -> Iterator[Agent]:
    """A kvmd with the shortest deadline that libvirt's own job wait allows."""
    wipe(hermetic)
    agent = Agent(hermetic, tmp_path, libvirt={"modifyDeadline": "31s"})
    yield agent
    agent.stop()


def test_a_stopped_guest_holds_up_no_other(impatient: Agent) -> None:
    agent, hermetic = impatient, impatient.hermetic
    big = "  cpu: {vcpus: 2, maxVcpus: 2}"
    agent.write("stuck.yaml", vm("stuck", "Always", more="  cpu: {vcpus: 1, maxVcpus: 2}"))
    agent.write("other.yaml", vm("other", "Always", more="  cpu: {vcpus: 1, maxVcpus: 2}"))
    agent.write("br.yaml", link("Bridge", "br0"))
    agent.start()
    agent.wait_ready("VirtualMachine/stuck", "VirtualMachine/other", "Bridge/br0", seconds=60)
    process = int(hermetic.run("cat", "/run/libvirt/qemu/stuck.pid"))
    os.kill(process, signal.SIGSTOP)
    try:
        agent.write("stuck.yaml", vm("stuck", "Always", more=big))
        time.sleep(1)
        begun = time.monotonic()
        agent.write("other.yaml", vm("other", "Always", more=big))
        agent.write("new.yaml", vm("new"))
        wait_until(lambda: _cpus(hermetic, "other") == 2 and "new" in inventory(hermetic)["domains"], 20)
        took = time.monotonic() - begun
        assert took < 5.0
        assert max(timed(lambda: agent.http("/healthz")), timed(lambda: agent.http("/metrics"))) < 1.0
        assert agent.condition("VirtualMachine/stuck", "Stalled") is None
        stalled = agent.wait_condition("VirtualMachine/stuck", "Stalled", 45)
        assert stalled["reason"] == "DeadlinePassed"
        assert "no answer within 31 s" in stalled["message"]
        assert "DeadlinePassed" in agent.kvmd("events")
    finally:
        os.kill(process, signal.SIGCONT)
    wait_until(lambda: _cpus(hermetic, "stuck") == 2, 60, "the stuck one follows once it goes on")
    agent.wait_ready("VirtualMachine/stuck", seconds=60)
    assert agent.condition("VirtualMachine/stuck", "Stalled") is None
    print(f"the other followed within {took:.1f} s")


def _cpus(hermetic: Hermetic, name: str) -> int:
    return int(hermetic.virsh("vcpucount", name, "--live", "--current", check=False).strip() or 0)


def test_what_was_given_just_before_a_kill_is_taken_away_again(agent: Agent) -> None:
    """A link's mark has no room for its spec: what a step is about to give must be known before it is given."""
    hermetic = agent.hermetic
    wipe(hermetic)

    def spec(address: str) -> str:
        return link("Bridge", "br0", f"{{addresses: {{from: Static, static: [{address}]}}}}")

    def addresses() -> set[str]:
        found = hermetic.ip("-4", "addr", "show", "dev", "br0")
        return {item["local"] for item in found[0]["addr_info"]} if found else set()

    agent.write("br.yaml", spec("10.66.0.1/24"))
    agent.start()
    agent.wait_ready("Bridge/br0")
    for number in range(2, 6):
        agent.write("br.yaml", spec(f"10.66.0.{number}/24"))
        wait_until(lambda number=number: f"10.66.0.{number}" in addresses(), 20)
        agent.kill()
        agent.write("br.yaml", spec("10.66.0.1/24"))
        agent.start()
        wait_until(lambda: addresses() == {"10.66.0.1"}, 20, "only what the spec asks for")
        agent.wait_ready("Bridge/br0")
