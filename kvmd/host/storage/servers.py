"""Asking QEMU and a server whether QEMU can read there: has it the block driver, does the server give byte ranges."""

from __future__ import annotations

import ftplib
import re
import socket
from urllib.parse import urlsplit

from kvmd import ops
from kvmd.errors import Retry
from kvmd.host.preflight.tools import output_of
from kvmd.host.storage.fetchers import ftp, path_in
from kvmd.host.storage.transfer import request
from kvmd.observed import Server

CONNECT_SECONDS = 5.0
PORTS = {"nbd": 10809, "iscsi": 3260}
PACKAGE = "qemu-block-extra"  # Debian's, for every driver that is no part of QEMU itself
BUILT_IN = frozenset({"nbd"})


def ask(operation: ops.ServerAsk) -> Server:
    """What was found out. Raises Retry where there is no answer, or where it is no and nothing else can be done."""
    direct, why = _driver(operation.driver)
    if direct:
        direct, why = _server(operation.url)
    if not direct and not operation.other:
        hint = f"apt-get install {PACKAGE}" if PACKAGE in why else "write `access: Auto`, or choose another server"
        raise Retry(f"{operation.url}: {why}", hint=hint)
    return Server(operation.url, direct, why)


def _driver(name: str) -> tuple[bool, str]:
    """Incomplete on purpose: a driver that is there asks for what is missing, and nothing goes over the network."""
    if name in BUILT_IN:
        return True, ""
    answer = output_of("qemu-img", "info", "--image-opts", f"driver={name}")
    absent = r"(?i)unknown (driver|protocol)|not (installed|available|built|supported|found)|do you want to install"
    if answer is None or re.search(absent, answer):
        return False, f"this QEMU has no block driver for {name}, it is in the package {PACKAGE}"
    return True, ""


def _server(url: str) -> tuple[bool, str]:
    scheme = urlsplit(url).scheme
    if scheme in ("http", "https"):
        return _http(url)
    if scheme in ("ftp", "ftps"):
        return _ftp(url)
    return _listens(url, scheme)


def _http(url: str) -> tuple[bool, str]:
    """QEMU asks by HEAD, and wants to read there that ranges are given, and how long the file is."""
    with request("HEAD", url, {}) as answer:
        if answer.headers.get("Accept-Ranges", "").strip().lower() != "bytes":
            return False, "the server does not give byte ranges"
        if not answer.headers.get("Content-Length", "").isdecimal():
            return False, "the server does not say how long the file is"
    return True, "QEMU and the server can"


def _ftp(url: str) -> tuple[bool, str]:
    try:
        with ftp(url) as server:
            server.size(path_in(url))
            try:
                server.sendcmd("REST 1")
            except ftplib.error_perm:
                return False, "the server does not begin in the middle of a file"
    except (OSError, EOFError, ftplib.Error) as error:
        raise Retry(f"{url}: {error}", hint=f"try: curl -I {url}") from error
    return True, "QEMU and the server can"


def _listens(url: str, scheme: str) -> tuple[bool, str]:
    """Does anybody listen there: QEMU would hang in its start for a while, or for ever (measured: rbd over 150 s)."""
    parts = urlsplit(url)
    port = parts.port or PORTS.get(scheme)
    if port is not None:
        try:
            socket.create_connection((parts.hostname or "", port), CONNECT_SECONDS).close()
        except OSError as error:
            raise Retry(f"{url}: {error.strerror or error}", hint=f"try: nc -vz {parts.hostname} {port}") from error
    return True, "QEMU can"
