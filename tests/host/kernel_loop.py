"""Planning and acting on the real kernel in one process: what the engine does, without threads and clocks."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from netns import NetNamespace, namespace
from simulator import SOME_HOST, Loop, Machine
from small import steady

from kvmd import ops
from kvmd.api.resource import Ref, Resource
from kvmd.engine.executor import Outcome
from kvmd.engine.reconciler import _jobs
from kvmd.errors import Refused
from kvmd.host.links.kernel import Links
from kvmd.host.preflight.rows import lacking_links
from kvmd.observed import Link, Observed
from kvmd.plan.model import Plan, Rules

RULES = Rules(prune_grace=0.0, prune_percent=100)


class Kernel(Machine):
    """A host whose links are those of a namespace."""

    def __init__(self, path: str) -> None:
        super().__init__(replace(SOME_HOST, lacking_links=lacking_links()))
        self.links = Links(path)

    def observed(self) -> Observed:
        """All links as the kernel shows them now."""
        found, complete = self.links.observe()
        for key in [key for key, fact in self.facts.items() if isinstance(fact, Link) and key not in found]:
            del self.facts[key]
        self.facts.update(found)
        self.missing = frozenset() if complete else frozenset({"links"})
        return super().observed()


class KernelLoop(Loop):
    """Carries out the link operations of what hangs together as one batch; *refused* is what ``Links`` refuses."""

    def __init__(self, path: str) -> None:
        self.kernel = Kernel(path)
        super().__init__(self.kernel, RULES)
        self.refused: dict[Ref, Refused] = {}

    def settle(self, resources: Mapping[Ref, Resource], rounds: int = 12) -> None:
        """Plan and act until nothing is left but what is refused."""
        self.resources, self.refused = resources, {}
        for _ in range(rounds):
            plan = self.plan()
            if all(step.ref in self.refused for step in plan.steps) and (self.refused or plan.wake_at is None):
                self.keep(plan)
                return
            self.now = max(self.now, plan.wake_at or 0.0) if plan.empty else self.now
            self.act(plan)
        raise AssertionError(f"no end after {rounds} rounds: {[step.as_data() for step in plan.steps]}")

    def act(self, plan: Plan) -> None:
        """One round of the engine."""
        self.keep(plan)
        for job in _jobs(plan.steps):
            for step in job.steps:
                self.memory.start(step)
            links = {step.ref: _links(step.operations) for step in job.steps}
            answers = iter(self.kernel.links.execute([item for found in links.values() for item in found]))
            for step in job.steps:
                error = next((found for found in [next(answers) for _ in links[step.ref]] if found), None)
                if isinstance(error, Refused):
                    self.refused[step.ref] = error
                elif error is not None:
                    raise AssertionError(f"{step.ref}: {error}")
                self.memory.end(Outcome(step, step.operations, error, 0.0), self.now)
        self.now += 1


def _links(operations: Sequence[ops.Op]) -> list[ops.LinkOp]:
    """Those of a checkpoint too, which is proven elsewhere and would take seconds here."""
    inner = [act for item in operations for act in (item.operations if isinstance(item, ops.Guarded) else (item,))]
    found = [act for act in inner if isinstance(act, ops.LinkOp)]
    assert len(found) == len(inner), operations
    return found


# ------------------------------------------------------------------------------- what is there already

STRANGERS = """
ip link set lo up
ip link add fbr0 address 02:11:00:00:00:01 type bridge forward_delay 400 ageing_time 1000
ip link add fbr1 type bridge stp_state 1 forward_delay 200
ip link add br1 type bridge
ip link add fv0 type veth peer name fv0p; ip link add fv1 address f2:11:00:00:00:02 type veth peer name fv1p
ip link add fv2 type veth peer name fv2p; ip link add eno9 type veth peer name far9
ip link add up0 type veth peer name up0p; ip link add up1 type veth peer name up1p
ip link set br1 alias "kvmd:v1:other:Bridge/br1:1:0123456789abcdef"
ip tuntap add ftap0 mode tap user 1000 vnet_hdr; ip tuntap add tap2 mode tap group 106; ip tuntap add ftun0 mode tun
ip link set ftap0 alias "of a person" mtu 1450; ip link property add dev fv0p altname tap3
ip link property add dev fv1p altname kvmd.port.7.br0
ip link set fv0 master fbr0; ip link set ftap0 master fbr0; ip link set fv1 master fbr1; ip link set tap2 master br1
ip link set fv2 master br1
# What nobody chose would be the smallest MTU of the ports, whoever puts them in.
ip link set fbr0 mtu 1448; ip link set fbr1 mtu 1400; ip link set br1 mtu 1300
bridge link set dev fv0 cost 77 priority 9 hairpin on; bridge fdb add 02:11:00:00:00:99 dev fv0 master static
for name in fbr0 fbr1 br1 fv0 fv0p fv1 fv1p fv2 fv2p eno9 far9 up0 up0p up1 up1p ftap0 tap2 ftun0
do ip link set $name up; done
ip link add fvx0 type vxlan id 99 local 127.0.0.1 remote 127.0.0.2 dstport 4790; ip link set fvx0 up
ip addr add 10.200.0.1/24 dev fbr0; ip addr add 10.200.0.2/24 dev fbr0 label fbr0:x
ip addr add 10.0.0.1/24 dev fbr1; ip addr add fd00:200::1/64 dev fbr0 nodad
ip addr add 192.0.2.5/24 dev eno9; ip addr add 10.9.0.1/30 dev ftun0; ip addr add 2001:db8::5/64 dev eno9 nodad
ip addr add 192.0.2.77/24 dev eno9 valid_lft 9000 preferred_lft 9000
ip route add default via 192.0.2.1 dev eno9 metric 100; ip -6 route add default via 2001:db8::1 dev eno9
ip route add 10.20.0.0/16 dev ftun0; ip route add 10.21.0.0/16 via 10.200.0.9; ip route add blackhole 10.22.0.0/16
ip route add 10.40.0.0/16 via 10.200.0.9 metric 7; ip route add 198.51.100.0/24 via 192.0.2.1 table 77
ip rule add from 10.200.0.0/24 table 77; ip neigh add 10.200.0.50 lladdr 02:11:00:00:00:50 dev fbr0 nud permanent
"""
# What nobody may change.
FOREIGN = frozenset(
    re.findall(r"\w+", "lo fbr0 fbr1 br1 fv0 fv0p fv1 fv1p fv2 fv2p eno9 far9 up0p up1p ftap0 tap2 ftun0 fvx0")
)
FOR_EVER = 0xFFFFFFFF
_MULTICAST = ("01:00:5e:", "33:33:")
LENT = ("up0", "up1")  # NICs that specs may name as uplinks
LOOK = """
for what in "link show" "addr show" "route show table all" "-6 route show table all" rule "neigh show nud permanent"
do ip -j -d $what; echo; done
bridge -j -d link show; echo; bridge -j fdb show; echo
"""
SETTLED = """
i=0
while [ $i -lt 80 ] && { ip addr; bridge link; } | grep -qE 'tentative|listening|learning'
do sleep 0.1; i=$((i+1)); done
"""


@contextmanager
def crowded() -> Iterator[NetNamespace]:
    """A namespace full of what others have made, settled."""
    with namespace() as net:
        net.shell(STRANGERS)
        net.shell(SETTLED)
        yield net


def look(net: NetNamespace, names: frozenset[str] | None = FOREIGN) -> list[Any]:
    """All that ip and bridge say of those links (None: of every link), but for what runs by itself."""
    text = net.run("sh", "-c", LOOK)
    lists = [json.loads(line) for line in text.splitlines() if line.strip()]
    return [[_still(item) for item in found if item and _is_of(item, names)] for found in lists]


def _is_of(item: Mapping[str, Any], names: frozenset[str] | None) -> bool:
    name = item.get("dev") or item.get("ifname")
    if "mac" in item and (item["mac"].startswith(_MULTICAST) or item["state"] not in ("static", "permanent")):
        return False  # what a link listens for (a VXLAN joins its group on the parent), and what it has learned
    return names is None or name is None or name in names


def _still(item: dict[str, Any]) -> dict[str, Any]:
    """Without what runs: lifetimes, timers, and what a bridge reckons anew when a port comes (offloads)."""
    found: dict[str, Any] = {key: value for key, value in steady(item).items() if not key.startswith("tso_max")}
    if (bridge := found.get("linkinfo", {}).get("info_data", {})).get("stp_state"):
        bridge.pop("ageing_time")  # short for a while after a change of the tree
    for address in found.get("addr_info", ()):
        for key in ("valid_life_time", "preferred_life_time"):
            address[key] = address[key] == FOR_EVER
    return found


def differences(before: Sequence[Any], after: Sequence[Any]) -> list[Any]:
    """What is in one of the two looks only."""
    pairs = zip(before, after, strict=True)
    return [item for old, new in pairs for item in [*_without(old, new), *_without(new, old)]]


def _without(some: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    return [item for item in some if item not in others]


def until_equal(take: Callable[[], list[Any]], before: list[Any], tries: int = 40) -> list[Any]:
    """What differs; what the kernel does by itself a moment later is waited for."""
    for _ in range(tries):
        if not (found := differences(before, take())):
            return []
        time.sleep(0.05)
    return found
