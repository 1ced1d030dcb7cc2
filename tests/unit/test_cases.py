"""Every planning case of ``tests/cases``, through the front door: files in, a plan out."""

from __future__ import annotations

from pathlib import Path

import pytest
from casework import Situation, as_yaml, trimmed, values_of

from kvmd.api import status
from kvmd.kinds import CONTROLLERS

CASES = Path(__file__).parents[1] / "cases"
FOLDERS = sorted(path.parent for path in CASES.glob("*/*/observed.yaml"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def test_case(folder: Path, pytestconfig: pytest.Config) -> None:
    """The plan is the one that stands there, and the host would let it be carried out."""
    situation = Situation(folder)
    plan = situation.plan()
    found, expected = trimmed(plan), folder / "plan.yaml"
    if pytestconfig.getoption("--regenerate"):
        expected.write_text(as_yaml(found))
    assert expected.exists(), f"no plan.yaml yet; make it with: pytest {Path(__file__).name} --regenerate"
    assert as_yaml(found) == as_yaml(values_of(expected)[0])
    assert situation.can_be_done(plan) == ""
    for item in plan.objects.values():
        said = [condition.status for condition in item.conditions if condition.type == status.READY]
        assert said == [item.ready] or item.resource is None, f"{item.ref} says {said} of Ready"


@pytest.mark.parametrize("kind", CONTROLLERS)
def test_each_kind_has_cases(kind: str) -> None:
    """Enough of them to show how it behaves; a folder is a case only if it has what a case needs."""
    folders = [path for path in (CASES / kind).iterdir() if path.is_dir()]
    assert len(folders) >= 8
    assert set(folders) <= set(FOLDERS)
