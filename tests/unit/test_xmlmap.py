"""XML by declaration: what is written is read back the same, from our own text and from the real QEMU driver."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from generators import Chance, Names, decoded, document, furnish, image, machine, machine_for, network, pool, volume
from simulator import Loop
from worlds import links_of_the_host, wide_machine

from kvmd import xmlmap
from kvmd.api.mark import Mark, find_in, put_into
from kvmd.api.resource import Ref, Resource
from kvmd.kinds import CONTROLLERS
from kvmd.kinds import network as network_kind
from kvmd.kinds.virtual_machine.domain import DiskState, Known, NicState, State, read
from kvmd.kinds.virtual_machine.origins import prepare
from kvmd.kinds.virtual_machine.want import known_devices, wanted
from kvmd.observed import Domain
from kvmd.plan.difference import LEAVE, at, differences
from kvmd.plan.look import Look

# ------------------------------------------------------------------------------------------------ places


@dataclass(frozen=True)
class Sample:
    """One field for each sort of place."""

    attribute: str | None = field(metadata=at("attribute", xml=xmlmap.attribute("one/two", "name")))
    word: bool | None = field(metadata=at("word", xml=xmlmap.attribute("one", "stp", {"on": True, "off": False})))
    text: str | None = field(metadata=at("text", xml=xmlmap.text("one/three")))
    number: int | None = field(metadata=at("number", xml=xmlmap.number(xmlmap.text("four"))))
    presence: bool = field(metadata=at("presence", xml=xmlmap.presence("five")))
    size: int | None = field(metadata=at("size", xml=xmlmap.size("six")))


SAMPLES = [
    Sample("a", True, "b", 7, True, 2**30),
    Sample(None, None, None, None, False, None),
    Sample("<&\"'>", False, "ä\n b", 0, True, 2**40),
]


@pytest.mark.parametrize("before", SAMPLES)
@pytest.mark.parametrize("after", SAMPLES)
def test_what_is_written_is_read(before: Sample, after: Sample) -> None:
    """From any state to any other, through text."""
    root = ElementTree.Element("root")
    xmlmap.write(before, root)
    xmlmap.write(after, root)
    assert xmlmap.read(Sample, xmlmap.parse(xmlmap.serialise(root))) == after


def test_what_no_field_names_stays() -> None:
    root = xmlmap.parse("<root id='1'><one stp='off' delay='0'><two name='x' other='y'/><foreign/></one></root>")
    xmlmap.write(replace(SAMPLES[1], word=True), root)
    assert root.get("id") == "1"
    one = root.find("one")
    assert one is not None and one.attrib == {"stp": "on", "delay": "0"} and one.find("foreign") is not None
    two = root.find("one/two")
    assert two is not None and two.attrib == {"other": "y"}


def test_only_chosen_paths_are_written() -> None:
    root = ElementTree.Element("root")
    xmlmap.write(SAMPLES[0], root, lambda path: path == "text")
    assert [element.tag for element in root.iter()] == ["root", "one", "three"]


def test_an_element_that_lost_its_last_attribute_goes() -> None:
    """libvirt's schema knows no empty <link/>."""
    root = xmlmap.parse("<interface><link state='down'/></interface>")
    xmlmap.attribute("link", "state").put(root, None)
    assert root.find("link") is None


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("<memory>1048576</memory>", 2**30),
        ("<memory unit='KiB'>1048576</memory>", 2**30),
        ("<memory unit='b'>1073741824</memory>", 2**30),
        ("<memory unit='bytes'>1073741824</memory>", 2**30),
        ("<memory unit='MiB'>1024</memory>", 2**30),
        ("<memory unit='M'>1024</memory>", 2**30),
        ("<memory unit='G'>1</memory>", 2**30),
        ("<memory unit='GiB'>1</memory>", 2**30),
        ("<memory unit='TiB'>1</memory>", 2**40),
        ("<memory unit='KB'>1000</memory>", 10**6),
        ("<memory unit='MB'>1</memory>", 10**6),
        ("<memory unit='GB'>1</memory>", 10**9),
        ("<memory unit='TB'>1</memory>", 10**12),
        ("<other/>", None),
    ],
)
def test_memory_in_any_unit(text: str, size: int | None) -> None:
    assert xmlmap.size("memory").get(xmlmap.parse(f"<domain>{text}</domain>")) == size


def test_a_mark_survives_its_xml() -> None:
    mark = Mark(
        "kvmd",
        Ref("VirtualMachine", "web"),
        "ab" * 32,
        3,
        "uuid",
        "a.yaml",
        {"a": [1, "<é>"]},
        {"x": "y"},
        {"m": "q"},
    )
    root = xmlmap.parse("<domain><metadata><other xmlns='urn:x'>theirs</other></metadata></domain>")
    put_into(root, mark)
    again = xmlmap.parse(xmlmap.serialise(root))
    assert find_in(again) == mark
    put_into(again, None)
    assert find_in(again) is None
    assert again.find("metadata/{urn:x}other") is not None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"written": 1}', "null"], ids=["empty", "torn", "list", "number", "null"]
)
def test_a_mark_that_nobody_can_read_is_no_mark(text: str) -> None:
    attributes = 'owner="kvmd" ref="Tap/x" specHash="0" generation="x" uuid=""'
    mark = f'<k:mark xmlns:k="https://kvmd.dev/xmlns/libvirt/1" {attributes}>{text}</k:mark>'
    root = xmlmap.parse(f"<domain><metadata>{mark}</metadata></domain>")
    assert find_in(root) is None


# --------------------------------------------------------------------------------------------- definitions


def defined(resources: dict[Ref, Resource]) -> tuple[Loop, list[tuple[State, State]]]:
    """The converged host, and of each domain what was wanted and what is read."""
    loop = Loop(machine_for(resources))
    loop.converge(resources)
    pairs = []
    observed = loop.machine.observed()
    world = loop.planner._index.world(loop.desired(), observed, loop.memory.value(loop.now))
    for ref, resource in resources.items():
        fact = observed.facts.get(CONTROLLERS[ref.kind].host_key(ref, resource.spec))
        if isinstance(fact, Domain):
            look = Look(world, loop.now)
            root = xmlmap.parse(fact.config or "")
            spec = prepare(ref, resource.spec, fact.uuid, read(root, Known()), look).spec
            config = read(root, known_devices(resource, spec, look))
            pairs.append((wanted(resource, spec, fact, config, look).state, config))
    return loop, pairs


@pytest.mark.parametrize("seed", range(20))
def test_a_definition_reads_back_as_wanted(seed: int) -> None:
    """Field by field, whether written by the user or a default."""
    resources = decoded([machine(0, Chance(seed), Names())])
    _, pairs = defined(resources)
    for want, found in pairs:
        assert [change for change in differences(found, want) if change.path != "cpu.model"] == []


def test_more_vcpus_at_most_are_not_more_vcpus_now() -> None:
    """Without the attribute all of the maximum would be there at the next boot."""
    root = xmlmap.parse("<domain type='qemu'><os><type machine='pc'/></os><vcpu>1</vcpu></domain>")
    state = read(root, Known())
    xmlmap.write(replace(state, max_vcpus=4), root, lambda path: path == "cpu.maxVcpus")
    assert read(root, Known()) == replace(state, max_vcpus=4)


def test_devices_are_known_without_aliases() -> None:
    """An adopted guest: disks by their file, NICs by MAC, consoles and trays by their order; the rest is theirs."""
    root = xmlmap.parse(
        """<domain type='kvm'><memory>1</memory><currentMemory>1</currentMemory><vcpu>1</vcpu>
        <os><type machine='pc'/></os><devices>
        <disk type='file' device='disk'><source file='/a'/><target dev='vda' bus='virtio'/></disk>
        <disk type='block' device='disk'><source dev='/dev/x'/><target dev='vdb' bus='virtio'/></disk>
        <disk type='file' device='disk'><source file='/theirs'/><target dev='vdc' bus='virtio'/></disk>
        <disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>
        <disk type='file' device='floppy'><target dev='fda' bus='fdc'/></disk>
        <interface type='user'><mac address='52:54:00:00:00:01'/></interface>
        <interface type='user'><mac address='52:54:00:00:00:02'/></interface>
        <serial type='pty'/><serial type='pty'/></devices></domain>"""
    )
    known = Known({"/a": "root", "/dev/x": "data"}, {"52:54:00:00:00:01": "net0"}, ("console",), ("cd0",))
    state = read(root, known)
    assert [disk.name for disk in state.disks] == ["root", "data", "@vdc", "cd0"]
    assert [nic.name for nic in state.interfaces] == ["net0", "@52:54:00:00:00:02"]
    assert [serial.name for serial in state.serials] == ["console", "@1"]


def test_left_alone_is_no_difference() -> None:
    assert list(differences(SAMPLES[0], replace(SAMPLES[1], text=LEAVE))) != []  # type: ignore[arg-type]
    assert "text" not in {change.path for change in differences(SAMPLES[0], replace(SAMPLES[1], text=LEAVE))}  # type: ignore[arg-type]


@pytest.mark.parametrize("cls", [DiskState, NicState])
def test_devices_round_trip(cls: type) -> None:
    """Each field by itself, to each of two values and away."""
    values: dict[str, list[Any]] = {
        "device": ["disk", "cdrom"],
        "source": ["/a", "/dev/b", None],
        "format": ["raw", "qcow2"],
        "bus": ["virtio", "sata"],
        "read_only": [True, False],
        "boot_order": [1, 2, None],
        "serial": ["a", None],
        "cache": ["none", "default"],
        "io": ["native", "default", "threads"],
        "discard": ["unmap", "ignore", "default"],
        "auth": [None],  # only what is on a server has one: test_remote.py
        "attachment": ["network:x", "bridge:y", "tap:z", "user:", "user:tcp/1/2,udp/3/4"],
        "portgroup": ["fast", "slow", None],
        "mac": ["52:54:00:00:00:01", "52:54:00:00:00:02"],
        "model": ["virtio", "e1000"],
        "link": ["up", "down"],
        "detect_zeroes": ["unmap", "off", "default"],
    }
    limits = [512 * 10**6, 1024 * 10**3, None]  # whole in every unit
    declared = [item.name for item in cls.__dataclass_fields__.values() if "xml" in item.metadata]
    random_ = random.Random(1)
    state = cls(name="x", **{name: values.get(name, limits)[0] for name in declared})
    root = ElementTree.Element("device")
    xmlmap.write(state, root)
    for _ in range(200):
        name = random_.choice(declared)
        state = replace(state, **{name: random_.choice(values.get(name, limits))})
        xmlmap.write(state, root)
        if getattr(state, "source", "") is None:
            state = replace(state, format=None)  # an empty tray has none
        if not getattr(state, "attachment", "network:").startswith("network:"):
            state = replace(state, portgroup=None)  # nothing else has one
        assert xmlmap.read(cls, root, name="x") == state


# ------------------------------------------------------------------------------------- the real QEMU driver


def specs_of(seed: int) -> dict[Ref, Resource]:
    """Two networks and three guests on them."""
    chance, names = Chance(seed), Names()
    networks = [network(number, chance, names) for number in range(2)]
    storage = [make(number, chance, names) for make in (image, pool, volume) for number in range(2)]
    return decoded([*networks, *storage, *(wide_machine(number, chance, names) for number in range(3))])


@pytest.mark.libvirt
def test_libvirt_takes_every_definition_and_gives_it_back_without_a_difference(definitions: Any) -> None:
    """New ones, and overlays from any spec to any other: accepted, and the next plan is empty."""
    loop = Loop(definitions)
    definitions.facts |= links_of_the_host()
    for seed in range(40):
        resources = specs_of(seed)
        for resource in resources.values():
            furnish(definitions, resource)
        loop.converge(resources)
        assert loop.fresh_plan().empty
    assert definitions.defined > 120


@pytest.mark.libvirt
def test_devices_keep_their_places_when_others_come_and_go(definitions: Any) -> None:
    """Rendered afresh, a NIC moved to another slot and had another name in the guest."""

    def spec(*names: str) -> dict[Ref, Resource]:
        nics = [{"name": name, "user": {}} for name in names]
        return decoded([document("VirtualMachine", "web", {"memory": {"guest": "256Mi"}, "interfaces": nics})])

    def places() -> dict[str, str]:
        found = {}
        for nic in xmlmap.parse(definitions.domain("web").config or "").findall("devices/interface"):
            alias, address = nic.find("alias"), nic.find("address")
            assert alias is not None and address is not None
            found[alias.get("name", "")] = ElementTree.tostring(address, encoding="unicode").strip()
        return found

    loop = Loop(definitions)
    loop.converge(spec("net0", "net1", "net2"))
    before = places()
    loop.converge(spec("net1", "net2"))
    assert places() == {name: before[name] for name in ("ua-nic-net1", "ua-nic-net2")}
    loop.converge(spec("net0", "net1", "net2", "net3"))
    assert {name: places()[name] for name in ("ua-nic-net1", "ua-nic-net2")} == {
        name: before[name] for name in ("ua-nic-net1", "ua-nic-net2")
    }


FOREIGN = """<domain type='qemu'><name>old</name><uuid>aaaaaaaa-0000-4000-8000-000000000001</uuid>
<title>Theirs</title><metadata><app:x xmlns:app='urn:app'>kept</app:x></metadata>
<memory unit='MB'>300</memory><vcpu>2</vcpu><os><type arch='x86_64' machine='q35'>hvm</type></os>
<features><acpi/><pae/></features><clock offset='localtime'/>
<devices>
 <disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/><source file='/a.qcow2'/>
  <target dev='vda' bus='virtio'/></disk>
 <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/theirs.img'/>
  <target dev='vdb' bus='virtio'/></disk>
 <interface type='user'><mac address='52:54:00:00:00:77'/><model type='e1000'/></interface>
 <sound model='ich9'/><rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
</devices></domain>"""


@pytest.mark.libvirt
def test_adopting_changes_nothing_that_no_spec_names(definitions: Any) -> None:
    """Only the mark, and the alias of the device that the spec names."""
    definitions.add_files(["/a.qcow2", "/theirs.img"])
    before = xmlmap.parse(definitions.define(FOREIGN).config or "")
    spec = {"memory": {"guest": "287Mi"}, "disks": [{"name": "root", "path": "/a.qcow2", "format": "qcow2"}]}
    annotations = {"kvmd.dev/adopt": "true"}
    adopt = document("VirtualMachine", "old", spec | {"runStrategy": "Manual"}, annotations=annotations)
    loop = Loop(definitions)
    loop.converge(decoded([adopt]))
    after = xmlmap.parse(definitions.domain("old").config or "")
    put_into(after, None)
    for root in (before, after):
        for path in ("memory", "currentMemory"):
            xmlmap.cut(root, path)
        for disk in root.findall("devices/disk"):
            xmlmap.cut(disk, "alias")

    def text(root: ElementTree.Element) -> str:
        return ElementTree.canonicalize(xmlmap.serialise(root), strip_text=True)

    assert text(after) == text(before)


@pytest.mark.libvirt
@pytest.mark.parametrize("place", ["devices/serial", "devices/console"])
def test_a_console_replaced_by_another(definitions: Any, place: str) -> None:
    """libvirt mirrors the first serial console; what it mirrored before must not come back."""

    def spec(**serial: Any) -> dict[Ref, Resource]:
        devices = {"serial": [serial]} if serial else {}
        return decoded([document("VirtualMachine", "web", {"memory": {"guest": "256Mi"}, "devices": devices})])

    loop = Loop(definitions)
    loop.converge(spec(name="first", file="/var/log/first.log"))
    loop.converge(spec(name="second"))
    root = xmlmap.parse(definitions.domain("web").config or "")
    found = root.findall(place)
    assert len(found) == 1
    alias = found[0].find("alias")
    assert alias is not None and alias.get("name") == "ua-serial-second"
    assert found[0].find("log") is None


def test_network_subnets_in_any_words() -> None:
    """A netmask is a prefix; order means nothing."""
    six = "<ip family='ipv6' address='fd00::1' prefix='64'/>"
    one = f"<ip address='10.0.0.1' netmask='255.255.255.0'/>{six}"
    two = f"{six}<ip address='10.0.0.1' prefix='24'/>"
    states = [xmlmap.read(network_kind.State, xmlmap.parse(f"<network>{text}</network>")) for text in (one, two)]
    assert states[0] == states[1]
