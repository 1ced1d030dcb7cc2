"""TAPs with one queue and with several, and NICs that do or do not suit them, on the real QEMU."""

from __future__ import annotations

import pytest
from hermetic import Agent
from small import link, vm, wipe

pytestmark = [pytest.mark.libvirt, pytest.mark.root]


@pytest.mark.shows("VirtualMachine", "interfaces[].queues")
@pytest.mark.shows("Tap", "multiQueue")
def test_a_nic_waits_for_a_tap_that_suits_it(agent: Agent) -> None:
    hermetic = agent.hermetic
    try:
        agent.write("taps.yaml", link("Tap", "tap1") + link("Tap", "tap2", "{multiQueue: true}"))
        agent.write("many.yaml", vm("many", "Always", more="  interfaces: [{name: net0, tap: tap1, queues: 2}]"))
        agent.write("one.yaml", vm("one", "Always", more="  interfaces: [{name: net0, tap: tap2}]"))
        agent.start()
        many = agent.wait_condition("VirtualMachine/many", "Blocked")
        assert "TAP tap1, which has one queue, and interface net0 asks for 2" in many["message"]
        one = agent.wait_condition("VirtualMachine/one", "Blocked")
        assert "TAP tap2, which has several queues, and interface net0 one" in one["message"]
        for name in ("many", "one"):
            with pytest.raises(AssertionError, match="Invalid argument"):  # libvirt says no more than that
                hermetic.virsh("start", name)
        agent.write("taps.yaml", link("Tap", "tap1", "{multiQueue: true}") + link("Tap", "tap2"))
        agent.wait_ready("VirtualMachine/many", "VirtualMachine/one", "Tap/tap1", "Tap/tap2")
        made = hermetic.links()["tap1"]["linkinfo"]["info_data"]
        assert made["numqueues"] + made["numdisabled"] == 2
        assert "No changes" in agent.kvmd("plan")
    finally:
        agent.stop()
        wipe(hermetic)
