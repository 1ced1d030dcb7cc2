"""References, metadata and the envelope of every object: apiVersion, kind, metadata, spec."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from sys import intern
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.alias_generators import to_camel

from kvmd.api.named import is_named_list
from kvmd.api.problem import Position
from kvmd.api.quantity import DNS_LABEL
from kvmd.api.secrecy import digested

API_VERSION = "kvmd.dev/v1alpha1"
ANNOTATION_PREFIX = "kvmd.dev/"
ANNOTATION_SUSPEND = "kvmd.dev/suspend"
ANNOTATION_PRUNE = "kvmd.dev/prune"
ANNOTATION_ADOPT = "kvmd.dev/adopt"
ANNOTATION_RESTARTED_AT = "kvmd.dev/restarted-at"


# What each may be, as a regular expression.
STEERING = {
    ANNOTATION_SUSPEND: "true|false",
    ANNOTATION_PRUNE: "enabled|disabled|confirm",
    ANNOTATION_ADOPT: "true|false|uuid:[0-9a-fA-F-]{36}",
    ANNOTATION_RESTARTED_AT: ".+",
}


class Ref(NamedTuple):
    """The name of an object: its kind and its name."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> Ref:
        """Read ``Kind/name``."""
        kind, _, name = text.partition("/")
        return cls(kind, name)


class SpecModel(BaseModel):
    """The base of everything that can be written under ``spec``: closed, frozen, camelCase outside."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, validate_by_name=False)


class Metadata(BaseModel):
    """``metadata`` of an object."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="DNS-1123 label that names the object within its kind.", examples=["web"])
    labels: dict[str, str] = Field(default_factory=dict, description="Free labels.", examples=[{"app": "web"}])
    annotations: dict[str, str] = Field(
        default_factory=dict,
        description="Free annotations; those under kvmd.dev/ steer kvmd.",
        examples=[{ANNOTATION_SUSPEND: "true"}],
    )

    @field_validator("name")
    @classmethod
    def _is_dns_label(cls, name: str) -> str:
        if not DNS_LABEL.fullmatch(name):
            raise ValueError(
                f"'{name}' is not a DNS-1123 label (lower-case letters, digits and '-', at most 63); "
                "use spec.nameOnHost for the name that the host shall see"
            )
        return name

    @field_validator("annotations")
    @classmethod
    def _are_known(cls, annotations: dict[str, str]) -> dict[str, str]:
        """Ours are a closed set: one that is misspelt would be no order at all."""
        for name, value in annotations.items():
            if not name.startswith(ANNOTATION_PREFIX):
                continue
            pattern = STEERING.get(name)
            if pattern is None:
                near = difflib.get_close_matches(name, STEERING, 1)
                hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(STEERING)}"
                raise ValueError(f"there is no annotation {name}{hint}")
            if not re.fullmatch(pattern, value):
                raise ValueError(f"{name}: '{value}' is not {pattern.replace('|', ' or ')}")
        return annotations


@dataclass(frozen=True)
class Resource:
    """One object as a file asks for it.

    *written* is the spec as the user wrote it (plain values), *spec* the same with defaults and types.
    """

    ref: Ref
    metadata: Metadata
    spec: SpecModel
    written: Mapping[str, Any]
    position: Position
    held: bool = False  # True: its file is invalid now and this is the last good version

    @cached_property
    def spec_hash(self) -> str:
        """A hash of what the spec means: layout, comments and the order of named lists do not count.

        What is sensitive is in it by its digest: the hash stands where others may read it.
        """
        return hash_of(self.readable)

    @cached_property
    def former_hash(self) -> str:
        """The hash as it was before digests had a key; the same where nothing is sensitive."""
        return self.spec_hash if self.readable is self.written else hash_of(self.written)

    @cached_property
    def readable(self) -> Mapping[str, Any]:
        """The spec as written, with what is sensitive by its digest."""
        return digested(type(self.spec), self.written)

    @cached_property
    def owned(self) -> frozenset[str]:
        """The paths of every leaf that the user wrote, list items by name: ``disks[root].path``."""
        return frozenset(leaf_paths(self.written))

    def in_words_of(self, spec: SpecModel) -> Resource:
        """The same resource with some words of its spec resolved; what was written stays what it was."""
        return self if spec is self.spec else replace(self, spec=spec)

    def annotation(self, name: str) -> str | None:
        """Return one annotation, or None."""
        return self.metadata.annotations.get(name)

    def orders_differ(self, annotations: Mapping[str, str]) -> bool:
        """True where those annotations steer kvmd otherwise than this object's."""
        return steering(annotations) != steering(self.metadata.annotations)

    @property
    def suspended(self) -> bool:
        """True where the object is to be reported and left alone."""
        return self.annotation(ANNOTATION_SUSPEND) == "true"


@dataclass(frozen=True, slots=True)
class Reference:
    """*source* names *target* in its spec; *attributes* is what the target may want to know of it.

    With *perhaps* the spec names a link of the host, and *target* would be the object that this link is.
    """

    source: Ref
    target: Ref
    attributes: tuple[tuple[str, str], ...] = ()
    perhaps: bool = False


@dataclass(frozen=True, slots=True, order=True)
class Claim:
    """Something that only one object may hold: ``tap tap1``, ``mac 52:54:00:…``, ``disk /x``."""

    what: str
    value: str

    def __str__(self) -> str:
        return f"{self.what} {self.value}"


def steering(annotations: Mapping[str, str]) -> dict[str, str]:
    """The annotations that kvmd obeys."""
    return {name: value for name, value in annotations.items() if name.startswith(ANNOTATION_PREFIX)}


# Asked for first: most of a spec is that, and to find that it is no Mapping takes ten times as long.
_SCALAR = (str, int, float, type(None))


def canonical(value: Any) -> Any:
    """Sort lists of named items by name, so that their order means nothing."""
    if isinstance(value, _SCALAR):
        return value
    if isinstance(value, Mapping):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [canonical(item) for item in value]
        if items and all(isinstance(item, dict) and isinstance(item.get("name"), str) for item in items):
            items.sort(key=lambda item: str(item["name"]))
        return items
    return value


def hash_of(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON form of plain data."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def with_shared_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """``object_pairs_hook`` of json: a thousand specs have the same few keys, and each is kept once."""
    return {intern(key): value for key, value in pairs}


def leaf_paths(value: Any, path: str = "") -> Iterator[str]:
    """Yield the path of every leaf; items of named lists by name, other lists as one leaf."""
    if isinstance(value, _SCALAR):
        yield path
        return
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from leaf_paths(item, f"{path}.{key}" if path else str(key))
        return
    if is_named_list(value):
        for item in value:
            yield from leaf_paths(item, f"{path}[{item['name']}]")
        return
    yield path


EMPTY: Mapping[str, Any] = MappingProxyType({})
