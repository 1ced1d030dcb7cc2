"""A file under two names is one file: who would write to another's is refused, whatever both call it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from casework import resources_of
from generators import machine_for
from simulator import Loop

from kvmd.api.resource import Ref, Resource
from kvmd.host.files import Files
from kvmd.observed import File, Key, Pool, Volume
from kvmd.plan.model import Plan
from kvmd.plan.places import Places

STORAGE = """
apiVersion: kvmd.dev/v1alpha1
kind: StoragePool
metadata: {name: guests}
spec: {path: /srv/guests}
---
apiVersion: kvmd.dev/v1alpha1
kind: Volume
metadata: {name: root}
spec: {pool: guests, capacity: 1Gi}
---
"""
OWN = "{name: root, volume: root}"
LINK, REAL = "/srv/link/root.qcow2", "/srv/guests/root.qcow2"


def machine(name: str, disk: str = "", console: str = "") -> str:
    disks = f", disks: [{disk}]" if disk else ""
    devices = f", devices: {{serial: [{{name: console, file: {console}}}]}}" if console else ""
    return (
        f"apiVersion: kvmd.dev/v1alpha1\nkind: VirtualMachine\nmetadata: {{name: {name}}}\n"
        f"spec: {{memory: {{guest: 256Mi}}{disks}{devices}}}\n---\n"
    )


def specs(*texts: str) -> Mapping[Ref, Resource]:
    return resources_of(STORAGE + "".join(texts), "specs.yaml")


def loop_with(resources: Mapping[Ref, Resource], *files: File) -> Loop:
    loop = Loop(machine_for(resources))
    for file in files:
        loop.machine.facts[Key("file", file.path)] = file
    return loop


def told(plan: Plan, name: str) -> set[tuple[str, str]]:
    return {
        (item.type, item.reason)
        for item in plan.objects[Ref("VirtualMachine", name)].conditions
        if item.status and item.type != "Degraded"
    }


def disk_at(path: str) -> str:
    return f"{{name: root, path: {path}, format: qcow2}}"


LINKED = File(LINK, "regular", 1, REAL)


@pytest.mark.parametrize(
    "other", [machine("b", disk_at(REAL)), machine("b", disk_at(LINK)), machine("b", console=REAL)]
)
def test_in_one_cycle_nothing_starts_on_a_volume_that_is_about_to_be_made(other: str) -> None:
    resources = specs(machine("a", OWN), other)
    loop = loop_with(resources, LINKED, File(REAL, "missing"))
    plans = [*loop.converge(resources)]
    assert loop.machine.domain("a").active
    assert told(plans[-1], "a") == {("Ready", "AsAsked")}
    assert told(plans[-1], "b") & {("Conflict", "ClaimedTwice"), ("Stalled", "Refused")}
    assert Key("domain", "b") not in loop.machine.facts


def test_the_present_holder_keeps_a_file_whatever_the_names_are() -> None:
    first = specs(machine("z", disk_at(LINK)))
    loop = loop_with(first, LINKED)
    loop.converge(first)
    both = specs(machine("z", disk_at(LINK)), machine("a", disk_at("/srv/other.qcow2")), machine("b", disk_at(REAL)))
    loop.machine.facts[Key("file", REAL)] = File(REAL, "regular", 1, REAL)
    loop.machine.facts[Key("file", "/srv/other.qcow2")] = File("/srv/other.qcow2", "regular", 2, "/srv/other.qcow2")
    plans = [*loop.converge(both)]
    assert [sorted(told(plans[-1], name)) for name in "zab"] == [
        [("Ready", "AsAsked")],
        [("Ready", "AsAsked")],
        [("Conflict", "ClaimedTwice")],
    ]


def test_a_console_over_what_a_guest_did_not_print_is_refused_until_the_guest_has_it() -> None:
    resources = specs(machine("web", console="/srv/logs/web.log"))
    binary = File("/srv/logs/web.log", "regular", 7, "/srv/logs/web.log", binary=True)
    loop = loop_with(resources, binary)
    plans = [*loop.converge(resources)]
    assert told(plans[-1], "web") == {("Stalled", "Refused")}
    loop.machine.facts[Key("file", binary.path)] = replace(binary, binary=False)
    loop.converge(resources)
    assert loop.machine.domain("web").active
    loop.machine.facts[Key("file", binary.path)] = binary  # what it printed itself is its own
    plans = [*loop.converge(resources)]
    assert told(plans[-1], "web") == {("Ready", "AsAsked")}


def test_a_console_over_the_disk_of_a_strangers_domain_is_refused() -> None:
    disk = specs(machine("theirs", disk_at("/srv/logs/web.log")))
    loop = loop_with(disk)
    loop.converge(disk)
    key = Key("domain", "theirs")
    loop.machine.facts[key] = replace(loop.machine.domain("theirs"), mark=None, uuid="of-a-stranger")
    resources = specs(machine("web", console="/srv/logs/web.log"))
    plans = [*loop.converge(resources)]
    assert told(plans[-1], "web") == {("Stalled", "Refused")}
    assert Key("domain", "web") not in loop.machine.facts


def test_binary_is_what_no_guest_prints(tmp_path: Path) -> None:
    contents = {
        "empty": (b"", False),
        "boot": (b"\x1b[2J\x1b[H\0SeaBIOS\r\n" + b"[    0.000000] Linux version 6.12\r\n" * 200, False),
        "words": ("gr\u00fc\u00dfe\n" * 200, False),
        "qcow2": (b"QFI\xfb\0\0\0\3" + bytes(504), True),
        "blank": (bytes(1 << 20), True),
        "packed": (bytes(range(256)) * 16, True),
    }
    for name, (content, _) in contents.items():
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    files = Files()
    found = files.look([str(tmp_path / name) for name in contents])
    assert {fact.path: fact.binary for fact in found.values() if isinstance(fact, File)} == {
        str(tmp_path / name): expected for name, (_, expected) in contents.items()
    }
    (tmp_path / "empty").write_bytes(bytes(100))  # what was empty is looked into once there is something in it
    fact = files.look([str(tmp_path / "empty")])[Key("file", str(tmp_path / "empty"))]
    assert isinstance(fact, File)
    assert fact.binary


def test_the_tables_of_places_follow_the_facts() -> None:
    link, other = File(LINK, "regular", 1, REAL), File(REAL, "regular", 1, REAL)
    pool = Pool("guests", "u", "dir", "/srv/guests/", True)
    volume = Volume("guests/root.qcow2", "v", LINK, real=REAL)
    keys = {Key("file", LINK): link, Key("file", REAL): other, Key("pool", "guests"): pool}
    places = Places()
    places.take({**keys, Key("volume", volume.name): volume})
    assert places.spellings == {REAL: (REAL, LINK)}
    volume_key = Key("volume", volume.name)
    assert places.stored == {"/srv/guests": Key("pool", "guests"), LINK: volume_key, REAL: volume_key}
    before = places.stored
    places.take({Key("file", LINK): replace(link, real="/srv/moved"), Key("pool", "guests"): pool})
    assert places.spellings == {"/srv/moved": (LINK,)}
    assert places.stored == {"/srv/guests": Key("pool", "guests")}
    assert LINK in before, "a table that somebody holds stays what it was"
