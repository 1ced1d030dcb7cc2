"""Bringing an image here: a download that goes on where it ended, or a copy; then its checksum."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from kvmd import ops
from kvmd.errors import Refused, Retry
from kvmd.host.plain_files import open_plain, read_plain
from kvmd.host.secrets import password_from
from kvmd.host.storage import fetchers

CHUNK_BYTES = 1 << 20
PROGRESS_BYTES = 1 << 17  # of a slow server, too, people want to see that something comes
LIST_BYTES = 8 << 20
CONNECT_SECONDS, READ_SECONDS = 10.0, 30.0
VALIDATOR = ".validator"

Progress = Callable[[int, int], None]  # bytes that came, bytes in all (0: nobody knows)

_SUM_LINE = re.compile(r"(?P<digits>[0-9a-fA-F]{64}|[0-9a-fA-F]{128})\s+\*?(?P<name>\S.*)")
_SUM_BSD = re.compile(r"SHA(?:256|512) \((?P<name>.+)\) = (?P<digits>[0-9a-fA-F]{64,128})")


def bring(operation: ops.ImageFetch, part: str, progress: Progress) -> str:
    """Bring the file to *part* and check it; ``sha256:`` of what came. Raises Retry or Refused."""
    wanted = operation.checksum or _listed_checksum(operation)
    try:
        if operation.url.startswith(("http:", "https:")):
            _download(operation.url, part, progress, operation.login)
        elif operation.url:
            fetchers.fetch(operation.url, part, progress, operation.login)
        else:
            _copy(operation.path, part, progress)
        found = digests(part, wanted)
    except OSError as error:
        raise _from_system(error, operation, part) from error
    if wanted and wanted not in found:
        _forget(part)
        actual = next(digest for digest in found if digest.startswith(wanted.partition(":")[0]))
        raise Refused(
            f"{operation.url or operation.path}: the checksum is {actual}, the spec asks for {wanted}; what came was "
            "thrown away",
            hint="put the right checksum or source into the spec, or try again: kvmd reconcile",
        )
    with contextlib.suppress(FileNotFoundError):
        os.unlink(part + VALIDATOR)
    return found[0]


def digests(path: str, wanted: str) -> list[str]:
    """sha256, and the algorithm of *wanted* where that is another. Raises OSError."""
    algorithms = ["sha256", *(["sha512"] if wanted.startswith("sha512:") else [])]
    hashes = [hashlib.new(name) for name in algorithms]
    with open(path, "rb") as file:
        while data := file.read(CHUNK_BYTES):
            for item in hashes:
                item.update(data)
    return [f"{name}:{item.hexdigest()}" for name, item in zip(algorithms, hashes, strict=True)]


def _forget(part: str) -> None:
    for path in (part, part + VALIDATOR):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _from_system(error: OSError, operation: ops.ImageFetch, part: str) -> Retry:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Retry(
            f"{operation.describe()}: the disk of {os.path.dirname(part)} is full; what came is kept",
            hint=f"make room: df {os.path.dirname(part)}",
        )
    return Retry(f"{operation.describe()}: {error.strerror or error}", hint=f"ls -l {operation.path or part}")


# ------------------------------------------------------------------------------------------------ copy


def _copy(source: str, part: str, progress: Progress) -> None:
    _forget(part)  # it may be another name of an image that has come already
    with open_plain(source, or_block=True) as origin, open(part, "wb") as target:
        total, done = os.fstat(origin.fileno()).st_size, 0
        while data := origin.read(CHUNK_BYTES):
            target.write(data)
            done += len(data)
            progress(done, total)
        _settle(target)


def _settle(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


# -------------------------------------------------------------------------------------------- download


def _download(url: str, part: str, progress: Progress, login: ops.Login) -> None:
    """Ask for what is missing, if the server still has the same file; else for all of it."""
    have, validator = _so_far(part)
    headers = {"Range": f"bytes={have}-", "If-Range": validator} if have else {}
    with request("GET", url, headers, login) as answer:
        if answer.status == 416:  # the part is as long as the file, or longer: begin again
            _forget(part)
            raise Retry(f"{url}: the server no longer has what came in part", hint="it is fetched anew")
        resumed = answer.status == 206
        done = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total = done + int(length) if length and length.isdecimal() else 0
        _room_for(total - done, part)
        if not resumed:
            _forget(part)  # before the new one is named: what comes next must not be added to another file
        _note_validator(part, answer.headers)
        with open(part, "ab" if resumed else "wb") as target:
            for data in _chunks(answer, url, total):
                target.write(data)
                done += len(data)
                progress(done, total)
            _settle(target)
    if total and done != total:
        raise Retry(f"{url}: the connection ended at {done} of {total} bytes", hint="it is gone on with from there")


def _so_far(part: str) -> tuple[int, str]:
    """How much came before, and what names the file it came from; nothing where that is not known."""
    try:
        with open(part + VALIDATOR, encoding="ascii") as file:
            validator = file.read().strip()
        return (os.path.getsize(part), validator) if validator else (0, "")
    except (OSError, UnicodeDecodeError):
        return 0, ""


def _note_validator(part: str, headers: Any) -> None:
    """Only a strong ETag or a date can name a file for If-Range (RFC 9110, 13.1.5)."""
    tag = headers.get("ETag", "")
    validator = tag if tag.startswith('"') else headers.get("Last-Modified", "")
    with open(part + VALIDATOR, "w", encoding="ascii", errors="replace") as file:
        file.write(validator)


def _room_for(needed: int, part: str) -> None:
    free = shutil.disk_usage(os.path.dirname(part)).free
    if needed > free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def request(method: str, url: str, headers: dict[str, str], login: ops.Login = ops.NOBODY) -> Iterator[Any]:
    """The answer to a request, unread; raises Retry for what may pass by itself.

    Another server that this one leads to gets neither password nor cookies: urllib3 drops those headers.
    """
    import urllib3

    headers = {**headers, **_login_headers(login)}
    timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS)
    retries = urllib3.Retry(connect=1, read=0, redirect=5, status=0, raise_on_status=False)
    if login.insecure:
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)  # the spec says so
    context = fetchers.trust_of(login) if url.startswith("https:") else None
    with urllib3.PoolManager(timeout=timeout, retries=retries, ssl_context=context) as pool:
        try:
            answer = pool.request(
                method, url, headers={"Accept-Encoding": "identity", **headers}, preload_content=False
            )
        except urllib3.exceptions.HTTPError as error:
            raise Retry(f"{url}: {_reason(error)}", hint=f"try: curl -I {url}") from error
        try:
            if answer.status not in (200, 206, 416):
                raise Retry(
                    f"{url}: the server answers {answer.status} {answer.reason}", hint=_hint(answer, login, url)
                )
            yield answer
        finally:
            answer.release_conn()


def _login_headers(login: ops.Login) -> dict[str, str]:
    import urllib3

    headers: dict[str, str] = {}
    if login.user:
        headers |= urllib3.make_headers(basic_auth=f"{login.user}:{password_from(login.secret)}")
    if login.cookies:
        headers["Cookie"] = password_from(login.cookies)
    return headers


def _hint(answer: Any, login: ops.Login, url: str) -> str:
    if answer.status not in (401, 403):
        return f"try: curl -I {url}"
    if login == ops.NOBODY:
        return "it wants to know who asks: write `authFrom` or `cookiesFrom`"
    return f"see whether it knows {login.user or 'these cookies'}, and what is in {login.secret or login.cookies}"


def _chunks(answer: Any, url: str, total: int) -> Iterator[bytes]:
    import urllib3

    try:
        yield from answer.stream(PROGRESS_BYTES)
    except urllib3.exceptions.HTTPError as error:
        of = f" of {total} bytes" if total else ""
        raise Retry(f"{url}: broken off{of}: {_reason(error)}", hint="it is gone on with from there") from error


def _reason(error: Exception) -> str:
    cause: Any = getattr(error, "reason", None) or error
    return str(cause)


# ------------------------------------------------------------------------------------------- checksums


def _listed_checksum(operation: ops.ImageFetch) -> str:
    """The image's line in a list of checksums; "" where there is no list."""
    if operation.checksum_url:
        with request("GET", operation.checksum_url, {}) as answer:
            data: bytes = answer.read(LIST_BYTES)
    elif operation.checksum_path:
        try:
            data = read_plain(operation.checksum_path, LIST_BYTES)
        except OSError as error:
            raise Retry(f"{operation.checksum_path}: {error.strerror}", hint="put the list there") from error
    else:
        return ""
    name = os.path.basename(unquote(urlsplit(operation.url).path) if operation.url else operation.path)
    checksum = checksum_of(name, data.decode("utf-8", "replace"))
    if not checksum:
        where = operation.checksum_url or operation.checksum_path
        raise Refused(f"{where} has no line for {name}", hint="write `checksum` into the spec instead")
    return checksum


def checksum_of(name: str, text: str) -> str:
    """The checksum of a file by its line in SHA256SUMS or SHA512SUMS, of coreutils or of BSD; "" for none."""
    for line in text.splitlines():
        match = _SUM_LINE.fullmatch(line.strip()) or _SUM_BSD.fullmatch(line.strip())
        if match is not None and os.path.basename(match["name"]) == name:
            digits = match["digits"].lower()
            return f"{'sha256' if len(digits) == 64 else 'sha512'}:{digits}"
    return ""
