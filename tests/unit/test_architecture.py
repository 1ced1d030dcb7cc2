"""The house keeps its shape: kinds are complete, declarations too, functions short, imports point down."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from casework import EXAMPLES, REPOSITORY, resources_in
from generators import SPECS, Chance, Names, decoded, document, machine, machine_for, network
from simulator import Loop

from kvmd import xmlmap
from kvmd.api.resource import API_VERSION, Metadata, Ref, Resource
from kvmd.api.schema import Leaf, leaves
from kvmd.kinds import CONTROLLERS, kind_called
from kvmd.plan.model import Desired
from kvmd.settings import Source
from kvmd.sources.decode import decode_file

MOST_LINES_OF_A_FUNCTION = 60
MOST_LINES_OF_A_FILE = 400
LEAVES = [(kind, leaf) for kind, controller in CONTROLLERS.items() for leaf in leaves(controller.Spec)]
NODES = [pytest.param(kind, leaf, id=f"{kind}.{leaf.path}") for kind, leaf in LEAVES]
SOURCES = sorted((REPOSITORY / "kvmd").rglob("*.py"))


# ------------------------------------------------------------------------------------------------ kinds


@pytest.mark.parametrize("kind", CONTROLLERS)
def test_each_kind_is_reached_through_the_front_door(kind: str) -> None:
    """A YAML file in, a plan out."""
    least = {
        "VirtualMachine": "memory: {guest: 1Gi}",
        "Network": "forward: {mode: isolated}",
        "Image": "source: {url: 'https://a.example/b'}, format: raw",
        "StoragePool": "path: /var/lib/libvirt/images",
        "Volume": "capacity: 1Gi",
        "VirtualMachineSnapshot": "virtualMachine: web",
        "VirtualMachineRestore": "virtualMachine: web, snapshot: before",
        "Vlan": "parent: eno1, id: 100",
        "Vxlan": "id: 42",
    }
    machine = "memory: {guest: 1Gi}, disks: [{name: root, path: /srv/web.qcow2, format: qcow2}]"
    base = [_document("VirtualMachine", "web", machine)] if kind.startswith("VirtualMachine") else []
    if kind == "VirtualMachineRestore":
        base.append(_document("VirtualMachineSnapshot", "before", "virtualMachine: web"))
    loop = Loop(machine_for(_decoded(base)))
    loop.converge(_decoded(base))
    loop.resources = _decoded([*base, _document(kind, "one", least.get(kind, ""))])
    assert [str(step.ref) for step in loop.plan().steps] == [f"{kind}/one"]


def _document(kind: str, name: str, spec: str) -> str:
    return f"---\napiVersion: {API_VERSION}\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"


def _decoded(documents: list[str]) -> dict[Ref, Resource]:
    if not documents:
        return {}
    found = decode_file("".join(documents).encode(), "one.yaml", Source(), SPECS)
    assert not found.problems
    return {resource.ref: resource for resource in found.resources}


@pytest.mark.parametrize("kind", CONTROLLERS)
def test_each_kind_has_an_example(kind: str) -> None:
    assert any(ref.kind == kind for folder in EXAMPLES for ref in resources_in(folder))


def test_kinds_have_names_that_differ() -> None:
    """Each kind is called by its name, its plural and its short name, in any case."""
    for kind, controller in CONTROLLERS.items():
        for word in (kind, controller.PLURAL, controller.SHORT, kind.lower(), controller.SHORT.upper()):
            assert kind_called(word) == kind
    assert kind_called("nothing") is None


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)
def test_examples_plan_and_converge(folder: Path) -> None:
    """Every file in specs/ is valid; a directory of them is reached, and then there is nothing to do."""
    resources = resources_in(folder)
    loop = Loop(machine_for(resources))
    loop.converge(resources)
    fresh = loop.fresh_plan()
    assert fresh.empty
    assert [str(ref) for ref, item in fresh.objects.items() if not item.ready] == []
    assert [str(hold.ref) for hold in fresh.holds] == []


def test_examples_name_no_object_twice() -> None:
    """All of them can be used together."""
    names = [ref for folder in EXAMPLES for ref in resources_in(folder)]
    assert len(names) == len(set(names))
    together = {ref: resource for folder in EXAMPLES for ref, resource in resources_in(folder).items()}
    loop = Loop(machine_for(together))
    plan = loop.converge(together)[-1]
    conflicts = [str(ref) for ref, item in plan.objects.items() if item.condition("Conflict")]
    assert conflicts == []


# ----------------------------------------------------------------------------------------- declarations


@pytest.mark.parametrize(("kind", "leaf"), NODES)
def test_each_node_of_a_spec_is_declared_whole(kind: str, leaf: Leaf) -> None:
    """Description for each; example and update class for each leaf."""
    assert leaf.about, "no description"
    if leaf.leaf:
        assert leaf.update is not None, "no update class"
        assert leaf.example is not None, "no example"


MINIMAL: dict[str, dict[str, Any]] = {
    "VirtualMachine": {"memory": {"guest": "1Gi"}},
    "VirtualMachine.disks": {"name": "root", "path": "/x", "format": "raw"},
    "VirtualMachine.interfaces": {"name": "net0", "user": {}},
    "VirtualMachine.filesystems": {"name": "data", "path": "/srv/data"},
    "VirtualMachine.hostDevices": {"name": "gpu", "pci": "0000:01:00.0"},
    "VirtualMachine.interfaces.direct": {"device": "eno1"},
    "VirtualMachine.interfaces.bandwidth.inbound": {"average": "1M"},
    "VirtualMachine.interfaces.bandwidth.outbound": {"average": "1M"},
    "VirtualMachine.interfaces.user.portForward": {"host": 1, "guest": 1},
    "VirtualMachine.devices.serial": {"name": "console"},
    "VirtualMachine.firmware": {"type": "efi"},
    "VirtualMachine.kernelBoot": {"kernel": {"path": "/x"}},
    "VirtualMachine.kernelBoot.initrd": {"path": "/x"},
    "VirtualMachine.install.from.kernelBoot": {"kernel": {"path": "/x"}},
    "VirtualMachine.install.from.kernelBoot.kernel": {"path": "/x"},
    "VirtualMachine.install.from.kernelBoot.initrd": {"path": "/x"},
    "VirtualMachine.disks.media": {"path": "/x"},
    "VirtualMachine.cpu.topology": {"sockets": 1, "cores": 1},
    "VirtualMachine.cpu.features": {"name": "aes"},
    "Network.forward.nat.addresses": {"start": "198.51.100.1", "end": "198.51.100.4"},
    "Network.forward.nat.ports": {"start": 1, "end": 65535},
    "Network.dns.hosts": {"ip": "192.168.122.7", "names": ["printer"]},
    "Network.dns.txt": {"name": "a", "value": "b"},
    "Network.dns.srv": {"service": "ldap", "protocol": "tcp", "target": "a.example"},
    "Network.bandwidth.inbound": {"average": "1k"},
    "Network.bandwidth.outbound": {"average": "1k"},
    "Network.portgroups": {"name": "slow"},
    "Network.portgroups.bandwidth.inbound": {"average": "1k"},
    "Network.portgroups.bandwidth.outbound": {"average": "1k"},
    "Network.routes": {"to": "10.20.0.0/16", "via": "192.168.122.2"},
    "Network.ips.dhcp.bootp": {"file": "pxelinux.0"},
    "Network.ips": {"address": "192.168.122.1/24"},
    "VirtualMachine.install": {"from": {"path": "/var/lib/libvirt/images/a.iso"}},
    "VirtualMachine.dependsOn": {"kind": "VirtualMachine", "name": "db"},
    "VirtualMachine.updatePolicy.window": {"schedule": "0 3 * * sun", "duration": "2h"},
    "Network.ips.dhcp.ranges": {"start": "192.168.122.2", "end": "192.168.122.254"},
    "Network.ips.dhcp.hosts": {"mac": "52:54:00:00:00:01", "ip": "192.168.122.3"},
    "Bridge.uplinks": {"name": "eno1"},
    "Vlan": {"parent": "eno1", "id": 100},
    "Vxlan": {"id": 42, "parent": "eno1"},
    "Tun.routes": {"to": "10.20.0.0/16"},
    "Image": {"source": {"url": "https://a.example/b"}, "format": "raw"},
    "VirtualMachineSnapshot": {"virtualMachine": "web"},
    "VirtualMachineRestore": {"virtualMachine": "web", "snapshot": "before"},
    "Image.checksumFrom": {"url": "https://a.example/SHA256SUMS"},
    "StoragePool": {"path": "/x"},
    "Volume": {"capacity": "1Gi"},
    "Volume.from": {"image": "base"},
}
# Of these exactly one stands.
EXCLUSIVE = {
    "Image.source": ("url", "path"),
    "Image.checksumFrom": ("url", "path"),
    "VirtualMachine.hostDevices": ("pci", "usb"),
    "VirtualMachine.kernelBoot.kernel": ("path", "image"),
    "VirtualMachine.kernelBoot.initrd": ("path", "image"),
    "VirtualMachine.install.from": ("path", "image"),
    "VirtualMachine.install.from.kernelBoot.kernel": ("path", "image"),
    "VirtualMachine.install.from.kernelBoot.initrd": ("path", "image"),
    "VirtualMachine.disks.media": ("path", "image", "volume", "url", "access"),
}
# The parts of a login; a URL of https knows them all.
LOGINS = ("authFrom", "cookiesFrom", "tls")
# What an example needs beside it to make sense.
BESIDE: dict[str, dict[str, Any]] = {
    "VirtualMachine.spec.cpu.vcpus": {"maxVcpus": 4},
    "VirtualMachine.spec.cpu.topology.sockets": {"cores": 1},
    "VirtualMachine.spec.memory.guest": {"maxGuest": "8Gi"},
    "VirtualMachine.spec.disks.ioTune.iopsSize": {"total": {"iops": 500}},
    "VirtualMachine.spec.interfaces.queues": {"network": "default"},
    **{
        f"VirtualMachine.spec.disks.ioTune.{way}.{word}Burst{more}": {word: 1, f"{word}Burst": 10}
        for way in ("total", "read", "write")
        for word in ("bytes", "iops")
        for more in ("", "Seconds")
    },
    **{f"VirtualMachine.spec.interfaces.bandwidth.{way}.peak": {"burst": "512Ki"} for way in ("inbound", "outbound")},
    "Bridge.spec.addresses.static": {"from": "Static"},
    "Network.spec.domain.localOnly": {"name": "lab.example"},
    "VirtualMachine.spec.disks.image": {"readOnly": True},
    "VirtualMachine.spec.disks.url": {"format": "raw"},
    "VirtualMachine.spec.disks.access": {"format": "raw", "url": "nbd://a.example"},
    "VirtualMachine.spec.disks.media.access": {"url": "https://a.example/b.iso"},
    "Bridge.spec.addresses.gateway": {"from": "Static", "static": ["10.0.0.1/24"]},
}


def spec_with(kind: str, leaf: Leaf) -> dict[str, Any]:
    """A spec that writes the leaf's example where it belongs, and little else."""
    parts = leaf.path.split(".")[1:]
    spec = dict(MINIMAL.get(kind, {}))
    node: Any = spec
    trail = kind
    for part in parts[:-1]:
        name = part.removesuffix("[]")
        trail = f"{trail}.{name}"
        inner = dict(MINIMAL.get(trail, {}))
        node[name] = [inner] if part.endswith("[]") else {**node.get(name, {}), **inner}
        node = node[name][0] if part.endswith("[]") else node[name]
    _fit(node, trail, parts[-1], spec)
    _fit_tuning(trail, parts[-1], spec)
    node |= BESIDE.get(f"{kind}.{leaf.path.replace('[]', '')}", {})
    node[parts[-1]] = leaf.example
    return spec


def _fit_tuning(trail: str, name: str, spec: dict[str, Any]) -> None:
    """What a tuned leaf needs elsewhere."""
    tuned = trail == "VirtualMachine.interfaces" and name in ("queues", "portgroup")
    if tuned or trail.startswith("VirtualMachine.interfaces.bandwidth"):
        spec["interfaces"][0].pop("user", None)
        spec["interfaces"][0]["network"] = "default"
    if trail == "VirtualMachine.cpu.features":
        spec["cpu"]["model"] = "host-model"


def _fit(node: dict[str, Any], trail: str, name: str, spec: dict[str, Any]) -> None:
    """Take away what excludes the leaf, and add what it needs."""
    if trail == "Tap.port":
        spec["bridge"] = "br0"
    if trail == "Network.ips.dhcp.bootp":
        spec["ips"][0]["dhcp"]["ranges"] = [MINIMAL["Network.ips.dhcp.ranges"]]
    if trail == "Network.routes":
        spec["ips"] = [{"address": "192.168.122.1/24"}]
    if trail == "Network.ips.dhcp.hosts" and name == "id":
        node.pop("mac")
        node["ip"], spec["ips"][0]["address"] = "fd00::3", "fd00::1/64"
    if trail == "VirtualMachine.interfaces" and name in ("network", "bridge", "tap", "ip", "direct"):
        node.pop("user", None)
        node |= {"network": "default"} if name == "ip" else {}
    if trail.startswith("VirtualMachine.disks"):
        _fit_disk(node, trail, name, spec)
    if trail == "VirtualMachine.interfaces.direct":
        spec["interfaces"][0].pop("user", None)
    if name in EXCLUSIVE.get(trail, ()):
        for other in EXCLUSIVE[trail]:
            node.pop(other, None)
    if trail == "VirtualMachine.updatePolicy.window":
        spec["updatePolicy"]["restart"] = "Window"
    if trail == "VirtualMachine.cpu.topology":
        topology = {"sockets": 1, "cores": 1, "threads": 1}
        spec["cpu"] |= {"vcpus": 1, "maxVcpus": 4 if name == "cores" else 1, "topology": node}
        node |= {key: value for key, value in topology.items() if key != name}


def _fit_disk(node: dict[str, Any], trail: str, name: str, spec: dict[str, Any]) -> None:
    """The same for a leaf of a disk or its medium."""
    disk = spec["disks"][0]
    if trail.startswith("VirtualMachine.disks.media") or (trail == "VirtualMachine.disks" and name == "device"):
        disk["device"] = "cdrom"
        disk.pop("path", None)
        disk.pop("format", None)
    if trail.rpartition(".")[2] in LOGINS:
        _fit_login(node, trail.rpartition(".")[2], name, disk)
    if (trail, name) == ("VirtualMachine.disks", "ioThread"):
        spec["ioThreads"] = 1
    if trail == "VirtualMachine.disks" and name in ("volume", "image", "url", "access"):
        node.clear()
        node["name"] = "root"


def _fit_login(node: dict[str, Any], login: str, name: str, disk: dict[str, Any]) -> None:
    """A server to log in to, and the other half of a login."""
    spoken = disk.get("media", disk)
    spoken.pop("path", None)
    spoken["url"] = "https://a.example/b.iso"
    node |= {"user": "backup"} if login == "authFrom" else {}
    node |= {"file": "/etc/kvmd/secrets/x"} if name == "user" else {}
    disk |= {} if disk is not spoken else {"readOnly": True}


@pytest.mark.parametrize(("kind", "leaf"), [node for node in NODES if node.values[1].leaf])  # type: ignore[union-attr]
def test_each_example_is_valid(kind: str, leaf: Leaf) -> None:
    """What `kvmd explain` shows can be copied."""
    text = document(kind, "one", spec_with(kind, leaf))

    assert Ref(kind, "one") in decoded([text])


def test_metadata_is_declared_whole() -> None:
    for name, field in Metadata.model_fields.items():
        assert field.description, name
        assert field.examples, name


# ------------------------------------------------------------------------------------------------- xml


def states() -> list[tuple[ModuleType, type]]:
    """Every dataclass with fields that stand in XML."""
    names = ["kvmd.kinds.network"]
    names += [f"kvmd.kinds.virtual_machine.{name}" for name in ("domain", "filesystems", "host_devices")]
    found = []
    for module in map(import_module, names):
        for value in vars(module).values():
            if isinstance(value, type) and is_dataclass(value) and value.__module__ == module.__name__:
                found.append((module, value))
    return found


PLACES = [
    pytest.param(
        item.metadata["xml"], id=f"{state.__module__.removeprefix('kvmd.kinds.')}.{state.__name__}.{item.name}"
    )
    for _, state in states()
    for item in fields(state)
    if "xml" in item.metadata
]


def test_each_place_in_xml_is_read_and_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A field that no spec of ours ever reaches is a field that nobody tests."""

    assert len(PLACES) >= 25
    read: set[int] = set()
    written: set[int] = set()
    places = {id(param.values[0]): param.id for param in PLACES}

    def reading(cls: type, root: Any, **given: Any) -> Any:
        read.update(id(item.metadata["xml"]) for item in fields(cls) if "xml" in item.metadata)
        return original_read(cls, root, **given)

    def writing(state: Any, root: Any, only: Any = lambda path: True) -> None:
        for item in fields(state):
            place, path = item.metadata.get("xml"), item.metadata.get("path")
            if place is not None and only(path) and place.get(root) != getattr(state, item.name):
                written.add(id(place))
        original_write(state, root, only)

    original_read, original_write = xmlmap.read, xmlmap.write
    monkeypatch.setattr(xmlmap, "read", reading)
    monkeypatch.setattr(xmlmap, "write", writing)
    for seed in range(60):
        names = Names()
        documents = [network(0, Chance(seed), names), machine(0, Chance(seed), names)]
        resources = decoded(documents)
        Loop(machine_for(resources)).converge(resources)
    assert sorted(places[place] for place in places.keys() - read) == []
    assert sorted(places[place] for place in places.keys() - written) == []


# ---------------------------------------------------------------------------------------------- the code


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_nothing_is_long(path: Path) -> None:
    """What does not fit on a screen is not read."""
    text = path.read_text()
    assert len(text.splitlines()) <= MOST_LINES_OF_A_FILE
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    long = {f.name: n for f in functions if (n := (f.end_lineno or 0) - f.lineno + 1) > MOST_LINES_OF_A_FUNCTION}
    assert long == {}


def test_imports_point_down() -> None:
    """The contracts of pyproject.toml."""
    linter = Path(sys.executable).parent / "lint-imports"
    if not linter.exists():
        pytest.skip("import-linter is not installed: pip install -r requirements/test.txt")
    done = subprocess.run([linter], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


def test_planning_needs_nothing_but_its_arguments() -> None:
    """The same arguments, another process, another hash seed: the same plan."""
    program = (
        "import sys, json; sys.path[:0] = ['tests', '.']\n"
        "from casework import EXAMPLES, resources_in\nfrom generators import machine_for\n"
        "from simulator import Loop\n"
        "resources = {r: s for f in EXAMPLES for r, s in resources_in(f).items()}\n"
        "loop = Loop(machine_for(resources)); loop.resources = resources\n"
        "print(json.dumps(loop.plan().as_data()))\n"
    )
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    told = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env={"PYTHONHASHSEED": other, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    resources = {ref: item for folder in EXAMPLES for ref, item in resources_in(folder).items()}
    loop = Loop(machine_for(resources))
    loop.resources = resources
    assert json.dumps(loop.plan().as_data()) == told.strip()


def test_an_empty_world_plans_nothing() -> None:
    loop = Loop(machine_for())
    assert loop.plan().empty
    assert Desired().complete
