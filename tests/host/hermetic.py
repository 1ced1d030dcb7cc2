"""A libvirtd of one test's own, in namespaces of its own, and a kvmd beside it; nothing of the host is touched."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}  # entering a mount namespace leaves the directory
REAPER = REPOSITORY / "deploy" / "reaper.py"

LIBVIRTD_CONF = """
unix_sock_dir = "{sockets}"
unix_sock_rw_perms = "0777"
auth_unix_rw = "none"
auth_unix_ro = "none"
log_outputs = "3:file:{log}"
"""

QEMU_CONF = """
security_driver = "none"
security_default_confined = 0
stdio_handler = "file"
user = "root"
group = "root"
dynamic_ownership = 0
namespaces = []
cgroup_controllers = []
"""

SETUP = """
set -e
mount --make-rprivate /
mkdir -p /run/libvirt /var/lib/libvirt /etc/libvirt /var/log/libvirt
for folder in /run/libvirt /var/lib/libvirt /etc/libvirt /var/log/libvirt; do mount -t tmpfs tmpfs $folder; done
mkdir -p /var/lib/libvirt/qemu /var/lib/libvirt/dnsmasq /run/libvirt/qemu
cp {qemu_conf} /etc/libvirt/qemu.conf
ip link set lo up
echo ready
exec sleep infinity
"""


def wait_until(condition: Callable[[], Any], seconds: float = 20.0, what: str = "") -> Any:
    """Poll until *condition* gives something true; fail the test with *what* after *seconds*."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(FileNotFoundError, ConnectionError):
            if found := condition():
                return found
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:g} s: {what or condition}", pytrace=True)
        time.sleep(0.02)


class Hermetic:
    """Namespaces for mounts and network with a libvirtd in them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sockets = folder / "sockets"
        self.sockets.mkdir(parents=True)
        self.uri = f"qemu:///system?socket={self.sockets}/libvirt-sock"
        self._conf = folder / "libvirtd.conf"
        self._conf.write_text(LIBVIRTD_CONF.format(sockets=self.sockets, log=folder / "libvirtd.log"))
        qemu_conf = folder / "qemu.conf"
        qemu_conf.write_text(QEMU_CONF)
        setup = SETUP.format(qemu_conf=qemu_conf)
        self._keeper = subprocess.Popen(
            ["unshare", "-m", "-n", "bash", "-c", setup], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        assert self._keeper.stdout is not None
        if self._keeper.stdout.readline() != b"ready\n":
            pytest.fail("the namespaces could not be made", pytrace=False)
        self.pid = self._keeper.pid
        self._reapers: list[subprocess.Popen[bytes]] = []
        self.start_libvirtd()

    @property
    def namespace(self) -> str:
        """The path of the network namespace."""
        return f"/proc/{self.pid}/ns/net"

    def inside(self, *command: str) -> list[str]:
        """The command line that runs *command* in the namespaces."""
        return ["nsenter", "-t", str(self.pid), "-m", "-n", "-r", "--", *command]

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command in the namespaces; its output."""
        done = subprocess.run(self.inside(*command), capture_output=True, text=True, timeout=120)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def virsh(self, *words: str, check: bool = True) -> str:
        """Run virsh against this libvirtd."""
        return self.run("virsh", "-c", self.uri, *words, check=check)

    def ip(self, *words: str) -> Any:
        """Run ip -j: the independent view of the kernel."""
        text = self.run("ip", "-j", "-d", *words)
        return json.loads(text) if text.strip() else []

    def links(self) -> dict[str, dict[str, Any]]:
        """Every link by name, as ip sees it."""
        return {link["ifname"]: link for link in self.ip("link", "show")}

    def start_libvirtd(self) -> None:
        """Start it and wait until it answers."""
        command = self.inside(
            sys.executable, str(REAPER), "libvirtd", "-f", str(self._conf), "-p", str(self._pid_file)
        )
        log = (self.folder / "libvirtd.out").open("ab")
        self._reapers.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        wait_until(
            lambda: (
                subprocess.run(
                    self.inside("virsh", "-c", self.uri, "version"), capture_output=True, timeout=60
                ).returncode
                == 0
            ),
            60,
            "libvirtd answers",
        )

    @property
    def _pid_file(self) -> Path:
        return self.folder / "libvirtd.pid"

    @property
    def libvirtd_pid(self) -> int:
        """The process of libvirtd."""
        return int(self._pid_file.read_text())

    def kill_libvirtd(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send libvirtd a signal."""
        os.kill(self.libvirtd_pid, number)

    def close(self) -> None:
        """End everything within the namespaces."""
        with contextlib.suppress(OSError, ValueError):
            self.kill_libvirtd()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._keeper.kill()
        self._keeper.wait()
        for reaper in self._reapers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                reaper.wait(5)
            reaper.kill()
            reaper.wait()

    def processes(self) -> Iterator[int]:
        """Every process in our network namespace but the keeper."""
        ours = os.stat(self.namespace).st_ino
        for name in os.listdir("/proc"):
            if name.isdecimal() and int(name) not in (self.pid, os.getpid()):
                with contextlib.suppress(OSError):
                    if os.stat(f"/proc/{name}/ns/net").st_ino == ours:
                        yield int(name)


class Agent:
    """A kvmd in the namespaces: its specs, its command line, its socket."""

    def __init__(self, hermetic: Hermetic, folder: Path, **settings: Any) -> None:
        self.hermetic, self.folder = hermetic, folder
        self.specs = folder / "specs"
        self.specs.mkdir(parents=True)
        self.config = folder / "kvmd.yaml"
        data = {
            "source": {"path": str(self.specs)},
            "libvirt": {"uri": hermetic.uri},
            "http": {"listen": "127.0.0.1:9178"},
            "paths": {name: str(folder / name) for name in ("state", "cache", "run")},
            "prune": {"grace": "1s"},
            "policy": {"allowedPaths": ["/"]},
        }
        for section, values in settings.items():
            data[section] = {**data.get(section, {}), **values}  # type: ignore[dict-item]
        self.config.write_text(json.dumps(data))
        self.log = folder / "kvmd.log"
        self._process: subprocess.Popen[bytes] | None = None

    def command(self, *words: str) -> list[str]:
        """The command line of kvmd in the namespaces."""
        return self.hermetic.inside(sys.executable, "-m", "kvmd", "--config", str(self.config), *words)

    def kvmd(self, *words: str, code: int | None = 0) -> str:
        """Run a command of kvmd; its standard output."""
        done = subprocess.run(
            self.command(*words),
            capture_output=True,
            text=True,
            timeout=300,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
        )
        if code is not None:
            assert done.returncode == code, (
                f"kvmd {' '.join(words)} ended with {done.returncode}: {done.stderr}{done.stdout}"
            )
        return done.stdout

    def told(self, *words: str) -> str:
        """Run a command of kvmd that succeeds; all that it says, messages too."""
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=60, env=ENVIRONMENT)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def refused(self, *words: str) -> str:
        """Run a command that must fail; what it says."""
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=60, env=ENVIRONMENT)
        assert done.returncode != 0, done.stdout
        return done.stdout + done.stderr

    def start(self) -> None:
        """Start the daemon and wait until it is ready."""
        self.launch()
        wait_until(self.is_ready, 60, f"kvmd is ready; its log: {self.log}")

    def launch(self) -> None:
        """Start the daemon without waiting for anything."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command("run"), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=ENVIRONMENT
            )

    def is_ready(self) -> bool:
        """True once the daemon answers that it is ready."""
        if self._process is not None and self._process.poll() is not None:
            pytest.fail(f"kvmd ended with {self._process.returncode}: {self.log.read_text()[-2000:]}")
        return self.http("/readyz")[0] == 200

    def http(self, path: str) -> tuple[int, str]:
        """GET over the UNIX socket."""
        import http.client
        import socket

        connection = http.client.HTTPConnection("kvmd", timeout=10)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(10)
        try:
            connection.sock.connect(str(self.folder / "run" / "kvmd.sock"))
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def pid(self) -> int:
        """The daemon's process (nsenter replaces itself by it)."""
        assert self._process is not None
        return self._process.pid

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        """End the daemon; its exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(60)

    def stop(self) -> None:
        """End the daemon if it runs."""
        if self._process is not None and self._process.poll() is None:
            self.kill(signal.SIGTERM)

    def write(self, name: str, text: str) -> None:
        """Write a spec file, whole."""
        temporary = (self.specs / name).with_name(f".{Path(name).name}.new")
        temporary.write_text(text if text.endswith("\n") else text + "\n")
        temporary.rename(self.specs / name)

    def remove(self, name: str) -> None:
        """Remove a spec file."""
        (self.specs / name).unlink()

    def object(self, reference: str) -> dict[str, Any] | None:
        """An object with its status, or None."""
        code, text = self.http("/api/v1/objects")
        assert code == 200
        kind, _, name = reference.partition("/")
        found = json.loads(text)
        items = found["items"] if isinstance(found, dict) else found
        return next((item for item in items if item["kind"] == kind and item["metadata"]["name"] == name), None)

    def condition(self, reference: str, type_: str) -> dict[str, str] | None:
        """One condition of an object where it is True, or None."""
        item = self.object(reference)
        conditions = item["status"]["conditions"] if item else []
        return next((c for c in conditions if c["type"] == type_ and c["status"] == "True"), None)

    def wait_ready(self, *references: str, seconds: float = 30) -> None:
        """Wait until every object is Ready."""
        for reference in references:
            self.wait_condition(reference, "Ready", seconds)

    def wait_condition(self, reference: str, type_: str, seconds: float = 30) -> dict[str, str]:
        """Wait until a condition of an object is True."""
        try:
            found: dict[str, str] = wait_until(lambda: self.condition(reference, type_), seconds)
        except pytest.fail.Exception:
            pytest.fail(
                f"{reference} is not {type_} within {seconds:g} s: {json.dumps(self.object(reference), indent=1)}"
            )
        return found

    def metric(self, metric: str, /, **labels: str) -> float:
        """The sum of a metric over the series that carry the labels."""
        from prometheus_client.parser import text_string_to_metric_families

        code, text = self.http("/metrics")
        assert code == 200
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == metric and all(sample.labels.get(key) == value for key, value in labels.items())
        )

    def writes(self) -> float:
        """Mutating calls to libvirt so far."""
        return self.metric("kvmd_libvirt_calls_total", mode="write")
