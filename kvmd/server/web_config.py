"""TLS and basic authentication from a Prometheus exporter-toolkit web configuration file."""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib
import os
import secrets
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvmd.errors import SettingsError

_HINT = "see https://prometheus.io/docs/prometheus/latest/configuration/https/"
_TLS_KEYS = frozenset({"cert_file", "key_file", "client_ca_file", "client_auth_type", "min_version"})
_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_CLIENT_AUTH = {"NoClientCert": ssl.CERT_NONE, "RequireAndVerifyClientCert": ssl.CERT_REQUIRED}
_MOST_BYTES = 65_536
_MOST_REMEMBERED = 256


@dataclass(frozen=True, slots=True)
class WebConfig:
    """What the file asks for."""

    users: Mapping[str, str] = field(default_factory=dict)
    tls: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str) -> WebConfig:
        """Read the file; raise SettingsError for anything that kvmd would not honour."""
        data = _read(path)
        unknown = sorted(set(data) - {"tls_server_config", "basic_auth_users"})
        if unknown:
            raise SettingsError(f"{path}: kvmd does not know the key '{unknown[0]}'", hint=_HINT)
        users, tls = data.get("basic_auth_users") or {}, data.get("tls_server_config") or {}
        if not isinstance(users, dict) or not isinstance(tls, dict):
            raise SettingsError(f"{path}: basic_auth_users and tls_server_config must be mappings", hint=_HINT)
        folder = os.path.dirname(os.path.abspath(path))
        config = cls(
            users={str(user): str(password) for user, password in users.items()},
            tls={
                key: os.path.join(folder, str(value)) if key.endswith("_file") else str(value)
                for key, value in tls.items()
            },
        )
        config._check(path)
        return config

    def _check(self, path: str) -> None:
        unknown = sorted(set(self.tls) - _TLS_KEYS)
        if unknown:
            raise SettingsError(f"{path}: kvmd does not know the key 'tls_server_config.{unknown[0]}'", hint=_HINT)
        if self.tls and not {"cert_file", "key_file"} <= set(self.tls):
            raise SettingsError(f"{path}: tls_server_config needs both cert_file and key_file", hint=_HINT)
        for key, known in (("min_version", _VERSIONS), ("client_auth_type", _CLIENT_AUTH)):
            value = self.tls.get(key)
            if value is not None and value not in known:
                raise SettingsError(f"{path}: {key} is '{value}'; kvmd knows {', '.join(known)}", hint=_HINT)
        if self.users:
            _bcrypt(path)

    def ssl_context(self) -> ssl.SSLContext | None:
        """The context for the listener; renewed certificates are taken up at the next handshake."""
        if not self.tls:
            return None
        state: dict[str, Any] = {"context": self._context(), "stamp": self._stamp()}

        def renew(connection: Any, name: str | None, context: ssl.SSLContext) -> None:
            try:
                stamp = self._stamp()
                if stamp != state["stamp"]:
                    state.update(stamp=stamp, context=self._context())
            except (OSError, SettingsError):
                # a half-written pair: stay with the last good one
                pass
            connection.context = state["context"]

        first: ssl.SSLContext = state["context"]
        first.sni_callback = renew
        return first

    def _stamp(self) -> tuple[int, ...]:
        return tuple(os.stat(self.tls[key]).st_mtime_ns for key in ("cert_file", "key_file"))

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = _VERSIONS[self.tls.get("min_version", "TLS12")]
        try:
            context.load_cert_chain(self.tls["cert_file"], self.tls["key_file"])
            if "client_ca_file" in self.tls:
                context.load_verify_locations(self.tls["client_ca_file"])
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                f"cannot use the TLS files {self.tls['cert_file']} and {self.tls['key_file']}: {error}",
                hint="check that both are PEM, belong together and can be read by kvmd",
            ) from None
        context.verify_mode = _CLIENT_AUTH[self.tls.get("client_auth_type", "NoClientCert")]
        return context


class Passwords:
    """Checks basic authentication; an outcome is remembered, since one bcrypt takes 70 ms."""

    def __init__(self, users: Mapping[str, str]) -> None:
        self._users = users
        self._key = secrets.token_bytes(32)
        self._known: dict[bytes, bool] = {}

    def remembered(self, header: str) -> bool | None:
        """Return the outcome for this header if it was checked before."""
        return self._known.get(self._digest(header))

    def check(self, header: str) -> bool:
        """Check the value of an Authorization header; slow the first time."""
        bcrypt: Any = importlib.import_module("bcrypt")
        user, password = _credentials(header)
        # an unknown user costs as much as a wrong password, so that time tells nothing
        expected = self._users.get(user) or next(iter(self._users.values()))
        try:
            good = bcrypt.checkpw(password[:72], expected.encode()) and user in self._users
        except ValueError:
            # what the file holds for that user is no bcrypt hash
            good = False
        if len(self._known) >= _MOST_REMEMBERED:
            self._known.clear()
        self._known[self._digest(header)] = good
        return good

    def _digest(self, header: str) -> bytes:
        return hmac.digest(self._key, header.encode("utf-8", "surrogateescape"), hashlib.sha256)


def _credentials(header: str) -> tuple[str, bytes]:
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return "", b""
    try:
        user, _, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        return user.decode(), password
    except ValueError:
        return "", b""


def _bcrypt(path: str) -> None:
    try:
        importlib.import_module("bcrypt")
    except ImportError:
        raise SettingsError(
            f"{path} sets basic_auth_users, and the module bcrypt, which checks their passwords, is not installed",
            hint="apt install python3-bcrypt (or pip install bcrypt), or take basic_auth_users out",
        ) from None


def _read(path: str) -> dict[str, Any]:
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            data = yaml.safe_load(file.read(_MOST_BYTES))
    except OSError as error:
        raise SettingsError(f"cannot read http.webConfig {path}: {error.strerror}", hint=_HINT) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(f"http.webConfig {path} is not YAML: {error}", hint=_HINT) from None
    if not isinstance(data or {}, dict):
        raise SettingsError(f"http.webConfig {path} must be a mapping", hint=_HINT)
    return data or {}
