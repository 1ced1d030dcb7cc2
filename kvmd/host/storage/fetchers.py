"""Fetching over ftp, ftps, tftp and ssh; each from its beginning, and whole or not at all."""

from __future__ import annotations

import contextlib
import ftplib
import os
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from urllib.parse import SplitResult, unquote, urlsplit

from kvmd import ops
from kvmd.errors import Retry, Unsupported
from kvmd.host.plain_files import read_plain
from kvmd.host.secrets import password_from, path_of
from kvmd.host.storage import tftp

CONNECT_SECONDS, READ_SECONDS = 10.0, 30.0
SSH_SECONDS = 24 * 3600
CHUNK_BYTES = 1 << 20

Progress = Callable[[int, int], None]


class _ImplicitTls(ftplib.FTP_TLS):
    """ftps: TLS from the first byte, as curl means it; the standard library begins in the clear."""

    def connect(self, host: str = "", port: int = 0, *_words: object, **_names: object) -> str:
        welcome = ""
        try:
            plain = socket.create_connection((host, port), CONNECT_SECONDS)
            self.host, self.port, self.af = host, port, plain.family
            self.sock = self.context.wrap_socket(plain, server_hostname=host)
            self.file = self.sock.makefile("r", encoding=self.encoding)
            welcome = self.welcome = self.getresp()
        except ssl.SSLError as error:
            raise OSError(f"TLS: {error.reason or error}") from error
        return welcome


def trust_of(login: ops.Login) -> ssl.SSLContext:
    """Whose certificates count. Raises Retry where the file that says so cannot be used."""
    try:
        context = ssl.create_default_context(cadata=read_plain(login.ca_file).decode() if login.ca_file else None)
    except (OSError, UnicodeDecodeError) as error:  # ssl.SSLError is one
        raise Retry(f"{login.ca_file}: {_said(error)}", hint="put the authority's certificate there, PEM") from error
    if login.insecure:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@contextlib.contextmanager
def ftp(url: str, login: ops.Login = ops.NOBODY) -> Iterator[ftplib.FTP]:
    """A connection to a server of ftp or ftps, in binary. Raises OSError, ftplib.Error or Retry."""
    parts = urlsplit(url)
    made = _ImplicitTls(context=trust_of(login)) if parts.scheme == "ftps" else ftplib.FTP()
    made.timeout = READ_SECONDS
    with made:
        made.connect(parts.hostname or "", parts.port or (990 if parts.scheme == "ftps" else 21))
        made.login(*((login.user, password_from(login.secret)) if login.user else ()))
        if isinstance(made, ftplib.FTP_TLS):
            made.prot_p()
        made.voidcmd("TYPE I")
        yield made


def path_in(url: str) -> str:
    """The path on a server of ftp or tftp: from where a login begins, not from the root (RFC 1738, 3.2.2)."""
    return unquote(urlsplit(url).path).removeprefix("/")


def fetch(url: str, part: str, progress: Progress, login: ops.Login = ops.NOBODY) -> None:
    """Fetch to *part*. Raises Retry or Unsupported."""
    parts = urlsplit(url)
    path = path_in(url)
    try:
        if parts.scheme == "ssh":
            _ssh(parts, unquote(parts.path), part, login)
            return
        with open(part, "wb") as target:
            if parts.scheme == "tftp":
                tftp.fetch(parts.hostname or "", parts.port or 69, path, target, progress)
            else:
                with ftp(url, login) as server:
                    total, done = server.size(path) or 0, 0

                    def take(data: bytes) -> None:
                        nonlocal done
                        target.write(data)
                        done += len(data)
                        progress(done, total)

                    server.retrbinary(f"RETR {path}", take, CHUNK_BYTES)
                if total and done != total:
                    raise OSError(f"the connection ended at {done} of {total} bytes")
            target.flush()
            os.fsync(target.fileno())
    except (ftplib.Error, OSError, EOFError) as error:
        if isinstance(error, OSError) and error.filename == part:
            raise
        raise Retry(f"{url}: {_said(error)}", hint=f"try: curl -o /dev/null {url}") from error


def _said(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def _ssh(parts: SplitResult, path: str, part: str, login: ops.Login) -> None:
    """By scp, as the system and root's own ~/.ssh have it, key and known hosts; nobody is asked."""
    user = f"{parts.username}@" if parts.username else ""
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    words = ("-q", "-B", "-o", "StrictHostKeyChecking=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS:g}")
    key = ("-o", "IdentitiesOnly=yes", "-i", path_of(login.secret)) if login.secret else ()
    command = ["scp", *words, *key, "-P", str(parts.port or 22), "--", f"{user}{host}:{path}", part]
    url = parts.geturl()
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SSH_SECONDS)
    except FileNotFoundError as error:
        raise Unsupported(f"{url}: scp is not installed", hint="apt-get install openssh-client") from error
    except subprocess.TimeoutExpired as error:
        raise Retry(f"{url}: not within a day") from error
    if done.returncode:
        said = " ".join(done.stderr.split())[:300]
        raise Retry(f"{url}: {said or f'scp ended with {done.returncode}'}", hint=f"try as root: {' '.join(command)}")
