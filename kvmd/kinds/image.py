"""Image: a file from a URL or a path, checked, brought into the image store once, never changed since."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, model_validator

from kvmd import ops
from kvmd.api.mark import Mark
from kvmd.api.quantity import HostPath, Text, format_quantity
from kvmd.api.resource import Claim, Ref, Reference, Resource, SpecModel, hash_of
from kvmd.api.schema import branch, leaf
from kvmd.api.status import BLOCKED, Condition
from kvmd.observed import File, Key, Transfer, Trash
from kvmd.observed import Image as Fact
from kvmd.plan.holders import refuse_held
from kvmd.plan.look import Look
from kvmd.plan.model import Applied, Draft
from kvmd.plan.paths import refuse_outside

KIND = "Image"
PLURAL = "images"
SHORT = "img"

_CHECKSUM = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"'{value}' is not a URL of http or https; for a file on this host write `path`")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL in a spec may not hold a user name or password")
    return value


def _checksum(value: str) -> str:
    if not _CHECKSUM.fullmatch(value.lower()):
        raise ValueError(f"'{value}' is not a checksum; write sha256: or sha512: and its digits in hexadecimal")
    return value.lower()


Url = Annotated[Text, AfterValidator(_url)]


class Source(SpecModel):
    """Where it comes from: exactly one."""

    url: Url | None = leaf(
        None, about="URL of http or https.", example="https://cloud.example/debian-13-generic-amd64.qcow2"
    )
    path: HostPath | None = leaf(
        None, about="File on the host; it is copied, so that it may change or go.", example="/var/lib/kvmd/iso/d.iso"
    )

    @model_validator(mode="after")
    def _agree(self) -> Source:
        if (self.url is None) == (self.path is None):
            raise ValueError("write exactly one of `url` and `path`")
        return self


class ChecksumSource(SpecModel):
    """A list of checksums, such as SHA256SUMS: the line of the image's own file name counts."""

    url: Url | None = leaf(None, about="URL of the list.", example="https://cloud.example/SHA512SUMS")
    path: HostPath | None = leaf(None, about="File on the host.", example="/var/lib/kvmd/iso/SHA256SUMS")

    @model_validator(mode="after")
    def _agree(self) -> ChecksumSource:
        if (self.url is None) == (self.path is None):
            raise ValueError("write exactly one of `url` and `path`")
        return self


class Spec(SpecModel):
    """An image."""

    source: Source = branch(about="Where it comes from.")
    checksum: Annotated[str, AfterValidator(_checksum)] | None = leaf(
        None,
        about="sha256: or sha512: of the file; without one, what comes is taken as it is.",
        example="sha256:" + "0123456789abcdef" * 4,
    )
    checksum_from: ChecksumSource | None = branch(
        None, about="A list of checksums such as SHA256SUMS, instead of `checksum`."
    )
    format: Literal["qcow2", "raw"] = leaf(
        about="Format of the file; never guessed. An ISO or a kernel is raw.", example="qcow2"
    )
    deletion_policy: Literal["Delete", "Orphan"] = leaf(
        "Delete",
        about="When the spec goes: move the file to the trash of the store once nothing stands on it, or keep it.",
        example="Delete",
    )

    @model_validator(mode="after")
    def _agree(self) -> Spec:
        if self.checksum is not None and self.checksum_from is not None:
            raise ValueError("write either `checksum` or `checksumFrom`")
        return self


def file_name(name: str, spec: Spec) -> str:
    """The name in the store: another source or checksum is another file beside it, so nothing is ever replaced."""
    basis = [spec.checksum or (spec.source.url or spec.source.path), spec.format]
    if spec.checksum is None and spec.checksum_from is not None:
        basis.append(spec.checksum_from.url or spec.checksum_from.path)
    return f"{name}-{hash_of(basis)[:12]}.{spec.format}"


def host_key(ref: Ref, spec: Spec | None, look: Look | None = None) -> Key:
    """The file in the store."""
    return Key("image", file_name(ref.name, spec) if spec else ref.name)


def references(ref: Ref, spec: Spec) -> tuple[Reference, ...]:
    """None."""
    return ()


def claims(ref: Ref, spec: Spec) -> tuple[Claim, ...]:
    """None: its file is its own."""
    return ()


def files(spec: Spec) -> tuple[str, ...]:
    """The files on the host that it is made from."""
    lists = spec.checksum_from.path if spec.checksum_from else None
    return tuple(path for path in (spec.source.path, lists) if path)


def _present(ref: Ref, look: Look) -> Fact | None:
    """The file that the spec asks for (of a stranger's image: none)."""
    resource = look.spec(ref)
    if resource is None:
        return None
    assert isinstance(resource.spec, Spec)
    fact = look.fact(host_key(ref, resource.spec))
    return fact if isinstance(fact, Fact) else None


def usable(ref: Ref, look: Look) -> bool:
    """True where the file is in the store."""
    return _present(ref, look) is not None


def file_of(ref: Ref, look: Look) -> tuple[str, str] | None:
    """Its file in the store."""
    resource = look.spec(ref)
    if resource is None or not isinstance(resource.spec, Spec):
        return None
    return f"{look.rules.images}/{file_name(ref.name, resource.spec)}", resource.spec.format


def plan(ref: Ref, look: Look) -> Draft:
    """Fetch it, or note what its spec now says."""
    resource = look.spec(ref)
    assert resource is not None and isinstance(resource.spec, Spec)
    fact, applied = _present(ref, look), look.applied(ref)
    mark = _mark(resource, fact, applied, look)
    if fact is None:
        refuse_outside(ref, files(resource.spec), look)
        waits = _missing(resource.spec, look)
        operations = () if waits else (_fetch(resource, mark),)
        return Draft(operations, conditions=waits, settled=False, status=_status(resource, None, look))
    there = fact.mark
    fresh = there is not None and there.says_the_same_as(mark) and there.ref == ref and not there.retained
    steps: list[ops.Op] = [] if fresh else [ops.ImageMark(fact.name, mark)]
    trash = look.fact(Key("trash", look.rules.images))
    if isinstance(trash, Trash) and trash.keeper == ref:
        steps.append(ops.TrashEmpty("the image store", trash.path, trash.overdue))
    return Draft(tuple(steps), status=_status(resource, fact, look), asked_elsewhere=fresh)


def _mark(resource: Resource, fact: Fact | None, applied: Applied | None, look: Look) -> Mark:
    assert isinstance(resource.spec, Spec)
    owner, name = look.rules.owner, file_name(resource.ref.name, resource.spec)
    before = fact.mark if fact is not None and fact.mark is not None and not fact.mark.retained else None
    if before is None and applied is not None and applied.generation:
        before = Mark(owner, resource.ref, applied.spec_hash, applied.generation)
    return Mark.of(resource, owner, name, before)


def _missing(spec: Spec, look: Look) -> tuple[Condition, ...]:
    for path in files(spec):
        fact = look.fact(Key("file", path))
        if not isinstance(fact, File) or fact.kind not in ("regular", "block"):
            text = f"waits for {path}: not a file on this host; put it there, it is looked at every few seconds"
            return (Condition(BLOCKED, True, "FileMissing", text),)
    return ()


def _fetch(resource: Resource, mark: Mark) -> ops.ImageFetch:
    spec = resource.spec
    assert isinstance(spec, Spec)
    lists = spec.checksum_from
    return ops.ImageFetch(
        file_name(resource.ref.name, spec),
        spec.format,
        mark,
        url=spec.source.url or "",
        path=spec.source.path or "",
        checksum=spec.checksum or "",
        checksum_url=(lists.url if lists else None) or "",
        checksum_path=(lists.path if lists else None) or "",
    )


def remove(ref: Ref, key: Key, look: Look) -> Draft:
    """Move the file to the trash; the host refuses while anything stands on it."""
    fact, applied = look.fact(key), look.applied(ref)
    if not isinstance(fact, Fact):
        return Draft()
    if applied is not None and applied.written.get("deletionPolicy") == "Orphan":
        assert fact.mark is not None
        released = Mark(fact.mark.owner, ref, fact.mark.spec_hash, 0, fact.name, written=fact.mark.written)
        return Draft((ops.ImageMark(fact.name, released),), reason="let go of, as its deletionPolicy asks")
    refuse_held(ref, fact.path, look)
    return Draft((ops.ImageRemove(fact.name, fact.path),))


def _status(resource: Resource, fact: Fact | None, look: Look) -> Mapping[str, Any]:
    spec = resource.spec
    assert isinstance(spec, Spec)
    found: dict[str, Any] = {"path": f"{look.rules.images}/{file_name(resource.ref.name, spec)}"}
    if fact is not None:
        return {
            **found,
            "digest": fact.digest,
            "size": format_quantity(fact.size),
            "virtualSize": format_quantity(fact.capacity),
        }
    transfer = look.fact(Key("transfer", file_name(resource.ref.name, spec)))
    if isinstance(transfer, Transfer):
        found["progress"] = {"doneBytes": transfer.done, "totalBytes": transfer.total or None}
    return found
