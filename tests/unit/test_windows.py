"""Maintenance windows: which interval a schedule means, by whose clock, and when it is reckoned anew."""

from __future__ import annotations

import datetime

import pytest
from casework import resources_of

from kvmd.api.resource import Ref, Resource
from kvmd.engine.windows import Windows, interval
from kvmd.kinds import CONTROLLERS
from kvmd.plan.model import Window
from kvmd.settings import Source
from kvmd.sources.decode import decode_file

HOUR = 3600.0
SPEC = """
apiVersion: kvmd.dev/v1alpha1
kind: VirtualMachine
metadata: {name: web}
spec:
  memory: {guest: 1Gi}
  updatePolicy: POLICY
"""
WEB = Ref("VirtualMachine", "web")


def utc(text: str) -> float:
    return datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC).timestamp()


def resource(policy: str) -> Resource:
    return resources_of(SPEC.replace("POLICY", policy), "web.yaml")[WEB]


@pytest.mark.parametrize(
    ("at", "zone", "opens"),
    [
        ("2026-07-01T00:00", "UTC", "2026-07-05T03:00"),  # the next one
        ("2026-07-05T03:00", "UTC", "2026-07-05T03:00"),  # it has just opened
        ("2026-07-05T04:59", "UTC", "2026-07-05T03:00"),  # it is still open
        ("2026-07-05T05:00", "UTC", "2026-07-12T03:00"),  # it has just closed
        ("2026-07-01T00:00", "Europe/Berlin", "2026-07-05T01:00"),  # summer time
        ("2026-12-30T00:00", "Europe/Berlin", "2027-01-03T02:00"),  # winter time
    ],
)
def test_the_interval_that_is_open_or_next(at: str, zone: str, opens: str) -> None:
    found = interval(Window("0 3 * * sun", 2 * HOUR, zone), utc(at))
    assert found == (utc(opens), utc(opens) + 2 * HOUR)


def test_an_interval_is_told_once_and_again_when_it_is_over() -> None:
    windows = Windows()
    windows.take(WEB, resource('{restart: Window, window: {schedule: "0 3 * * *", duration: 1h}}'))
    start = utc("2026-07-01T00:00")
    assert list(windows.news(100.0, start)) == [(WEB, (100.0 + 3 * HOUR, 100.0 + 4 * HOUR))]
    assert list(windows.news(200.0, start + 100)) == []
    later = 4 * HOUR
    assert list(windows.news(100.0 + later, start + later)) == [(WEB, (100.0 + 27 * HOUR, 100.0 + 28 * HOUR))]


def test_a_clock_that_is_set_moves_the_window() -> None:
    windows = Windows()
    windows.take(WEB, resource('{restart: Window, window: {schedule: "0 3 * * *", duration: 1h}}'))
    start = utc("2026-07-01T00:00")
    list(windows.news(100.0, start))
    assert list(windows.news(101.0, start + 2 * HOUR)) == [(WEB, (101.0 + HOUR, 101.0 + 2 * HOUR))]


def test_a_window_that_is_taken_out_is_forgotten() -> None:
    windows = Windows()
    windows.take(WEB, resource('{restart: Window, window: {schedule: "0 3 * * *", duration: 1h}}'))
    list(windows.news(100.0, utc("2026-07-01T00:00")))
    windows.take(WEB, resource("{restart: Manual}"))
    assert list(windows.news(101.0, utc("2026-07-01T00:00") + 1)) == [(WEB, None)]
    assert list(windows.news(102.0, utc("2026-07-01T00:00") + 2)) == []


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ('{restart: Window, window: {schedule: "0 3 * *", duration: 2h}}', "crontab"),
        ('{restart: Window, window: {schedule: "0 0 30 2 *", duration: 2h}}', "ever comes true"),
        ('{restart: Window, window: {schedule: "0 3 * * sun", duration: 2h, timeZone: Mars/Base}}', "time zone"),
        ('{restart: Window, window: {schedule: "0 3 * * sun", duration: soon}}', "duration"),
        ("{restart: Window}", "go together"),
        ('{restart: Manual, window: {schedule: "0 3 * * sun", duration: 2h}}', "go together"),
    ],
)
def test_what_is_no_window_is_refused_where_it_stands(policy: str, said: str) -> None:
    text = SPEC.replace("POLICY", policy).encode()
    specs = {kind: controller.Spec for kind, controller in CONTROLLERS.items()}
    found = decode_file(text, "web.yaml", Source(), specs)
    assert any(said in str(problem) for problem in found.problems)


def test_a_reboot_can_apply_changes_only_where_the_guest_is_started_again() -> None:
    text = (SPEC.replace("POLICY", "{onGuestReboot: Apply}") + "  runStrategy: Manual\n").encode()
    specs = {kind: controller.Spec for kind, controller in CONTROLLERS.items()}
    found = decode_file(text, "web.yaml", Source(), specs)
    assert any("runStrategy Always" in str(problem) for problem in found.problems)
