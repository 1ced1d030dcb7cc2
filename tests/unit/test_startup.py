"""What a guest's start may wait for."""

from __future__ import annotations

import typing

from kvmd.kinds import CONTROLLERS
from kvmd.kinds.virtual_machine.startup import Dependency

ACTS = {
    "VirtualMachineRestore",
    "VirtualMachineSnapshot",
}  # they need the guest; a start that waits for them never comes


def test_a_start_may_wait_for_every_kind_but_acts_on_guests() -> None:
    """A kind knows no other kind, so the schema lists them; this holds the list to the registry."""
    assert set(typing.get_args(Dependency.model_fields["kind"].annotation)) == set(CONTROLLERS) - ACTS
