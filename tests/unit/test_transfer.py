"""A download that is killed at any point never mixes two files."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kvmd import ops
from kvmd.host.storage import transfer

NEW = b"N" * 1000


class _Handler(BaseHTTPRequestHandler):
    """A server that goes on where a part of its present file ends, and begins anew for a part of another."""

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        goes_on = wanted is not None and self.headers.get("If-Range") == '"new"'
        data = NEW[int(wanted[len("bytes=") : -1]) :] if goes_on and wanted else NEW
        self.send_response(206 if goes_on else 200)
        self.send_header("ETag", '"new"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/image"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_part_of_an_old_file_is_never_gone_on_with(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when the new file was named, and before any of it came."""
    part, noted = tmp_path / "part", transfer._note_validator
    part.write_bytes(b"O" * 400)
    (tmp_path / "part.validator").write_text('"old"')

    def killed(path: str, headers: object) -> None:
        noted(path, headers)
        raise KeyboardInterrupt

    monkeypatch.setattr(transfer, "_note_validator", killed)
    with pytest.raises(KeyboardInterrupt):
        transfer._download(url, str(part), lambda done, total: None, ops.NOBODY)
    monkeypatch.undo()
    transfer._download(url, str(part), lambda done, total: None, ops.NOBODY)
    assert part.read_bytes() == NEW


def test_a_part_of_the_same_file_is_gone_on_with(url: str, tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.write_bytes(b"n" * 400)
    (tmp_path / "part.validator").write_text('"new"')
    transfer._download(url, str(part), lambda done, total: None, ops.NOBODY)
    assert part.read_bytes() == b"n" * 400 + NEW[400:]
