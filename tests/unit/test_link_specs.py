"""Specs of links: what the kernel would cut off, ignore or keep one of is refused in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from casework import SPECS

from kvmd.settings import Source
from kvmd.sources.decode import decode_file

LINKS = ("Bridge", "Tap", "Tun", "Vlan", "Vxlan")


@pytest.mark.parametrize(
    ("kind", "spec", "words"),
    [
        ("Tap", "{owner: 4294967295}", "owner"),
        ("Tun", "{group: -1}", "group"),
        ("Tun", "{routes: [{to: 10.20.0.0/16, metric: 4294967296}]}", "metric"),
        ("Tun", "{routes: [{to: 10.20.0.0/16, via: 10.9.0.2}, {to: 10.20.0.0/16, via: 10.9.0.3}]}", "same metric"),
        ("Tun", "{routes: [{to: 'fd20::/64'}, {to: 'FD20:0::/64', metric: 1024}]}", "same metric"),
        ("Tun", "{addresses: ['fd00::1/64', 'fd00:0::1/80']}", "the same address"),
        ("Vlan", "{parent: eno1, id: 5, addresses: ['fd00::1/64', 'fd00::1/80']}", "the same address"),
        ("Tun", "{addresses: [0.0.0.0/24]}", "no address that a link can have"),
        ("Tun", "{addresses: ['ff02::7/64']}", "no address that a link can have"),
        ("Vxlan", "{id: 5, remote: 0.0.0.0}", "no host's address"),
        ("Vxlan", "{id: 5, local: '::'}", "no host's address"),
        ("Vxlan", "{id: 5, local: 224.0.0.1}", "multicast"),
        ("Bridge", "{addresses: {from: Static, static: ['fd00::1/64', 'fd00::1/80']}}", "the same address"),
        (
            "Network",
            "{ips: [{address: 10.9.0.1/24}], routes: [{to: 10.20.0.0/16, via: 10.9.0.2}, "
            "{to: 10.20.0.0/16, via: 10.9.0.3, metric: 1}]}",
            "same destination and metric",
        ),
    ],
)
def test_what_the_kernel_would_not_keep_is_refused(kind: str, spec: str, words: str) -> None:
    text = f"apiVersion: kvmd.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: one}}\nspec: {spec}\n"
    found = decode_file(text.encode(), "one.yaml", Source(), SPECS).problems
    assert found
    assert any(words in str(problem) for problem in found), found


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("Tap", "{owner: 4294967294, group: 0}"),
        ("Tun", "{routes: [{to: 10.20.0.0/16}, {to: 10.20.0.0/16, metric: 4294967295}, {to: 10.20.0.0/17}]}"),
        ("Tun", "{addresses: [10.9.0.1/24, 10.9.0.1/25, 'fd00::1/64', 'fd00::2/64']}"),
    ],
)
def test_what_it_keeps_is_taken(kind: str, spec: str) -> None:
    text = f"apiVersion: kvmd.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: one}}\nspec: {spec}\n"
    assert not decode_file(text.encode(), "one.yaml", Source(), SPECS).problems


@pytest.mark.parametrize("kind", LINKS)
def test_every_number_has_both_its_bounds(kind: str) -> None:
    numbers = list(_integers(SPECS[kind].model_json_schema()))
    assert numbers
    assert [node for node in numbers if not {"minimum", "maximum"} <= node.keys()] == []


def _integers(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if node.get("type") == "integer":
            yield node
        for value in node.values():
            yield from _integers(value)
    elif isinstance(node, list):
        for value in node:
            yield from _integers(value)
