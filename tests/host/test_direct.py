"""A guest on ``direct``, a macvtap on a link of the host that leads to another namespace, and on a TAP beside it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from guest import ARGS, guest_files
from hermetic import Agent, wait_until
from netns import NetNamespace, namespace
from small import link, vm, wipe
from test_main_path import says

pytestmark = [pytest.mark.guest, pytest.mark.libvirt]


def spec(agent: Agent, mode: str = "bridge") -> str:
    """A guest with an address of its own on the cable, and one on a TAP."""
    nics = f"[{{name: net0, direct: {{device: up0, mode: {mode}}}}}, {{name: net1, tap: tap1}}]"
    return machine(agent, "web", "kvmd.ip=10.9.0.5/24 kvmd.ip.eth1=10.171.0.5/24", nics)


def machine(agent: Agent, name: str, words: str, nics: str) -> str:
    """A guest that says on its console what becomes of its pings."""
    files = guest_files()
    return vm(
        name,
        "Always",
        memory="128Mi",
        more=f"""
  kernelBoot:
    kernel: {{path: {files.kernel}}}
    initrd: {{path: {files.initrd}}}
    args: "{ARGS} kvmd.name={name} {words}"
  interfaces: {nics}
  devices: {{serial: [{{name: console, file: {agent.folder}/{name}.console}}]}}
""",
    )


@pytest.fixture
def far(agent: Agent) -> Iterator[NetNamespace]:
    """Another namespace at the end of a cable; the near end is named up0."""
    with namespace() as other:
        agent.hermetic.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "far0", "netns", other.path)
        other.shell("ip link set lo up; ip addr add 10.9.0.2/24 dev far0; ip link set far0 up")
        yield other
        agent.stop()
        wipe(agent.hermetic)
        agent.hermetic.run("ip", "link", "del", "up0", check=False)


def answers(far: NetNamespace) -> bool:
    """Does the guest answer the other namespace?"""
    return "1 received" in far.run("sh", "-c", "ping -c 1 -W 1 10.9.0.5 || true")


@pytest.mark.shows("VirtualMachine", "interfaces[].direct.device", "interfaces[].direct.mode")
def test_a_guest_on_a_link_of_the_host_reaches_another_namespace(agent: Agent, far: NetNamespace) -> None:
    agent.write("links.yaml", link("Bridge", "br0") + link("Tap", "tap1", "{bridge: br0}"))
    agent.write("web.yaml", spec(agent))
    agent.write(
        "db.yaml", machine(agent, "db", "kvmd.ip=10.171.0.6/24 kvmd.ping=10.171.0.5", "[{name: net0, bridge: br0}]")
    )
    agent.start()
    blocked = agent.wait_condition("VirtualMachine/web", "Blocked")
    assert (blocked["reason"], "up0, which is down" in blocked["message"]) == ("LinkNotReady", True)
    agent.hermetic.run("ip", "link", "set", "up0", "up")
    wait_until(lambda: answers(far), 60, "the guest answers")
    wait_until(
        lambda: says(agent.folder, "db", r"KVMD-PING 10.171.0.5 ok"), 60, "a guest on a bridge reaches it by its TAP"
    )
    agent.wait_ready("VirtualMachine/web")
    assert "No changes" in agent.kvmd("plan")
    path = agent.object("VirtualMachine/web")["status"]["interfaces"][0]["path"]  # type: ignore[index]
    assert [(hop["hop"], hop["state"], hop["broken"]) for hop in path[1:]] == [
        ("macvtap", "up", False),
        ("uplink", "up", False),
    ]
    assert "macvtap0" in agent.kvmd("topology", "web")
    started = agent.hermetic.virsh("domid", "web")
    agent.write("web.yaml", spec(agent, "private"))
    wait_until(lambda: agent.object("VirtualMachine/web")["status"]["pendingChanges"], 20)  # type: ignore[index]
    assert agent.hermetic.virsh("domid", "web") == started
    assert answers(far)
    agent.hermetic.run("ip", "link", "set", "up0", "down")
    wait_until(lambda: "breaks at" in agent.kvmd("topology", "web"), 10, "the broken hop is named")
