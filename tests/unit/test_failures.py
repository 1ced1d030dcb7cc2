"""Failures of what goes on beside the steps: told once each, and anew with the next try."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from kvmd.api.resource import Ref
from kvmd.api.status import DEGRADED, FETCH_FAILED, RECONCILING, Condition
from kvmd.engine.failures import Failures

WEB = Ref("VirtualMachine", "web")


def failed(attempt: int) -> Any:
    """The plan of a guest whose medium did not come."""
    said = (
        Condition(RECONCILING, True, FETCH_FAILED, f"404 (attempt {attempt})"),
        Condition(DEGRADED, True, "Other"),
    )
    return {WEB: SimpleNamespace(conditions=said)}


def test_each_try_is_told_once() -> None:
    told: list[tuple[str, str, str, bool]] = []
    failures = Failures()
    plans: list[Any] = [failed(1), failed(1), failed(2), {WEB: SimpleNamespace(conditions=())}, failed(2), {}]
    for objects in plans:
        failures.tell(objects, lambda *event: told.append(event))
    messages = [message for _, _, message, _ in told]
    assert messages == ["404 (attempt 1)", "404 (attempt 2)", "404 (attempt 2)"]
    assert {event[:2] for event in told} == {("VirtualMachine/web", "DriveNotReached")}
