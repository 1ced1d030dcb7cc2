"""Decoding documents: every fault once, at its place, in words, with the next thing to do."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, field_validator, model_validator

from kvmd.api.problem import Problem
from kvmd.api.quantity import Address, Boolean, Integer, Mac, Memory
from kvmd.api.resource import Ref, Resource, SpecModel
from kvmd.settings import Source
from kvmd.sources.decode import decode, decode_file
from kvmd.sources.document import compose


class Disk(SpecModel):
    name: str
    bus: Literal["virtio", "sata"] = "virtio"
    boot_order: Integer | None = Field(None, ge=1)


class UserNet(SpecModel):
    type: Literal["user"]
    port_forward: tuple[Integer, ...] = ()


class TapNet(SpecModel):
    type: Literal["tap"]
    device: str


class Media(SpecModel):
    image: str


class Machine(SpecModel):
    memory: Memory
    disks: tuple[Disk, ...] = ()
    mac: Mac | None = None
    address: Address | None = None
    net: Annotated[UserNet | TapNet, Field(discriminator="type")] | None = None
    media: Media | str | None = None
    count: Integer | list[str] = 1
    rng: Boolean = False
    labels: dict[str, str] = Field(default_factory=dict)
    password: str | None = None
    url: Literal["x"] | None = None

    @model_validator(mode="after")
    def _agree(self) -> Machine:
        if self.mac is not None and self.address is not None:
            raise ValueError("mac and address exclude each other")
        return self


class Tap(SpecModel):
    bridge: str | None = None


SPECS: dict[str, type[SpecModel]] = {"VirtualMachine": Machine, "Tap": Tap}
HEAD = "apiVersion: kvmd.dev/v1alpha1\nkind: VirtualMachine\nmetadata: {name: web}\nspec:\n  memory: 1Gi\n"


def problems(text: str) -> list[Problem]:
    decoded = decode_file(text.encode(), "f.yaml", Source(), SPECS)
    assert bool(decoded.problems) != bool(decoded.resources)
    return list(decoded.problems)


def one(spec: str) -> Problem:
    found = problems(HEAD + spec)
    assert len(found) == 1, found
    return found[0]


def test_a_good_document() -> None:
    text = HEAD + "  disks: [{name: root, bootOrder: 1}]\nstatus: {pasted: true}\n"
    (document,), _ = compose(text.encode(), "f.yaml", Source())
    resource = decode(document, SPECS)
    assert isinstance(resource, Resource)
    assert resource.ref == Ref("VirtualMachine", "web")
    assert resource.written == {"memory": "1Gi", "disks": [{"name": "root", "bootOrder": 1}]}
    assert isinstance(resource.spec, Machine)
    assert resource.spec.memory == 2**30
    assert str(resource.position) == "f.yaml:1:1"
    assert not resource.held


@pytest.mark.parametrize(
    ("spec", "rule", "place", "words"),
    [
        ("  dsks: []\n", "unknown-field", "6:3", "spec has no field 'dsks'; did you mean 'disks'?"),
        ("  disks: [{name: root, buss: x}]\n", "unknown-field", "6:24", "spec.disks[root] has no field 'buss'"),
        ("  disks:\n  - bus: sata\n", "missing-field", "7:5", "spec.disks[0].name is missing"),
        ("  disks: {}\n", "wrong-type", "6:10", "spec.disks must be a list, not a mapping"),
        ("  disks: [3]\n", "wrong-type", "6:11", "spec.disks[0] must be a mapping, not the number 3"),
        ("  disks: [{name: r, bus: scsi}]\n", "invalid-value", "6:26", "must be 'virtio' or 'sata', not 'scsi'"),
        ("  disks: [{name: r, bus: vitio}]\n", "invalid-value", "6:26", "did you mean 'virtio'?"),
        ("  disks: [{name: r, bootOrder: 0}]\n", "invalid-value", "6:32", "greater than or equal to 1"),
        ("  disks: [{name: r, bootOrder: 07}]\n", "wrong-type", "6:32", "must be a whole number, not '07'; write 7"),
        ("  disks: [{name: r, boot_order: 1}]\n", "unknown-field", "6:21", "did you mean 'bootOrder'?"),
        ("  rng: yes\n", "wrong-type", "6:8", "must be true or false, not 'yes'; write true without quotes"),
        ("  labels: {a: true}\n", "wrong-type", "6:15", 'must be text, not true; quote it: "true"'),
        ("  labels: {a: 1.10}\n", "wrong-type", "6:15", "must be text"),
        ("  mac: 52:54:00:12:34\n", "invalid-value", "6:8", "is not a MAC address; write six bytes"),
        ("  address: 1.2.3.400\n", "invalid-value", "6:12", "does not appear to be an IPv4 or IPv6 address"),
        ("  net: {type: usr}\n", "invalid-value", "6:8", "'usr', not 'user' or 'tap'; did you mean 'user'?"),
        ("  net: {device: x}\n", "invalid-value", "6:8", "spec.net lacks 'type'"),
        ("  net: {type: tap, device: x, devise: y}\n", "unknown-field", "6:31", "did you mean 'device'?"),
        ("  net: {type: user, portForward: [a]}\n", "wrong-type", "6:35", "spec.net.portForward[0] must be a whole"),
        ("  media: {image: x, imag: y}\n", "unknown-field", "6:21", "spec.media has no field 'imag'"),
        ("  media: {image: 5}\n", "wrong-type", "6:18", "spec.media.image must be text"),
        ("  media: [1]\n", "wrong-type", "6:10", "spec.media must be a mapping or text, not a list"),
        ("  count: {}\n", "wrong-type", "6:10", "spec.count must be a whole number or a list, not a mapping"),
        ("  count: [a, 1]\n", "wrong-type", "6:14", "spec.count[1] must be text"),
    ],
)
def test_faults_of_a_spec(spec: str, rule: str, place: str, words: str) -> None:
    problem = one(spec)
    assert problem.rule == rule
    assert str(problem.position) == f"f.yaml:{place}"
    assert words in f"{problem.message}; {problem.hint}"
    assert problem.hint


def test_hints_name_the_command() -> None:
    assert one("  disks: [{name: r, bus: scsi}]\n").hint == "see kvmd explain VirtualMachine.spec.disks.bus"
    assert one("  disks: [{name: r, zzz: 1}]\n").hint == "see kvmd explain VirtualMachine.spec.disks"


def test_a_fault_between_two_fields_has_a_place() -> None:
    problem = one("  mac: 52:54:00:12:34:56\n  address: 1.2.3.4\n")
    assert "mac and address exclude each other" in problem.message
    assert problem.position.line == 5


def test_secrets_are_not_repeated() -> None:
    assert "hunter2" not in str(one("  password: [hunter2]\n"))
    assert "hunter2" not in str(one("  labels: {apiToken: {x: hunter2}}\n"))
    assert "hunter2" not in str(one('  url: "https://me:hunter2@example.org/"\n'))


def test_every_fault_of_the_envelope_at_once() -> None:
    found = problems("apiversion: x\nkind: Tapp\nmetadata: {nam: x, labels: {a: 1}}\nspecs: {}\nstatus: {}\n")
    assert [(problem.rule, str(problem.position)) for problem in found] == [
        ("missing-field", "f.yaml:1:1"),
        ("missing-field", "f.yaml:1:1"),
        ("unknown-field", "f.yaml:1:1"),
        ("unknown-kind", "f.yaml:2:7"),
        ("missing-field", "f.yaml:3:1"),
        ("unknown-field", "f.yaml:3:12"),
        ("wrong-type", "f.yaml:3:32"),
        ("unknown-field", "f.yaml:4:1"),
    ]
    assert "did you mean 'Tap'?" in found[3].message


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("apiVersion: v2\nkind: Tap\nmetadata: {name: t}\nspec: {}\n", "unknown-api-version"),
        ("apiVersion: kvmd.dev/v1alpha1\nkind: tap\nmetadata: {name: t}\nspec: {}\n", "unknown-kind"),
        ("apiVersion: kvmd.dev/v1alpha1\nkind: [Tap]\nmetadata: {name: t}\nspec: {}\n", "unknown-kind"),
        ("apiVersion: kvmd.dev/v1alpha1\nkind: Tap\nmetadata: {name: T_}\nspec: {}\n", "invalid-value"),
        ("apiVersion: kvmd.dev/v1alpha1\nkind: Tap\nmetadata: t\nspec: {}\n", "wrong-type"),
        ("apiVersion: kvmd.dev/v1alpha1\nkind: Tap\nmetadata: {name: t}\nspec:\n", "wrong-type"),
        ("apiVersion: kvmd.dev/v1alpha1\nkind: Tap\nmetadata: {name: t}\n", "missing-field"),
        ("", "empty-file"),
        (" \n\n", "empty-file"),
    ],
)
def test_single_faults_of_the_envelope(text: str, rule: str) -> None:
    (problem,) = problems(text)
    assert problem.rule == rule
    assert problem.hint


def test_faults_of_all_documents_at_once() -> None:
    found = problems(f"{HEAD}  rng: 1\n---\n{HEAD}  rng: &x false\n---\n{HEAD}  mac: x\n")
    assert [problem.rule for problem in found] == ["wrong-type", "anchor", "invalid-value"]


def test_a_kind_that_fails_stops_only_its_document() -> None:
    class Faulty(SpecModel):
        bridge: str

        @field_validator("bridge", mode="before")
        @classmethod
        def _lower(cls, value: Any) -> Any:
            return value.lower()

    head = "apiVersion: kvmd.dev/v1alpha1\nkind: Tap\n"
    text = (
        f"{head}metadata: {{name: a}}\nspec: {{bridge: 1}}\n---\n{head}metadata: {{name: b}}\nspec: {{bridge: X}}\n"
    )
    decoded = decode_file(text.encode(), "f.yaml", Source(), {"Tap": Faulty})
    assert [problem.rule for problem in decoded.problems] == ["internal"]
    assert [resource.ref.name for resource in decoded.resources] == ["b"]


PLAIN = st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["x", "virtio", "user", "1Gi", "tap"])
KEYS = st.sampled_from([*Machine.model_json_schema()["properties"], "name", "bus", "type", "image", "device", "x"])
VALUE = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4))


@given(st.dictionaries(KEYS, VALUE, max_size=5))
@settings(max_examples=100, deadline=None)
def test_any_spec_gives_a_resource_or_problems_without_jargon(spec: dict[str, Any]) -> None:
    text = json.dumps({"apiVersion": "kvmd.dev/v1alpha1", "kind": "VirtualMachine", "metadata": {"name": "x"}})
    (document,), _ = compose(f'{text[:-1]}, "spec": {json.dumps(spec)}}}'.encode(), "f.yaml", Source())
    found = decode(document, SPECS)
    if isinstance(found, Resource):
        assert found.written == spec
        return
    assert found
    for problem in found:
        assert problem.hint
        assert not re.search(r"https?://|[Ii]nput|pydantic|dictionary|string_|Extra|instance|tagged", str(problem))
