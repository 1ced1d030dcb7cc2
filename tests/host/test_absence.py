"""Absence is not deletion: what goes when a spec goes, in which order, and everything that holds it."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hermetic import Agent, Hermetic, wait_until
from small import inventory, link, network, vm, wipe

pytestmark = pytest.mark.libvirt

GRACE_SECONDS = 0.4
QUICK = {"source": {"settle": "100ms", "rescan": "5s"}, "prune": {"grace": f"{GRACE_SECONDS}s"}}


@pytest.fixture
def agent(hermetic: Hermetic, tmp_path: Path) -> Iterator[Agent]:
    """A kvmd that waits for less long than a careful one."""
    made = Agent(hermetic, tmp_path, **QUICK)
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def clean(hermetic: Hermetic) -> Iterator[None]:
    yield
    wipe(hermetic)


def events(agent: Agent) -> list[dict[str, Any]]:
    """Every event so far."""
    found = json.loads(agent.http("/api/v1/events")[1])
    return found["items"] if isinstance(found, dict) else found  # type: ignore[no-any-return]


def source(agent: Agent) -> dict[str, Any]:
    """What the daemon says of its directory."""
    return json.loads(agent.http("/api/v1/source")[1])  # type: ignore[no-any-return]


def fleet(agent: Agent, count: int = 3) -> list[str]:
    """Machines and a link, each in its own file, all there."""
    names = [f"vm{number}" for number in range(count)]
    for name in names:
        agent.write(f"{name}.yaml", vm(name))
    agent.write("br.yaml", link("Bridge", "keepbr"))
    agent.start()
    agent.wait_ready(*(f"VirtualMachine/{name}" for name in names), "Bridge/keepbr", seconds=60)
    return names


def stays(agent: Agent, names: list[str]) -> None:
    """Everything is still there after more than the grace and a few cycles."""
    time.sleep(GRACE_SECONDS + 0.8)
    assert inventory(agent.hermetic)["domains"] == set(names)
    assert "keepbr" in inventory(agent.hermetic)["links"]


@pytest.mark.shows("VirtualMachine", "shutdown.methods", "shutdown.timeoutSeconds")
def test_a_removed_file_takes_its_objects_in_order_and_leaves_disks(agent: Agent, tmp_path: Path) -> None:
    hermetic = agent.hermetic
    disk = tmp_path / "root.raw"
    disk.write_bytes(b"precious" + bytes(1 << 20))
    more = f"""  disks: [{{name: root, path: {disk}, format: raw}}]
  interfaces: [{{name: net0, network: net}}, {{name: net1, tap: tap0}}]"""
    agent.write("all.yaml", vm("web", "Always", more=more) + network("net", 181))
    agent.write("links.yaml", link("Bridge", "br0") + link("Tap", "tap0", "{bridge: br0}"))
    agent.write("keep.yaml", link("Bridge", "keepbr"))
    agent.start()
    agent.wait_ready("VirtualMachine/web", "Network/net", "Bridge/br0", "Tap/tap0", seconds=60)
    agent.remove("all.yaml")
    agent.remove("links.yaml")
    wait_until(lambda: inventory(hermetic)["domains"] == set(), 40, "the machine is gone")
    wait_until(lambda: inventory(hermetic)["networks"] == set(), 20, "the network is gone")
    wait_until(lambda: inventory(hermetic)["links"] == {"keepbr"}, 20, "the links are gone")
    wait_until(lambda: {item["kind"] for item in json.loads(agent.http("/api/v1/objects")[1])["items"]} == {"Bridge"})
    done = [event["reason"] for event in events(agent)]
    order = ["DomainShutdown", "ForcedStop", "DomainUndefine", "NetworkUndefine"]
    assert [done.index(name) for name in order] == sorted(done.index(name) for name in order)
    deletes = [event["object"] for event in events(agent) if event["reason"] == "LinkDelete"]
    assert deletes == ["Tap/tap0", "Bridge/br0"]
    assert done.index("DomainUndefine") < done.index("LinkDelete")
    assert disk.read_bytes()[:8] == b"precious"
    assert agent.metric("kvmd_drift_corrected_total") == 0


def _empty(agent: Agent) -> None:
    for file in agent.specs.iterdir():
        file.unlink()


def _missing(agent: Agent) -> None:
    agent.specs.rename(agent.specs.with_name("elsewhere"))


def _mounted(agent: Agent) -> None:
    agent.hermetic.run("mount", "-t", "tmpfs", "tmpfs", str(agent.specs))


def _broken(agent: Agent) -> None:
    agent.remove("vm0.yaml")
    agent.write("vm1.yaml", vm("vm1") + "  memry: 1")


def _half(agent: Agent) -> None:
    for number in range(3):
        agent.remove(f"vm{number}.yaml")


def _duplicate(agent: Agent) -> None:
    agent.write("again.yaml", vm("vm1"))
    agent.remove("vm0.yaml")


@pytest.mark.parametrize(
    ("lose", "reason", "says"),
    [
        (_empty, "SourceEmpty", "one valid spec"),
        (_missing, "", "put the directory back"),
        (_mounted, "", "put the directory back"),
        (_broken, "InvalidFiles", "kvmd validate"),
        (_half, "Brake", "kvmd approve prune --digest"),
        (_duplicate, "ClaimedByTwoFiles", "stands in"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_nothing_is_removed(agent: Agent, lose: Callable[[Agent], None], reason: str, says: str) -> None:
    names = fleet(agent)
    lose(agent)
    if reason:
        held = agent.wait_condition("VirtualMachine/vm0", "PruneHeld")
        assert (held["reason"], says in held["message"]) == (reason, True)
        wait_until(lambda: agent.metric("kvmd_prune_held") >= 1)
    else:
        wait_until(lambda: not source(agent)["complete"], 40)
        assert any(says in problem for problem in source(agent)["problems"])
        assert agent.object("VirtualMachine/vm0") is not None
    stays(agent, names)
    agent.kill()
    agent.start()
    stays(agent, names)
    if lose is _mounted:
        agent.hermetic.run("umount", str(agent.specs))
        agent.wait_ready(*(f"VirtualMachine/{name}" for name in names))


def test_half_a_fleet_waits_for_approval_and_then_all_of_it_goes(agent: Agent) -> None:
    """Those that run go later than those that do not: the approval must last until the last one went."""
    for number in range(5):
        agent.write(f"run{number}.yaml", vm(f"run{number}", "Always" if number < 2 else "Halted"))
    fleet(agent, 5)
    agent.wait_ready(*(f"VirtualMachine/run{number}" for number in range(5)), seconds=60)
    for number in range(5):
        agent.remove(f"run{number}.yaml")
    held = agent.wait_condition("VirtualMachine/run0", "PruneHeld")
    assert "5 of 10" in held["message"]
    digest = held["message"].split("--digest ")[1].split()[0]
    agent.kvmd("approve", "prune", "--digest", "0" * 16, code=6)
    stays(agent, [f"vm{number}" for number in range(5)] + [f"run{number}" for number in range(5)])
    agent.kvmd("approve", "prune", "--digest", digest)
    left = {f"vm{number}" for number in range(5)}
    wait_until(lambda: inventory(agent.hermetic)["domains"] == left, 40, "the approved are gone")
    agent.remove("vm0.yaml")
    assert "6 of 10" in agent.wait_condition("VirtualMachine/vm0", "PruneHeld")["message"]
    wait_until(lambda: agent.object("VirtualMachine/run0") is None)
    agent.kill()
    agent.start()
    again = agent.wait_condition("VirtualMachine/vm0", "PruneHeld")
    assert "6 of 10" in again["message"], "the brake remembers the hour across a restart"
    assert "vm0" in inventory(agent.hermetic)["domains"]


def test_the_prune_annotation_is_obeyed(agent: Agent) -> None:
    agent.write("never.yaml", vm("never", annotations="kvmd.dev/prune: disabled"))
    agent.write("ask.yaml", vm("ask", annotations="kvmd.dev/prune: confirm"))
    names = fleet(agent)
    agent.wait_ready("VirtualMachine/never", "VirtualMachine/ask")
    agent.remove("never.yaml")
    agent.remove("ask.yaml")
    assert agent.wait_condition("VirtualMachine/never", "PruneHeld")["reason"] == "PruneDisabled"
    held = agent.wait_condition("VirtualMachine/ask", "PruneHeld")
    assert held["reason"] == "ConfirmationRequired"
    stays(agent, [*names, "never", "ask"])
    agent.kvmd("approve", "prune", "--digest", held["message"].split("--digest ")[1].split()[0])
    wait_until(lambda: "ask" not in inventory(agent.hermetic)["domains"], 20)
    stays(agent, [*names, "never"])


def test_a_moved_file_is_no_deletion(agent: Agent) -> None:
    hermetic = agent.hermetic
    agent.write("a.yaml", vm("web", "Always") + link("Bridge", "br0"))
    agent.start()
    agent.wait_ready("VirtualMachine/web", "Bridge/br0", seconds=60)
    time.sleep(0.5)
    before = (hermetic.virsh("domid", "web"), hermetic.virsh("dumpxml", "web"), hermetic.links()["br0"]["ifindex"])
    writes = agent.writes()
    (agent.specs / "deep").mkdir()
    (agent.specs / "a.yaml").rename(agent.specs / "deep" / "b.yaml")
    wait_until(lambda: "b.yaml" in agent.object("VirtualMachine/web")["status"]["source"], 20)  # type: ignore[index]
    time.sleep(GRACE_SECONDS + 0.8)
    agent.write("deep/c.yaml", vm("web", "Always"))
    (agent.specs / "deep" / "b.yaml").write_text(link("Bridge", "br0"))
    wait_until(lambda: "c.yaml" in agent.object("VirtualMachine/web")["status"]["source"], 20)  # type: ignore[index]
    time.sleep(GRACE_SECONDS + 0.8)
    after = (hermetic.virsh("domid", "web"), hermetic.virsh("dumpxml", "web"), hermetic.links()["br0"]["ifindex"])
    assert after == before
    assert agent.writes() == writes


def test_an_invalid_edit_holds_its_objects(agent: Agent) -> None:
    hermetic = agent.hermetic
    agent.write("web.yaml", vm("web", "Always"))
    agent.write("other.yaml", vm("other"))
    agent.start()
    agent.wait_ready("VirtualMachine/web", "VirtualMachine/other", seconds=60)
    before = (hermetic.virsh("domid", "web"), hermetic.virsh("dumpxml", "web", "--inactive"))
    agent.write("web.yaml", vm("web", "Never", memory="32Mi"))
    assert "kvmd validate" in agent.wait_condition("VirtualMachine/web", "SpecInvalid")["message"]
    for number in (signal.SIGKILL, signal.SIGTERM):
        agent.kill(number)
        agent.start()
        agent.wait_condition("VirtualMachine/web", "SpecInvalid")
        assert (hermetic.virsh("domid", "web"), hermetic.virsh("dumpxml", "web", "--inactive")) == before
    hermetic.virsh("destroy", "web")
    wait_until(lambda: hermetic.virsh("domstate", "web").strip() == "running", 20, "the held spec is still kept")
    agent.write("other.yaml", vm("other", memory="80Mi"))
    wait_until(lambda: "81920" in hermetic.virsh("dumpxml", "other"), 20, "what is beside it goes on")
    agent.write("web.yaml", vm("web", "Always"))
    wait_until(lambda: agent.condition("VirtualMachine/web", "SpecInvalid") is None, 20)
    agent.wait_ready("VirtualMachine/web")


def test_what_comes_back_within_the_grace_was_never_gone(hermetic: Hermetic, tmp_path: Path) -> None:
    agent = Agent(hermetic, tmp_path, **{**QUICK, "prune": {"grace": "3s"}})
    try:
        agent.write("web.yaml", vm("web", "Always"))
        agent.write("keep.yaml", link("Bridge", "keepbr"))
        agent.start()
        agent.wait_ready("VirtualMachine/web", seconds=60)
        before = hermetic.virsh("domid", "web")
        for _ in range(2):
            agent.remove("web.yaml")
            waiting = agent.wait_condition("VirtualMachine/web", "Reconciling")
            assert waiting["reason"] == "Grace"
            time.sleep(1)
            agent.write("web.yaml", vm("web", "Always"))
            agent.wait_ready("VirtualMachine/web")
        time.sleep(3)
        assert hermetic.virsh("domid", "web") == before
    finally:
        agent.stop()


def test_a_restart_in_the_middle_of_a_removal_finishes_it(agent: Agent) -> None:
    """The shutdown under way is forgotten: it is asked for again, waited for, then forced."""
    hermetic = agent.hermetic
    agent.write("web.yaml", vm("web", "Always"))
    agent.write("keep.yaml", link("Bridge", "keepbr"))
    agent.start()
    agent.wait_ready("VirtualMachine/web", seconds=60)
    agent.remove("web.yaml")
    wait_until(lambda: any(event["reason"] == "DomainShutdown" for event in events(agent)), 20)
    agent.kill()
    assert hermetic.virsh("domstate", "web").strip() == "running"
    agent.start()
    wait_until(lambda: inventory(hermetic)["domains"] == set(), 40, "removed in the end")


def test_without_its_state_directory_it_removes_nothing_unasked(agent: Agent) -> None:
    """Links keep no spec of their own: whose last spec is unknown stays until somebody approves."""
    agent.write("br.yaml", link("Bridge", "br0"))
    agent.write("web.yaml", vm("web"))
    agent.write("keep.yaml", link("Bridge", "keepbr"))
    agent.start()
    agent.wait_ready("Bridge/br0", "Bridge/keepbr", "VirtualMachine/web")
    shutil.rmtree(agent.folder / "state")
    agent.write("more.yaml", vm("more"))
    agent.wait_ready("VirtualMachine/more")
    agent.kill()
    shutil.rmtree(agent.folder / "state")
    agent.remove("br.yaml")
    agent.start()
    held = agent.wait_condition("Bridge/br0", "PruneHeld")
    assert held["reason"] == "LastAppliedUnknown"
    time.sleep(GRACE_SECONDS + 0.8)
    assert "br0" in inventory(agent.hermetic)["links"]
    agent.kvmd("approve", "prune", "--digest", held["message"].split("--digest ")[1].split()[0])
    wait_until(lambda: "br0" not in inventory(agent.hermetic)["links"], 20)


def test_the_run_and_cache_directories_may_go_at_any_time(hermetic: Hermetic, tmp_path: Path) -> None:
    agent = Agent(hermetic, tmp_path, source={"rescan": "2s"})
    try:
        agent.write("br.yaml", link("Bridge", "br0"))
        agent.start()
        agent.wait_ready("Bridge/br0")
        index = hermetic.links()["br0"]["ifindex"]
        for _ in range(2):
            for name in ("run", "cache"):
                shutil.rmtree(tmp_path / name, ignore_errors=True)
            wait_until(lambda: agent.http("/readyz")[0] == 200, 20, "it answers again")
            assert "br0" in agent.kvmd("get", "bridge")
        agent.write("tap.yaml", link("Tap", "tap0", "{bridge: br0}"))
        agent.wait_ready("Tap/tap0")
        assert "another kvmd" in agent.refused("run")
        assert hermetic.links()["br0"]["ifindex"] == index
    finally:
        agent.stop()
