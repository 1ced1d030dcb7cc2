"""What others made becomes specs that change nothing: on the real libvirt and kernel."""

from __future__ import annotations

from pathlib import Path

import pytest
from hermetic import Agent
from small import Strangers, wipe

pytestmark = [pytest.mark.libvirt, pytest.mark.root]


def test_what_was_imported_is_adopted_without_a_change(agent: Agent, tmp_path: Path) -> None:
    """Everything that a person made, all at once: only marks are added, and the next plan is empty."""
    wipe(agent.hermetic)
    strangers = Strangers(agent.hermetic, tmp_path / "hand")
    try:
        text = agent.kvmd("import", "--all")
        for name in ("hand", "handnet", "handbr", "handtap"):
            assert f"name: {name}\n" in text
        agent.write("imported.yaml", text)
        identity = agent.hermetic.virsh("domid", "hand")
        agent.start()
        names = ("VirtualMachine/hand", "Network/handnet", "Bridge/handbr", "Tap/handtap")
        agent.wait_ready(*names)
        agent.kvmd("plan", "--detailed-exitcode")
        assert agent.hermetic.virsh("domid", "hand") == identity
        assert all(agent.object(name)["status"]["pendingChanges"] == [] for name in names)
        after = strangers.look()
        for what in ("disk", "addresses"):
            assert after.get(what) == strangers.before.get(what)
        assert agent.kvmd("import", "--all") == ""
    finally:
        agent.stop()
        wipe(agent.hermetic)


def test_what_cannot_be_said_is_named(agent: Agent, tmp_path: Path) -> None:
    wipe(agent.hermetic)
    Strangers(agent.hermetic, tmp_path / "hand")
    try:
        said = agent.told("import", "vm/hand")
        assert "VirtualMachine/hand: not said, and left as it is: device <watchdog>" in said
        assert "device <video>" in said
        agent.kvmd("import", "nobody", code=3)
    finally:
        wipe(agent.hermetic)
