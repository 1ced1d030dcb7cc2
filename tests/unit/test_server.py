"""The HTTP server over real sockets: reading on TCP, acting on the UNIX socket, refusing the rest."""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import ssl
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from front_doors import StaticAgent, make_settings, serving, some_plan

from kvmd.engine.facade import Answer
from kvmd.errors import SettingsError
from kvmd.server import Server
from kvmd.server.listeners import bind_tcp, bind_unix
from kvmd.server.peer import Peer
from kvmd.server.web_config import WebConfig
from kvmd.settings import Settings


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("kvmd", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(5)
        self.sock.connect(self._path)


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection.request(method, path, None if body is None else json.dumps(body))
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, json.loads(content) if "json" in response.headers["content-type"] else content


@pytest.fixture
def agent() -> StaticAgent:
    return StaticAgent(planned=some_plan())


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path)


@dataclass
class Shared:
    """One server for all tests that leave it as it was; each finds its agent new."""

    server: Server
    settings: Settings
    agent: StaticAgent


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    agent, settings = StaticAgent(), make_settings(tmp_path_factory.mktemp("shared"))
    with serving(agent, settings) as server:
        yield Shared(server, settings, agent)


@pytest.fixture
def shared(running: Shared) -> Shared:
    vars(running.agent).update(vars(StaticAgent(planned=some_plan())))
    return running


def tcp(server: Server) -> http.client.HTTPConnection:
    assert server.port is not None
    return http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)


@pytest.mark.parametrize(
    ("path", "reads"),
    [
        ("/healthz", lambda body: body["status"] == "ok" and body["cycles"] == 3),
        ("/readyz", lambda body: body["libvirt"] is True),
        ("/api/v1/objects", lambda body: body["kind"] == "List" and len(body["items"]) == 3),
        ("/api/v1/virtualmachines", lambda body: len(body["items"]) == 2),
        ("/api/v1/vm/web", lambda body: body["status"]["power"] == "running"),
        ("/api/v1/events?after=1", lambda body: [item["sequence"] for item in body["items"]] == [2]),
        ("/api/v1/plan", lambda body: body["summary"] == {"create": 1, "change": 1, "remove": 1}),
        ("/api/v1/source", lambda body: body["digest"] == "d1"),
        ("/api/v1/topology?vm=db", lambda body: body["items"][0]["interfaces"][0]["brokenAt"] == "bridge br0"),
        ("/api/v1/version", lambda body: body["apiVersion"] == "kvmd.dev/v1alpha1"),
    ],
)
def test_both_listeners_answer_every_reading(shared: Shared, path: str, reads: Any) -> None:
    for connection in (tcp(shared.server), UnixConnection(shared.settings.socket)):
        status, body = ask(connection, "GET", path)
        assert status == 200
        assert reads(body)


def test_metrics_come_as_text(shared: Shared) -> None:
    connection = tcp(shared.server)
    connection.request("GET", "/metrics")
    response = connection.getresponse()
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b"kvmd_libvirt_up 1.0" in response.read()


def test_not_ready_is_503(shared: Shared) -> None:
    shared.agent.is_ready = False
    assert ask(tcp(shared.server), "GET", "/readyz") == (503, {"status": "failing", "libvirt": False})


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/nothing", 404, ""),
        ("GET", "/api/v1/vmm", 404, "did you mean 'vm'?"),
        ("GET", "/api/v1/vm/nobody", 404, "VirtualMachine/nobody"),
        ("GET", "/api/v1/events?after=x", 400, "not a number"),
        ("POST", "/metrics", 405, ""),
        ("POST", "/api/v1/actions/start", 403, "UNIX socket"),
    ],
)
def test_faults_are_json_with_a_message(shared: Shared, method: str, path: str, status: int, words: str) -> None:
    found, body = ask(tcp(shared.server), method, path)
    assert found == status
    assert set(body) == {"message", "hint"}
    assert words in body["message"]


def test_an_act_carries_its_caller(shared: Shared) -> None:
    body = {"object": "VirtualMachine/web", "options": {"caller": {"uid": 4711}, "why": "test"}}
    status, answer = ask(UnixConnection(shared.settings.socket), "POST", "/api/v1/actions/restart", body)
    assert (status, answer["code"], answer["message"]) == (200, 0, "done")
    ((verb, reference, options),) = shared.agent.acts
    assert (verb, reference, options["why"]) == ("restart", "VirtualMachine/web", "test")
    assert options["caller"] == {"pid": os.getpid(), "uid": os.geteuid(), "gid": os.getegid()}


@pytest.mark.parametrize(("code", "status"), [(1, 422), (3, 404), (6, 409)])
def test_answers_keep_their_exit_code(shared: Shared, code: int, status: int) -> None:
    shared.agent.answer = Answer(code, "no", "do this")
    found, body = ask(
        UnixConnection(shared.settings.socket), "POST", "/api/v1/actions/stop", {"object": "VirtualMachine/web"}
    )
    assert (found, body["code"], body["hint"]) == (status, code, "do this")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/v1/actions/explode", {}, 404),
        ("/api/v1/actions/start", [], 400),
        ("/api/v1/actions/start", {"object": 1}, 400),
        ("/api/v1/actions/start", {"object": "x" * 70_000}, 413),
    ],
)
def test_acts_that_cannot_be_understood_reach_nobody(shared: Shared, path: str, body: Any, status: int) -> None:
    assert ask(UnixConnection(shared.settings.socket), "POST", path, body)[0] == status
    assert shared.agent.acts == []


def test_who_may_act() -> None:
    assert Peer(1, 0, 0).may_act(group=50)
    assert Peer(1, os.geteuid(), 1).may_act(group=50)
    assert Peer(1, 4711, 50).may_act(group=50)
    assert Peer(1, 4711, 1, (7, 50)).may_act(group=50)
    assert not Peer(1, 4711, 1, (7,)).may_act(group=50)


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_a_stranger_is_refused_even_where_the_file_lets_him_in(
    tmp_path_factory: pytest.TempPathFactory, agent: StaticAgent
) -> None:
    folder = Path("/tmp") / f"kvmd-test-{os.getpid()}"
    settings = make_settings(folder)
    with serving(agent, settings):
        os.chmod(folder, 0o755)
        os.chmod(settings.socket, 0o666)
        program = textwrap.dedent(f"""
            import os, socket
            os.setgroups([]); os.setgid(65534); os.setuid(65534)
            connection = socket.socket(socket.AF_UNIX); connection.connect({settings.socket!r})
            connection.sendall(b"POST /api/v1/actions/start HTTP/1.0\\r\\nContent-Length: 2\\r\\n\\r\\n{{}}")
            print(connection.makefile().readline())
        """)
        output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert " 403 " in output
    assert agent.acts == []
    for path in (settings.paths.run, folder):
        os.rmdir(path)


def test_the_socket_file_is_private_and_goes_with_the_server(settings: Settings, agent: StaticAgent) -> None:
    with serving(agent, settings):
        found = os.stat(settings.socket)
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o660
        assert found.st_gid == os.stat(settings.paths.run).st_gid
        assert os.listdir(settings.paths.run) == ["kvmd.sock"]
    assert not os.path.exists(settings.socket)


def test_a_dead_daemons_socket_is_replaced_and_a_live_one_is_not(settings: Settings, agent: StaticAgent) -> None:
    bind_unix(settings.socket).close()
    assert os.path.exists(settings.socket)
    with serving(agent, settings):
        with pytest.raises(SettingsError, match="another kvmd answers"):
            Server(agent, settings).start()
        assert ask(UnixConnection(settings.socket), "GET", "/healthz")[0] == 200


def test_a_file_in_the_place_of_the_socket_is_left_alone(settings: Settings, agent: StaticAgent) -> None:
    os.makedirs(settings.paths.run)
    Path(settings.socket).write_text("precious")
    with pytest.raises(SettingsError, match="not a socket"):
        Server(agent, settings).start()
    assert Path(settings.socket).read_text() == "precious"


def test_a_taken_port_and_a_wrong_address_are_named(tmp_path: Path, agent: StaticAgent) -> None:
    with bind_tcp("127.0.0.1:0") as taken:
        settings = make_settings(tmp_path, http={"listen": f"127.0.0.1:{taken.getsockname()[1]}"})
        with pytest.raises(SettingsError, match="cannot listen") as caught:
            Server(agent, settings).start()
        assert "ss -ltnp" in caught.value.hint
        assert not os.path.exists(settings.socket)
    for listen in ("9178", "host:", "127.0.0.1:99999"):
        with pytest.raises(SettingsError, match="not HOST:PORT"):
            bind_tcp(listen)


def test_listening_can_be_switched_off(tmp_path: Path, agent: StaticAgent) -> None:
    with serving(agent, make_settings(tmp_path, http={"listen": None})) as server:
        assert server.port is None


def test_a_failing_agent_is_a_500_that_says_so(settings: Settings, agent: StaticAgent) -> None:
    def fail() -> Any:
        raise RuntimeError("boom")

    agent.source = fail  # type: ignore[method-assign]
    with serving(agent, settings) as server:
        status, body = ask(tcp(server), "GET", "/api/v1/source")
        assert status == 500
        assert "RuntimeError" in body["message"]
        assert ask(tcp(server), "GET", "/healthz")[0] == 200


def test_a_slow_agent_holds_up_nobody_else(settings: Settings, agent: StaticAgent) -> None:
    released = threading.Event()
    agent.source = lambda: released.wait(5) and {}  # type: ignore[method-assign, assignment, return-value]
    with serving(agent, settings) as server:
        thread = threading.Thread(target=lambda: ask(tcp(server), "GET", "/api/v1/source"), daemon=True)
        thread.start()
        started = time.monotonic()
        assert ask(tcp(server), "GET", "/healthz")[0] == 200
        assert time.monotonic() - started < 1
        released.set()
        thread.join(5)


def test_half_a_request_does_not_stay_for_ever(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, agent: StaticAgent
) -> None:
    monkeypatch.setattr("kvmd.server.protocol.REQUEST_SECONDS", 0.2)
    with serving(agent, settings) as server, socket.create_connection(("127.0.0.1", server.port or 0), 5) as half:
        half.sendall(b"GET /healthz HT")
        half.settimeout(3)
        assert half.recv(100) == b""


def test_an_answer_that_nobody_reads_does_not_stay_for_ever(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, agent: StaticAgent
) -> None:
    monkeypatch.setattr("kvmd.server.protocol.REQUEST_SECONDS", 0.1)
    agent.metrics = lambda: b"#" * 2**24 + b"\n"  # type: ignore[method-assign]
    with serving(agent, settings) as server, socket.create_connection(("127.0.0.1", server.port or 0), 5) as deaf:
        deaf.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert deaf.recv(100).startswith(b"HTTP/1.1 200")
        open_ones = [listener._server.server_state.connections for listener in server._listeners]
        deadline = time.monotonic() + 10
        while any(open_ones) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not any(open_ones)


def test_stopping_is_quick_while_somebody_is_connected(settings: Settings, agent: StaticAgent) -> None:
    server = Server(agent, settings)
    server.start()
    with socket.create_connection(("127.0.0.1", server.port or 0), 5):
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < 3


# ---------------------------------------------------------------------------------------------- web config


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"), "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return folder


def test_tls_from_the_web_configuration(certificate: Path, tmp_path: Path, agent: StaticAgent) -> None:
    (certificate / "web.yml").write_text("tls_server_config: {cert_file: cert.pem, key_file: key.pem}\n")
    web = {"listen": "127.0.0.1:0", "webConfig": str(certificate / "web.yml")}
    context = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
    with serving(agent, make_settings(tmp_path, http=web)) as server:
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, context=context, timeout=5)
        assert ask(connection, "GET", "/healthz")[0] == 200


def test_basic_authentication(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, agent: StaticAgent) -> None:
    bcrypt = pytest.importorskip("bcrypt")
    password = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
    (tmp_path / "web.yml").write_text(f"basic_auth_users: {{prometheus: '{password}'}}\n")
    web = {"listen": "127.0.0.1:0", "webConfig": str(tmp_path / "web.yml")}
    with serving(agent, make_settings(tmp_path, http=web)) as server:
        for user, expected in (
            (None, 401),
            ("prometheus:wrong", 401),
            ("nobody:secret", 401),
            ("prometheus:secret", 200),
        ):
            connection = tcp(server)
            headers = {"Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"} if user else {}
            for _ in range(2):
                connection.request("GET", "/healthz", headers=headers)
                response = connection.getresponse()
                response.read()
                assert response.status == expected
            connection.close()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("basic_auth: {}", "does not know the key 'basic_auth'"),
        ("tls_server_config: {cert_file: a}", "both cert_file and key_file"),
        ("tls_server_config: {cert_file: a, key_file: b, min_version: TLS10}", "min_version is 'TLS10'"),
        ("tls_server_config: {cert_file: a, key_file: b, cipher_suites: [x]}", "cipher_suites"),
        ("- a", "must be a mapping"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_web_configuration_that_would_not_be_honoured_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "web.yml").write_text(text)
    with pytest.raises(SettingsError, match=words):
        WebConfig.load(str(tmp_path / "web.yml"))


def test_users_without_bcrypt_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "bcrypt", None)
    (tmp_path / "web.yml").write_text("basic_auth_users: {a: b}")
    with pytest.raises(SettingsError, match="bcrypt") as caught:
        WebConfig.load(str(tmp_path / "web.yml"))
    assert "apt install python3-bcrypt" in caught.value.hint
