"""A random walk: the specs of two running guests are edited again and again, and none restarts that is not asked to.

KVMD_TEST_EDITS sets how many edits are made (a campaign: 500), KVMD_TEST_SEED names another walk.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from edits import Guest, Spec, changed, raw
from generators import SPECS, Chance, Names, document, machine
from guest import guest_files
from hermetic import ENVIRONMENT, Agent, Hermetic, wait_until
from small import link, network, wipe
from test_fields import LIVE, NEXT_BOOT, POLICIES, spec_of
from test_main_path import says
from test_storage import image, pool, volume

from kvmd.settings import Source
from kvmd.sources.decode import decode_file

pytestmark = [pytest.mark.guest, pytest.mark.libvirt]

EDITS = int(os.environ.get("KVMD_TEST_EDITS", "60"))
SEED = int(os.environ.get("KVMD_TEST_SEED", "5"))
IMAGES = "/var/lib/libvirt/images"
STOPS = {"runStrategy": ("Halted",), "updatePolicy": ({"restart": "Automatic"},)}  # these ask for a stop


class Walker(Guest):
    """A guest with a spec that wanders, and what must be so of it at any time."""

    def __init__(self, agent: Agent, number: int, chance: Chance) -> None:
        self.number, self.chance = number, chance
        self.folder = agent.folder / f"vm{number}"
        self.folder.mkdir()
        base = spec_of(self.folder)
        base["interfaces"] = [{"name": "net0", "network": "net0"}, {"name": "net1", "bridge": "br0"}]
        base["devices"]["serial"][0]["file"] = f"{agent.folder}/vm{number}.console"
        base["kernelBoot"]["args"] = base["kernelBoot"]["args"].replace("kvmd.name=web", f"kvmd.name=vm{number}")
        super().__init__(agent, f"vm{number}", base)
        self.now: Spec = copy.deepcopy(base)
        self.runs, self.started = 0, 0.0

    def step(self) -> None:
        """Another valid spec, one edit away."""
        for _ in range(100):
            spec = self._edit()
            data = json.dumps(document("VirtualMachine", self.name, spec)).encode()
            if spec != self.now and not decode_file(data, "walk.yaml", Source(), SPECS).problems:
                self.now = spec
                return self.write_whole(spec)
        raise AssertionError(f"no valid edit of {self.now}")

    def write_whole(self, spec: Spec) -> None:
        """Save another spec."""
        base, self.spec = self.spec, spec
        self.write()
        self.spec = base

    def _edit(self) -> Spec:
        dice = self.chance.random()
        if dice < 0.1:
            return copy.deepcopy(self.spec)
        if dice < 0.5:
            row = self.chance.choice([*LIVE, *NEXT_BOOT])
            values = {row.path: row.value}
            if dice < 0.15:
                values = dict([self.chance.choice(list(POLICIES.items()))])
            text = json.dumps(values).replace("{folder}", str(self.folder)).replace('"nat', '"net')
            text = text.replace('"tap1"', f'"tap{self.number}"').replace("54:00:01", f"54:00:0{self.number}")
            return changed(self.now, json.loads(text))
        drawn = self._drawn()
        section = self.chance.choice(sorted({*drawn, *self.now} - {"memory"}))
        spec = copy.deepcopy(self.now)
        if section in drawn and drawn[section] not in STOPS.get(section, ()):
            spec[section] = drawn[section]
        elif section not in drawn:
            del spec[section]
        return spec

    def _drawn(self) -> Spec:
        """A spec as the unit tests draw theirs, with files and servers that are there."""
        names = Names(
            networks=["net0", "net1"],
            bridges=["br0", "br1"],
            taps=[f"tap{self.number}"],
            images=["golden"],
            volumes=[f"one{self.number}", f"two{self.number}"],
        )
        spec: Spec = machine(self.number, self.chance, names)["spec"]
        spec.pop("hostDevices", None)  # none is allowed here
        for disk in spec["disks"]:
            disk |= {"format": "raw"} if "path" in disk else {}
            if (disk.get("media") or {}).get("url") or (disk.get("media") or {}).get("path") == "/dev/sr0":
                disk["media"] = {"path": f"{IMAGES}/vm{self.number}-cd0.img"}
        for part in ("kernel", "initrd"):
            if (spec.get("kernelBoot") or {}).get(part):
                spec["kernelBoot"][part] = {"path": getattr(guest_files(), part)}
        graphics = spec.get("devices", {}).get("graphics")
        if graphics and graphics.get("passwordFrom"):
            graphics["passwordFrom"] = {"systemdCredential": "screen"}
        return spec

    def settled(self) -> str:
        """Wait until the last edit is carried out, or until it is said why it cannot be; the reason, or nothing."""

        def end() -> str | None:
            found = self.seen()
            if found is None:
                return None
            said = {item["type"]: item for item in found["status"]["conditions"] if item["status"] == "True"}
            waits = said.get("Stalled") or said.get("Blocked") or said.get("Conflict")
            return "Ready" if "Ready" in said else (f"{waits['reason']}: {waits['message']}" if waits else None)

        reason: str = wait_until(end, 60, f"{self.name} settles with {self.now}")
        assert self.boot() == self.runs, f"{self.name} was started again: {self.now}"
        return "" if reason == "Ready" else reason

    def wait_up(self) -> None:
        """Wait until the guest itself says that it is up; the run that it is in."""
        wait_until(lambda: says(self.agent.folder, self.name, "KVMD-TICK"), 120, "the guest is up")
        self.runs, self.started = self.boot(), time.monotonic() - self.uptime()


@pytest.fixture
def walkers(hermetic: Hermetic, tmp_path: Path) -> Iterator[list[Walker]]:
    """Two guests, up, with everything on the host that their specs may name."""
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    for name in ("seed", "screen"):
        (credentials / name).write_text("word1234")
        (credentials / name).chmod(0o600)
    hermetic.run("ip", "link", "add", "up0", "up", "type", "veth", "peer", "name", "up1")
    hermetic.run("mkdir", "-p", IMAGES)
    for number in range(2):
        for name in ("root", "data", "logs", "cd0", "cd1"):
            hermetic.run("truncate", "-s", "1M", f"{IMAGES}/vm{number}-{name}.img")
    agent = Agent(hermetic, tmp_path, source={"settle": "50ms"})
    made = [Walker(agent, number, Chance(SEED + number)) for number in range(2)]
    for walker in made:
        for name, source in (("linux", guest_files().kernel), ("cpio", guest_files().initrd)):
            os.symlink(source, walker.folder / name)
        raw(walker.folder, "new.raw", 1 << 20)
        raw(walker.folder, "b.iso", 1 << 20)
    links = [
        link("Bridge", "br0"),
        link("Bridge", "br1"),
        *(network(name, 100 + number) for number, name in enumerate(("net0", "net1", "net", "net2"))),
    ]
    links += [link("Tap", f"tap{number}", "{bridge: br1}") for number in range(2)]
    links += [pool(tmp_path / "pool"), image("golden", raw(tmp_path, "golden.iso", 1 << 20))]
    links += [
        volume(f"{name}{number}", "format: raw, capacity: 1Mi") for name in ("one", "two") for number in range(2)
    ]
    agent.write("links.yaml", "".join(links))
    for walker in made:
        walker.write()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENVIRONMENT, "CREDENTIALS_DIRECTORY", str(credentials))
        agent.start()
    for walker in made:
        walker.wait_up()
        walker.rest(60)
    yield made
    for walker in made:
        walker.close()
    agent.stop()
    wipe(hermetic)


@pytest.mark.timeout(1800)
def test_edits_restart_nobody_who_is_not_asked_to(walkers: list[Walker]) -> None:
    print(f"seed {SEED}")
    agent, reasons, begun = walkers[0].agent, Counter[str](), time.monotonic()
    for number in range(EDITS // 2):
        for walker in walkers:
            walker.step()
        for walker in walkers:
            reasons[walker.settled()] += 1
        if number in (EDITS // 6, EDITS // 3):
            restart(walkers[number // (EDITS // 3)])
    print(f"{EDITS} edits in {time.monotonic() - begun:.0f} s; not carried out: {dict(reasons)}")
    for walker in walkers:
        walker.write()
        waits = {change["path"] for change in walker.rest(60)["status"]["pendingChanges"]}
        # Fewer vCPUs wait; so does what the asked restart booted with, and what was plugged in anew on the way.
        assert all(path.startswith(("spec.cpu.vcpus", "spec.disks[data].", "spec.interfaces[")) for path in waits), (
            waits
        )
        aliases = {item.get("name") for item in walker.xml().xpath("devices/disk/alias|devices/interface/alias")}
        assert aliases == {"ua-disk-data", "ua-disk-cd0", "ua-nic-net0", "ua-nic-net1"}
        assert walker.boot() == walker.runs
        wait_until(lambda w=walker: w.uptime() >= time.monotonic() - w.started - 5, 20, "it has been up all the time")  # type: ignore[misc]
    for operation, count in (("DomainStart", 4), ("DomainShutdown", 2), ("DomainDestroy", 0), ("DomainUndefine", 0)):
        assert agent.metric("kvmd_operations_total", operation=operation, result="ok") == count, operation


def restart(walker: Walker) -> None:
    """The one thing that may: a spec that asks for it."""
    before = walker.runs
    walker.annotations["kvmd.dev/restarted-at"] = str(before)
    walker.now = copy.deepcopy(walker.spec)
    walker.write()
    wait_until(lambda: walker.boot() not in (-1, before), 90, "it is started again")
    walker.wait_up()
    walker.rest(60)
