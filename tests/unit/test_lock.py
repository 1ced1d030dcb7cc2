"""One writer a host, and who only asks whether there is one is none."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path

import pytest
from front_doors import make_settings

from kvmd.daemon.lock import PROBE_SECONDS, Lock, daemon_holds_lock
from kvmd.errors import Refused


def test_a_second_writer_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    first = Lock(settings)
    assert daemon_holds_lock(settings)
    with pytest.raises(Refused, match=f"process {os.getpid()}"):
        Lock(settings)
    first.close()
    assert not daemon_holds_lock(settings)
    Lock(settings).close()


def test_who_asks_at_that_instant_keeps_nobody_from_starting(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    Lock(settings).close()
    asking = os.open(tmp_path / "run" / "kvmd.lock", os.O_RDONLY)
    fcntl.flock(asking, fcntl.LOCK_SH)
    answered = threading.Timer(PROBE_SECONDS / 5, os.close, [asking])
    answered.start()
    begun = time.monotonic()
    Lock(settings).close()
    assert time.monotonic() - begun >= PROBE_SECONDS / 10
    answered.join()
