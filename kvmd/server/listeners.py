"""The two listeners, TCP and UNIX, each with its event loop in a daemon thread."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import stat
import threading
import time
from typing import Any

import uvicorn

from kvmd.engine.facade import Agent
from kvmd.errors import SettingsError
from kvmd.server.application import Application
from kvmd.server.authentication import BasicAuthentication
from kvmd.server.protocol import BoundedProtocol
from kvmd.server.web_config import Passwords, WebConfig
from kvmd.server.workers import Workers
from kvmd.settings import Settings

MOST_CONNECTIONS = 64
_START_SECONDS = 10.0
_STOP_SECONDS = 3.0
_KEEP_ALIVE_SECONDS = 5


class Server:
    """Serves *agent* on ``http.listen`` and on the UNIX socket, until it is stopped."""

    def __init__(self, agent: Agent, settings: Settings) -> None:
        self._agent = agent
        self._settings = settings
        self._listeners: list[_Listener] = []
        self._pools: list[Workers] = []
        self._inode = 0
        self._unix: _Listener | None = None

    def start(self) -> None:
        """Bind both listeners, raising SettingsError for an address that cannot be had, and serve."""
        web = WebConfig.load(self._settings.http.web_config) if self._settings.http.web_config else WebConfig()
        context = web.ssl_context()
        # an act waits for the loop: readers, above all of health, must not wait behind it
        readers, actors = self._pools = [Workers(), Workers(2)]
        try:
            self._start_unix(readers, actors)
            if self._settings.http.listen is not None:
                self._start_tcp(readers, web, context)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Finish the requests under way for a moment, close both listeners, remove the socket file."""
        path = self._settings.socket
        with contextlib.suppress(OSError):
            if self._inode and os.lstat(path).st_ino == self._inode:
                os.unlink(path)
        self._inode = 0
        for listener in self._listeners:
            listener.ask_to_stop()
        for listener in self._listeners:
            listener.wait()
        self._listeners.clear()
        self._unix = None
        for pool in self._pools:
            pool.stop()
        self._pools = []

    def renew(self) -> None:
        """Make the UNIX socket again where somebody deleted it; raises SettingsError where that cannot be."""
        former = self._unix
        if former is None:
            return
        with contextlib.suppress(OSError):
            if os.lstat(self._settings.socket).st_ino == self._inode:
                return
        readers, actors = self._pools
        self._start_unix(readers, actors)
        self._listeners.remove(former)
        former.ask_to_stop()

    @property
    def port(self) -> int | None:
        """The TCP port in use (``http.listen`` may ask for any with port 0)."""
        return next((listener.port for listener in self._listeners if listener.port is not None), None)

    def _start_unix(self, readers: Workers, actors: Workers) -> None:
        path = self._settings.socket
        connection = bind_unix(path)
        found = os.lstat(path)
        self._inode = found.st_ino
        application = Application(self._agent, readers, actors, group=found.st_gid).asgi()
        self._unix = _Listener("unix", application, connection, None)
        self._listeners.append(self._unix)

    def _start_tcp(self, readers: Workers, web: WebConfig, context: ssl.SSLContext | None) -> None:
        application: Any = Application(self._agent, readers).asgi()
        if web.users:
            application = BasicAuthentication(application, Passwords(web.users), readers)
        connection = bind_tcp(self._settings.http.listen or "")
        self._listeners.append(_Listener("tcp", application, connection, context))


class _Listener:
    """One bound socket, one uvicorn server, one thread."""

    def __init__(
        self, name: str, application: Any, connection: socket.socket, context: ssl.SSLContext | None
    ) -> None:
        config = uvicorn.Config(
            application,
            loop="asyncio",
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=1,
        )
        config.load()
        config.ssl = context
        self.port = connection.getsockname()[1] if connection.family != socket.AF_UNIX else None
        self._socket = connection
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name=f"http-{name}", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.started and self._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        if not self._server.started:
            raise SettingsError(f"the {name} listener did not start", hint="see the log lines above")

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])

    def ask_to_stop(self) -> None:
        self._server.should_exit = True

    def wait(self) -> None:
        self._thread.join(_STOP_SECONDS)
        self._socket.close()


def bind_tcp(listen: str) -> socket.socket:
    """Bind ``HOST:PORT`` (an IPv6 address in brackets; an empty host is every address)."""
    host, colon, port = listen.rpartition(":")
    hint = "set http.listen (or --listen) to e.g. 127.0.0.1:9178"
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise SettingsError(f"http.listen '{listen}' is not HOST:PORT", hint=hint)
    host = host.removeprefix("[").removesuffix("]") or "::"
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        connection = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
    except OSError as error:
        raise SettingsError(f"http.listen '{listen}' is no address: {error.strerror}", hint=hint) from None
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and host == "::":
            connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        connection.bind(address)
        connection.listen(128)
    except OSError as error:
        connection.close()
        used = error.errno == errno.EADDRINUSE
        hint = f"`ss -ltnp 'sport = :{port}'` names who has it; {hint}" if used else hint
        raise SettingsError(f"cannot listen on {listen}: {error.strerror}", hint=hint) from None
    return connection


def bind_unix(path: str) -> socket.socket:
    """Bind *path* with mode 0660 and its folder's group; a dead daemon's socket is replaced, a live one is not."""
    folder = os.path.dirname(path)
    _refuse_if_taken(path)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    # bound under another name first: at no time does the real name have other rights, or nobody behind it
    fresh = f"{path}.{os.getpid()}"
    try:
        os.makedirs(folder, mode=0o755, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
        connection.bind(fresh)
        with contextlib.suppress(PermissionError):
            os.chown(fresh, -1, os.stat(folder).st_gid)
        os.chmod(fresh, 0o660)
        connection.listen(128)
        os.rename(fresh, path)
    except OSError as error:
        connection.close()
        raise SettingsError(
            f"cannot make the socket {path}: {error.strerror or error}",
            hint="check paths.run, and that kvmd runs as root",
        ) from None
    return connection


def _refuse_if_taken(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise SettingsError(f"{path} is there and is not a socket", hint=f"look at it, then: sudo rm {path}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except OSError:
            # a full backlog or a refusal of rights: somebody is there
            pass
    raise SettingsError(
        f"another kvmd answers on {path}", hint="`systemctl status kvmd` shows it; set paths.run to run a second one"
    )
