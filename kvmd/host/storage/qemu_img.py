"""qemu-img under limits: an image is somebody else's data, and must not take the host with it."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Callable, Sequence

from kvmd.errors import KvmdError, Retry, Unsupported

MEMORY_BYTES = 2 << 30
CPU_SECONDS = 4 * 3600
_PERCENT = re.compile(rb"\((\d+(?:\.\d+)?)/100%\)")


def qemu_img(*words: str, progress: Callable[[float], None] | None = None) -> None:
    """Run it to its end; *progress* gets the share that is done. Raises Retry or Unsupported.

    It ends with the thread that waits for it: nothing goes on writing behind a kvmd that was killed.
    """
    limits = ("setpriv", "--pdeathsig", "KILL", "prlimit", f"--as={MEMORY_BYTES}", f"--cpu={CPU_SECONDS}")
    try:
        process = subprocess.Popen(
            [*limits, "qemu-img", *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except FileNotFoundError as error:
        raise Unsupported("setpriv and prlimit are not installed", hint="apt-get install util-linux") from error
    with process:
        assert process.stdout is not None and process.stderr is not None
        if progress is not None:
            _follow(process, progress)
        text = process.stderr.read().decode(errors="replace").strip()
    if process.returncode == 0:
        return
    raise _error(words, process.returncode, text)


def _follow(process: subprocess.Popen[bytes], progress: Callable[[float], None]) -> None:
    assert process.stdout is not None
    while data := process.stdout.read1(4096):  # type: ignore[attr-defined]
        if found := _PERCENT.findall(data):
            with contextlib.suppress(ValueError):
                progress(float(found[-1]) / 100)


def _error(words: Sequence[str], code: int, text: str) -> KvmdError:
    command = f"qemu-img {' '.join(words)}"
    if "qemu-img" in text and ("No such file" in text or "not found" in text) and code == 127:
        return Unsupported("qemu-img is not installed", hint="apt-get install qemu-utils")
    reason = text.removeprefix("qemu-img: ") or f"it ended with {code}"
    hint = "make room on that disk" if "No space left" in text else f"try it by hand: {command}"
    return Retry(f"{words[0]}: {reason}", hint=hint)
