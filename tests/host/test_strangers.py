"""Random networks of specs among links, addresses and routes of others, on the real kernel: none of these changes.

KVMD_TEST_NETWORKS sets how many (a campaign: 1000), KVMD_TEST_SEED names others.
"""

from __future__ import annotations

import itertools
import json
import os
from functools import partial
from typing import Any

import generators
import pytest
from generators import Chance, Document, Names, decoded, document
from kernel_loop import FOREIGN, LENT, KernelLoop, crowded, look, until_equal
from mortal import dies_before
from netns import NetNamespace

import kvmd.host.links.kernel
from kvmd.engine.records import applied_of

NETWORKS = int(os.environ.get("KVMD_TEST_NETWORKS", "50"))
SEED = int(os.environ.get("KVMD_TEST_SEED", "5"))

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces: run pytest as root"),
]


def vxlan(number: int, chance: Chance, names: Names) -> Document:
    """A tunnel over what others have, perhaps on a bridge."""
    spec: dict[str, Any] = {"id": 40 + number}
    spec |= chance.choice(
        ({"remote": "192.0.2.9"}, {"group": "239.1.1.42", "parent": "eno9"}, {"remote": "2001:db8::9", "port": 4791})
    )
    spec |= chance.fields(mtu=(1400, None))
    end = {"bridge": chance.choice(names.bridges)} if names.bridges else {}
    spec |= chance.choice((end, {"addresses": [f"10.42.{number}.1/24"]}, {}))
    return document("Vxlan", f"vx{number}", spec)


def vlan(number: int, chance: Chance, names: Names) -> Document:
    """A VLAN on a NIC of others."""
    return document("Vlan", f"vl{number}", {"parent": "eno9", "id": 100 + number} | chance.fields(mtu=(1400,)))


MAKERS = ((generators.bridge, 4), (generators.tap, 5), (generators.tun, 3), (vxlan, 3), (vlan, 1))


def network(chance: Chance) -> list[Document]:
    """What one directory asks for, with names and addresses that others have too."""
    names = Names(uplinks=chance.sample(LENT, len(LENT)))
    found = [make(number, chance, names) for make, most in MAKERS for number in range(chance.randint(0, most))]
    for item in found:
        spec = item["spec"]
        spec.pop("deletionPolicy", None)  # what is let go of would be one more stranger
        if item["kind"] == "Bridge" and chance.random() < 0.2:
            spec["addresses"] = {"from": "Static", "static": [chance.choice(("10.200.0.1/24", "10.200.7.1/16"))]}
        if item["kind"] == "Bridge" and chance.random() < 0.2:
            spec["uplinks"] = [{"name": chance.choice(("eno9", "fv0", "ftap0"))}]
            spec["addresses"] = {"from": "None"}  # so what the first carries may not be moved; the others are taken
        if item["kind"] == "Tap" and chance.random() < 0.3:
            spec["bridge"] = chance.choice(("fbr0", "fbr1"))
        if any("via" in route for route in spec.get("routes", ())):
            spec["addresses"] = [f"10.9.{item['metadata']['name'][-1]}.1/30"]  # where that next hop is
        if chance.random() < 0.1:
            spec["nameOnHost"] = chance.choice(("fbr0", "ftap0", "ftun0", "fvx0", "eno9"))
    return found


def check(net: NetNamespace, before: list[Any], number: int, names: frozenset[str] | None = FOREIGN) -> None:
    """Fail where something of others is not as it was."""
    if changed := until_equal(lambda: look(net, names), before):
        text = "\n".join(json.dumps(item) for item in changed)
        pytest.fail(f"network {number} of seed {SEED} changed:\n{text}", pytrace=False)


def test_no_link_address_or_route_of_others_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvmd.host.links.kernel, "BRIDGE_DELETE_PAUSE_SECONDS", 0.0)
    print(f"KVMD_TEST_SEED={SEED}")
    made, refusals = 0, set()  # type: int, set[str]
    with crowded() as net:
        before, everything = look(net), look(net, None)
        loop = KernelLoop(net.path)
        for number in range(NETWORKS):
            chance = Chance(SEED + number)
            loop.settle(decoded(network(chance)))
            refusals |= {error.message for error in loop.refused.values()}
            made += len(net.links().keys() - FOREIGN - {*LENT})
            assert not unmarked(net), number
            check(net, before, number)
            if number % 10 == 9 or number == NETWORKS - 1:
                loop.settle({})
                check(net, everything, number, None)
    print(*sorted(refusals), sep="\n")
    print(f"{NETWORKS} networks, {made} links made among {len(FOREIGN)} of others")
    assert made >= NETWORKS


EVERYTHING = [
    document("Bridge", "br0", {"uplinks": [{"name": "up0"}], "mtu": 1400}),
    document(
        "Bridge", "br2", {"stp": True, "addresses": {"from": "Static", "static": ["10.2.0.1/24", "fd02::1/64"]}}
    ),
    document("Tap", "tap0", {"bridge": "br0", "owner": 1000, "group": 106}),
    document("Tap", "tap1", {"bridge": "fbr0", "multiQueue": True}),
    document("Tun", "tun0", {"addresses": ["10.9.7.1/30"], "routes": [{"to": "10.30.0.0/16", "via": "10.9.7.2"}]}),
    document("Vxlan", "vx0", {"id": 40, "remote": "192.0.2.9", "bridge": "br2"}),
]
CHANGED = [
    document("Bridge", "br0", {"mtu": 1500, "addresses": {"from": "Static", "static": ["10.3.0.1/24"]}}),
    document(
        "Bridge", "br2", {"uplinks": [{"name": "up1"}], "addresses": {"from": "Static", "static": ["10.2.0.2/24"]}}
    ),
    document("Tap", "tap0", {"bridge": "br2", "owner": 1001}),
    document("Tun", "tun0", {"addresses": ["10.9.8.1/30"], "routes": [{"to": "10.31.0.0/16"}]}),
]


def test_killed_at_any_boundary_nothing_is_unmarked_and_the_next_run_converges(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before each batch and each ioctl (in a campaign; else each other one) of making, changing and removing."""
    monkeypatch.setattr(kvmd.host.links.kernel, "BRIDGE_DELETE_PAUSE_SECONDS", 0.0)
    ways = [decoded([]), decoded(EVERYTHING), decoded(CHANGED), decoded([])]
    kills = 0
    with crowded() as net:
        before, everything = look(net), look(net, None)
        loop = KernelLoop(net.path)
        for number, (here, there) in enumerate(itertools.pairwise(ways)):
            for last in itertools.count(0, 1 if NETWORKS >= 1000 else 2):
                loop.settle(here)
                # What the engine writes down before its first act outlives it.
                loop.applied = {ref: applied_of(item, 0) for ref, item in {**there, **here}.items()}
                killed = dies_before(last, partial(_successor(loop, net).settle, there))
                assert not unmarked(net), (number, last)
                loop = _successor(loop, net)
                loop.settle(there)
                assert not loop.refused
                if not killed:
                    break
                kills += 1
            check(net, before, number)
        check(net, everything, number, None)
    print(f"{kills} kills")


def _successor(loop: KernelLoop, net: NetNamespace) -> KernelLoop:
    """The next process: it has only what was written down."""
    loop.kernel.links.close()
    made = KernelLoop(net.path)
    made.applied = loop.applied
    return made


def unmarked(net: NetNamespace) -> list[str]:
    """The links of nobody: neither of others nor marked."""
    links = net.links()
    ours = links.keys() - FOREIGN - {*LENT}
    return [name for name in ours if not links[name].get("ifalias", "").startswith("kvmd:v1:kvmd:")]
