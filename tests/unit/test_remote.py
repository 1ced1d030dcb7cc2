"""URLs of disks and media: what is taken, what is refused and where, and how libvirt's XML says it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest
from generators import SPECS, document
from test_schemas import DEVICE_OF, judge

from kvmd import xmlmap
from kvmd.api.problem import Problem
from kvmd.kinds.virtual_machine.document import disk_element
from kvmd.kinds.virtual_machine.domain import DiskState
from kvmd.kinds.virtual_machine.remote import choose, parse
from kvmd.settings import Source
from kvmd.sources.decode import decode_file

CANONICAL = {
    "http://Mirror.Example:80/a%20b/c.iso?x=1&y=%2F": "http://mirror.example/a%20b/c.iso?x=1&y=%2F",
    "https://[2001:DB8::1]:8443/d.iso": "https://[2001:db8::1]:8443/d.iso",
    "ftp://ftp.example/pub/d.iso": "ftp://ftp.example/pub/d.iso",
    "ftps://ftp.example:990/d.iso": "ftps://ftp.example/d.iso",
    "nbd://san.example": "nbd://san.example/",
    "nbd://san.example:10810/web": "nbd://san.example:10810/web",
    "iscsi://san.example:3260/iqn.2026-01.example:disk/1": "iscsi://san.example/iqn.2026-01.example:disk/1",
    "rbd://mon.example:6789/pool/web": "rbd://mon.example:6789/pool/web",
    "nfs://nas.example/srv/iso/d.iso": "nfs://nas.example/srv/iso/d.iso",
}
FETCHED_ONLY = {
    "tftp://boot.example:69/d.iso": "tftp://boot.example/d.iso",
    "ssh://root@store.example:22/srv/d.iso": "ssh://root@store.example/srv/d.iso",
}


def disk(source: str | None) -> DiskState:
    """A CD-ROM with that medium."""
    plain = dict.fromkeys(("cache", "io", "discard", "detect_zeroes"), "default")
    bare = dict.fromkeys(("boot_order", "serial", "io_thread"))
    return DiskState("a", "cdrom", source, "raw", "sata", True, **plain, **bare, target="sda")


@pytest.mark.parametrize(("written", "canonical"), [*CANONICAL.items(), *FETCHED_ONLY.items()])
def test_a_url_has_one_form(written: str, canonical: str) -> None:
    assert str(parse(written)) == canonical == str(parse(canonical))


@pytest.mark.parametrize("url", CANONICAL.values())
def test_the_xml_of_a_source_reads_back_and_passes_the_schema(url: str) -> None:
    element = disk_element(disk(url))
    judge("domain", DEVICE_OF.format(ElementTree.tostring(element, encoding="unicode")))
    read = xmlmap.read(DiskState, element, name="a", target="sda")
    assert read == disk(url)
    port = element.find("source/host")
    assert port is not None
    port.attrib.pop("port", None)  # as libvirt may give it back: without the protocol's own port
    if parse(url).port is None:
        assert xmlmap.read(DiskState, element, name="a", target="sda") == disk(url)


def test_a_tray_changes_from_a_server_to_nothing_and_to_a_file() -> None:
    element = disk_element(disk("https://a.example/b.iso"))
    for source, kind in (
        (None, "file"),
        ("nbd://a.example/b", "network"),
        ("/srv/a.iso", "file"),
        ("/dev/sr0", "block"),
    ):
        xmlmap.write(replace(disk(source)), element)
        assert (element.get("type"), xmlmap.read(DiskState, element, name="a").source) == (kind, source)
        judge("domain", DEVICE_OF.format(ElementTree.tostring(element, encoding="unicode")))


def test_who_asks_a_server_reads_back_and_stays_while_the_place_changes() -> None:
    place = "iscsi://san.example/iqn.2026-01.example:disk/"
    asked = replace(disk(place + "1"), auth="alice /etc/kvmd/secrets/chap")
    element = disk_element(asked)
    judge("domain", DEVICE_OF.format(ElementTree.tostring(element, encoding="unicode")))
    assert xmlmap.read(DiskState, element, name="a", target="sda") == asked
    moved = replace(asked, source=place + "2")
    xmlmap.write(moved, element, lambda path: path == "path")
    assert xmlmap.read(DiskState, element, name="a", target="sda") == moved
    for source in ("/srv/a.iso", None):
        xmlmap.write(replace(moved, source=source), element, lambda path: path == "path")
        assert element.find(".//auth") is None
    theirs = ElementTree.fromstring(
        f"<disk type='network' device='disk'><auth username='bob'><secret type='iscsi' usage='san'/></auth>"
        f"<source protocol='iscsi' name='{place[20:]}1'><host name='san.example'/></source></disk>"
    )
    assert xmlmap.read(DiskState, theirs, name="a").auth == "bob usage:san"


SECRET = {"file": "/etc/kvmd/secrets/x"}


@pytest.mark.parametrize(
    ("url", "more", "why"),
    [
        ("iscsi://a.example/iqn.x:y/1", {"authFrom": SECRET}, "needs `user`"),
        ("ssh://me@a.example/b", {"authFrom": {**SECRET, "user": "me"}}, "names its user"),
        ("http://a.example/b", {"authFrom": {**SECRET, "user": "a:b"}}, "no ':'"),
        ("nbd://a.example/b", {"authFrom": {**SECRET, "user": "me"}}, "a URL of nbd has no `authFrom`"),
        ("ftp://a.example/b", {"cookiesFrom": SECRET}, "a URL of ftp has no `cookiesFrom`"),
        ("http://a.example/b", {"tls": {"insecure": True}}, "a URL of http has no `tls`"),
        ("https://a.example/b", {"tls": {"insecure": True, "caFile": "/x"}}, "leave either it or"),
        ("https://a.example/b", {"access": "Direct", "cookiesFrom": SECRET}, "no place for a login"),
        ("https://a.example/b", {"authFrom": {"user": "me", "password": "hunter2"}}, "password"),
        (None, {"path": "/x", "authFrom": {**SECRET, "user": "me"}}, "only what has a `url` has `authFrom`"),
    ],
)
def test_a_login_that_its_protocol_does_not_know_is_refused(url: str | None, more: dict[str, Any], why: str) -> None:
    found = problems({"name": "a", "format": "raw", "readOnly": True, **({"url": url} if url else {}), **more})
    assert why in str(found[0]) and "hunter2" not in str(found)


REFUSED = {
    "https://me:hunter2@a.example/b": "may not hold a password",
    "https://me@a.example/b": "only a URL of ssh names a user",
    "gopher://a.example/b": "not a protocol for disks",
    "/srv/a.iso": "a file is a `path`",
    "http:///b": "names no server",
    "http://a_b/c": "not the name or address",
    "http://[fe80::zz]/c": "URL",
    "http://a.example/b#c": "no fragment",
    "http://a.example/": "nothing on it",
    "http://a.example/b%0Ac": "no text",
    "http://a.example:99999/b": "not a URL",
    "http://a.example/b?x=<y>": "must be written as %XX",
    "ftp://a.example/b?x=1": "has no query",
    "iscsi://a.example/iqn.2026-01.example:disk": "without a LUN",
    "rbd://a.example/pool": "rbd://MONITOR/POOL/IMAGE",
    "nfs://a.example:2049/srv/a": "has no port",
}


def problems(disk: dict[str, Any]) -> tuple[Problem, ...]:
    """What is wrong with a machine that has that disk."""
    text = json.dumps(document("VirtualMachine", "web", {"memory": {"guest": "1Gi"}, "disks": [disk]}))
    return tuple(decode_file(text.encode(), "web.yaml", Source(), SPECS).problems)


@pytest.mark.parametrize(("url", "why"), REFUSED.items())
def test_a_bad_url_is_refused_at_its_leaf_and_shows_no_password(url: str, why: str) -> None:
    for item, where in (
        ({"name": "cd", "device": "cdrom", "media": {"url": url}}, "spec.disks[cd].media.url"),
        ({"name": "cd", "url": url, "format": "raw", "readOnly": True}, "spec.disks[cd].url"),
    ):
        (problem,) = problems(item)
        assert why in str(problem) and where in str(problem), str(problem)
        assert "hunter2" not in str(problem)


@pytest.mark.parametrize(
    ("url", "more", "why"),
    [
        ("http://a.example/b", {}, "readOnly: true"),
        ("nbd://a.example/b", {"access": "Cached", "readOnly": True}, "cannot fetch over nbd"),
        ("tftp://a.example/b", {"access": "Direct", "readOnly": True}, "QEMU reads no tftp"),
        ("ssh://a.example/b", {"access": "Direct", "readOnly": True}, "no place for the key"),
        (None, {"path": "/x", "access": "Direct"}, "only what has a `url`"),
        (None, {"image": "x", "format": None}, "an image never changes"),
    ],
)
def test_what_cannot_be_reached_that_way_is_refused(url: str | None, more: dict[str, Any], why: str) -> None:
    item = {"name": "a", "format": "raw", **({"url": url} if url else {}), **more}
    (problem,) = problems({key: value for key, value in item.items() if value is not None})
    assert why in str(problem)


@pytest.mark.parametrize(
    ("url", "access", "answer", "chosen"),
    [
        ("https://a.example/b", "Auto", (True, "can"), "Direct"),
        ("https://a.example/b", "Auto", (False, "no ranges"), "Cached"),
        ("https://a.example/b", "Auto", None, None),
        ("https://a.example/b", "Cached", None, "Cached"),
        ("tftp://a.example/b", "Auto", None, "Cached"),
        ("ftps://a.example/b", "Auto", None, "Cached"),
        ("ftps://a.example/b", "Direct", (True, "can"), "Direct"),
        ("nbd://a.example/b", "Auto", (True, "can"), "Direct"),
    ],
)
def test_the_way_is_chosen(url: str, access: str, answer: tuple[bool, str] | None, chosen: str | None) -> None:
    found = choose(url, access, True, lambda: answer)
    assert (found[0] if found else None) == chosen
