"""What a spec names on this host is looked at so that it can neither hold up the look nor lead elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvmd import ops
from kvmd.api.resource import Ref
from kvmd.errors import Refused, Retry
from kvmd.host.files import Files
from kvmd.host.plain_files import MOST_BYTES, read_plain
from kvmd.host.secrets import password_in, read_secret
from kvmd.host.storage import fetchers, transfer
from kvmd.kinds import CONTROLLERS
from kvmd.kinds.virtual_machine.secret import SecretFrom, secret_fact
from kvmd.observed import File, Key, Observed, Secret
from kvmd.plan.index import Index
from kvmd.plan.look import Look
from kvmd.plan.model import Desired, Memory, Rules
from kvmd.plan.paths import refuse_outside, secret_may_be_read


@pytest.fixture
def fifo(tmp_path: Path) -> str:
    """A pipe that nobody writes into: a plain open() would wait for ever."""
    path = tmp_path / "fifo"
    os.mkfifo(path, 0o600)
    return str(path)


def test_a_secret_that_is_a_pipe_a_device_or_too_large_is_told_and_not_waited_for(fifo: str, tmp_path: Path) -> None:
    assert read_secret(fifo).problem == "it is no plain file"
    assert password_in(fifo) is None
    link = tmp_path / "link"
    link.symlink_to(fifo)
    assert read_secret(str(link)).problem == "it is no plain file"
    large = tmp_path / "large"
    large.touch(0o600)
    os.truncate(large, MOST_BYTES + 1)
    assert read_secret(str(large)).problem == f"it has more than {MOST_BYTES} bytes"
    with pytest.raises(OSError, match="no plain file"):
        read_plain("/dev/null")


def test_a_plain_secret_says_where_it_lies(tmp_path: Path) -> None:
    word, link = tmp_path / "word", tmp_path / "link"
    word.touch(0o600)
    word.write_text("pass\n")
    link.symlink_to(word)
    secret = read_secret(str(link))
    assert (secret.problem, secret.real, password_in(str(link))) == ("", str(word), "pass")


@pytest.mark.parametrize("more", [{}, {"checksum_path": True}])
def test_what_is_fetched_and_its_checksums_are_no_pipes(fifo: str, tmp_path: Path, more: dict[str, bool]) -> None:
    fetch = ops.ImageFetch("web.raw", "raw", None, path=fifo, **dict.fromkeys(more, fifo))
    with pytest.raises(Retry, match="no plain file"):
        transfer.bring(fetch, str(tmp_path / "part"), lambda done, total: None)


def test_an_authority_is_no_pipe(fifo: str) -> None:
    with pytest.raises(Retry, match="no plain file"):
        fetchers.trust_of(ops.Login(ca_file=fifo))


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("credential:web", True),
        ("/etc/kvmd/secrets/web", True),
        ("/srv/web", True),
        ("/var/lib/kvmd/specs.jsonl", False),
        ("/mnt/gone/fifo", False),
        ("/etc/kvmd/secrets-of-others", False),
    ],
)
def test_a_secret_is_opened_only_where_specs_may_name_it(name: str, read: bool) -> None:
    assert secret_may_be_read(name, Rules(allowed_paths=("/srv", "/var/lib/kvmd"))) is read


def look_at(fact: File | Secret, rules: Rules) -> Look:
    key = Key("file", fact.path) if isinstance(fact, File) else Key("secret", fact.name)
    return Look(Index(CONTROLLERS, rules).world(Desired(), Observed({key: fact}), Memory()), 0.0)


def test_links_on_the_way_to_a_file_that_is_not_there_yet_are_followed(tmp_path: Path) -> None:
    allowed, outside = tmp_path / "allowed", tmp_path / "outside"
    allowed.mkdir()
    outside.mkdir()
    (allowed / "link").symlink_to(outside)
    path = str(allowed / "link" / "console.log")
    (fact,) = Files().look([path]).values()
    assert isinstance(fact, File)
    assert (fact.kind, fact.real) == ("missing", str(outside / "console.log"))
    look = look_at(fact, Rules(allowed_paths=(str(allowed),)))
    with pytest.raises(Refused, match=f"{outside}/console.log lies outside"):
        refuse_outside(Ref("VirtualMachine", "web"), (path,), look)


def test_a_link_that_is_turned_while_the_file_is_missing_is_followed_anew(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "one")
    path, files = str(tmp_path / "link" / "log"), Files()
    first = files.look([path])
    assert files.look([path]) is first
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "two")
    (fact,) = files.look([path]).values()
    assert isinstance(fact, File)
    assert fact.real == str(tmp_path / "two" / "log")


@pytest.mark.parametrize("real", ["/etc/shadow", "/var/lib/kvmd/specs.jsonl"])
def test_a_link_to_a_secret_elsewhere_is_refused(real: str) -> None:
    source, rules = SecretFrom(file="/srv/people/word"), Rules(allowed_paths=("/srv",))
    look = look_at(Secret("/srv/people/word", "digest", real=real), rules)
    with pytest.raises(Refused, match=real):
        secret_fact(Ref("VirtualMachine", "web"), source, look)
