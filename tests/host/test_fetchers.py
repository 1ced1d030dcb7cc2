"""Fetching by TFTP from servers that are odd, and asking a QEMU that lacks a driver."""

from __future__ import annotations

import io
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kvmd import ops
from kvmd.errors import Retry
from kvmd.host.storage import servers, tftp


@contextmanager
def tftp_server(answer: Callable[[socket.socket, Any], None]) -> Iterator[int]:
    """A server that does *answer* to the first request; its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(5)

        def run() -> None:
            _, peer = server.recvfrom(1024)
            answer(server, peer)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        thread.join(5)


@pytest.mark.parametrize(
    ("packet", "why"),
    [
        (struct.pack("!HH", 5, 2) + b"Access violation\0", "Access violation"),
        (struct.pack("!H", 6) + b"blksize\x00999999\0", "not asked for"),
        (struct.pack("!H", 6) + b"blksize\x00x\0", "not asked for"),
    ],
)
def test_a_tftp_server_that_says_no_or_nonsense_ends_the_transfer(packet: bytes, why: str) -> None:
    with (
        tftp_server(lambda server, peer: server.sendto(packet, peer) and None) as port,
        pytest.raises(tftp.TftpError, match=why),
    ):
        tftp.fetch("127.0.0.1", port, "a", io.BytesIO(), lambda done, total: None)


def test_a_tftp_server_that_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tftp, "WAIT_SECONDS", 0.02)
    with (
        tftp_server(lambda server, peer: None) as port,
        pytest.raises(tftp.TftpError, match="no answer"),
    ):
        tftp.fetch("127.0.0.1", port, "a", io.BytesIO(), lambda done, total: None)


def test_what_comes_twice_by_tftp_counts_once_and_a_short_file_is_an_error() -> None:
    def twice(server: socket.socket, peer: Any) -> None:
        server.sendto(struct.pack("!H", 6) + b"blksize\x008\0tsize\x0012\0", peer)
        for block in (b"\0\1" + b"a" * 8, b"\0\1" + b"a" * 8, b"\0\2" + b"b" * 3):
            server.sendto(b"\0\3" + block, peer)

    target = io.BytesIO()
    with tftp_server(twice) as port, pytest.raises(tftp.TftpError, match="11 bytes came, the server spoke of 12"):
        tftp.fetch("127.0.0.1", port, "a", target, lambda done, total: None)
    assert target.getvalue() == b"aaaaaaaabbb"


@pytest.mark.parametrize("said", ["Unknown driver 'iscsi'", "module block-block-iscsi not found", None])
def test_a_missing_block_driver_names_its_package_or_is_a_reason_to_fetch(
    said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "output_of", lambda *words: said)
    with pytest.raises(Retry, match="no block driver for iscsi") as raised:
        servers.ask(ops.ServerAsk("a.example", "iscsi://a.example/iqn.2026-01.example:d/1", "iscsi", other=False))
    assert raised.value.hint == "apt-get install qemu-block-extra"
    found = servers.ask(ops.ServerAsk("a.example", "https://a.example/b", "https", other=True))
    assert not found.direct and "qemu-block-extra" in found.why
