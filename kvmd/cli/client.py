"""The daemon's API over its UNIX socket, with the standard library alone."""

from __future__ import annotations

import http.client
import json
import os
import socket
from typing import Any
from urllib.parse import quote, urlencode

from kvmd.api.resource import Ref
from kvmd.cli.context import EXIT_FAILED, EXIT_NOT_FOUND, EXIT_REFUSED, EXIT_UNREACHABLE, Failure
from kvmd.render import vocabulary

_TIMEOUT_SECONDS = 35.0
_CODES = {403: EXIT_REFUSED, 404: EXIT_NOT_FOUND}
_START = "sudo systemctl start kvmd   (or, in a terminal: sudo kvmd run)"


class _Connection(http.client.HTTPConnection):
    """HTTP over a UNIX socket."""

    def __init__(self, path: str) -> None:
        super().__init__("kvmd", timeout=_TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket file."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Client:
    """Asks the daemon; everything that goes wrong becomes a Failure with its exit code."""

    def __init__(self, path: str) -> None:
        self._path = path

    def objects(self, kind: str | None = None) -> list[dict[str, Any]]:
        """All objects, or those of one kind."""
        where = f"/api/v1/{vocabulary.plural_of(kind)}" if kind else "/api/v1/objects"
        items: list[dict[str, Any]] = self.get(where)["items"]
        return items

    def object(self, ref: Ref) -> dict[str, Any]:
        """One object; Failure 3 where there is none."""
        item: dict[str, Any] = self.get(f"/api/v1/{vocabulary.plural_of(ref.kind)}/{quote(ref.name)}")
        return item

    def events(self, after: int = 0) -> list[dict[str, Any]]:
        """Events above that sequence, oldest first."""
        items: list[dict[str, Any]] = self.get(f"/api/v1/events?{urlencode({'after': after})}")["items"]
        return items

    def get(self, where: str) -> dict[str, Any]:
        """Read one resource."""
        status, answer = self._request("GET", where)
        if status >= 400:
            code = _CODES.get(status, EXIT_FAILED)
            raise Failure(code, answer.get("message", f"status {status}"), hint=answer.get("hint", ""))
        return answer

    def act(self, verb: str, reference: str, options: dict[str, Any] | None = None) -> dict[str, Any]:
        """Do something; returns the answer where its code is 0."""
        status, answer = self._request(
            "POST", f"/api/v1/actions/{verb}", {"object": reference, "options": options or {}}
        )
        code = answer.get("code", 0 if status < 400 else _CODES.get(status, EXIT_FAILED))
        if code:
            raise Failure(code, answer.get("message", f"status {status}"), hint=answer.get("hint", ""))
        return answer

    def _request(self, method: str, where: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        connection = _Connection(self._path)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, where, text, {"Content-Type": "application/json"} if text else {})
            response = connection.getresponse()
            answer = json.loads(response.read() or b"{}")
        except (FileNotFoundError, ConnectionRefusedError):
            raise Failure(EXIT_UNREACHABLE, f"no kvmd answers on {self._path}", hint=_START) from None
        except PermissionError:
            raise Failure(
                EXIT_UNREACHABLE,
                f"user {os.geteuid()} may not use {self._path}",
                hint="run it as root (sudo kvmd …) or join the group of the socket",
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Failure(
                EXIT_UNREACHABLE,
                f"kvmd on {self._path} did not answer: {error or type(error).__name__}",
                hint="systemctl status kvmd; journalctl -u kvmd",
            ) from None
        finally:
            connection.close()
        return response.status, answer if isinstance(answer, dict) else {"message": str(answer)}
