"""The MTU of a libvirt network on the real thing: the bridge has it, and afterwards there is nothing to do."""

from __future__ import annotations

import pytest
from hermetic import Agent, wait_until
from small import network, wipe

pytestmark = pytest.mark.libvirt


@pytest.mark.shows("Network", "mtu")
def test_the_bridge_of_a_network_has_the_mtu_of_its_spec(agent: Agent) -> None:
    try:
        agent.write("net.yaml", network("lab", 151, more="  mtu: 1400"))
        agent.start()
        agent.wait_ready("Network/lab")
        wait_until(lambda: agent.hermetic.links()["vb-lab"]["mtu"] == 1400, 10)
        assert "No changes" in agent.kvmd("plan")
        agent.write("net.yaml", network("lab", 151))
        wait_until(lambda: agent.hermetic.links().get("vb-lab", {}).get("mtu") == 1500, 20, "nobody uses it: at once")
        agent.wait_ready("Network/lab")
        assert "No changes" in agent.kvmd("plan")
    finally:
        agent.stop()
        wipe(agent.hermetic)
