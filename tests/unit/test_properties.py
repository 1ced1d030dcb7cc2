"""What holds for any specs and any host: checked on a thousand generated ones, on a simulated machine."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
from generators import Document, decoded, document
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulator import Loop, Machine
from worlds import machine_for, worlds

from kvmd import ops
from kvmd.api.resource import Ref, Resource
from kvmd.kinds import CONTROLLERS
from kvmd.observed import Domain, Fact, Key, Link, Network
from kvmd.ops import Impact
from kvmd.plan.model import Cause, Desired, ObjectPlan, Plan, Rules, Step
from kvmd.plan.planner import make_plan

# The same examples each time: what fails here fails everywhere.
few = settings(
    max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
many = settings(few, max_examples=60)
STOPS = (ops.DomainShutdown, ops.DomainDestroy)


def may_stop(step: Step, resources: Mapping[Ref, Resource], loop: Loop) -> bool:
    """True where somebody or something that may do so asked for the guest to end."""
    resource = resources.get(step.ref)
    if step.cause is Cause.PRUNE or resource is None:
        return step.cause is Cause.PRUNE
    if step.ref.kind == "VirtualMachineRestore":
        return True
    spec: Any = resource.spec
    memory = loop.memory.of(step.ref)
    asked = memory.restart or memory.power or resource.annotation("kvmd.dev/restarted-at") is not None
    return bool(asked or spec.run_strategy == "Halted" or spec.update_policy.restart == "Automatic")


def check(plan: Plan, resources: Mapping[Ref, Resource], loop: Loop) -> None:
    """What holds for every plan."""
    for step in plan.steps:
        if step.impact >= Impact.RESTART or any(isinstance(item, STOPS) for item in step.operations):
            assert may_stop(step, resources, loop), step.as_data()
    for ref, item in plan.objects.items():
        broken = [condition.message for condition in item.conditions if condition.reason == "InternalError"]
        assert not broken, (ref, broken)
        assert not (item.ready and item.step), f"{ref} is Ready and has a step"


def converge(loop: Loop, resources: Mapping[Ref, Resource]) -> None:
    """Converge; then another planner, which remembers nothing, has nothing to do either."""
    for plan in loop.converge(resources):
        check(plan, resources, loop)
    fresh = loop.fresh_plan()
    assert fresh.empty, [step.as_data() for step in fresh.steps]


def end_installers(loop: Loop) -> bool:
    """Power off, as an installer does at its end, where one runs; whether there was any."""
    items = loop.plan().objects.items()
    found = [ref for ref, item in items if any(condition.reason == "Installing" for condition in item.conditions)]
    for ref in found:
        loop.machine.stop(CONTROLLERS[ref.kind].host_key(ref, loop.resources[ref].spec).name, "shutdown")
    return bool(found)


def waits(item: ObjectPlan) -> bool:
    """Whether it is not as asked; a way back to a snapshot under overlays is refused, and rightly so."""
    return not item.ready and not any(condition.reason == "Refused" for condition in item.conditions)


def test_one_plan_is_enough() -> None:
    """From nothing, and from any specs to any others: a few rounds, then plan(desired, converged) is empty."""
    specs = 0

    @many
    @given(worlds(), worlds())
    def run(first: list[Document], second: list[Document]) -> None:
        nonlocal specs
        wished = [decoded(documents) for documents in (first, second) if documents]
        specs += sum(map(len, wished))
        loop = Loop(machine_for(*wished))
        for number, resources in enumerate(wished):
            converge(loop, resources)
            if end_installers(loop):
                converge(loop, resources)
            if number == 0:
                assert not {str(ref): item.conditions for ref, item in loop.plan().objects.items() if waits(item)}

    run()
    assert specs >= 1000


# -------------------------------------------------------------------------------------------- strangers


FOREIGN_DOMAIN = """<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory unit='GiB'>1</memory>
<vcpu>2</vcpu><os><type arch='x86_64' machine='pc'>hvm</type></os><devices><disk type='file' device='disk'>
<driver name='qemu' type='raw'/><source file='/srv/{name}.img'/><target dev='vda' bus='virtio'/></disk></devices>
</domain>
"""
FOREIGN_NETWORK = """<network><name>{name}</name><uuid>{uuid}</uuid><bridge name='{bridge}'/>
<ip address='10.200.0.1' netmask='255.255.255.0'/></network>"""


def add_strangers(machine: Machine, clashing: bool, running: bool) -> dict[Key, Fact]:
    """What somebody made by hand, with names of their own or with those that specs use too."""
    names = ("vm0", "net0", "br0", "tap0", "tun0") if clashing else ("theirs", "lan", "br9", "tap9", "tun9")
    domain, network, bridge, tap, tun = names
    uuid = "aaaaaaaa-0000-4000-8000-00000000000{}"
    machine.add_files([f"/srv/{domain}.img"])
    machine.define(FOREIGN_DOMAIN.format(name=domain, uuid=uuid.format(1)))
    machine.define_network(FOREIGN_NETWORK.format(name=network, uuid=uuid.format(2), bridge="virbr77"))
    if running:
        machine.start(domain)
        machine.start_network(network)
    machine.add_link(Link(bridge, 0, "bridge", up=True))
    machine.add_address(bridge, "10.201.0.1/24")
    machine.add_link(Link(tap, 0, "tun", tun_mode="tap", persistent=True, master=bridge, up=True))
    machine.add_link(Link(tun, 0, "tun", tun_mode="tun", persistent=True))
    keys = [Key("domain", domain), Key("network", network), *(Key("link", name) for name in (bridge, tap, tun))]
    return {key: machine.facts[key] for key in keys}


def object_of(operation: ops.Op) -> Key | None:
    """The fact that an operation is about."""
    kind = type(operation).__name__
    if isinstance(operation, ops.LinkOp):
        return Key("link", operation.name)
    if kind.startswith(("Domain", "Network")):
        return Key("domain" if kind.startswith("Domain") else "network", operation.name)
    return None


def as_made(fact: Fact) -> Fact:
    """The fact without what others may do to it: hold the TAP, be a port, use the network."""
    return replace(fact, carrier=False, operstate="") if isinstance(fact, Link) else fact


@few
@given(worlds(), worlds(), st.booleans(), st.booleans())
def test_strangers_are_never_touched(
    first: list[Document], second: list[Document], clashing: bool, running: bool
) -> None:
    """Unmarked objects appear in no operation and stay as they are, whatever names the specs use."""
    wished = [decoded(documents) for documents in (first, second) if documents]
    machine = machine_for(*wished)
    strangers = add_strangers(machine, clashing, running)
    loop = Loop(machine)
    for resources in wished:
        loop.converge(resources)
    touched = {object_of(operation) for operation in machine.executed}
    assert not touched & strangers.keys()
    assert {key: as_made(machine.facts[key]) for key in strangers} == {
        key: as_made(fact) for key, fact in strangers.items()
    }


@pytest.mark.parametrize("running", [True, False])
def test_a_clash_is_a_conflict_that_names_the_way_out(running: bool) -> None:
    """Each kind says of a stranger under its name that it is one, and how to adopt it."""
    specs = {"VirtualMachine": {"memory": {"guest": "1Gi"}}, "Network": {"forward": {"mode": "isolated"}}}
    names = {"VirtualMachine": "vm0", "Network": "net0", "Bridge": "br0", "Tap": "tap0", "Tun": "tun0"}
    resources = decoded([document(kind, name, specs.get(kind, {})) for kind, name in names.items()])
    machine = machine_for(resources)
    add_strangers(machine, True, running)
    loop = Loop(machine)
    plan = loop.converge(resources)[-1]
    for ref, item in plan.objects.items():
        conflict = item.condition("Conflict")
        assert conflict is not None and conflict.reason == "ExistsOnHost", ref
        assert "kvmd.dev/adopt" in conflict.message


# ------------------------------------------------------------------------------------------ determinism


def shuffled(mapping: Mapping[Any, Any], random_: random.Random) -> dict[Any, Any]:
    """The same mapping in another order."""
    items = list(mapping.items())
    random_.shuffle(items)
    return dict(items)


def everything(plan: Plan) -> tuple[Any, ...]:
    """All that a plan says, its operations whole."""
    objects = sorted(
        (ref, item.conditions, item.pending, item.ready, item.wake_at, item.generation, dict(item.status))
        for ref, item in plan.objects.items()
    )
    return plan.as_data(), plan.wake_at, plan.prune_digest, [step.operations for step in plan.steps], objects


@few
@given(worlds(1), worlds(), st.randoms(use_true_random=False))
def test_planning_is_deterministic(first: list[Document], second: list[Document], random_: random.Random) -> None:
    """The order of files, facts and documents changes no word of a plan."""
    wished = [decoded(documents) for documents in (first, second) if documents]
    loop = Loop(machine_for(*wished))
    loop.converge(wished[0])
    reordered = list(second or first)
    random_.shuffle(reordered)
    loop.resources = wished[-1]
    observed = loop.look()
    memory = loop.memory.value(loop.now)
    one = make_plan(loop.desired(), observed, memory, loop.rules, loop.now, CONTROLLERS)
    desired = Desired(resources=decoded(reordered), applied=shuffled(loop.applied, random_))
    other = replace(
        observed,
        facts=MappingProxyType(shuffled(observed.facts, random_)),
        marks=MappingProxyType(shuffled(observed.marks, random_)),
    )
    again = replace(memory, objects=shuffled(memory.objects, random_))
    two = make_plan(desired, other, again, loop.rules, loop.now, dict(reversed(CONTROLLERS.items())))
    assert everything(one) == everything(two)


def stir(machine: Machine, random_: random.Random) -> None:
    """Somebody does something to the host."""
    domains = [fact for fact in machine.facts.values() if isinstance(fact, Domain)]
    networks = [fact for fact in machine.facts.values() if isinstance(fact, Network)]
    links = [fact for fact in machine.facts.values() if isinstance(fact, Link)]
    choices: list[Callable[[], None]] = []
    for domain in domains:
        if domain.active:
            choices.append(lambda name=domain.name: machine.stop(name, random_.choice(["destroyed", "crashed"])))  # type: ignore[misc]
            choices.append(lambda name=domain.name: machine.edit_domain(name, "live", {"currentMemory": "131072"}))  # type: ignore[misc]
        choices.append(lambda name=domain.name: machine.edit_domain(name, "config", {"os/cmdline": "quiet"}))  # type: ignore[misc]
        choices.append(lambda name=domain.name: machine.edit_domain(name, "config", {"devices/disk": None}))  # type: ignore[misc]
    choices += [lambda name=item.name: machine.stop_network(name) for item in networks if item.active]  # type: ignore[misc]
    for link in links:
        if not link.carrier:
            choices.append(lambda name=link.name: machine.delete_link(name))  # type: ignore[misc]
        choices.append(lambda name=link.name: machine.set_link(name, up=False))  # type: ignore[misc]
        choices.append(lambda name=link.name: machine.set_link(name, mtu=1280))  # type: ignore[misc]
    if choices:
        random_.choice(choices)()


@few
@given(worlds(1), worlds(), st.randoms(use_true_random=False))
def test_a_remembering_planner_says_what_a_fresh_one_says(
    first: list[Document], second: list[Document], random_: random.Random
) -> None:
    """After any sequence of changes of specs, host, memory and time."""
    wished = [decoded(documents) for documents in (first, second) if documents]
    machine = machine_for(*wished)
    machine.deaf = {"vm0"}
    loop = Loop(machine)
    for _ in range(10):
        loop.resources = random_.choice([*wished, dict(list(wished[0].items())[:2])])
        loop.now += random_.choice([0.0, 1.0, 6.0, 130.0])
        if random_.random() < 0.5:
            stir(machine, random_)
        machine.missing = frozenset({"libvirt"}) if random_.random() < 0.1 else frozenset()
        if loop.resources and random_.random() < 0.3:
            ref = random_.choice(list(loop.resources))
            changes = [
                {"restart": True},
                {"power": "stop"},
                {"busy": "x"},
                {"busy": ""},
                {"error": "no", "next_try": loop.now + 3},
            ]
            loop.memory.change(ref, **random_.choice(changes))
        plan = loop.plan()
        assert everything(plan) == everything(loop.fresh_plan())
        if random_.random() < 0.6:
            act_as_far_as_possible(loop, plan)


def act_as_far_as_possible(loop: Loop, plan: Plan) -> None:
    """The host may have moved on in ways that the plan could not know (a NIC gone): what fails, fails."""
    for step in plan.steps:
        if not step.after:
            for operation in step.operations:
                try:
                    loop.machine.execute(operation)
                except AssertionError:
                    break
    loop.keep(plan)


# ---------------------------------------------------------------------------------------------- removal


def departed(documents: list[Document], machine: Machine | None = None) -> tuple[Loop, dict[Ref, Resource]]:
    """A converged host, and the specs of which all but one have gone, long enough ago."""
    resources = decoded(documents)
    loop = Loop(machine or machine_for(resources))
    loop.converge(resources)
    left = dict(list(resources.items())[:1])
    loop.resources = left
    loop.look()
    loop.now += 1000
    return loop, left


def removals(plan: Plan) -> list[str]:
    return [str(step.ref) for step in plan.steps if step.cause is Cause.PRUNE]


SOURCE_RULES: list[dict[str, Any]] = [
    {"complete": False, "reason": "not mounted"},
    {"empty": True},
    {"invalid_files": ("broken.yaml",)},
    {"duplicates": {Ref("Tap", "tap1"): ("a.yaml", "b.yaml")}},
]


@few
@given(worlds(1), st.sampled_from([*SOURCE_RULES, {}]), st.integers(0, 4))
def test_nothing_is_removed_while_a_rule_speaks_against_it(
    documents: list[Document], source: dict[str, Any], rule: int
) -> None:
    """One rule is enough, and every removal that waits says why and, where that helps, what to type."""
    loop, _ = departed(documents)
    observed, memory, rules, now = loop.look(), loop.memory.value(loop.now), Rules(prune_percent=100), loop.now
    free = make_plan(loop.desired(), observed, memory, rules, now, CONTROLLERS)
    if rule == 0:
        rules = replace(rules, prune=False)
    elif rule == 1:
        observed = replace(observed, missing=frozenset({"links"}))
    elif rule == 2:
        memory = replace(memory, complete_since=None)
    elif rule == 3:
        now = max((item.missing_since or 0.0) for item in memory.objects.values()) if memory.objects else now
        memory = replace(
            memory, objects={ref: replace(item, missing_since=now) for ref, item in memory.objects.items()}
        )
    desired = replace(loop.desired(), **source)
    speaks = bool(source) or rule < 4
    plan = make_plan(desired, observed, memory, rules, now, CONTROLLERS)
    gone = {ref for ref in observed.marks if ref not in loop.resources}
    if speaks:
        assert removals(plan) == []
        assert {hold.ref for hold in plan.holds} == gone
        assert all(hold.message for hold in plan.holds)
    else:
        assert removals(plan) == removals(free)
        still_there = {hold.ref for hold in plan.holds} | {Ref.parse(name) for name in removals(plan)}
        blocked = {ref for ref in gone if plan.objects[ref].condition("Blocked") or plan.objects[ref].step is None}
        assert gone == still_there | blocked


@few
@given(st.integers(3, 12), st.integers(0, 60))
def test_the_brake_holds_when_too_many_guests_would_go(count: int, percent: int) -> None:
    """More than max(2, percent) within an hour waits for a person; a confirmation is not enough."""
    specs = [document("VirtualMachine", f"vm{number:02}", {"memory": {"guest": "64Mi"}}) for number in range(count)]
    loop, left = departed(specs)
    leaving = count - len(left)
    rules = Rules(prune_percent=percent)
    observed = loop.look()
    for memory in (loop.memory.value(loop.now), replace(loop.memory.value(loop.now), confirmed=None)):
        plan = make_plan(loop.desired(), observed, memory, rules, loop.now, CONTROLLERS)
        held = leaving > max(2, percent * count / 100)
        assert len(removals(plan)) == (0 if held else leaving)
        assert len([hold for hold in plan.holds if hold.reason == "Brake"]) == (leaving if held else 0)
    approved = replace(loop.memory.value(loop.now), prune_approved=frozenset(hold.ref for hold in plan.holds))
    assert len(removals(make_plan(loop.desired(), observed, approved, rules, loop.now, CONTROLLERS))) == leaving
