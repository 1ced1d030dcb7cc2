"""Specs as users might write them, for tests that want many: every field, every kind, names that fit together.

Hypothesis draws which objects there are, and a seed for each; the seed draws its fields. Drawing every field would
be seven times as slow, and a failure shrinks to few objects either way.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from simulator import Machine

from kvmd.api.resource import API_VERSION, Ref, Resource
from kvmd.kinds import CONTROLLERS
from kvmd.observed import Key, Link, Pool, Secret
from kvmd.plan.model import SecretUser
from kvmd.settings import Source
from kvmd.sources.decode import decode_file

Document = dict[str, Any]
SPECS = {kind: controller.Spec for kind, controller in CONTROLLERS.items()}
UPLINKS = ("eno1", "eno2")


def document(kind: str, name: str, spec: Mapping[str, Any], **metadata: Any) -> Document:
    """A document as a file holds it."""
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name, **metadata}, "spec": dict(spec)}


def decoded(documents: Sequence[Document], file: str = "specs.yaml") -> dict[Ref, Resource]:
    """The resources of documents, through the real reader; a fault in one is a failure."""
    if not documents:
        return {}
    text = "\n---\n".join(json.dumps(item) for item in documents)
    found = decode_file(text.encode(), file, Source(), SPECS)
    assert not found.problems, "\n".join(str(problem) for problem in found.problems)
    return {resource.ref: resource for resource in found.resources}


class Chance(random.Random):
    """Random choices of fields."""

    def fields(self, **values: Sequence[Any]) -> dict[str, Any]:
        """Each field left out, or with one of its values."""
        return {name: self.choice(found) for name, found in values.items() if self.random() < 0.5}

    def some(self, values: Sequence[Any], most: int) -> list[Any]:
        """A few of the values, in any order."""
        return self.sample(values, self.randint(0, min(most, len(values))))


@dataclass
class Names:
    """What the objects of one world may name."""

    several: set[str] = field(default_factory=set)  # of taps: those with more than one queue
    groups: dict[str, list[str]] = field(default_factory=dict)  # of networks
    uplinks: list[str] = field(default_factory=lambda: list(UPLINKS))
    bridges: list[str] = field(default_factory=list)
    networks: list[str] = field(default_factory=list)
    taps: list[str] = field(default_factory=list)  # each for one NIC
    images: list[str] = field(default_factory=list)
    pools: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)  # each for one disk


_DELETION = ("Delete", "Orphan")
_OWNERS = ("root", "libvirt-qemu", 1000, None)


def bridge(number: int, chance: Chance, names: Names) -> Document:
    """A bridge with addresses of its own."""
    spec = chance.fields(
        stp=(True, False), mtu=(1400, 1500, 9000, None), forwardDelaySeconds=(2, 15, None), deletionPolicy=_DELETION
    )
    spec |= chance.fields(
        mac=(f"02:00:00:00:01:{number:02X}",),
        priority=(0, 32768, None),
        helloTimeSeconds=(1, None),
        ageingTimeSeconds=(0, 300, None),
        groupForwardMask=(16384, None),
        multicastSnooping=(True, None),
    )
    if names.uplinks and chance.random() < 0.5:
        spec["uplinks"] = [
            {"name": names.uplinks.pop(), **chance.fields(cost=(7, None), isolated=(True, False, None))}
        ]
    addresses = [f"10.{number}.0.1/24", f"10.{number}.1.1/16", f"FD00:{number}::1/64", f"fe80::{number}/64"]
    static = chance.some(addresses, 3)
    if static:
        spec["addresses"] = {"from": "Static", "static": static}
    elif chance.random() < 0.5:
        spec["addresses"] = {"from": "None"}
    names.bridges.append(f"br{number}")
    return document("Bridge", f"br{number}", spec)


def tap(number: int, chance: Chance, names: Names) -> Document:
    """A TAP, perhaps on a bridge."""
    spec = chance.fields(
        owner=_OWNERS,
        group=("kvm", None),
        multiQueue=(True, False),
        mtu=(1400, None),
        mac=(f"FE:54:00:00:00:{number:x}",),
        vnetHdr=(True, False),
        deletionPolicy=_DELETION,
        **({"bridge": names.bridges} if names.bridges else {}),
    )
    names.taps.append(f"tap{number}")
    names.several |= {f"tap{number}"} if spec.get("multiQueue") else set()
    return document("Tap", f"tap{number}", spec)


def tun(number: int, chance: Chance, names: Names) -> Document:
    """A TUN with addresses and routes."""
    routes = [
        {"to": f"10.{20 + number}.0.0/16"},
        {"to": f"10.{40 + number}.0.0/16", "metric": 7, "via": f"10.9.{number}.2"},
        {"to": f"FD0{number}::/64"},
    ]
    spec = chance.fields(owner=_OWNERS, mtu=(1400, None), deletionPolicy=_DELETION)
    spec["addresses"] = chance.some([f"10.9.{number}.1/30", f"FD09:{number}::1/64"], 2)
    spec["routes"] = chance.some(routes, 3)
    return document("Tun", f"tun{number}", spec)


def network(number: int, chance: Chance, names: Names) -> Document:
    """A network of libvirt."""
    prefix = f"192.168.{100 + number}"
    lease = [{}, {"lease": "12h"}, {"lease": "120s"}]
    dhcp = chance.fields(
        ranges=[[{"start": f"{prefix}.100", "end": f"{prefix}.199"} | item] for item in lease],
        hosts=[
            [{"mac": f"52:54:00:AA:00:0{number}", "ip": f"{prefix}.9", "name": "printer"} | item] for item in lease
        ],
        bootp=({"file": "pxelinux.0"}, {"file": "pxelinux.0", "server": f"{prefix}.7"}, None),
    )
    if not dhcp.get("ranges") and not dhcp.get("hosts"):
        dhcp.pop("bootp", None)
    four: dict[str, Any] = {"address": f"{prefix}.1/24"} | ({"dhcp": dhcp} if dhcp else {})
    six: dict[str, Any] = {"address": f"FD00:{100 + number}::1/64"}
    six |= chance.fields(dhcp=({"hosts": [{"name": "six", "ip": f"fd00:{100 + number}::6"}]}, {}))
    ips = chance.some([four, six, {"address": f"172.16.{number}.1/24"}], 3)
    nat = {"addresses": {"start": "198.51.100.1", "end": "198.51.100.4"}, "ports": {"start": 2000, "end": 3000}}
    limit = {"average": "1M", "peak": "5M", "burst": "512Ki"}
    forwards = [{"mode": mode} for mode in ("nat", "isolated", "route", "open")]
    forwards += [
        {"mode": "nat", "nat": {"ipv6": True}, "device": "eno1"},
        {"nat": nat},
        {"mode": "route", "device": "eno1"},
    ]
    spec = chance.fields(
        forward=forwards,
        domain=({"name": "lab.example"}, {"name": None}, {"name": "lab.example", "localOnly": True}),
        dns=(
            {"enable": False},
            {"forwardPlainNames": False, "forwarders": [{"address": "9.9.9.9"}, {"domain": "corp.example"}]},
            {"hosts": [{"ip": f"{prefix}.7", "names": ["lp", "printer"]}], "txt": [{"name": "a", "value": "b c"}]},
            {"srv": [{"service": "ldap", "protocol": "tcp"}, {"service": "sip", "protocol": "udp", "target": "x.y"}]},
        ),
        bandwidth=({"inbound": limit}, {"outbound": {"average": "10k"}}, {}),
        portgroups=([{"name": "fast", "default": True}], [{"name": "slow", "bandwidth": {"inbound": limit}}], []),
        disruptionPolicy=("Wait", "Replug"),
        mtu=(1400, 1500, None),
        deletionPolicy=_DELETION,
        bridge=(
            {"name": f"virbr-t{number}"},
            {"stp": True, "forwardDelaySeconds": 4},
            {"name": f"virbr-t{number}", "stp": False},
        ),
    )
    if four in ips:
        spec |= chance.fields(routes=([{"to": f"10.{60 + number}.0.0/16", "via": f"{prefix}.2", "metric": 3}], []))
    spec |= {} if ips else {"forward": {"mode": "isolated"}}
    names.networks.append(f"net{number}")
    names.groups[f"net{number}"] = [group["name"] for group in spec.get("portgroups", ())]
    return document("Network", f"net{number}", spec | ({"ips": ips} if ips or chance.random() < 0.5 else {}))


def image(number: int, chance: Chance, names: Names) -> Document:
    """An image."""
    base = f"https://cloud.example/image{number}"
    spec: dict[str, Any] = {"format": chance.choice(("qcow2", "raw"))}
    spec["source"] = chance.choice(({"url": f"{base}.img"}, {"path": f"/var/lib/kvmd/iso/{number}.iso"}))
    checks: list[dict[str, Any]] = [
        {},
        {"checksum": "sha256:" + "0A" * 32},
        {"checksumFrom": {"url": f"{base}.SHA256SUMS"}},
        {"checksumFrom": {"path": "/var/lib/kvmd/iso/SHA512SUMS"}},
    ]
    spec |= chance.choice(checks) | chance.fields(deletionPolicy=_DELETION)
    names.images.append(f"image{number}")
    return document("Image", f"image{number}", spec)


def pool(number: int, chance: Chance, names: Names) -> Document:
    """A storage pool."""
    spec = {"path": f"/var/lib/libvirt/pool{number}"}
    spec |= chance.fields(type=("dir",), nameOnHost=(f"Pool_{number}",), deletionPolicy=_DELETION)
    names.pools.append(f"pool{number}")
    return document("StoragePool", f"pool{number}", spec)


def volume(number: int, chance: Chance, names: Names) -> Document:
    """A volume in one of the pools, blank or from one of the images."""
    spec: dict[str, Any] = {"pool": chance.choice(names.pools or ["default"])}
    spec |= chance.fields(reclaimPolicy=("Retain", "Delete"), nameOnHost=(f"Disk_{number}.img",))
    format = chance.choice(("qcow2", "raw"))
    spec |= {} if format == "qcow2" and chance.random() < 0.5 else {"format": format}
    if names.images and chance.random() < 0.5:
        modes = ("Full", None) if format == "raw" else ("Overlay", "Full", None)
        spec["from"] = {"image": chance.choice(names.images)} | chance.fields(copy=modes)
        spec |= chance.fields(capacity=("4Gi", "8Gi", None))
    else:
        spec["capacity"] = chance.choice(("4Gi", "8Gi"))
    names.volumes.append(f"volume{number}")
    return document("Volume", f"volume{number}", spec)


def _shared(number: int, chance: Chance) -> dict[str, Any]:
    """What a machine has of its host: folders and devices."""
    share: dict[str, Any] = {"path": f"/srv/share{number}"} | chance.fields(tag=("work", None))
    # libvirt 9 refuses readOnly for virtiofs.
    share |= chance.choice(({}, {"type": "virtiofs"}, {"type": "9p", "readOnly": chance.random() < 0.5}))
    devices = [{"pci": f"0000:{number % 200:02x}:00.0"}, {"usb": f"046d:{number:04x}"}]
    return chance.fields(
        filesystems=[[{"name": "data"} | share], []],
        hostDevices=[[{"name": "gift"} | device] for device in devices],
    )


def machine(number: int, chance: Chance, names: Names) -> Document:
    """A virtual machine; over many of them every field is written."""
    orders = itertools.count(1)
    kind = chance.choice(("q35", "pc", "pc-q35-7.2"))
    memory = {"guest": chance.choice(("256Mi", "512Mi", "1Gi"))}
    memory |= chance.fields(
        maxGuest=("1Gi", "2Gi"), hotplug=("Balloon", "VirtioMem", "Dimm"), hugepages=({"size": "2Mi"}, None)
    )
    boots: list[Any] = [
        None,
        {"kernel": {"path": "/boot/vmlinuz"}},
        {"kernel": {"path": "/boot/vmlinuz"}, "initrd": {"path": "/boot/initrd"}, "args": ""},
        {"kernel": {"path": "/boot/vmlinuz"}, "initrd": None, "args": 'console=ttyS0 a="b" <&>'},
    ]
    spec = {"memory": memory} | chance.fields(
        runStrategy=("Always", "RerunOnFailure", "Once", "Manual", "Halted"),
        accelerator=("auto", "tcg", None),
        cpu=[_cpu(chance)],
        ioThreads=(2, 3),
        kernelBoot=boots,
        firmware=[
            {},
            {"type": "efi"},
            {"type": "efi", "secureBoot": "q35" in kind},
            {"type": "bios", "nvram": {"reclaimPolicy": "Delete"}},
            None,
        ],
        shutdown=[
            chance.fields(
                methods=(["acpi"], ["agent", "acpi"]), timeoutSeconds=(20,), forceAfterTimeout=(True, False)
            ),
            {"timeouts": {"agent": 30, "acpi": 90}},
        ],
        updatePolicy=[{"restart": word} for word in ("Never", "Manual", "Automatic")],
        driftPolicy=("Correct", "Report", "Ignore"),
        deletionPolicy=_DELETION,
        cloudInit=[_cloud_init(chance)],
    )
    spec |= {} if kind == "q35" and chance.random() < 0.5 else {"machine": kind}
    spec["disks"] = list(_disks(f"vm{number}", spec, chance, orders))
    _use_objects(spec, chance, names)
    spec["interfaces"] = list(_interfaces(number, chance, names, orders))
    consoles = chance.some(["console", "second"], 2)
    serial = [{"name": name} | chance.fields(file=(f"/var/log/vm{number}-{name}.log",)) for name in consoles]
    devices = {"serial": serial} if serial else {}
    devices |= chance.fields(
        rng=(True, False),
        guestAgent=(True, False),
        tablet=(True, False),
        sound=("ich9", "ac97", None),
        graphics=[
            chance.fields(
                type=("vnc", "spice"),
                listen=("127.0.0.1", "::1", "socket"),
                passwordFrom=({"file": "/etc/kvmd/secrets/screen"}, {"systemdCredential": "screen"}, None),
            ),
            None,
        ],
        video=[{"model": model} for model in ("vga", "virtio", "none", "cirrus")],
        balloon=[
            chance.fields(model=("virtio", "virtio-non-transitional"), statsPeriodSeconds=(5, None)),
            {"freePageReporting": True} | chance.fields(statsPeriodSeconds=(5, 9)),
            {"model": "none"},
            None,
        ],
        watchdog=[chance.fields(model=("i6300esb", "ib700"), action=("reset", "poweroff", "none")), None],
        tpm=[{}, {"model": "tpm-tis"}, {"model": "tpm-tis", "version": "1.2"}, {"version": "2.0"}, None],
    )
    spec |= {"devices": devices} if devices else {}
    spec |= _shared(number, chance)
    annotations = chance.fields(
        **{"kvmd.dev/restarted-at": ("then", "now"), "kvmd.dev/prune": ("enabled", "disabled", "confirm")}
    )
    return document("VirtualMachine", f"vm{number}", spec, **({"annotations": annotations} if annotations else {}))


def _cloud_init(chance: Chance) -> dict[str, Any]:
    return chance.fields(
        userData=("#cloud-config\npassword: secret\n", "#!/bin/sh\n"),
        metaData=({"local-hostname": "other"}, {}),
        networkConfig=({"version": 2, "ethernets": {"eth0": {"dhcp4": True}}}, None),
        onChange=("Ignore", "NextBoot", "Rerun"),
    )


def _use_objects(spec: dict[str, Any], chance: Chance, names: Names) -> None:
    """Name volumes and images where paths stood."""
    for disk in spec["disks"]:
        if "path" in disk and names.volumes and chance.random() < 0.5:
            del disk["path"], disk["format"]
            disk["volume"] = names.volumes.pop()
        elif disk.get("media") and names.images and chance.random() < 0.5:
            disk["media"] = {"image": chance.choice(names.images)}
        elif disk.get("media") and names.volumes and chance.random() < 0.5:
            disk["media"] = {"volume": names.volumes.pop()}
    boot = spec.get("kernelBoot")
    if boot and names.images and chance.random() < 0.5:
        spec["kernelBoot"] = boot | {"kernel": {"image": chance.choice(names.images)}}
        if boot.get("initrd"):
            spec["kernelBoot"]["initrd"] = {"image": chance.choice(names.images)}


def _cpu(chance: Chance) -> dict[str, Any]:
    vcpus = chance.randint(1, 4)
    cpu = chance.fields(model=("host-model", "maximum", "Nehalem", None))
    cpu |= chance.choice(({}, {"vcpus": vcpus}, {"vcpus": vcpus, "maxVcpus": 4}))
    if cpu.get("model"):
        features = [{"name": "aes"}, {"name": "pae", "policy": "optional"}, {"name": "x2apic", "policy": "disable"}]
        cpu |= chance.fields(features=(features[:2], features[1:], []))
    if chance.random() < 0.25:
        cpu["topology"] = {"sockets": cpu.get("maxVcpus", cpu.get("vcpus", 1)), "cores": 1}
    return cpu


def _io_tune(chance: Chance) -> dict[str, Any]:
    def limit(word: str) -> dict[str, Any]:
        found = {word: 10**6}
        if chance.random() < 0.75:
            found |= {f"{word}Burst": 10**7} | chance.fields(**{f"{word}BurstSeconds": (2, 9)})
        return found

    tune: dict[str, Any] = {}
    for word in ("bytes", "iops"):
        for way in chance.choice((("total",), ("read", "write"), ("read", "write"), ())):
            tune[way] = tune.get(way, {}) | limit(word)
    counted = any("iops" in limit for limit in tune.values())
    return tune | (chance.fields(iopsSize=("4Ki",)) if counted else {})


def _disks(machine: str, spec: Mapping[str, Any], chance: Chance, orders: Iterator[int]) -> Iterator[dict[str, Any]]:
    q35 = "q35" in spec.get("machine", "q35")
    for name in chance.some(["root", "data", "logs", "cd0", "cd1"], 4):
        path = f"/var/lib/libvirt/images/{machine}-{name}.img"
        disk: dict[str, Any] = {"name": name}
        if name.startswith("cd"):
            trays: tuple[dict[str, Any], ...] = (
                {},
                {"media": None},
                {"media": {"path": path}},
                {"media": {"path": "/dev/sr0"}},
                {"media": {"url": f"https://a.example/{name}.iso"}},
                {"media": {"url": f"http://a.example/plain/{name}.iso"}},
                {"media": {"url": "nfs://a.example/srv/a.iso"}},
                {"media": {"url": "iscsi://a.example/iqn.x:y/1", "authFrom": {"user": "web", "file": "/secret"}}},
            )
            disk |= {"device": "cdrom"} | chance.choice(trays)
            disk |= chance.fields(bus=("sata", "scsi", "usb") if disk.get("media") else ("sata", "scsi"))
        else:
            disk |= {"path": path, "format": chance.choice(("raw", "qcow2"))}
            disk |= chance.fields(
                bus=("virtio", "scsi", "sata", "usb", *(() if q35 else ("ide",))),
                readOnly=(False,),
                serial=("root01", "A.b_+-1", None),
                cache=("none", "writeback", "default"),
                discard=("unmap", "ignore", "default"),
                detectZeroes=("on", "unmap", "default"),
                ioTune=(_io_tune(chance), _io_tune(chance), None),
                **({"ioThread": (1, 2, None)} if "ioThreads" in spec else {}),
            )
            if disk.get("bus", "virtio") != "virtio":
                disk.pop("ioThread", None)
            if disk.get("cache") == "none":
                disk |= chance.fields(io=("native", "threads", "default"))
            if disk.get("bus", "virtio") in ("virtio", "scsi", "usb") and chance.random() < 0.5:
                disk["readOnly"] = True
        if chance.random() < 0.25:
            disk["bootOrder"] = next(orders)
        yield disk


def _bandwidth(chance: Chance) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for way in chance.some(("inbound", "outbound"), 2):
        bursts = chance.choice(({}, {"burst": "512Ki"}, {"burst": "512Ki", "peak": "20M"}))
        found[way] = {"average": chance.choice(("10M", "128k"))} | bursts
    return found


def _interfaces(number: int, chance: Chance, names: Names, orders: Iterator[int]) -> Iterator[dict[str, Any]]:
    for name in chance.some(["net0", "net1", "net2"], 3):
        choices: list[dict[str, Any]] = [{"user": {}}]
        choices += [{"bridge": bridge} for bridge in names.bridges]
        choices += [{"network": network} for network in names.networks]
        choices += [{"tap": names.taps[-1]}] if names.taps else []
        nic = {"name": name} | chance.choice(choices)
        if "tap" in nic:
            names.taps.pop()
        nic |= chance.fields(
            mac=(f"52:54:0:0:{number}:{name[-1]}",), model=("virtio", "e1000", "rtl8139"), link=("up", "down")
        )
        if nic.get("tap") in names.several:
            nic |= {"queues": 2, "model": "virtio"}
        if "user" not in nic:
            nic |= chance.fields(bandwidth=(_bandwidth(chance), _bandwidth(chance), None))
            nic |= (
                chance.fields(queues=(2, None)) if nic.get("model", "virtio") == "virtio" and "tap" not in nic else {}
            )
        if groups := names.groups.get(nic.get("network", "")):
            nic |= chance.fields(portgroup=(groups[0], None))
        if "network" in nic and chance.random() < 0.5:
            nic["ip"] = f"192.168.{100 + int(nic['network'][-1])}.{10 + 10 * number + int(name[-1])}"
        if chance.random() < 0.25:
            nic["bootOrder"] = next(orders)
        yield nic


_MAKERS = ((bridge, 2), (tap, 3), (tun, 2), (network, 2), (image, 2), (pool, 2), (volume, 3), (machine, 3))


@st.composite
def worlds(draw: st.DrawFn, machines: int = 0) -> list[Document]:
    """Everything that one directory asks for, with at least that many *machines*."""
    names = Names()
    found: list[Document] = []
    for make, most in _MAKERS:
        least = machines if make is machine else 0
        seeds = draw(st.lists(st.integers(0, 2**32), min_size=least, max_size=most))
        found += [make(number, Chance(seed), names) for number, seed in enumerate(seeds)]
    return found


def furnish(machine: Machine, resource: Resource) -> None:
    """Put there the files and secrets that a spec names."""
    controller = CONTROLLERS[resource.ref.kind]
    machine.add_files(controller.files(resource.spec))
    machine.add_folders(resource.spec)
    for name in controller.secrets(resource.spec) if isinstance(controller, SecretUser) else ():
        machine.facts[Key("secret", name)] = Secret(name, digest="0", password="word")


def machine_for(*wished: Mapping[Ref, Resource]) -> Machine:
    """A host with every file and NIC that the specs name."""
    machine = Machine()
    for number, name in enumerate(UPLINKS):
        machine.add_link(Link(name, 0, "", mac=f"02:00:00:00:00:0{number}", up=True, carrier=True))
    machine.facts[Key("pool", "default")] = Pool("default", "u", "dir", "/var/lib/libvirt/images", active=True)
    for resources in wished:
        for resource in resources.values():
            furnish(machine, resource)
    return machine
