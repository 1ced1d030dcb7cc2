"""Plans, tables, descriptions, topology, explanations, schemas, diffs and fault reports, as text and data."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from typing import Any

import pytest
import yaml
from front_doors import BRIDGE, WEB, condition, interface, make_object, some_objects, some_plan

from kvmd.api.problem import Position, Problem
from kvmd.kinds import CONTROLLERS
from kvmd.plan.difference import Change
from kvmd.plan.model import Cause, ObjectPlan, Plan, Step
from kvmd.render import problems, tables
from kvmd.render.describe import describe
from kvmd.render.diff import diff_text
from kvmd.render.explain import UnknownField, explain, explain_data
from kvmd.render.json_schema import json_schema
from kvmd.render.plan_text import NO_CHANGES, plan_text
from kvmd.render.style import Style
from kvmd.render.topology import topology_data, topology_dot, topology_tree
from kvmd.render.unfold import unfold
from kvmd.render.values import as_text, to_yaml
from kvmd.render.vocabulary import kind_of, ref_of, suggestion

UNICODE = Style(unicode=True)

# ------------------------------------------------------------------------------------------------------ plan


def test_a_plan_says_everything_in_one_screen() -> None:
    assert (
        plan_text(some_plan().as_data(), UNICODE)
        == """\
+ Bridge/br0  create: new
    · create bridge br0
    · set link br0: up
    impact: none

~ VirtualMachine/web  spec: its spec changed
    spec.memory.guest  1Gi → 2Gi
    spec.disks[data]   (none) → {name: data, path: /srv/data.qcow2}
    · set live memory of domain web to 2048 MiB
    after Bridge/br0
    impact: none

- Tap/old  prune: its spec is gone
    · delete link old
    impact: none

Pending (written down, not yet in the running object):
  VirtualMachine/web  (now: kvmd restart web)
      spec.machine  pc-q35-7.2 → pc-q35-8.0  NextBoot

Held (their specs are gone, the objects stay):
  - Volume/root
    Confirm: volumes are removed only when approved
  to remove: kvmd approve prune

Needs attention:
  VirtualMachine/db  Blocked (Missing): waits for Network/lab

Plan: 1 to create, 1 to change, 1 to remove; impact: none.
"""
    )


def test_nothing_to_do_is_one_line() -> None:
    assert plan_text(Plan({}).as_data()) == NO_CHANGES + "\n"
    waiting = replace(some_plan(), steps=())
    assert plan_text(waiting.as_data()).endswith(
        "\nNo changes to make now: 1 pending, 1 held, 1 waiting for something.\n"
    )


def test_the_impact_of_an_operation_stands_beside_it() -> None:
    from kvmd import ops

    step = Step(WEB, (ops.DomainDestroy("web", "u"),), Cause.REQUEST, "")
    text = plan_text(Plan({WEB: ObjectPlan(WEB, step=step)}, (step,)).as_data())
    assert "force off domain web  [restart]" in text
    assert text.endswith("impact: restart.\n")


def test_a_change_of_a_whole_structure_is_shown_as_what_really_differs() -> None:
    before = [
        {"name": "10.0.0.1/24", "ranges": [["10.0.0.2", "10.0.0.9"]], "hosts": [["52:54:00:00:00:01", "10.0.0.3"]]}
    ]
    after = [
        {"name": "10.0.0.1/24", "ranges": [["10.0.0.2", "10.0.0.9"]], "hosts": [["52:54:00:00:00:01", "10.0.0.4"]]}
    ]
    where = "spec.ips[10.0.0.1/24].hosts"
    assert list(unfold("spec.ips", before, after)) == [
        (where, ["52:54:00:00:00:01", "10.0.0.3"], None),
        (where, None, ["52:54:00:00:00:01", "10.0.0.4"]),
    ]
    assert list(unfold("spec.ips", before, before)) == []
    assert list(unfold("spec.ips", before, [])) == [("spec.ips", before, [])]
    assert list(unfold("p", ["a", "b"], ["b", "a"])) == [("p", ["a", "b"], ["b", "a"])]
    assert list(unfold("p", {"a": 1, "b": 2}, {"a": 1, "b": 3})) == [("p.b", 2, 3)]


def test_without_unicode_and_colour_all_is_ascii_and_with_colour_nothing_else_changes() -> None:
    import re

    data = some_plan().as_data()
    assert plan_text(data).isascii()
    coloured = plan_text(data, Style(colour=True))
    assert "\x1b[32m+\x1b[0m" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plan_text(data)


# ---------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "(none)"),
        ("", "(none)"),
        (True, "true"),
        (8192, "8192"),
        (2**31, "2Gi"),
        ("a\nb", "a … (2 lines)"),
        (["x", 1], "[x, 1]"),
        ("y" * 100, "y" * 71 + "…"),
    ],
)
def test_values_fit_on_a_line(value: Any, text: str) -> None:
    assert as_text(value) == text


def test_yaml_keeps_texts_as_texts() -> None:
    data = {"b": {"mac": "52:54:00:12:34:56", "script": "one\ntwo\n"}, "a": ["no", "1", 1, None]}
    text = to_yaml(data)
    assert yaml.safe_load(text) == data
    assert text.startswith("b:\n")
    assert "script: |\n" in text


# ---------------------------------------------------------------------------------------------------- tables


def test_a_table_for_each_kind() -> None:
    text = tables.objects_table(some_objects())
    assert text.splitlines() == [
        "NAME                 READY   POWER     ADDRESSES        PENDING   STATE",
        "VirtualMachine/web   yes     running   192.168.122.10   1         RestartRequired",
        "VirtualMachine/db    no      shutoff   192.168.122.10   0         Blocked",
        "",
        "NAME         READY   STATE   ADDRESSES     PORTS        PENDING   CONDITION",
        "Bridge/br0   yes     up      10.0.0.1/24   eno1,vnet3   0         Ready",
    ]
    wide = tables.objects_table(some_objects()[:2], wide=True, headings=False).splitlines()
    assert wide[1].split("   ")[0] == "db"
    assert "net0:vnet3" in wide[1]
    assert wide[1].endswith("waits for Network/lab")
    assert "2/2" in wide[1]


def test_an_object_that_nobody_looked_at_yet_has_a_row() -> None:
    for kind in CONTROLLERS:
        item = {"kind": kind, "metadata": {"name": "x"}, "spec": {}, "status": {}}
        assert "NotReady" in tables.objects_table([item], wide=True)
        assert "NotReady" in tables.objects_table([{"kind": kind, "metadata": {"name": "x"}}])


def test_ages() -> None:
    assert [tables.age(value) for value in (-1, 59, 119, 120, 7200, 100_000)] == [
        "0s",
        "59s",
        "119s",
        "2m",
        "2h",
        "1d",
    ]


def test_a_description_holds_all_that_is_known() -> None:
    web = some_objects()[0]
    event = {"time": 90.0, "type": "Normal", "reason": "Started", "object": str(WEB), "count": 2, "message": "up"}
    text = describe(web, [event], 100.0, UNICODE)
    for words in (
        "Name:        web",
        "Source:      specs/web.yaml",
        "Power:       running",
        "RestartRequired   True     Because   machine",
        "spec.machine   pc-q35-7.2   pc-q35-8.0   NextBoot",
        "tap vnet3 (up) ─► bridge br0 (up)",
        "guest: 2Gi",
        "10s",
    ):
        assert words in text
    bare = describe(make_object(BRIDGE, condition("Ready")), [], 0.0)
    assert "Events:  (none)" in bare


# -------------------------------------------------------------------------------------------------- topology


def test_the_first_broken_hop_is_named() -> None:
    data = topology_data(some_objects())
    assert [entry["interfaces"][0]["brokenAt"] for entry in data] == [None, "bridge br0"]
    assert (
        topology_tree(data[1:], UNICODE)
        == """\
VirtualMachine/db  shutoff
└─ net0  52:54:00:12:34:56  192.168.122.10
      nic net0 (up) ─► tap vnet3 (up) ─► bridge br0 (down) ─► uplink eno1 (up) ─► outside
      ✗ breaks at bridge br0: down
"""
    )
    assert topology_tree(data).isascii()
    assert topology_data(some_objects(), "nobody") == []
    assert topology_tree([]) == "No virtual machines.\n"
    alone = topology_data([make_object(WEB, power="shutoff")])
    assert "no interfaces" in topology_tree(alone)


def test_in_dot_a_shared_bridge_is_one_node() -> None:
    items = [
        make_object(WEB, interfaces=[interface()]),
        make_object(WEB._replace(name="b"), interfaces=[interface()]),
    ]
    text = topology_dot(topology_data(items))
    assert text.count('"bridge br0" [label=') == 1
    assert '"VirtualMachine/web:net0" -> "tap vnet3"' in text
    assert text.startswith("digraph") and text.endswith("}\n")


# -------------------------------------------------------------------------------------------------- language


def test_every_field_of_every_kind_can_be_explained() -> None:
    for kind, controller in CONTROLLERS.items():
        everything = explain_data(controller.Spec)
        text = explain(kind, controller.Spec, recursive=True)
        for node in everything:
            assert node["path"].split(".")[-1] in text or node["path"].startswith("metadata.")
        assert f"FIELD:    {everything[-1]['path']}" in explain(kind, controller.Spec, everything[-1]["path"])


def test_explanations_say_how_a_change_lands() -> None:
    spec = CONTROLLERS["VirtualMachine"].Spec
    text = explain("VirtualMachine", spec, "memory.guest")
    assert "FIELD:    spec.memory.guest" in text
    assert "example:  2Gi" in text
    assert "change:   Live" in text
    assert "bus" in explain("VirtualMachine", spec, "disks")
    with pytest.raises(UnknownField) as caught:
        explain("VirtualMachine", spec, "memroy.guest")
    assert caught.value.near == "spec.memory.guest"


def test_the_schema_accepts_a_kind_and_refuses_unknown_fields() -> None:
    schema = json_schema({kind: controller.Spec for kind, controller in CONTROLLERS.items()})
    assert schema["$schema"].endswith("2020-12/schema")
    names = set(schema["$defs"])
    references: list[str] = []

    def collect(node: Any) -> None:
        if isinstance(node, dict):
            references.extend(value for key, value in node.items() if key == "$ref")
            for value in node.values():
                collect(value)
        elif isinstance(node, list):
            for value in node:
                collect(value)

    collect(schema)
    assert references
    assert {reference.removeprefix("#/$defs/") for reference in references} <= names
    for kind in CONTROLLERS:
        condition_of_kind = {"properties": {"kind": {"const": kind}}, "required": ["kind"]}
        assert {"if": condition_of_kind, "then": {"$ref": f"#/$defs/{kind}"}} in schema["allOf"]
        assert schema["$defs"][kind]["additionalProperties"] is False
        assert schema["$defs"][f"{kind}.Spec"]["additionalProperties"] is False


def test_words_for_kinds() -> None:
    assert [kind_of(word) for word in ("VM", "virtualMachines", "br", "nothing")] == [
        "VirtualMachine",
        "VirtualMachine",
        "Bridge",
        None,
    ]
    assert ref_of("vm/web") == WEB
    assert ref_of("vm/") is None
    assert suggestion("virtualmachin") == "did you mean 'virtualmachine'?"


# ------------------------------------------------------------------------------------------------------ diff


def test_a_diff_nests_what_changed_and_only_that() -> None:
    assert (
        diff_text(some_plan())
        == """\
diff Bridge/br0 (create: new)
--- host/Bridge/br0
+++ specs/Bridge/br0
@@ -0,0 +1,2 @@
+spec:
+  stp: false
diff VirtualMachine/web (spec: its spec changed)
--- host/VirtualMachine/web
+++ specs/VirtualMachine/web
@@ -1,3 +1,6 @@
 spec:
   memory:
-    guest: 1Gi
+    guest: 2Gi
+  disks:
+  - name: data
+    path: /srv/data.qcow2
diff Tap/old (prune: its spec is gone)
--- host/Tap/old
+++ specs/Tap/old
@@ -1,2 +0,0 @@
-spec:
-  owner: root
"""
    )


def test_changes_below_a_named_item_and_steps_without_changes() -> None:
    from kvmd import ops

    changes = (Change("disks[root].readOnly", False, True), Change("nics[net0]", {"name": "net0"}, None))
    one = Step(WEB, (), Cause.DRIFT, "", changes)
    two = Step(BRIDGE, (ops.LinkSet("br0", up=True),), Cause.DRIFT, "")
    text = diff_text(Plan({}, (one, two)))
    assert "   disks:\n   - name: root\n-    readOnly: false\n" in text
    assert "-  nics:\n-  - name: net0\n+    readOnly: true\n" in text
    assert text.endswith("diff Bridge/br0 (drift)\n+ # set link br0: up\n")
    assert diff_text(Plan({})) == ""


# -------------------------------------------------------------------------------------------------- problems

TEXT = "kind: VirtualMachine\nspec:\n  memroy: 2Gi\n"
FOUND = [
    Problem(
        Position("specs/web.yaml", 3, 3), "unknown-field", "spec has no field 'memroy', 100%", "see kvmd explain vm"
    ),
    Problem(Position("specs/web.yaml", 1, 1), "dangling-reference", "refers to x", severity="warning"),
]


def test_faults_as_text_show_the_line() -> None:
    text = problems.report(FOUND, "text", texts={"specs/web.yaml": TEXT})
    assert text.startswith(
        "specs/web.yaml:3:3: error[unknown-field] spec has no field 'memroy', 100%\n"
        "   3 |   memroy: 2Gi\n"
        "     |   ^\n"
        "  hint: see kvmd explain vm\n"
    )
    assert problems.verdict(FOUND, ["a", "b"]) == "2 files, 1 error, 1 warning"
    assert problems.verdict([], ["a"]) == "1 file, valid"
    assert problems.report([], "text") == ""


def test_faults_for_machines() -> None:
    data = json.loads(problems.report(FOUND, "json", files=["specs/web.yaml"]))
    assert data["valid"] is False
    assert data["problems"][0]["line"] == 3
    github = problems.report(FOUND, "github")
    assert github.splitlines()[0] == (
        "::error file=specs/web.yaml,line=3,col=3,title=unknown-field::"
        "spec has no field 'memroy', 100%25; see kvmd explain vm"
    )
    run = json.loads(problems.report(FOUND, "sarif"))["runs"][0]
    result = run["results"][0]
    assert result["ruleId"] == run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == "unknown-field"
    assert result["locations"][0]["physicalLocation"] == {
        "artifactLocation": {"uri": "specs/web.yaml"},
        "region": {"startLine": 3, "startColumn": 3},
    }
    suite = ElementTree.fromstring(problems.report(FOUND, "junit", files=["specs/web.yaml", "specs/ok.yaml"]))[0]
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert "unknown-field" in (suite[0][0].text or "")
    assert len(suite[1]) == 0
