"""What every preflight check is made of: its result, and small readers that answer instead of raising."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Status = Literal["ok", "warn", "fail", "info"]
PROBE = Path(__file__).with_name("probe.py")
# A daemon's PATH often lacks the directories where Debian keeps iptables, nft and dnsmasq.
SEARCH_PATH = os.pathsep.join(
    (os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin")
)


@dataclass(frozen=True)
class Check:
    """One answer: *found* is what is there, *why* what it is for, *fix* what to type (empty when nothing is)."""

    name: str
    status: Status
    found: str
    why: str
    fix: str = ""


def read_text(path: str) -> str | None:
    """The stripped text of a small file; None where it cannot be read."""
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return None


def output_of(*command: str, timeout: float = 5.0) -> str | None:
    """What *command* printed, both streams; None where it is absent, hangs or fails to start."""
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            env={**os.environ, "PATH": SEARCH_PATH, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout


def probe(what: str, timeout: float = 5.0) -> dict[str, Any]:
    """Run one probe in a process of its own; an empty answer where it hung, crashed or was killed."""
    text = output_of(sys.executable, "-I", str(PROBE), what, timeout=timeout)
    try:
        answer = json.loads(text or "{}")
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
