"""Specs edited leaf by leaf under the daemon's own loop, and what libvirt and the guest then say."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import libvirt
from hermetic import Agent, wait_until
from lxml import etree
from test_main_path import last_tick

Spec = dict[str, Any]
EDIT = "kvmd.test/edit"  # the number of the edit, so that the daemon is known to have read it
STEP = re.compile(r"(\w+)(?:\[([^\]]+)\])?")


def changed(spec: Mapping[str, Any], values: Mapping[str, Any]) -> Spec:
    """A copy with other values at paths such as ``disks[data].cache``; what is not there on the way is made."""
    made = copy.deepcopy(dict(spec))
    for path, value in values.items():
        *steps, last = STEP.findall(path)
        place: Any = made
        for key, name in steps:
            if place.get(key) is None:
                place[key] = [] if name else {}
            place = _item(place[key], name)
        key, name = last
        if name:
            place[key] = place.get(key) or []
            _item(place[key], name).update(value)
        else:
            place[key] = copy.deepcopy(value)
    return made


def _item(place: Any, name: str) -> Any:
    if not name:
        return place
    found = next((item for item in place if item["name"] == name), None)
    if found is None:
        found = {"name": name}
        place.append(found)
    return found


class Edited:
    """An object in a file of its own that is edited again and again."""

    def __init__(self, agent: Agent, kind: str, name: str, spec: Spec) -> None:
        self.agent, self.kind, self.name, self.spec = agent, kind, name, spec
        self.annotations: dict[str, str] = {}
        self.edits = 0

    @property
    def ref(self) -> str:
        """What conditions are asked by."""
        return f"{self.kind}/{self.name}"

    def write(self, values: Mapping[str, Any] | None = None) -> None:
        """Save the spec with some values changed; without any, as it was at first."""
        self.edits += 1
        notes = self.annotations | {EDIT: str(self.edits)}
        made = {"apiVersion": "kvmd.dev/v1alpha1", "kind": self.kind}
        made |= {"metadata": {"name": self.name, "annotations": notes}, "spec": changed(self.spec, values or {})}
        self.agent.write(f"{self.kind}-{self.name}.yaml", json.dumps(made))

    def seen(self) -> dict[str, Any] | None:
        """The object once the daemon has read the last edit; None before."""
        found = self.agent.object(self.ref)
        read = found is not None and found["metadata"].get("annotations", {}).get(EDIT) == str(self.edits)
        return found if read else None

    def rest(self, seconds: float = 30) -> dict[str, Any]:
        """Wait until the last edit is read, the object Ready and the plan empty; the object."""

        def there() -> dict[str, Any] | None:
            found = self.seen()
            ready = found is not None and any(
                (item["type"], item["status"]) == ("Ready", "True") for item in found["status"]["conditions"]
            )
            return found if ready and not json.loads(self.agent.http("/api/v1/plan")[1])["steps"] else None

        found: dict[str, Any] = wait_until(there, seconds, f"{self.ref} is at rest")
        return found


class Guest(Edited):
    """A running guest: its definitions, and whether it is still the same boot."""

    def __init__(self, agent: Agent, name: str, spec: Spec) -> None:
        super().__init__(agent, "VirtualMachine", name, spec)
        self.connection = libvirt.open(agent.hermetic.uri)

    def xml(self, live: bool = True) -> etree._Element:
        """The running definition, or the one of the next boot."""
        flags = 0 if live else libvirt.VIR_DOMAIN_XML_INACTIVE
        return etree.fromstring(self.connection.lookupByName(self.name).XMLDesc(flags))

    def has(self, xpath: str, live: bool = True) -> bool:
        """True where the XPath finds something."""
        return bool(self.xml(live).xpath(xpath))

    def boot(self) -> int:
        """The number that libvirt gave to this run."""
        return int(self.connection.lookupByName(self.name).ID())

    def uptime(self) -> float:
        """What the guest said last of its uptime."""
        return float(last_tick(self.agent.folder, self.name).get("uptime", 0))

    def close(self) -> None:
        """Let go of libvirt."""
        self.connection.close()


def raw(folder: Path, name: str, size: int) -> str:
    """An empty file for a disk or a tray."""
    (folder / name).write_bytes(bytes(size))
    return str(folder / name)
