"""Planning cases as directories: the specs, what the host looks like, and the plan that follows.

``desired.yaml`` holds specs as users write them. ``observed.yaml`` says what was applied before and how the host
differs from that now; its words are those of ``Situation``. ``plan.yaml`` is the plan, trimmed to what matters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from simulator import Impossible, Loop, Machine

from kvmd.api.resource import API_VERSION, Ref, Resource
from kvmd.kinds import CONTROLLERS
from kvmd.observed import (
    HOST,
    Address,
    Checkpoint,
    Domain,
    File,
    Forwarding,
    Image,
    Key,
    Ledger,
    Link,
    LinkManager,
    Moved,
    Network,
    Observed,
    Overlay,
    Pool,
    Route,
    Secret,
    Snapshot,
    Stacked,
    Transfer,
    Trash,
    Volume,
)
from kvmd.plan.model import Desired, Memory, ObjectPlan, Plan, Rules
from kvmd.plan.planner import make_plan
from kvmd.settings import Source
from kvmd.sources.decode import decode_file
from kvmd.sources.document import compose
from kvmd.xmlmap import parse, serialise

SPECS = {kind: controller.Spec for kind, controller in CONTROLLERS.items()}
NOW = 10_000.0
STORAGE = ("pools", "images", "volumes", "transfers")
WORDS = {
    "applied",
    "forwarding",
    "host",
    "missingFiles",
    "links",
    "domains",
    "networks",
    "ledger",
    "unread",
    "snapshots",
    *STORAGE,
}
WORDS |= {"managers", "checkpoints", "moved"}
WORDS |= {"rules", "source", "memory", "missingFor", "firstLook", "confirmed", "pruneApproved", "pruned"}
WORDS |= {"replacedFiles"}  # of running guests, and where what they have open can be reached
WORDS |= {"trash"}  # directories of pools, and what lies in their trash for long enough
WORDS |= {"secrets"}  # what stands for the password in each, before and now


def resources_of(text: str, file: str) -> dict[Ref, Resource]:
    """Specs through the front door."""
    found = decode_file(text.encode(), file, Source(), SPECS)
    assert not found.problems, "\n".join(map(str, found.problems))
    return {resource.ref: resource for resource in found.resources}


REPOSITORY = Path(__file__).parents[1]
EXAMPLES = sorted(path for path in (REPOSITORY / "specs").iterdir() if path.is_dir())


def resources_in(folder: Path) -> dict[Ref, Resource]:
    """The specs of a directory."""
    found: dict[Ref, Resource] = {}
    for path in sorted(folder.glob("*.yaml")):
        found |= resources_of(path.read_text(), str(path.relative_to(REPOSITORY)))
    return found


def values_of(path: Path) -> list[dict[str, Any]]:
    """The documents of a file of ours, read as specs are (a MAC stays a MAC)."""
    if not path.exists():
        return []
    documents, problems = compose(path.read_bytes(), str(path), Source())
    assert not problems, "\n".join(map(str, problems))
    return [document.value for document in documents]


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class Situation:
    """One case, as far as planning sees it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        desired = folder / "desired.yaml"
        self.resources = resources_of(desired.read_text(), "desired.yaml") if desired.exists() else {}
        found = values_of(folder / "observed.yaml")
        self.words: dict[str, Any] = found[0] if found else {}
        assert self.words.keys() <= WORDS, f"observed.yaml has the unknown words {self.words.keys() - WORDS}"
        self.machine = Machine()
        self.loop = Loop(self.machine, now=100.0)
        before = self._applied()
        self._furnish(before)
        self._keep_secrets("before")
        if before:
            self.loop.converge(before)
        self._keep_secrets("now")
        self._disturb()
        self.observed = replace(self.machine.observed(), missing=frozenset(self.words.get("unread", ())))
        self.memory = self._memory(self.observed)
        self.rules = replace(Rules(), **_snake(self.words.get("rules", {})))

    def plan(self) -> Plan:
        """The plan."""
        source = _snake(self.words.get("source", {}))
        if "duplicates" in source:
            source["duplicates"] = {Ref.parse(ref): tuple(files) for ref, files in source["duplicates"].items()}
        if "invalid_files" in source:
            source["invalid_files"] = tuple(source["invalid_files"])
        desired = Desired(resources=self.resources, applied=self.loop.applied, **source)
        return make_plan(desired, self.observed, self.memory, self.rules, NOW, CONTROLLERS)

    def can_be_done(self, plan: Plan) -> str:
        """Why the operations of a plan would fail on this host; "" where they would not."""
        for step in plan.steps:
            for operation in step.operations if not step.after or step.action == "create" else ():
                try:
                    self.machine.execute(operation)
                except Impossible as error:
                    return f"{operation.describe()}: {error}"
        return ""

    def _applied(self) -> dict[Ref, Resource]:
        """The specs of an earlier time: ``desired``, documents, or ``{like: desired, but: …, also: […]}``."""
        said = self.words.get("applied", [])
        if isinstance(said, list):
            return _resources(said)
        documents = values_of(self.folder / "desired.yaml")
        if said == "desired":
            return _resources(documents)
        assert said.keys() <= {"like", "but", "also"} and said.get("like") == "desired", said
        for document in documents:
            name = f"{document['kind']}/{document['metadata']['name']}"
            _merge(document, said.get("but", {}).get(name, {}))
        return _resources([*documents, *said.get("also", [])])

    def _furnish(self, before: Mapping[Ref, Resource]) -> None:
        """What the host had before kvmd came: its own properties, files, and links that are no object of ours."""
        host = {"kvm_usable": True, "kvm_reason": ""} | _snake(self.words.get("host", {}))
        self.machine.facts[HOST] = replace(self.machine.host, **host)
        for resource in (*before.values(), *self.resources.values()):
            self.machine.add_files(CONTROLLERS[resource.ref.kind].files(resource.spec))
            self.machine.add_folders(resource.spec)
        uplinks = {uplink.name for r in before.values() for uplink in getattr(r.spec, "uplinks", ())}
        uplinks |= {r.spec.parent for r in before.values() if getattr(r.spec, "parent", None)}
        uplinks |= {
            nic.direct.device for r in before.values() for nic in getattr(r.spec, "interfaces", ()) if nic.direct
        }
        for number, name in enumerate(sorted(uplinks)):
            self.machine.add_link(Link(name, 0, "", f"02:00:00:00:00:0{number}", up=True, carrier=True))

    def _keep_secrets(self, when: str) -> None:
        for name, said in self.words.get("secrets", {}).items():
            word = said.get(when, said["now"])
            self.machine.facts[Key("secret", name)] = Secret(name, digest=word, password=word)

    def _disturb_files(self) -> None:
        for path in self.words.get("missingFiles", ()):
            self.machine.facts[Key("file", path)] = File(path, "missing")
        for path, held in self.words.get("replacedFiles", {}).items():
            self.machine.facts[Key("file", path)] = File(path, "regular", 2, path, replaced=held)
        for path, names in self.words.get("trash", {}).items():
            self.machine.facts[Key("trash", path)] = Trash(path, tuple(names))

    def _disturb(self) -> None:
        """What somebody, or the guests, have done since."""
        self._disturb_files()
        if "forwarding" in self.words:
            said = {"ipv4": True, "ipv6": True, **self.words["forwarding"]}
            lists = {name: tuple(map(_frozen, said[name])) for name in ("rules", "astray") if name in said}
            self.machine.facts[Key("forwarding", "")] = Forwarding(**said | lists)
        for network in self.words.get("networks", ()):
            self._disturb_network(dict(network))
        for link in self.words.get("links", ()):
            self._disturb_link(dict(link))
        for domain in self.words.get("domains", ()):
            self._disturb_domain(dict(domain))
        for snapshot in self.words.get("snapshots", ()):
            self._disturb_snapshot(dict(snapshot))
        for word in STORAGE:
            for said in self.words.get(word, ()):
                self._disturb_storage(word.removesuffix("s"), dict(said))
        for entry in self.words.get("managers", ()):
            self.machine.facts[Key("manager", entry["name"])] = LinkManager(**entry)
        for entry in self.words.get("checkpoints", ()):
            present = self.resources[Ref.parse(entry["object"])].spec_hash
            self.machine.facts[Key("checkpoint", entry["object"])] = Checkpoint(
                **{"spec_hash": present, **_snake(entry)}
            )
        for entry in self.words.get("moved", ()):
            addresses = tuple((Address(cidr), b"") for cidr in entry.get("addresses", ()))
            routes = tuple((Route(**{"protocol": "static", **route}), b"") for route in entry.get("routes", ()))
            self.machine.facts[Key("moved", entry["object"])] = Moved(entry["object"], addresses, routes, 0.0)
        for entry in self.words.get("ledger", ()):
            ref = Ref.parse(entry.pop("object"))
            self.machine.facts[Key("ledger", str(ref))] = Ledger(ref, **_snake(entry))

    def _disturb_link(self, said: dict[str, Any]) -> None:
        name = said.pop("name")
        if said.pop("gone", False):
            self.machine.delete_link(name)
            return
        if self.machine.find_link(name) is None:
            self.machine.add_link(Link(name, 0, said.pop("kind", ""), up=said.pop("up", True)))
        for cidr in said.pop("addresses", ()):
            self.machine.add_address(name, cidr)
        if said.pop("lostAddresses", False):
            self.machine.set_link(name, addresses=(), routes=())
        if said.pop("dynamicAddress", None):
            self.machine.set_link(name, addresses=(Address("192.0.2.7/24", permanent=False, dynamic=True),))
        if (to := said.pop("route", None)) is not None:
            self.machine.set_link(name, routes=(Route(to, "192.0.2.1"),))
        if said.pop("unmarked", False):
            self.machine.set_link(name, alias="", mark=None)
        if "alias" in said:
            self.machine.set_link(name, alias=said["alias"], mark=None)
        for word, table in (("settings", "settings"), ("portSettings", "port")):
            if word in said:
                self._disturb_settings(name, table, said.pop(word))
        if (new := said.pop("renamed", None)) is not None:
            self.machine.rename_link(name, new)
            return
        if "stacked" in said:
            said["stacked"] = Stacked(**said["stacked"])
        if (bridge := said.get("master")) is not None:
            said["master_index"] = self.machine.link(bridge).index if bridge else 0
        self.machine.set_link(name, **_snake(said))

    def _disturb_settings(self, name: str, field: str, said: dict[str, int | None]) -> None:
        """Settings of a bridge or of a port in the kernel's units; None: the kernel does not show it."""
        link = self.machine.link(name)
        before = link.settings if field == "settings" or link.port is None else link.port.settings
        after = tuple((k, v) for k, v in (dict(before) | said).items() if v is not None)
        if field == "settings":
            self.machine.set_link(name, settings=after)
        elif link.port is not None:
            self.machine.set_link(name, port=replace(link.port, settings=after))

    def _disturb_network(self, said: dict[str, Any]) -> None:
        name = said.pop("name")
        key = Key("network", name)
        if "xml" in said:
            self.machine.define_network(said.pop("xml"))
        fact = self.machine.facts[key]
        assert isinstance(fact, Network)
        if (active := said.pop("active", None)) is not None and active != fact.active:
            (self.machine.start_network if active else self.machine.stop_network)(name)
        if said.pop("gone", False):
            del self.machine.facts[key]
            return
        for where in ("config", "live"):
            if where in said:
                self.machine.edit_network(name, where, said.pop(where))
        self.machine.facts[key] = replace(self.machine.facts[key], **_snake(said))

    def _disturb_domain(self, said: dict[str, Any]) -> None:
        name = said.pop("name")
        key = Key("domain", name)
        if (original := said.pop("copyOf", None)) is not None:
            root = parse(self.machine.domain(original).config or "")
            for path, text in (("name", name), ("uuid", "cccccccc-0000-4000-8000-000000000001")):
                element = root.find(path)
                assert element is not None
                element.text = text
            self.machine.define(serialise(root))
        if "xml" in said:
            self.machine.define(said.pop("xml"))
        if said.pop("gone", False):
            del self.machine.facts[key]
            return
        for where in ("config", "live"):
            if where in said:
                self.machine.edit_domain(name, where, said.pop(where))
        state, fact = said.pop("state", None), self.machine.facts[key]
        assert isinstance(fact, Domain)
        if state == "running" and not fact.active:
            self.machine.start(name)
        elif state == "shutoff" and fact.active:
            self.machine.stop(name, said.get("reason", "shutdown"))
        elif state is not None:
            said["state"] = state
        self.machine.facts[key] = replace(self.machine.facts[key], **_snake(said))

    def _disturb_snapshot(self, said: dict[str, Any]) -> None:
        """A snapshot that is gone, another, or (where it was not there) made by hand."""
        name = said.pop("name")
        machine, _, snapshot = name.rpartition("/")
        key, domain = Key("snapshot", name), self.machine.domain(machine)
        gone = said.pop("gone", False)
        if gone:
            del self.machine.facts[key]
        else:
            if "overlays" in said:
                said["overlays"] = [Overlay(**_snake(overlay)) for overlay in said["overlays"]]
            fact = self.machine.facts.get(key, Snapshot(name, domain.uuid, snapshot, "running", memory=True))
            self.machine.facts[key] = replace(fact, **_snake(said))
        names = tuple(sorted({*domain.snapshots} - {snapshot} | (set() if gone else {snapshot})))
        self.machine.facts[Key("domain", machine)] = replace(domain, snapshots=names)

    def _disturb_storage(self, type_: str, said: dict[str, Any]) -> None:
        """A pool, image, volume or transfer: another, gone, or without its mark; one that is not there is made."""
        key = Key(type_, said.pop("name"))
        if said.pop("gone", False):
            del self.machine.facts[key]
            return
        if said.pop("unmarked", False):
            said["mark"] = None
        new: dict[str, Any] = {
            "pool": Pool(
                key.name, "bbbbbbbb-0000-4000-8000-000000000002", "dir", "/srv", active=True, config="<pool/>"
            ),
            "image": Image(key.name, key.name, f"/var/lib/kvmd/images/{key.name}", "raw", 1, 1, "sha256:0"),
            "volume": Volume(key.name, f"{key.name}#1", f"/var/lib/libvirt/images/{key.name}"),
            "transfer": Transfer(key.name),
        }
        self.machine.facts[key] = replace(self.machine.facts.get(key, new[type_]), **_snake(said))

    def _memory(self, observed: Observed) -> Memory:
        """What the engine remembers; times are seconds before (negative) or after now."""
        self.loop.resources, self.loop.now = self.resources, NOW
        if (missing_for := self.words.get("missingFor")) is not None:
            for ref in observed.marks:
                if ref not in self.resources:
                    self.loop.memory.change(ref, missing_since=NOW - missing_for)
        for name, said in self.words.get("memory", {}).items():
            fields = _snake(said)
            for field in ("asked_at", "asked_last", "next_try", "balloon_until", "settling_until", "held_since"):
                if field in fields:
                    fields[field] += NOW
            if "window" in fields:
                fields["window"] = tuple(NOW + seconds for seconds in fields["window"])
            if fields.pop("approved", False):
                fields["approved_hash"] = self.resources[Ref.parse(name)].spec_hash
            self.loop.memory.change(Ref.parse(name), **fields)
        value = self.loop.memory.value(NOW)
        gone = frozenset(ref for ref in observed.marks if ref not in self.resources)
        return replace(
            value,
            complete_since=0.0 if self.words.get("firstLook", True) else None,
            confirmed=None if self.words.get("confirmed") else frozenset(),
            prune_approved=gone if self.words.get("pruneApproved") else frozenset(),
            pruned=tuple((NOW - 60, Ref.parse(name)) for name in self.words.get("pruned", ())),
        )


def trimmed(plan: Plan) -> dict[str, Any]:
    """A plan, trimmed to what people want to see of it."""
    data = plan.as_data()
    steps = []
    for step in data["steps"]:
        shown = {name: step[name] for name in ("object", "action", "cause", "reason", "impact", "after", "changes")}
        shown["changes"] = [f"{c['path']}: {_short(c['from'])} -> {_short(c['to'])}" for c in step["changes"]]
        shown["operations"] = [operation["does"] for operation in step["operations"]]
        steps.append({name: value for name, value in shown.items() if value or name == "operations"})
    shown = {
        "steps": steps,
        "pendingChanges": [
            f"{p['object']} {p['path']}: {_short(p['currentValue'])} -> {_short(p['desiredValue'])} ({p['effect']})"
            for p in data["pendingChanges"]
        ],
        "conditions": data["conditions"],
        "held": data["held"],
        "ready": {
            str(ref): item.ready or f"no: {_reason(item)}"
            for ref, item in sorted(plan.objects.items())
            if item.resource is not None
        },
        "wakeIn": None if plan.wake_at is None else plan.wake_at - NOW,
    }
    for condition in shown["conditions"]:
        del condition["status"]
    return {name: value for name, value in shown.items() if value or name == "steps"}


def _reason(item: ObjectPlan) -> str:
    """Why an object is not Ready, in a word."""
    found = item.condition("Ready") or next(iter(item.conditions), None)
    return found.reason if found is not None else ""


def as_yaml(data: Mapping[str, Any]) -> str:
    """Text as people like to read it."""
    return yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=110)


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _resources(documents: Sequence[Mapping[str, Any]]) -> dict[Ref, Resource]:
    text = "\n---\n".join(json.dumps({"apiVersion": API_VERSION, **document}) for document in documents)
    return resources_of(text, "applied.yaml") if documents else {}


def _merge(onto: dict[str, Any], patch: Mapping[str, Any]) -> None:
    """JSON merge patch (RFC 7386): null takes a field away."""
    for name, value in patch.items():
        if value is None:
            onto.pop(name, None)
        elif isinstance(value, Mapping) and isinstance(onto.get(name), dict):
            _merge(onto[name], value)
        else:
            onto[name] = value


def _snake(said: Mapping[str, Any]) -> dict[str, Any]:
    values = {re.sub("([A-Z])", lambda match: f"_{match[1].lower()}", name): value for name, value in said.items()}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
