"""What others made is never touched; a clash names the way out; adopting restarts nothing."""

from __future__ import annotations

import re
import signal
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest
from hermetic import Agent, Hermetic, wait_until
from small import HAND_UUID, MARK, MARK_NAMESPACE, Strangers, inventory, link, network, vm, wipe

pytestmark = pytest.mark.libvirt

CLASHES = {
    "VirtualMachine/hand": vm("hand", "Always"),
    "Network/handnet": network("handnet", 178),
    "Bridge/handbr": link("Bridge", "handbr", "{stp: true, addresses: {from: Static, static: [10.99.0.1/24]}}"),
    "Tap/handtap": link("Tap", "handtap", "{owner: 65534}"),
}
ADOPT = 'kvmd.dev/adopt: "true"'
ADOPT_UUID = f'kvmd.dev/adopt: "uuid:{HAND_UUID}"'
HAND_NETWORK_SPEC = """---
apiVersion: kvmd.dev/v1alpha1
kind: Network
metadata: {name: handnet, annotations: {kvmd.dev/adopt: "true"}}
spec:
  forward: {mode: isolated}
  bridge: {name: virbr-hand}
  ips: [{address: 192.168.77.1/24, dhcp: {ranges: [{start: 192.168.77.10, end: 192.168.77.20}]}}]
  deletionPolicy: Orphan
"""


def hand_spec(disk: Path, annotation: str) -> str:
    """The machine made by hand, as a spec."""
    return f"""---
apiVersion: kvmd.dev/v1alpha1
kind: VirtualMachine
metadata: {{name: hand, annotations: {{{annotation}}}}}
spec:
  accelerator: tcg
  machine: pc
  memory: {{guest: 64Mi}}
  disks: [{{name: root, path: {disk}, format: raw}}]
  interfaces:
  - {{name: net0, network: handnet, mac: "52:54:00:aa:00:01"}}
  - {{name: net1, tap: handtap, mac: "52:54:00:aa:00:02"}}
  deletionPolicy: Orphan
"""


@pytest.fixture
def strangers(hermetic: Hermetic, tmp_path: Path) -> Iterator[Strangers]:
    wipe(hermetic)
    yield Strangers(hermetic, tmp_path / "strangers")
    wipe(hermetic)


def test_what_a_person_made_survives_everything(agent: Agent, strangers: Strangers) -> None:
    hermetic = agent.hermetic
    agent.write("ours.yaml", vm("ours", "Always") + network("oursnet", 179) + link("Bridge", "oursbr"))
    agent.write("tap.yaml", link("Tap", "ourstap", "{bridge: oursbr}"))
    agent.write("clash.yaml", "".join(CLASHES.values()))
    agent.start()
    agent.wait_ready("VirtualMachine/ours", "Network/oursnet", "Bridge/oursbr", "Tap/ourstap")
    for reference in CLASHES:
        conflict = agent.wait_condition(reference, "Conflict")
        assert conflict["reason"] == "ExistsOnHost"
        assert "kvmd.dev/adopt" in conflict["message"]
    strangers.unharmed()
    hermetic.virsh("destroy", "ours")
    hermetic.run("ip", "link", "del", "oursbr")
    wait_until(lambda: hermetic.virsh("domstate", "ours").strip() == "running", 20)
    wait_until(lambda: hermetic.links().get("ourstap", {}).get("master") == "oursbr", 20)
    strangers.unharmed()
    agent.kill(signal.SIGKILL)
    agent.start()
    agent.wait_ready("VirtualMachine/ours", "Network/oursnet", "Bridge/oursbr", "Tap/ourstap")
    agent.wait_condition("VirtualMachine/hand", "Conflict")
    agent.remove("clash.yaml")
    agent.remove("ours.yaml")
    agent.write("tap.yaml", link("Tap", "lone"))
    wait_until(lambda: inventory(hermetic) == {**STRANGERS_ALONE, "links": STRANGERS_ALONE["links"] | {"lone"}}, 40)
    strangers.unharmed()


STRANGERS_ALONE = {"domains": {"hand"}, "networks": {"handnet"}, "links": {"handbr", "handtap", "virbr-hand"}}


def test_a_copied_mark_is_no_mark(agent: Agent, strangers: Strangers) -> None:
    hermetic = agent.hermetic
    agent.write("web.yaml", vm("web") + network("webnet", 179) + link("Bridge", "webbr"))
    agent.write("keep.yaml", link("Tap", "keep"))
    agent.start()
    agent.wait_ready("VirtualMachine/web", "Network/webnet", "Bridge/webbr")
    clone = hermetic.virsh("dumpxml", "web", "--inactive")
    assert MARK in clone
    uuid = "5d4c1d5c-0000-4000-8000-00000000000c"
    clone = clone.replace("<name>web<", "<name>clone<")
    clone = re.sub(r"<uuid>[^<]*</uuid>", f"<uuid>{uuid}</uuid>", clone, count=1)
    file = strangers.folder / "clone.xml"
    file.write_text(clone)
    hermetic.virsh("define", str(file))
    hermetic.virsh("autostart", "clone")
    before = hermetic.virsh("dumpxml", "clone", "--inactive")
    hermetic.run("ip", "link", "add", "webcopy", "type", "bridge")
    hermetic.run("ip", "link", "set", "webcopy", "alias", hermetic.links()["webbr"]["ifalias"])
    agent.write("clone.yaml", vm("clone", "Always"))
    copied = agent.wait_condition("VirtualMachine/clone", "CopiedMark")
    assert "kvmd.dev/adopt" in copied["message"]
    agent.remove("web.yaml")
    wait_until(lambda: "web" not in inventory(hermetic)["domains"], 20, "web is pruned")
    wait_until(lambda: "webbr" not in inventory(hermetic)["links"], 20, "webbr is pruned")
    agent.remove("clone.yaml")
    wait_until(lambda: agent.object("VirtualMachine/clone") is None, 20)
    agent.kill()
    agent.start()
    wait_until(lambda: agent.object("Tap/keep"), 20)
    agent.write("more.yaml", link("Tap", "more"))
    agent.wait_ready("Tap/more")
    assert hermetic.virsh("dumpxml", "clone", "--inactive") == before
    assert "webcopy" in hermetic.links()
    strangers.unharmed()


def test_a_mark_copied_onto_a_new_object_of_the_same_name(agent: Agent, strangers: Strangers) -> None:
    hermetic = agent.hermetic
    agent.write("web.yaml", vm("web"))
    agent.start()
    agent.wait_ready("VirtualMachine/web")
    agent.kill()
    xml = hermetic.virsh("dumpxml", "web", "--inactive")
    hermetic.virsh("undefine", "web")
    file = strangers.folder / "web.xml"
    file.write_text(re.sub(r"<uuid>[^<]*</uuid>", f"<uuid>{HAND_UUID[:-1]}9</uuid>", xml, count=1))
    hermetic.virsh("define", str(file))
    before = hermetic.virsh("dumpxml", "web", "--inactive")
    agent.start()
    assert HAND_UUID[:-1] in agent.wait_condition("VirtualMachine/web", "CopiedMark")["message"]
    assert hermetic.virsh("dumpxml", "web", "--inactive") == before


@pytest.mark.parametrize("annotation", [ADOPT, ADOPT_UUID])
def test_adopting_restarts_and_detaches_nothing(agent: Agent, strangers: Strangers, annotation: str) -> None:
    agent.write("hand.yaml", hand_spec(strangers.disk, annotation))
    agent.write("net.yaml", HAND_NETWORK_SPEC)
    orphan = "deletionPolicy: Orphan"
    bridge = f"{{addresses: {{from: Static, static: [10.77.0.1/24]}}, {orphan}}}"
    agent.write("br.yaml", link("Bridge", "handbr", bridge, annotations=ADOPT))
    agent.write("tap.yaml", link("Tap", "handtap", f"{{bridge: handbr, {orphan}}}", annotations=ADOPT))
    agent.start()
    references = ("VirtualMachine/hand", "Network/handnet", "Bridge/handbr", "Tap/handtap")
    agent.wait_ready(*references)
    after, before = strangers.look(), strangers.before
    assert [after[key] for key in ("live", "id", "disk")] == [before[key] for key in ("live", "id", "disk")]
    assert without_marks(after["domain"]) == without_marks(before["domain"])
    assert without_marks(after["network"]) == without_marks(before["network"])
    assert without_marks(after["live network"]) == without_marks(before["live network"])
    for name, item in after["links"].items():
        assert {**item, "ifalias": ""} == {**before["links"][name], "ifalias": ""}
    agent.kvmd("plan", "--detailed-exitcode")
    assert agent.metric("kvmd_drift_corrected_total") == 0
    for name in ("hand", "net", "br", "tap"):
        agent.remove(f"{name}.yaml")
    agent.write("lone.yaml", link("Tap", "lone"))
    wait_until(lambda: all(agent.object(reference) is None for reference in references), 30, "let go")
    gone = strangers.look()
    assert MARK not in gone["domain"] + gone["network"]
    assert gone["links"] == before["links"]
    assert gone["id"] == before["id"]


def without_marks(xml: str) -> str:
    """A document of libvirt without kvmd's metadata and aliases."""
    root = ElementTree.fromstring(xml)
    for metadata in root.findall("metadata"):
        for mark in metadata.findall(f"{{{MARK_NAMESPACE}}}mark"):
            metadata.remove(mark)
        if not len(metadata):
            root.remove(metadata)
    for device in root.findall("devices/*"):
        for alias in device.findall("alias"):
            device.remove(alias)
    return ElementTree.canonicalize(ElementTree.tostring(root, encoding="unicode"), strip_text=True)


def test_what_somebody_added_to_a_definition_stays_when_the_next_line_is_edited(agent: Agent, tmp_path: Path) -> None:
    """libvirt tells nobody of it: the facts of kvmd are older than the definition that it is about to write anew."""
    hermetic, disk = agent.hermetic, tmp_path / "added.raw"
    disk.write_bytes(bytes(1 << 20))
    agent.write("web.yaml", vm("web"))
    agent.write("net.yaml", network("nat", 176))
    agent.start()
    agent.wait_ready("VirtualMachine/web", "Network/nat")
    hermetic.virsh("attach-disk", "web", str(disk), "vdb", "--config")
    host = "<host ip='192.168.176.9'><hostname>added</hostname></host>"
    hermetic.virsh("net-update", "nat", "add", "dns-host", host, "--config")
    agent.write("web.yaml", vm("web", more="  cpu: {vcpus: 2}"))
    agent.write("net.yaml", network("nat", 176, more="  domain: {name: example.test}"))
    wait_until(lambda: hermetic.virsh("vcpucount", "web", "--config", "--current").strip() == "2", 30, "two CPUs")
    assert "vdb" in hermetic.virsh("domblklist", "web", "--inactive")
    wait_until(lambda: "example.test" in hermetic.virsh("net-dumpxml", "nat", "--inactive"), 30, "its domain")
    assert "<hostname>added" in hermetic.virsh("net-dumpxml", "nat", "--inactive")
    agent.stop()
    wipe(hermetic)
