"""A guest on ``direct``: a macvtap on a link of the host, whose other end is another namespace."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from guest import ARGS, guest_files
from hermetic import Agent, wait_until
from netns import NetNamespace, namespace
from small import vm, wipe

pytestmark = [pytest.mark.guest, pytest.mark.libvirt]


def spec(agent: Agent, mode: str = "bridge") -> str:
    """A guest with an address of its own on the cable."""
    files = guest_files()
    return vm(
        "web",
        "Always",
        memory="128Mi",
        more=f"""
  kernelBoot:
    kernel: {{path: {files.kernel}}}
    initrd: {{path: {files.initrd}}}
    args: "{ARGS} kvmd.name=web kvmd.ip=10.9.0.5/24"
  interfaces: [{{name: net0, direct: {{device: up0, mode: {mode}}}}}]
  devices: {{serial: [{{name: console, file: {agent.folder}/web.console}}]}}
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
    agent.write("web.yaml", spec(agent))
    agent.start()
    blocked = agent.wait_condition("VirtualMachine/web", "Blocked")
    assert (blocked["reason"], "up0, which is down" in blocked["message"]) == ("LinkNotReady", True)
    agent.hermetic.run("ip", "link", "set", "up0", "up")
    wait_until(lambda: answers(far), 60, "the guest answers")
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
