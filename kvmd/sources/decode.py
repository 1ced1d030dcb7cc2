"""From a document to a Resource, or to what is wrong with it in words that name the place and the cure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import UnionType
from typing import Annotated, Any, Literal, TypeGuard, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from kvmd.api.problem import Position, Problem
from kvmd.api.resource import API_VERSION, Metadata, Ref, Resource, SpecModel
from kvmd.settings import Source
from kvmd.sources.document import Document, Path, compose
from kvmd.sources.scalars import did_you_mean, shown

Model = TypeVar("Model", bound=BaseModel)
Specs = Mapping[str, type[SpecModel]]

_FIELDS = ("apiVersion", "kind", "metadata", "spec")
_METADATA = "metadata has a name, and may have labels and annotations, which are text"
_IGNORED = "status"  # people paste what `kvmd get -o yaml` printed
_SENSITIVE = re.compile(r"passw|passphrase|secret|token|credential|userdata|networkconfig|key$", re.IGNORECASE)
_SHAPES = {
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "frozen_set": "a list",
    "dict": "a mapping",
    "mapping": "a mapping",
    "model": "a mapping",
    "model_attributes": "a mapping",
    "none": "null",
}
_SHAPE = re.compile(r"(\w+?)_(type|parsing|from_float|required)")


@dataclass(frozen=True, slots=True)
class Decoded:
    """What one file says: good only where *problems* is empty."""

    resources: tuple[Resource, ...]
    problems: tuple[Problem, ...]
    documents: int


def decode_file(text: bytes, file: str, limits: Source, specs: Specs) -> Decoded:
    """Read every document of a file and list every fault at once."""
    documents, problems = compose(text, file, limits)
    if not text.strip():
        message = "the file is empty, as an interrupted save leaves it"
        hint = "write a spec, or delete the file to remove its objects"
        problems.append(Problem(Position(file), "empty-file", message, hint))
    resources: list[Resource] = []
    for document in documents:
        try:
            decoded = decode(document, specs)
        except Exception as error:  # a kind that trips over one document must not stop the others
            message = f"kvmd itself failed on this document: {type(error).__name__}: {error}"
            hint = "this is a fault of kvmd: please report it with the document"
            decoded = [Problem(document.position, "internal", message, hint)]
        if isinstance(decoded, Resource):
            resources.append(decoded)
        else:
            problems.extend(decoded)
    return Decoded(tuple(resources), tuple(sorted(problems)), len(documents))


def decode(document: Document, specs: Specs) -> Resource | list[Problem]:
    """Check one document and return the object that it asks for, or every fault in it."""
    problems = list(_envelope(document, specs))
    kind = document.value.get("kind")
    model = specs.get(kind) if isinstance(kind, str) else None
    metadata = spec = None
    if "metadata" in document.value:
        metadata = validate(Metadata, document, ("metadata",), problems, _METADATA)
    if model is not None and "spec" in document.value:
        spec = validate(model, document, ("spec",), problems, f"see kvmd explain {kind}.{{path}}")
    if problems or metadata is None or spec is None:
        return sorted(problems)
    return Resource(
        ref=Ref(str(kind), metadata.name),
        metadata=metadata,
        spec=spec,
        written=document.value["spec"],
        position=document.position,
    )


def _envelope(document: Document, specs: Specs) -> Iterator[Problem]:
    value = document.value
    for name in value.keys() - set(_FIELDS) - {_IGNORED}:
        yield _unknown(document, (name,), _FIELDS, "see kvmd explain KIND for what goes where")
    for name in _FIELDS:
        if name not in value:
            cures = {"apiVersion": f"write apiVersion: {API_VERSION}", "metadata": "write metadata: {name: …}"}
            cures |= {"kind": f"write kind: and one of {', '.join(sorted(specs))}"}
            cures |= {"spec": "write spec: {} where the defaults shall do"}
            yield Problem(document.position, "missing-field", f"{name} is missing", cures[name])
    version = value.get("apiVersion", API_VERSION)
    if version != API_VERSION:
        message = f"apiVersion must be '{API_VERSION}', not {shown(version)}"
        hint = f"write apiVersion: {API_VERSION}"
        yield Problem(document.positions["apiVersion",], "unknown-api-version", message, hint)
    kind = value.get("kind")
    if "kind" in value and (not isinstance(kind, str) or kind not in specs):
        message = f"kind must be text, not {shown(kind)}"
        if isinstance(kind, str):
            message = f"there is no kind {shown(kind)}{did_you_mean(kind, specs)}"
        hint = f"the kinds are {', '.join(sorted(specs))}"
        yield Problem(document.positions["kind",], "unknown-kind", message, hint)


def validate(
    model: type[Model], document: Document, root: Path, problems: list[Problem], hint: str = ""
) -> Model | None:
    """Validate the node at *root* and append its faults, each at its own place; None where it has any.

    *hint* is what to do next, ``{path}`` in it the path of the field at fault.
    """
    value: Any = document.value
    for part in root:
        value = value[part]
    try:
        return model.model_validate(value)
    except ValidationError as error:
        details: list[Any] = error.errors(include_url=False)
    faults = [_locate(model, document, root, detail) for detail in details]
    problems.extend(_problem(fault, document, hint) for fault in _precise(faults))
    return None


@dataclass(frozen=True, slots=True)
class _Fault:
    """One error of pydantic, its place found; *members* names the unions on the way and their members."""

    type: str
    path: Path
    members: tuple[tuple[Path, str], ...]
    schema: str  # the path as kvmd explain takes it: fields only
    known: tuple[str, ...]  # what may be written beside an unknown field
    detail: Mapping[str, Any]
    shapes: tuple[str, ...] = ()  # what would do, where every member of a union was refused


def _locate(model: type[BaseModel], document: Document, root: Path, detail: Mapping[str, Any]) -> _Fault:
    """Follow pydantic's location through the types, leaving out what names a member of a union."""
    types: list[Any] = [model]
    path = root
    schema = [str(part) for part in root]
    members: list[tuple[Path, str]] = []
    location = detail["loc"]
    for index, part in enumerate(location):
        inner = [found for one in types for found in _inner(one, part)]
        last = index == len(location) - 1
        if inner:
            schema += [str(part)] if any(part in _fields(one) for one in types if _is_model(one)) else []
            path, types = (*path, part), inner
        elif last and detail["type"] in ("extra_forbidden", "missing"):
            path = (*path, part)
        elif (*path, part) in document.positions and len(types) <= 1:
            path, types = (*path, part), []
        elif part != "[key]":
            members.append((path, str(part)))
            types = [one for one in types if _is_member(one, part)] or types
    known = tuple(dict.fromkeys(name for one in types if _is_model(one) for name in _fields(one)))
    return _Fault(detail["type"], path, tuple(members), ".".join(schema), known, detail)


def _is_model(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def _is_member(annotation: Any, tag: str | int) -> bool:
    """True where pydantic calls this member of a union *tag*: by its name or by its discriminator."""
    if not _is_model(annotation):
        return False
    tags = (_flat(field) for field in _fields(annotation).values())
    return annotation.__name__ == tag or any(
        get_origin(one) is Literal and tag in get_args(one) for flat in tags for one in flat
    )


def _inner(annotation: Any, part: str | int) -> list[Any]:
    """The types of a member, an item or a value below a type."""
    if _is_model(annotation):
        fields = _fields(annotation)
        return _flat(fields[part]) if isinstance(part, str) and part in fields else []
    arguments, origin = get_args(annotation), get_origin(annotation)
    if not arguments or not isinstance(origin, type):
        return []
    if isinstance(part, int):
        return _flat(arguments[0]) if issubclass(origin, list | tuple | set | frozenset) else []
    return _flat(arguments[1]) if issubclass(origin, Mapping) and len(arguments) == 2 else []


def _flat(annotation: Any) -> list[Any]:
    """The members of a union, annotations and None taken off."""
    annotation = getattr(annotation, "__value__", annotation)
    origin = get_origin(annotation)
    if origin is Annotated:
        return _flat(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [one for member in get_args(annotation) for one in _flat(member)]
    return [] if annotation is type(None) else [annotation]


def _precise(faults: list[_Fault]) -> Iterator[_Fault]:
    """Of a union keep the member that was meant: the one whose shape fits, with the fewest faults."""
    unions: dict[Path, dict[str, list[_Fault]]] = {}
    for fault in faults:
        if not fault.members:
            yield fault
            continue
        (path, member), *rest = fault.members
        unions.setdefault(path, {}).setdefault(member, []).append(replace(fault, members=tuple(rest)))
    for path, members in unions.items():
        fitting = [group for group in members.values() if not any(_misfit(fault, path) for fault in group)]
        if fitting or len(members) == 1:
            yield from _precise(min(fitting or members.values(), key=len))
            continue
        shapes = [_shape(fault) for group in members.values() for fault in group if fault.path == path]
        first = next(fault for group in members.values() for fault in group if fault.path == path)
        yield replace(first, shapes=tuple(dict.fromkeys(shapes)))


def _misfit(fault: _Fault, path: Path) -> bool:
    return fault.path == path and (_SHAPE.fullmatch(fault.type) is not None or fault.type == "literal_error")


def _shape(fault: _Fault) -> str:
    match = _SHAPE.fullmatch(fault.type)
    if match is not None and match[1] in _SHAPES:
        return _SHAPES[match[1]]
    expected = fault.detail.get("ctx", {}).get("expected")
    return f"one of {expected}" if expected else "another value"


def _unknown(document: Document, path: Path, known: Iterable[str], hint: str) -> Problem:
    name, parent = str(path[-1]), document.name(path[:-1]) or "the document"
    near = did_you_mean(name, known)
    if ":" in name:  # {kind:Tap} is one key without a value
        near, hint = "", "write a blank after the ':'"
    return Problem(document.keys[path], "unknown-field", f"{parent} has no field '{name}'{near}", hint)


def _problem(fault: _Fault, document: Document, hint: str) -> Problem:
    """Say one fault in a sentence, with the place and the next thing to do."""
    path, name = fault.path, document.name(fault.path)
    hint = hint.replace("{path}", fault.schema)
    if fault.type == "extra_forbidden":
        return _unknown(document, path, fault.known, hint or f"the fields are {', '.join(fault.known)}")
    if fault.type == "missing":
        place = document.place(path[:-1], key=True)
        return Problem(place, "missing-field", f"{name} is missing", hint or f"write {path[-1]}: …")
    found = fault.detail["input"]
    secret = any(_SENSITIVE.search(str(part)) for part in path)
    seen = "what is written" if secret else shown(found)
    place = document.place(path, key="[key]" in fault.detail["loc"])
    shape = " or ".join(fault.shapes) if fault.shapes else ""
    match = _SHAPE.fullmatch(fault.type)
    if shape or (match is not None and match[1] in _SHAPES):
        shape = shape or _shape(fault)
        cure = _cure(shape, found, secret) or hint
        return Problem(place, "wrong-type", f"{name} must be {shape}, not {seen}", cure)
    return Problem(place, "invalid-value", f"{name} {_refusal(fault, seen, secret)}", hint)


def _cure(shape: str, found: Any, secret: bool) -> str:
    """What to write instead, where it can be told."""
    if shape == "text" and isinstance(found, bool | int | float) and not secret:
        return f'quote it: "{str(found).lower() if isinstance(found, bool) else found}"'
    if shape == "true or false" and isinstance(found, str):
        words = {"yes": "true", "on": "true", "true": "true", "no": "false", "off": "false", "false": "false"}
        cure = words.get(found.lower())
        return f"write {cure} without quotes; YAML 1.2 has no other word for it" if cure else ""
    if shape in ("a whole number", "a number") and isinstance(found, str) and found.isdecimal():
        return f"write {int(found)}, without quotes and leading zeros" if len(found) < 20 else ""
    return ""


def _refusal(fault: _Fault, seen: str, secret: bool) -> str:
    """The reason why a value of the right type will not do."""
    context = fault.detail.get("ctx", {})
    found = fault.detail["input"]
    if fault.type in ("value_error", "assertion_error"):
        reason = str(context.get("error", fault.detail["msg"]))
        return "cannot be used: " + (reason.replace(str(found), "***") if secret and found else reason)
    if fault.type in ("literal_error", "enum"):
        words = re.findall(r"'([^']*)'", context.get("expected", ""))
        return f"must be {context.get('expected')}, not {seen}{did_you_mean(str(found), words)}"
    if fault.type == "union_tag_invalid":
        words = re.findall(r"'([^']*)'", context["expected_tags"])
        tag = str(context["tag"])
        return f"has the {context['discriminator']} '{tag}', not {_either(words)}{did_you_mean(tag, words)}"
    if fault.type == "union_tag_not_found":
        return f"lacks {context['discriminator']}, which says what it is"
    reason = fault.detail["msg"]
    for jargon, plain in (("Input should be ", "must be "), ("String should ", "must "), ("Value should ", "must ")):
        reason = reason.replace(jargon, plain)
    return f"{reason[:1].lower()}{reason[1:]}, not {seen}"


def _either(words: list[str]) -> str:
    return " or ".join(f"'{word}'" for word in words)
