"""Basic authentication around the TCP application."""

from __future__ import annotations

import json
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from kvmd.server.web_config import Passwords
from kvmd.server.workers import Overloaded, Workers

_SECONDS = 5.0


class BasicAuthentication:
    """Lets through who names a user of the web configuration file."""

    def __init__(self, application: ASGIApp, passwords: Passwords, workers: Workers) -> None:
        self._application = application
        self._passwords = passwords
        self._workers = workers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or await self._known(scope):
            await self._application(scope, receive, send)
            return
        body = json.dumps({"message": "this needs a user and a password", "hint": "see http.webConfig"}).encode()
        headers = [
            (b"www-authenticate", b'Basic realm="kvmd"'),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _known(self, scope: Scope) -> bool:
        headers: Any = scope["headers"]
        header = next((value.decode("latin-1") for name, value in headers if name == b"authorization"), "")
        if not header:
            return False
        known = self._passwords.remembered(header)
        if known is not None:
            return known
        try:
            return await self._workers.call(lambda: self._passwords.check(header), _SECONDS)
        except (Overloaded, TimeoutError):
            return False
