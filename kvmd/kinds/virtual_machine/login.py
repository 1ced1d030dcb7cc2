"""How a drive's server is spoken to: who asks, with which password or key, cookies, and whose certificate counts."""

from __future__ import annotations

from typing import Protocol

from pydantic import model_validator

from kvmd import ops
from kvmd.api.quantity import Boolean, HostPath, Text
from kvmd.api.resource import Ref, SpecModel
from kvmd.api.schema import leaf
from kvmd.kinds.virtual_machine.remote import parse
from kvmd.kinds.virtual_machine.secret import (
    SecretFrom,
    password_fact,
    refuse_elsewhere,
    secret_credential,
    secret_fact,
    secret_file,
)
from kvmd.plan.look import Look

AUTH = "Who asks the server: of iscsi (CHAP), rbd (cephx), http and https (basic), ftp, ftps and ssh (a private key)."
COOKIES = "The cookies that http and https are asked with."
TLS = "Whose certificate counts, of https and ftps; default the authorities of this host."
_UNLESS = "NextBoot for a disk that is plugged in"
_DIRECT = frozenset({"iscsi", "rbd"})  # libvirt hands their logins to QEMU
_NAMED = frozenset({*_DIRECT, "http", "https", "ftp", "ftps"})
_TLS = frozenset({"https", "ftps"})
_HTTP = frozenset({"http", "https"})


class AuthFrom(SecretFrom):
    """Name and password, or the private key of ssh; what is secret of it is read from exactly one place."""

    user: Text | None = leaf(
        None,
        about="Name to log in with; a URL of ssh names its own.",
        example="backup",
        unless=_UNLESS,
        pattern=r"^\S+$",
    )
    file: HostPath | None = secret_file("san-chap", unless=_UNLESS)
    systemd_credential: Text | None = secret_credential("san-chap", unless=_UNLESS)


class CookiesFrom(SecretFrom):
    """Where the cookies are read, one line NAME=VALUE; NAME=VALUE: exactly one place."""

    file: HostPath | None = secret_file("mirror-cookies", unless=_UNLESS)
    systemd_credential: Text | None = secret_credential("mirror-cookies", unless=_UNLESS)


class Tls(SpecModel):
    """Trust in the certificate of a server."""

    ca_file: HostPath | None = leaf(
        None,
        about="Certificates of the authorities that count instead, PEM; below /etc/kvmd/secrets or "
        "policy.allowedPaths.",
        example="/etc/kvmd/secrets/lab-ca.pem",
        unless=_UNLESS,
    )
    insecure: Boolean = leaf(
        False, about="Take any certificate: whoever sits in between may read and change all.", example=True
    )

    @model_validator(mode="after")
    def _agree(self) -> Tls:
        if self.insecure and self.ca_file is not None:
            raise ValueError("`insecure` takes any certificate; leave either it or `caFile` out")
        return self


class Spoken(Protocol):
    """A disk or a medium."""

    @property
    def url(self) -> str | None:
        """Where its server has it."""

    @property
    def access(self) -> str:
        """The way that it is reached."""

    @property
    def auth_from(self) -> AuthFrom | None:
        """Who asks."""

    @property
    def cookies_from(self) -> CookiesFrom | None:
        """With which cookies."""

    @property
    def tls(self) -> Tls | None:
        """Whose certificate counts."""


def refuse_login(item: Spoken) -> None:
    """Raise ValueError for a login that its protocol does not know."""
    written = {"authFrom": item.auth_from, "cookiesFrom": item.cookies_from, "tls": item.tls}
    words = [word for word, value in written.items() if value is not None]
    if not words:
        return
    if item.url is None:
        raise ValueError(f"only what has a `url` has `{words[0]}`")
    protocol = parse(item.url).protocol
    known = {"authFrom": _NAMED | {"ssh"}, "cookiesFrom": _HTTP, "tls": _TLS}
    for word in words:
        if protocol not in known[word]:
            raise ValueError(f"a URL of {protocol} has no `{word}`; it is for {', '.join(sorted(known[word]))}")
    if item.auth_from is not None:
        _refuse_user(item.auth_from.user, protocol)
    if item.access == "Direct" and protocol not in _DIRECT:
        raise ValueError(f"{why_cached(protocol)}; write `access: Cached` or leave it out")


def _refuse_user(user: str | None, protocol: str) -> None:
    if protocol == "ssh" and user is not None:
        raise ValueError("a URL of ssh names its user: ssh://USER@SERVER/PATH; take `authFrom.user` out")
    if protocol in _NAMED and user is None:
        raise ValueError(f"`authFrom` of {protocol} needs `user`")
    if protocol in _HTTP and user is not None and ":" in user:
        raise ValueError("a user of http has no ':' in the name")


def why_cached(protocol: str) -> str:
    """Why QEMU does not read there itself."""
    return f"libvirt has no place for a login or a certificate of {protocol}"


def login_of(item: Spoken) -> ops.Login:
    """What the host needs to know of it."""
    auth, cookies, tls = item.auth_from, item.cookies_from, item.tls
    return ops.Login(
        user=(auth.user or "") if auth else "",
        secret=auth.secret if auth else "",
        cookies=cookies.secret if cookies else "",
        ca_file=(tls.ca_file or "") if tls else "",
        insecure=tls.insecure if tls else False,
    )


def secrets_of(item: Spoken | None) -> tuple[str, ...]:
    """The names of its secrets."""
    return tuple(source.secret for source in (item.auth_from, item.cookies_from) if source) if item else ()


def check_login(ref: Ref, item: Spoken, look: Look) -> None:
    """Raise Refused or Blocked where a part of the login may not be named or cannot be read."""
    if item.auth_from is not None:
        (secret_fact if item.auth_from.user is None else password_fact)(ref, item.auth_from, look)
    if item.cookies_from is not None:
        password_fact(ref, item.cookies_from, look)
    if item.tls is not None and item.tls.ca_file is not None:
        refuse_elsewhere(ref, item.tls.ca_file, look)
