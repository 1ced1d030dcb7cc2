"""Composing YAML: what it means, what is refused, and that nothing gets past the limits."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmd.api.problem import Position, Problem
from kvmd.settings import Source
from kvmd.sources.document import Document, compose

LIMITS = Source()


def read(text: str | bytes, limits: Source = LIMITS) -> tuple[list[Document], list[Problem]]:
    return compose(text if isinstance(text, bytes) else text.encode(), "f.yaml", limits)


def faults(text: str | bytes, limits: Source = LIMITS) -> list[tuple[str, str]]:
    return [(p.rule, str(p.position).removeprefix("f.yaml:")) for p in read(text, limits)[1]]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("52:54:00:12:34:56", "52:54:00:12:34:56"),
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("012", "012"),
        ("-007", "-007"),
        ("0", 0),
        ("-12", -12),
        ("+5", 5),
        ("0x1F", 31),
        ("0o17", 15),
        ("017.5", "017.5"),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("12e4567", "12e4567"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("1_000", "1_000"),
        ("2026-01-01", "2026-01-01"),
        ("~", None),
        ("null", None),
        ("", None),
        ("true", True),
        ("False", False),
        ("y", "y"),
        ("'1'", "1"),
        ('"null"', "null"),
        ("9" * 40, int("9" * 40)),
        ("9" * 5000, "9" * 5000),
        ("1.", 1.0),
        (".", "."),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    documents, problems = read(f"a: {text}\n")
    assert not problems
    assert documents[0].value == {"a": value}
    assert type(documents[0].value["a"]) is type(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: &x 1\n", [("anchor", "1:4")]),
        ("a: *x\nb: *y\n", [("alias", "1:4"), ("alias", "2:4")]),
        ("*x : 1\nb: &y 2\n", [("alias", "1:1"), ("anchor", "2:4")]),
        ("a: !!int 1\nb: !!python/object:os.system x\n", [("tag", "1:4"), ("tag", "2:4")]),
        ("a: !vault x\n", [("tag", "1:4")]),
        ("a: {<<: {b: 1}, c: 2}\n", [("merge-key", "1:5")]),
        ("a: 1\nb: 2\na: 3\n", [("duplicate-key", "3:1")]),
        ("a: {x: 1, x: {y: 2, y: 3}}\n", [("duplicate-key", "1:11"), ("duplicate-key", "1:21")]),
        ("1: a\ntrue: b\nnull: c\n1.5: d\n", [("key", "1:1"), ("key", "2:1"), ("key", "3:1"), ("key", "4:1")]),
        ("? [a, b]\n: c\nd: e\nd: f\n", [("key", "1:3"), ("duplicate-key", "4:1")]),
        ("? {a: b}\n: {c: d}\ne: &x f\n", [("key", "1:3"), ("anchor", "3:4")]),
        ("a:\n\t- b\n", [("syntax", "2:1")]),
        ("a: [1, 2\nb: 3\n", [("syntax", "2:2")]),
        ("a: 'x\n", [("syntax", "2:1")]),
        ("ok: 1\n---\na: b: c\n", [("syntax", "3:5")]),
        ("<<<<<<< HEAD\na: 1\n=======\na: 2\n>>>>>>> other\n", [("syntax", "1:1")]),
        ("\ufeffa: 1\n", [("encoding", "1:1")]),
        ("a: x\ufeff\n", [("control-character", "1:5")]),
        ("a: 1\n".encode("utf-16"), [("encoding", "1:1")]),
        ("a: 1\n".encode("utf-16-be"), [("control-character", "1:1")]),
        (b"a: b\nc: \xff\n", [("encoding", "2:4")]),
        ("a: \x01\nb: \x00\n", [("control-character", "1:4"), ("control-character", "2:4")]),
        ('a: "\\x01"\n', [("control-character", "1:4")]),
        ("- a\n---\nscalar\n---\nb: 1\n", [("wrong-type", "1:1"), ("wrong-type", "2:1")]),
    ],
)
def test_refusals_name_the_place(text: str | bytes, expected: list[tuple[str, str]]) -> None:
    found = faults(text)
    assert found[: len(expected)] == expected
    assert all(problem.hint for problem in read(text)[1])


def test_duplicate_key_names_the_first_place() -> None:
    _, problems = read("a: 1\nb: 2\na: 3\n")
    assert "f.yaml:1:1" in problems[0].message


def test_documents_at_fault_leave_the_others() -> None:
    documents, problems = read("a: 1\n---\nb: &x 2\n---\nc: 3\n---\n---\n# nothing\n...\n")
    assert [document.value for document in documents] == [{"a": 1}, {"c": 3}]
    assert documents[1].position == Position("f.yaml", 5, 1)
    assert len(problems) == 1


def test_a_syntax_error_leaves_the_documents_before_it() -> None:
    documents, problems = read("a: 1\n---\nb: [\n")
    assert [document.value for document in documents] == [{"a": 1}]
    assert [problem.rule for problem in problems] == ["syntax"]


def test_positions_of_values_and_keys() -> None:
    document = read("é: ü\nlist:\n- name: root\n  size: 4\n- 5\n")[0][0]
    place = document.positions["list", 0, "size"]
    assert (place.line, place.column) == (4, 9)
    assert document.keys["list", 0, "size"].column == 3
    assert document.positions["list", 1].line == 5
    assert document.positions["é",].column == 4
    assert document.name(("list", 0, "size")) == "list[root].size"
    assert document.name(("list", 1, "a/b")) == 'list[1]["a/b"]'
    assert set(document.positions) >= {(), ("list",), ("list", 0)}


def test_limits() -> None:
    small = Source(max_file_bytes=20, max_depth=3, max_nodes=5, max_documents=2)
    assert faults("a: " + "x" * 30, small) == [("too-large", "1:1")]
    assert faults("a: [[[1]]]", small) == [("too-deep", "1:6")]
    assert faults("a: [1,2,3,4]", small) == [("too-large", "1:9")]
    assert faults("a: 1\n---\n---\n---\n", small) == [("too-large", "3:1")]
    assert faults("a: [[1]]", small) == []


BOMBS = {
    "flow": b"[" * 100_000,
    "mappings": b"{a: " * 100_000,
    "lists": b"- " * 100_000,
    "keys": b"? " * 100_000,
    "nested": b"".join(b" " * level + b"a:\n" for level in range(1400)),
    "aliases": b"a: &a [x]\n" + b"".join(b"k%d: [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n" % i for i in range(20_000)),
    "merges": b"a: &a {x: 1}\n" + b"b: {<<: [*a, *a, *a]}\n" * 20_000,
    "documents": b"---\n" * 250_000,
    "duplicates": b"k: v\n" * 200_000,
    "nodes": b"[" + b"a, " * 340_000,
    "anchors": b"&a " * 300_000,
    "quotes": b"'" * 1_000_000,
    "colons": b":" * 1_000_000,
    "unclosed": b'"' + b"a\n" * 500_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_bounded(name: str) -> None:
    begun = time.monotonic()
    documents, problems = read(BOMBS[name])
    assert time.monotonic() - begun < 5
    assert problems or documents == []
    assert len(problems) <= 51


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_documents_or_problems(text: bytes) -> None:
    documents, problems = compose(text, "f.yaml", LIMITS)
    assert all(isinstance(document.value, dict) for document in documents)
    assert all(problem.position.line >= 1 and problem.message for problem in problems)


PIECES = ["a", "b: ", "- ", "\n", "  ", "\t", "{", "}", "[", "]", ",", ": ", "? ", "&x ", "*x", "!!str ", "<<: ", "'"]
PIECES += ['"', "|", ">", "---\n", "...\n", "#", "%", "\\", "é", "\x00", "1", "~", "\ufeff", "%YAML 1.1\n", "@", "`"]


@given(st.lists(st.sampled_from(PIECES), max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_pieces_of_yaml_give_documents_or_problems(pieces: list[str]) -> None:
    text = "".join(pieces).encode()
    documents, problems = compose(text, "f.yaml", LIMITS)
    for document in documents:
        json.dumps(document.value, allow_nan=False)
        assert () in document.positions
    if not problems and not documents:
        assert all(value is None for value in yaml.load_all(text, Loader=yaml.CSafeLoader))


# libyaml takes U+0085, U+2028 and U+2029 for line ends, as YAML 1.1 did.
ODD = "\x85\u2028\u2029\ufeff\ufffe\uffff"
TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters=ODD) | st.just("\n"), max_size=8)
NUMBER = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
LEAF = st.none() | st.booleans() | NUMBER | TEXT
TREE = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=12
)


@given(st.dictionaries(TEXT, TREE, min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_round_trip_of_json(value: dict[str, Any]) -> None:
    documents, problems = read(json.dumps(value, ensure_ascii=False))
    assert not problems
    assert documents[0].value == value


@given(st.dictionaries(TEXT, TREE, min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_round_trip_of_yaml(value: dict[str, Any]) -> None:
    class Quoting(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, '"'))
    text = yaml.dump(value, Dumper=Quoting, allow_unicode=False)
    documents, problems = read(text)
    assert not problems
    assert documents[0].value == value
