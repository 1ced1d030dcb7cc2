"""Domains that this project did not write: those of libvirt's own tests, from the Debian source package.

They are fetched when the test runs and never committed.
"""

from __future__ import annotations

import difflib
import re
import subprocess
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest
from definitions import Definitions
from simulator import Impossible, Loop

from kvmd.api.mark import XML_NAMESPACE
from kvmd.api.problem import Position
from kvmd.api.resource import Metadata, Resource
from kvmd.daemon.importing import Imported, import_object
from kvmd.errors import KvmdError
from kvmd.kinds import CONTROLLERS
from kvmd.observed import Key
from kvmd.plan.model import Rules

pytestmark = [pytest.mark.libvirt, pytest.mark.root]

CACHE = Path("/var/tmp/kvmd-foreign-domains")
VIRTUAL_MACHINE = CONTROLLERS["VirtualMachine"]


def fetch(cache: Path) -> list[Path]:
    """The normalised domains of the libvirt that this Debian has."""
    kept = cache / "domains"
    if not kept.is_dir():
        cache.mkdir(exist_ok=True)
        for name in ("parts", "lists/partial", "source"):
            (cache / name).mkdir(parents=True, exist_ok=True)
        for number, file in enumerate(_sources()):
            text = re.sub(
                r"(?m)^(Types:\s*)deb\b.*$", r"\1deb-src", re.sub(r"(?m)^deb ", "deb-src ", file.read_text())
            )
            (cache / "parts" / f"{number}{file.suffix}").write_text(text)
        apt = ["apt-get", "-q", "-o", "Dir::Etc::sourcelist=/dev/null", "-o", f"Dir::Etc::sourceparts={cache}/parts"]
        apt += ["-o", f"Dir::State::lists={cache}/lists", "-o", "APT::Sandbox::User=root"]
        subprocess.run([*apt, "update"], check=True, capture_output=True, timeout=240)
        download = [*apt, "source", "--download-only", "libvirt"]
        done = subprocess.run(download, capture_output=True, text=True, timeout=240, cwd=cache / "source")
        # Some mirrors lack the signature beside it; apt has checked what it did fetch against its own signed index.
        source = next((cache / "source").glob("libvirt_*.orig.tar.*[xz]"), None)
        assert source is not None, done.stderr
        kept.mkdir()
        with tarfile.open(source) as archive:
            for member in archive:
                if re.search(r"/tests/qemuxml(2xmlout|conf)data/[^/]+\.xml$", member.name) and member.isfile():
                    stream = archive.extractfile(member)
                    assert stream is not None
                    (kept / Path(member.name).name).write_bytes(stream.read())
    return sorted(kept.glob("*.xml"))


def _sources() -> Iterator[Path]:
    yield from Path("/etc/apt").glob("sources.list")
    yield from Path("/etc/apt/sources.list.d").glob("*.list")
    yield from Path("/etc/apt/sources.list.d").glob("*.sources")


def resource_of(imported: Imported) -> Resource:
    """As the file that was printed would be read."""
    metadata = Metadata.model_validate(imported.document["metadata"])
    spec = imported.document["spec"]
    return Resource(imported.ref, metadata, VIRTUAL_MACHINE.Spec.model_validate(spec), spec, Position("imported"))


def without_mark(text: str) -> list[str]:
    """A definition but for our mark, and the names that we give to devices."""
    root = ElementTree.fromstring(text)
    for device in root.findall("devices/*"):
        for alias in device.findall("alias"):
            if alias.get("name", "").startswith("ua-"):
                device.remove(alias)
    metadata = root.find("metadata")
    for mark in root.findall(f"metadata/{{{XML_NAMESPACE}}}mark"):
        assert metadata is not None
        metadata.remove(mark)
    if metadata is not None and not len(metadata):
        root.remove(metadata)
    # libvirt writes a controller that it added itself in another place each time.
    parts = [*root.findall("devices/*"), *(part for part in root if part.tag != "devices")]
    texts = (ElementTree.tostring(part, encoding="unicode") for part in parts)
    return sorted(ElementTree.canonicalize(text, strip_text=True) for text in texts)


@pytest.mark.timeout(600)
def test_what_others_wrote_is_adopted_as_it_is(definitions: Definitions) -> None:
    """Whatever this libvirt takes is imported; adopting it adds a mark, changes nothing and leaves nothing to do."""
    adopted = 0
    refused: list[str] = []
    changed: list[str] = []
    for file in fetch(CACHE):
        try:
            domain = definitions.define(file.read_text())
        except (Impossible, ElementTree.ParseError):
            continue
        before = without_mark(domain.config or "")
        key = Key("domain", domain.name)
        try:
            imported = import_object(VIRTUAL_MACHINE, key, definitions.observed(), Rules(allowed_paths=("/",)))
        except KvmdError as error:
            refused.append(f"{file.name}: {error}")
        else:
            assert imported is not None
            loop = Loop(definitions)
            resource = resource_of(imported)
            loop.converge({resource.ref: resource})
            assert loop.fresh_plan().empty, file.name
            after = without_mark(getattr(definitions.facts[key], "config", ""))
            changed += [f"{file.name}: {line}" for line in difflib.ndiff(before, after) if line[0] in "+-"]
            adopted += 1
        definitions.forget()
        definitions.facts.pop(key)
    assert not changed, "\n".join(changed)
    print(f"{adopted} adopted; beyond the language: {refused}")
    assert adopted > 100
    assert len(refused) * 50 < adopted, "\n".join(refused)
