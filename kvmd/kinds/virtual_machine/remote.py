"""Disks and media on a server: the grammar of their URLs, and how libvirt's XML says each.

A URL has one canonical form, so that what was written and what libvirt gives back compare as text.
"""

from __future__ import annotations

import ipaddress
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import quote, unquote, urlsplit

from pydantic import AfterValidator

from kvmd import xmlmap
from kvmd.api.quantity import Text
from kvmd.xmlmap import Element, Place

# The default port of each protocol; None: it has none, or libvirt has no place for one.
PORTS = {"http": 80, "https": 443, "ftp": 21, "ftps": 990, "tftp": 69, "ssh": 22, "nbd": 10809, "iscsi": 3260}
PROTOCOLS = (*PORTS, "rbd", "nfs")
FETCHED = frozenset({"http", "https", "ftp", "ftps", "tftp", "ssh"})  # kvmd can bring them into its store
READ_ONLY = frozenset({"http", "https", "ftp", "ftps", "tftp", "ssh"})  # nothing can be written there
# QEMU has no tftp any more; libvirt 9.0 has no place for the key and the known hosts of ssh.
NEVER_DIRECT = {
    "tftp": "QEMU reads no tftp",
    "ssh": "libvirt has no place for the key and the known hosts of ssh",
}
# Measured with QEMU 7.2: it opens ftps, and every read ends in an I/O error.
FETCHED_IF_POSSIBLE = {"ftps": "QEMU fails to read ftps"}
# The module of QEMU that reads each, where it is one of its own.
DRIVERS = {"ftp": "https", "ftps": "https", "http": "https", "https": "https"}
# A libvirt secret of ours is called by where it is read; a usage has no slash, so that place is written as in a URL.
USAGE = "kvmd:"
_SAFE = "/:@!$&'()*+,;=~"
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_QUERY = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@/?%-]*")


@dataclass(frozen=True, slots=True)
class Address:
    """A URL in its parts; *path* is decoded and has no leading slash."""

    protocol: str
    host: str
    port: int | None = None  # None: the protocol's own
    path: str = ""
    query: str = ""
    user: str = ""

    def __str__(self) -> str:
        """The canonical form."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = f"{self.user}@" if self.user else ""
        port = f":{self.port}" if self.port and self.port != PORTS.get(self.protocol) else ""
        query = f"?{self.query}" if self.query else ""
        return f"{self.protocol}://{user}{host}{port}/{quote(self.path, safe=_SAFE)}{query}"

    @property
    def driver(self) -> str:
        """QEMU's block driver."""
        return DRIVERS.get(self.protocol, self.protocol)

    @property
    def tcp_port(self) -> int | None:
        """Where a server must listen; None where that is not in the URL."""
        return self.port or PORTS.get(self.protocol)


def parse(text: str) -> Address:
    """Read a URL; ValueError says what is wrong with it, never showing a password."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"this is not a URL: {error}") from None
    protocol = parts.scheme.lower()
    if parts.password is not None:
        raise ValueError("a URL may not hold a password, everybody who may read sees it; write `authFrom`")
    if protocol not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise ValueError(f"'{protocol or text}' is not a protocol for disks; known are {known}; a file is a `path`")
    if parts.username is not None and protocol != "ssh":
        raise ValueError("only a URL of ssh names a user; for others write `authFrom`")
    if parts.username is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", parts.username):
        raise ValueError(f"'{parts.username}' is not the name of a user")
    host = _host(parts.hostname or "", text)
    if "#" in text:
        raise ValueError("a URL of a disk has no fragment; write '#' in a path as %23")
    path = unquote(parts.path).removeprefix("/")
    if re.search(r"[\x00-\x1f\x7f]", path) or "\ufffd" in path:
        raise ValueError("the path of this URL holds bytes that are no text")
    if parts.query and protocol not in ("http", "https"):
        raise ValueError(f"a URL of {protocol} has no query")
    if not _QUERY.fullmatch(parts.query):
        raise ValueError("the query of this URL holds characters that must be written as %XX")
    if port is not None and (protocol == "nfs" or port == 0):
        raise ValueError("a URL of nfs has no port; QEMU asks the server for it" if port else "there is no port 0")
    _check_path(protocol, path)
    return Address(protocol, host, port, path, parts.query, parts.username or "")


def _host(host: str, text: str) -> str:
    if not host:
        raise ValueError(f"'{text}' names no server; write PROTOCOL://SERVER/PATH")
    if ":" in host:
        try:
            return str(ipaddress.IPv6Address(host))
        except ValueError:
            raise ValueError(f"'{host}' is not an IPv6 address") from None
    if not _HOST.fullmatch(host):
        raise ValueError(f"'{host}' is not the name or address of a server")
    return host.lower()


def _check_path(protocol: str, path: str) -> None:
    if protocol == "iscsi" and not re.fullmatch(r"(iqn|eui|naa)\.[^/\s]+/\d{1,5}", path):
        raise ValueError("a URL of iscsi is iscsi://SERVER/IQN/LUN; without a LUN libvirt takes 0, the controller")
    if protocol == "rbd" and not re.fullmatch(r"[^/]+/.*[^/]", path):
        raise ValueError("a URL of rbd is rbd://MONITOR/POOL/IMAGE")
    if not path and protocol != "nbd":
        raise ValueError("this URL names a server and nothing on it")


def _canonical(text: str) -> str:
    return str(parse(text))


Url = Annotated[Text, AfterValidator(_canonical)]


def is_url(source: str | None) -> bool:
    """True for a source on a server: a path on this host begins with a slash."""
    return source is not None and "://" in source and not source.startswith("/")


def source_get(root: Element) -> str | None:
    """What a disk's XML says of a server, in the canonical form; None where it says another thing."""
    source, host = root.find("source"), root.find("source/host")
    if source is None:
        return None
    protocol = source.get("protocol", "")
    path = source.get("name", "").removeprefix("/")
    name, port = ("", None) if host is None else (host.get("name", ""), host.get("port"))
    number = int(port) if port and port.isdecimal() and protocol != "nfs" else None
    return str(Address(protocol, name, number or None, path, source.get("query", "")))


def _auth(root: Element) -> Element | None:
    found = root.find("source/auth")
    return root.find("auth") if found is None else found


def _auth_get(root: Element) -> str | None:
    """User and secret of a disk's XML; a secret of ours is known by the name of where it is read."""
    auth = _auth(root)
    if auth is None:
        return None
    secret = auth.find("secret")
    names = {} if secret is None else secret.attrib
    usage = names.get("usage", "")
    if usage.startswith(USAGE):
        return auth_word(auth.get("username", ""), unquote(usage.removeprefix(USAGE)))
    return auth_word(auth.get("username", ""), f"usage:{usage}" if usage else f"uuid:{names.get('uuid', '')}")


def _auth_put(root: Element, word: str | None) -> None:
    for path in ("auth", "source/auth"):
        xmlmap.cut(root, path)
    source = root.find("source")
    if word is None or source is None:
        return
    user, _, secret = word.partition(" ")
    auth = ElementTree.SubElement(source, "auth", {"username": user})
    protocol = source.get("protocol", "")
    kind = {"rbd": "ceph"}.get(protocol, protocol)
    ElementTree.SubElement(auth, "secret", {"type": kind, "usage": USAGE + quote(secret, safe="")})


AUTH = Place(_auth_get, _auth_put)


def auth_word(user: str, secret: str) -> str:
    """Who asks a server, and where the password is read, as one value."""
    return f"{user} {secret}"


def source_put(root: Element, url: str, auth: Element | None = None) -> None:
    """Write the source of a disk on a server; who asks stays *auth* until another is written."""
    address = parse(url)
    root.set("type", "network")
    leading = "/" if address.protocol == "nfs" else ""
    attributes = {"protocol": address.protocol, "name": leading + address.path}
    if address.protocol == "nbd" and not address.path:
        del attributes["name"]
    if address.query:
        attributes["query"] = address.query
    source = ElementTree.SubElement(root, "source", attributes)
    port = {"port": str(address.tcp_port)} if address.tcp_port else {}
    ElementTree.SubElement(source, "host", {"name": address.host, **port})
    if address.protocol == "nfs":
        ElementTree.SubElement(source, "identity")
    if auth is not None:
        source.append(auth)


def why_not_writable(url: str) -> str | None:
    """Why nothing can be written there; None where it can."""
    protocol = parse(url).protocol
    return f"nothing can be written over {protocol}" if protocol in READ_ONLY else None


def refuse_access(url: str, access: str, read_only: bool) -> None:
    """Raise ValueError where that protocol cannot be reached that way."""
    protocol = parse(url).protocol
    if access == "Direct" and protocol in NEVER_DIRECT:
        raise ValueError(f"{NEVER_DIRECT[protocol]}; write `access: Cached` or leave it out")
    if access == "Cached" and protocol not in FETCHED:
        raise ValueError(f"kvmd cannot fetch over {protocol}; write `access: Direct` or leave it out")
    if not read_only and (protocol in READ_ONLY or access == "Cached"):
        what = f"a URL of {protocol}" if protocol in READ_ONLY else "what is fetched"
        raise ValueError(f"{what} cannot be written to; write `readOnly: true`")


Ask = Callable[[], tuple[bool, str] | None]


def choose(url: str, access: str, read_only: bool, ask: Ask) -> tuple[str, str] | None:
    """Direct or Cached, and why; None where the host must be asked first and has not answered yet."""
    protocol = parse(url).protocol
    fetched = protocol in FETCHED and read_only
    if access == "Cached":
        return "Cached", "the spec asks for it"
    if protocol in NEVER_DIRECT:
        return "Cached", NEVER_DIRECT[protocol]
    if access == "Auto" and protocol in FETCHED_IF_POSSIBLE and fetched:
        return "Cached", FETCHED_IF_POSSIBLE[protocol]
    answer = ask()
    if answer is None:
        return None
    direct, why = answer
    return ("Direct" if direct else "Cached"), why
