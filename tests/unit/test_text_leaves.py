"""What a leaf says becomes an attribute or a line that others read: a line end in it would begin another one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from kvmd.api.resource import SpecModel
from kvmd.kinds import CONTROLLERS

# Each with its reason: why it may have several lines, or anything in it.
SEVERAL_LINES = {
    "VirtualMachine.cloudInit.userData": "a document of its own, written into the seed as it stands",
    "VirtualMachine.cloudInit.metaData": "plain data, written into the seed as JSON",
    "VirtualMachine.cloudInit.networkConfig": "plain data, written into the seed as JSON",
}
CONTROLS = ("\n", "\r", "\t", "\0", "\x1b", "\x7f", "\x85", "\u2028")


def models_in(annotation: Any) -> Iterator[type[SpecModel]]:
    if isinstance(annotation, type) and issubclass(annotation, SpecModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


def leaves_of(model: type[SpecModel], path: str) -> Iterator[tuple[str, TypeAdapter[Any], Any]]:
    """Every leaf with its type, constraints included, and its example."""
    for name, field in model.model_fields.items():
        where = f"{path}.{field.serialization_alias or field.alias or name}"
        inner = list(models_in(field.annotation))
        for other in inner:
            yield from leaves_of(other, where)
        if not inner:
            kind = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
            yield where, TypeAdapter(kind), (field.examples or [None])[0]


LEAVES = {
    where: (adapter, example)
    for kind, controller in CONTROLLERS.items()
    for where, adapter, example in leaves_of(controller.Spec, kind)
    if isinstance(example, str | list)
}


@pytest.mark.parametrize("where", LEAVES)
def test_a_leaf_takes_its_example_and_no_control_characters(where: str) -> None:
    adapter, example = LEAVES[where]
    adapter.validate_python(example)
    if where in SEVERAL_LINES:
        return
    word = example[0] if isinstance(example, list) else example
    for control in CONTROLS:
        for broken in (f"{word}{control}", f"{control}{word}", f"{word[:1]}{control}{word[1:]}"):
            with pytest.raises(ValidationError):
                adapter.validate_python([broken] if isinstance(example, list) else broken)


def test_the_leaves_with_several_lines_are_there() -> None:
    every = {where for kind, item in CONTROLLERS.items() for where, _, _ in leaves_of(item.Spec, kind)}
    assert every >= SEVERAL_LINES.keys()
    assert len(LEAVES) > 100


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("Network.dns.txt.value", ('say "hi', "a\\b", "a #b", "#a", " a", "a ")),
        ("Network.ips.dhcp.bootp.file", ("pxe,198.51.100.1", 'p"', "p #")),
        ("Network.ips.dhcp.bootp.server", ("198.51.100.1,x",)),
        ("Network.ips.tftp", ("/srv,eth0", "/srv/a #b")),
        ("Network.bridge.name", ("br0,lo", 'br"')),
        ("Network.nameOnHost", ("a,b", 'a"b')),
    ],
)
def test_what_dnsmasq_would_read_as_something_else_is_refused(where: str, words: tuple[str, ...]) -> None:
    adapter, _ = LEAVES[where]
    for word in words:
        with pytest.raises(ValidationError, match="dnsmasq"):
            adapter.validate_python(word)


def test_a_txt_record_keeps_what_dnsmasq_leaves_alone() -> None:
    adapter, _ = LEAVES["Network.dns.txt.value"]
    for word in ("v=spf1 include:example.com -all", "k=rsa; p=MIG/+=", "a,b", "a#b"):
        assert adapter.validate_python(word) == word
