"""Following a console that is written to a file, and telling one from a console that can be talked to."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

console = pytest.importorskip("kvmd.host.libvirtd.console", reason="the libvirt bindings are not installed")

FILE = "<domain><devices><serial type='file'><source path='/log'/></serial></devices></domain>"
BOTH = "<domain><devices><serial type='file'><source path='/log'/></serial><serial type='pty'/></devices></domain>"


def test_a_console_that_can_be_talked_to_is_preferred() -> None:
    assert console.console_file(FILE) == "/log"
    assert console.console_file(BOTH) is None
    assert console.console_file(FILE.replace("serial", "console")) == "/log"
    with pytest.raises(console.Unsupported, match="no serial console"):
        console.console_file("<domain><devices/></domain>")


def test_a_file_is_followed_through_rotation_until_the_guest_stops(tmp_path: Path) -> None:
    path = tmp_path / "console"
    running = threading.Event()
    running.set()
    outer, inner = os.pipe()
    thread = threading.Thread(target=console.follow, args=(str(path), inner, running.is_set))
    thread.start()
    path.write_text("booting\n")
    assert os.read(outer, 100) == b"booting\n"
    with path.open("a") as file:
        file.write("up\n")
    assert os.read(outer, 100) == b"up\n"
    fresh = tmp_path / "fresh"
    fresh.write_text("again\n")
    fresh.rename(path)
    assert os.read(outer, 100) == b"again\n"
    with path.open("a") as file:
        file.write("bye\n")
        running.clear()
    thread.join(5)
    assert not thread.is_alive()
    assert os.read(outer, 100) == b"bye\n"
    os.close(outer)
    os.close(inner)


def test_of_a_long_file_only_the_end_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "console"
    path.write_bytes(b"x" * 100_000 + b"end")
    outer, inner = os.pipe()
    console.follow(str(path), inner, lambda: False)
    shown = os.read(outer, 100_000)
    assert shown.endswith(b"xend")
    assert len(shown) == 16_384
    os.close(outer)
    os.close(inner)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    started = time.monotonic()
    with pytest.raises(console.Unsupported, match="not a regular file"):
        console.follow(str(tmp_path / "pipe"), 1, lambda: True)
    assert time.monotonic() - started < 1
