"""The image server of the tests, in the namespaces of an agent."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from hermetic import Agent, wait_until

PORT = 8099
URL = f"http://127.0.0.1:{PORT}"


class ImageServer:
    """The server, in the namespaces of an agent; its folder, and what was asked of it."""

    def __init__(self, agent: Agent, folder: Path) -> None:
        self.folder, self._log = folder / "served", folder / "asked.log"
        self.folder.mkdir()
        self._log.touch()
        script = str(Path(__file__).with_name("image_server.py"))
        command = agent.hermetic.inside(sys.executable, script, str(self.folder), str(PORT), str(self._log))
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        probe = f"import socket; socket.create_connection(('127.0.0.1', {PORT}), 1)"
        wait_until(
            lambda: (
                subprocess.run(agent.hermetic.inside(sys.executable, "-c", probe), capture_output=True).returncode
                == 0
            ),
            20,
            "the image server answers",
        )

    @property
    def asked(self) -> list[str]:
        """The requests so far: method, path, range."""
        return self._log.read_text().splitlines()

    def offer(self, name: str, data: bytes) -> str:
        """Serve a file; its sha256."""
        (self.folder / name).write_bytes(data)
        return "sha256:" + hashlib.sha256(data).hexdigest()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
