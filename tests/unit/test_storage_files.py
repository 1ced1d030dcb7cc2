"""What stands on a file is found under every name; what a guest wrote onto its raw disk is never looked at."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("libvirt")

from kvmd import ops
from kvmd.api.mark import Mark
from kvmd.api.resource import Ref
from kvmd.host.errands import Errands
from kvmd.host.libvirtd.storage_calls import domains_standing_on
from kvmd.host.storage import acts as storage_acts
from kvmd.host.storage import backing, bases
from kvmd.host.storage import facts as storage_facts
from kvmd.host.storage.acts import Storage, StorageActs
from kvmd.host.storage.backing import overlays_on
from kvmd.host.storage.bases import all_under
from kvmd.host.storage.disk_header import read_header
from kvmd.host.storage.facts import StorageFacts
from kvmd.host.storage.images import ImageStore
from kvmd.host.storage.reach import User, barred
from kvmd.host.storage.seeds import Seeds
from kvmd.observed import Fact, Holders, Image, Key, Pool, Volume
from kvmd.settings import Backoff

MARK = Mark("kvmd", Ref("Volume", "data"), "h", written={"pool": "disks", "format": "raw"})


def overlay(path: Path, backing: str, format: str = "qcow2") -> Path:
    """The header of a qcow2 file, version 3, that stands on *backing* (qcow2.txt of QEMU says what is where)."""
    name, word = backing.encode(), format.encode()
    extension = struct.pack(">II", 0xE2792ACA, len(word)) + word.ljust(8, b"\0") + bytes(8) if word else bytes(8)
    fixed = struct.pack(">4sIQIIQ", b"QFI\xfb", 3, 104 + len(extension) if name else 0, len(name), 16, 1 << 20)
    rest = bytes(100 - len(fixed)) + struct.pack(">I", 104)
    path.write_bytes(fixed + rest + extension + name)
    return path


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A pool with an image store beside it, and another name of that."""
    for folder in ("pool", "images", "elsewhere"):
        (tmp_path / folder).mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "images")
    overlay(tmp_path / "images" / "base.qcow2", "")
    return tmp_path


def storage_of(house: Path) -> Storage:
    """The store of that house, with its image."""
    images, seeds = ImageStore(str(house / "images")), Seeds(str(house / "seeds"))
    errands = Errands(Backoff(), lambda: None)
    base = house / "images" / "base.qcow2"
    mark = Mark("kvmd", Ref("Image", "base"), "h", object_id=base.name, written={"format": "qcow2"})
    images.write(Image(base.name, base.name, str(base), "qcow2", base.stat().st_size, 1 << 20, "sha256:0", mark))
    return Storage(images, seeds, StorageFacts(images, seeds, 300.0, errands), errands)


def seen(house: Path) -> dict[Key, Fact]:
    """All facts about that house."""
    libvirt = {Key("pool", "disks"): Pool("disks", "u", "dir", str(house / "pool"), True)}
    return dict(storage_of(house).facts.look(libvirt, {}, {}, ()))


def held(house: Path, facts: dict[Key, Fact]) -> tuple[str, ...]:
    """What stands on the image."""
    found = facts.get(Key("holders", str(house / "images" / "base.qcow2")))
    return found.overlays if isinstance(found, Holders) else ()


class Nobody:
    """A libvirt that has no pools, and no domains but one of that XML."""

    def __init__(self, *texts: str) -> None:
        self._texts = texts

    def call(self, operation: ops.Op, act: Callable[[Any], Any]) -> Any:
        return act(self)

    def getCapabilities(self) -> str:
        label = "<secmodel><model>dac</model><baselabel type='kvm'>+64055:+109</baselabel></secmodel>"
        return f"<capabilities><host>{label}</host></capabilities>"

    def listAllDomains(self, flags: int) -> list[Any]:
        return [self] if self._texts else []

    def name(self) -> str:
        return "web"

    def XMLDesc(self, flags: int) -> str:
        return self._texts[0]

    def listAllStoragePools(self, flags: int) -> list[Any]:
        return []


FORMS: dict[str, Callable[[Path], str]] = {
    "path": lambda house: f"{house}/images/base.qcow2",
    "relative": lambda house: "../images/base.qcow2",
    "crooked": lambda house: ".././pool/..//images/base.qcow2",
    "link": lambda house: f"{house}/alias/base.qcow2",
    "file": lambda house: f"file:{house}/images/base.qcow2",
    "nested": lambda house: (
        f'json:{{"driver": "qcow2", "file": {{"driver": "file", "filename": "{house}/alias/base.qcow2"}}}}'
    ),
    "flat": lambda house: f'json:{{"driver": "qcow2", "file.filename": "file:{house}/images/base.qcow2"}}',
}


@pytest.mark.parametrize("form", FORMS)
def test_what_stands_on_an_image_is_seen_under_every_name(house: Path, form: str) -> None:
    top = overlay(house / "pool" / "top.qcow2", FORMS[form](house))
    assert held(house, seen(house)) == (str(top),)
    assert overlays_on(str(house / "images" / "base.qcow2"), [str(house / "pool")], to_the_bottom=True) == [str(top)]


def test_who_removes_an_image_looks_through_every_chain_to_its_bottom(house: Path) -> None:
    middle = overlay(house / "elsewhere" / "middle", "../images/base.qcow2")
    top = overlay(house / "pool" / "top.qcow2", str(middle))
    assert overlays_on(str(house / "images" / "base.qcow2"), [str(house / "pool")], to_the_bottom=True) == [str(top)]


@pytest.mark.parametrize("backing", ["nbd://127.0.0.1/base.qcow2", "json:{nonsense", "json:[]", "./top.qcow2"])
def test_what_leads_to_no_file_or_to_itself_ends(house: Path, backing: str) -> None:
    overlay(house / "pool" / "top.qcow2", backing)
    assert held(house, seen(house)) == ()


def disk(path: Path, format: str) -> str:
    """A domain with one disk."""
    return (
        f"<domain><devices><disk type='file' device='disk'><driver name='qemu' type='{format}'/>"
        f"<source file='{path}'/></disk></devices></domain>"
    )


def test_the_disk_of_a_domain_outside_of_all_pools_counts_unless_it_is_raw(house: Path) -> None:
    base = str(house / "images" / "base.qcow2")
    top = overlay(house / "elsewhere" / "top", f"{house}/alias/base.qcow2")
    for format, users in (("qcow2", ["web"]), ("raw", [])):
        assert domains_standing_on(Nobody(disk(top, format)), base) == users


def test_no_chain_opens_a_device(house: Path) -> None:
    """A guest may name one that does something when it is opened, such as a watchdog."""
    os.mkfifo(house / "elsewhere" / "pipe")
    top = overlay(house / "elsewhere" / "top", f"{house}/elsewhere/pipe")
    assert list(all_under(str(top))) == [f"{house}/elsewhere/pipe"]
    for path in (f"{house}/elsewhere/pipe", "/dev/null"):
        with pytest.raises(OSError, match="neither a file nor"):
            read_header(path, 0)


def test_a_raw_volume_is_what_its_spec_said_whatever_its_guest_wrote(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = overlay(house / "pool" / "data.raw", f"{house}/images/base.qcow2")
    fact = seen(house)[Key("volume", "disks/data.raw")]
    assert isinstance(fact, Volume) and fact.backing, "a stranger's file is what it looks like"
    for module in (storage_facts, backing):
        monkeypatch.setattr(module, "mark_on", lambda path: MARK if path == str(evil) else None)
    facts = seen(house)
    fact = facts[Key("volume", "disks/data.raw")]
    assert isinstance(fact, Volume)
    assert (fact.format, fact.backing, fact.capacity) == ("raw", "", evil.stat().st_size)
    assert held(house, facts) == ()
    assert overlays_on(f"{house}/images/base.qcow2", [f"{house}/pool"], to_the_bottom=True) == []


def test_no_message_follows_what_a_guest_wrote(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks why QEMU may not open a raw disk is not told of a file that the guest made up."""
    evil = overlay(house / "elsewhere" / "data", "/nowhere/secret", "raw")
    monkeypatch.setattr("kvmd.host.storage.reach._open_to_all", lambda folder: False)
    monkeypatch.setattr(User, "may", lambda self, what, path: "nowhere" not in path)
    assert barred(disk(evil, "raw"), User(65534, 65534)) == ("", "")
    assert "/nowhere" in barred(disk(evil, "qcow2"), User(65534, 65534))[0]
    assert list(all_under(str(evil))) == ["/nowhere/secret"], "below what is said to be raw nothing is looked for"


def test_an_image_goes_to_the_trash_and_from_there_when_its_time_has_come(house: Path) -> None:
    storage = storage_of(house)
    trash = house / "images" / ".kvmd-trash"
    trash.mkdir()
    (trash / "1000000000-old").write_bytes(b"")
    base = house / "images" / "base.qcow2"
    content = base.read_bytes()
    StorageActs(storage, Nobody()).execute(ops.ImageRemove(base.name, str(base)))  # type: ignore[arg-type]
    (kept,) = trash.iterdir()
    assert kept.name.endswith("-base.qcow2") and kept.read_bytes() == content
    assert not base.exists() and storage.images.facts() == {}


def test_what_was_fetched_with_a_login_is_for_the_user_of_qemu_alone(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does another object become a second name of it: that would be readable by all."""
    owners: dict[str, tuple[int, int]] = {}
    monkeypatch.setattr("os.chown", lambda path, user, group: owners.update({Path(path).name: (user, group)}))
    storage = storage_of(house)
    source = house / "source"
    source.write_bytes(b"x" * 512)
    acts = StorageActs(storage, Nobody())  # type: ignore[arg-type]
    modes, digests = {}, {}
    for name, login in (("media-a", ops.Login(user="web", secret="file:/s")), ("media-b", ops.Login(insecure=True))):
        acts._fetch(ops.ImageFetch(name, "raw", None, path=str(source), login=login))
        image = storage.images.read(name)
        assert image is not None
        modes[name], digests[name] = oct(Path(image.path).stat().st_mode & 0o777), image.digest
    assert modes == {"media-a": "0o400", "media-b": "0o444"}
    assert owners == {"media-a": (64055, 109)}
    assert storage.images.with_digest(digests["media-a"]) is None


def test_one_image_has_the_trash_of_the_store_emptied(house: Path) -> None:
    trash = house / "images" / ".kvmd-trash"
    trash.mkdir()
    (trash / "1000000000-old").write_bytes(b"")
    fact = seen(house)[Key("trash", str(house / "images"))]
    assert (getattr(fact, "overdue", ()), getattr(fact, "keeper", None)) == (
        ("1000000000-old",),
        Ref("Image", "base"),
    )


def test_a_volume_that_was_on_its_way_to_the_trash_is_there_or_still_marked(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in between, it is no file without a mark among the volumes."""
    path = house / "pool" / "data.raw"
    path.write_bytes(b"x")
    unmarked: list[str] = []

    def killed(path: str, mark: Mark | None) -> None:
        unmarked.append(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(storage_acts, "put_mark", killed)
    with pytest.raises(KeyboardInterrupt):
        StorageActs(storage_of(house), Nobody()).execute(  # type: ignore[arg-type]
            ops.VolumeTrash("disks/data.raw", str(path))
        )
    (moved,) = (house / "pool" / ".kvmd-trash").iterdir()
    assert unmarked == [str(moved)] and not path.exists()


@pytest.mark.parametrize("broken", ["folder", "file"])
def test_nothing_is_removed_while_what_may_stand_on_it_cannot_be_read(
    house: Path, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool on a dead server or disk is no empty pool."""
    on = str(overlay(house / "pool" / "web.qcow2", str(house / "images" / "base.qcow2")))
    real_scan, real_header = os.scandir, read_header

    def scan(path: str) -> Any:
        if broken == "folder" and path == str(house / "pool"):
            raise OSError(errno.ESTALE, "Stale file handle", path)
        return real_scan(path)

    def header(path: str, size: int, said: str = "") -> Any:
        if broken == "file" and path == on:
            raise OSError(errno.EIO, "Input/output error", path)
        return real_header(path, size, said)

    monkeypatch.setattr(os, "scandir", scan)
    monkeypatch.setattr(bases, "read_header", header)
    with pytest.raises(OSError, match=r"Stale|Input"):
        overlays_on(str(house / "images" / "base.qcow2"), [str(house / "pool")], to_the_bottom=True)
