"""Every XML that kvmd writes, judged by libvirt's own RelaxNG schemas (in Debian's package libvirt0)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
from casework import EXAMPLES, resources_in, resources_of
from generators import Document, decoded
from hypothesis import HealthCheck, given, settings
from lxml import etree
from simulator import Loop
from worlds import machine_for, worlds

from kvmd import ops
from kvmd.api.resource import Ref, Resource
from kvmd.errors import Retry

SCHEMAS = Path("/usr/share/libvirt/schemas")
DEVICE_OF = (
    "<domain type='qemu'><name>any</name><memory>1</memory><os><type>hvm</type></os><devices>{}</devices></domain>"
)
pytestmark = pytest.mark.skipif(
    not (SCHEMAS / "domain.rng").exists(), reason=f"no {SCHEMAS}/domain.rng: apt-get install libvirt0"
)


@cache
def schema(name: str) -> etree.RelaxNG:
    return etree.RelaxNG(etree.parse(str(SCHEMAS / f"{name}.rng")))


def judge(name: str, xml: str) -> None:
    judged = schema(name)
    assert judged.validate(etree.fromstring(xml)), f"{judged.error_log.last_error}\n{xml}"


def judge_all(executed: list[ops.Op]) -> int:
    """Judge what was written; how many documents that was."""
    count = 0
    for operation in executed:
        match operation:
            case ops.DomainDefine(xml=xml):
                judge("domain", xml)
            case ops.NetworkDefine(xml=xml):
                judge("network", xml)
            case ops.SnapshotTake(xml=xml):
                judge("domainsnapshot", xml)
            case ops.DomainUpdateDevice(xml=xml) | ops.DomainDetach(xml=xml) | ops.DomainRequestMemory(xml=xml):
                judge("domain", DEVICE_OF.format(xml))
            case _:
                continue
        count += 1
    return count


def written_by(*wished: Mapping[Ref, Resource]) -> list[ops.Op]:
    """Everything that is done to reach these specs, one after the other."""
    machine = machine_for(*wished)
    loop = Loop(machine)
    for resources in wished:
        loop.converge(resources)
    return machine.executed


def test_what_is_written_for_generated_specs() -> None:
    """New definitions, and overlays from one spec to another."""
    count = 0

    @settings(
        max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(worlds(1), worlds(1))
    def run(first: list[Document], second: list[Document]) -> None:
        nonlocal count
        count += judge_all(written_by(decoded(first), decoded(second)))

    run()
    assert count >= 60


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)
def test_what_is_written_for_the_examples(folder: Path) -> None:
    assert judge_all(written_by(resources_in(folder))) > 1


def test_the_login_of_ceph(tmp_path: Path) -> None:
    """The disk names a secret of type ceph, and libvirt is lent the key itself, not its base64."""
    folder = Path(__file__).parents[1] / "cases" / "VirtualMachine" / "login-of-ceph-nothing-to-do"
    written = written_by(resources_of((folder / "desired.yaml").read_text(), "ceph.yaml"))
    (define,) = (item for item in written if isinstance(item, ops.DomainDefine))
    judge("domain", define.xml)
    secret = etree.fromstring(define.xml).find("devices/disk/source/auth/secret")
    assert dict(secret.attrib) == {"type": "ceph", "usage": "kvmd:%2Fetc%2Fkvmd%2Fsecrets%2Fceph"}
    key = tmp_path / "key"
    key.write_text("AQBjZXBoeC1rZXk=\n")
    keys = pytest.importorskip("kvmd.host.libvirtd.disk_keys")
    assert keys.value_of("ceph", str(key)) == b"\x01\x00cephx-key"
    judge("secret", keys.definition("ceph", str(key), "c0ffee00-0000-4000-8000-000000000001"))
    key.write_text("not a key!\n")
    with pytest.raises(Retry, match="no key of Ceph") as error:
        keys.value_of("ceph", str(key))
    assert "not a key!" not in str(error.value)


def test_the_judge_is_strict() -> None:
    """What libvirt ignores in silence, the schema does not."""
    with pytest.raises(AssertionError, match="vcpus"):
        judge("domain", DEVICE_OF.format("").replace("<os>", "<vcpus>2</vcpus><os>"))
