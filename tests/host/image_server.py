"""A web server with the faults of real ones: ``image_server.py FOLDER PORT LOG``, with ranges and ETags.

``/half/NAME`` ends the first answer in the middle, ``/plain/NAME`` knows no ranges, ``/changing/NAME`` has another
ETag each time, ``/missing/…`` is not there, ``/private/…`` asks who is there, ``/members/…`` wants a cookie, and
``/slow/…`` comes as 64 KiB in a second.
"""

from __future__ import annotations

import re
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER, PORT, LOG = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
SLOW_BYTES = 6554
WANTED = {
    "private": ("Authorization", "Basic d2ViOmh1bnRlcjIyMjI=", 401),  # web:hunter2222
    "members": ("Cookie", "pass=hunter2222; a=b", 403),
}
asked: dict[str, int] = {}


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        """As GET, without a body."""
        self._answer(body=False)

    def do_GET(self) -> None:
        """Answer with the file, or the part of it that is asked for."""
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        way, _, name = self.path.strip("/").rpartition("/")
        asked[self.path] = asked.get(self.path, 0) + 1
        with LOG.open("a") as log:
            log.write(f"{self.command} {self.path} {self.headers.get('Range', '-')}\n")
        file = FOLDER / name
        if way == "missing" or not file.is_file():
            self.send_error(404)
            return
        if way in WANTED and self.headers.get(WANTED[way][0]) != WANTED[way][1]:
            self.send_error(WANTED[way][2])
            return
        data = file.read_bytes()
        tag = f'"{name}-{asked[self.path]}"' if way == "changing" else f'"{name}-{len(data)}"'
        begin, end = 0, len(data)
        asks = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        current = self.headers.get("If-Range", tag) == tag
        if asks and current and way != "plain":
            begin, end = int(asks[1]), min(int(asks[2]) + 1 if asks[2] else len(data), len(data))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("ETag", tag)
        if way != "plain":
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        if not body:
            return
        part = data[begin:end]
        while way == "slow" and part:
            self.wfile.write(part[:SLOW_BYTES])
            part = part[SLOW_BYTES:]
            time.sleep(0.1)
        if way in ("half", "changing") and asked[self.path] == 1:
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
            return
        self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the console."""


ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
