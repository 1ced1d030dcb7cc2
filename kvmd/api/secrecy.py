"""What is sensitive in a spec: shown to nobody, and left where others may read only as a digest with a key.

A digest without a key would let everybody try words until one fits. The key stays on its host (``use_key``); who has
none, such as a check of files on another machine, compares within one process only.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel

from kvmd.api.named import is_named_list

HIDDEN = "(hidden)"
_key: Callable[[], bytes] = bytes


def use_key(key: Callable[[], bytes]) -> None:
    """Take the key from there, once something is sensitive."""
    global _key
    _key = cache(key)


def digest(value: Any) -> str:
    """What stands for a value: equal for equal ones, on this host alone."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=dict)
    return hmac.new(_key(), text.encode(), hashlib.sha256).hexdigest()


def shown(model: type[BaseModel], written: Mapping[str, Any]) -> Mapping[str, Any]:
    """A spec as written, for people: every sensitive leaf hidden. The very same where there is none."""
    return _with(written, model, lambda value: HIDDEN)


def digested(model: type[BaseModel], written: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same for marks and hashes: every sensitive leaf by its digest."""
    return _with(written, model, lambda value: f"(hmac:{digest(value)[:32]})")


@cache
def sensitive(model: type[BaseModel]) -> tuple[tuple[str, ...], ...]:
    """The paths of the sensitive leaves; lists on the way are passed through."""
    return tuple(_sensitive(model))


def _sensitive(model: type[BaseModel]) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        word = field.serialization_alias or field.alias or name
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("x-kvmd-sensitive"):
            yield (word,)
            continue
        for inner in _models(field.annotation):
            yield from ((word, *path) for path in _sensitive(inner))


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _with(written: Mapping[str, Any], model: type[BaseModel], word: Callable[[Any], str]) -> Mapping[str, Any]:
    paths = sensitive(model)
    found: Mapping[str, Any] = _replaced(written, paths, word) if paths else written
    return found


def _replaced(value: Any, paths: tuple[tuple[str, ...], ...], word: Callable[[Any], str]) -> Any:
    if isinstance(value, list | tuple):
        items = [_replaced(item, paths, word) for item in value]
        return value if all(new is old for new, old in zip(items, value, strict=True)) else items
    if not isinstance(value, Mapping):
        return value
    news: dict[str, Any] = {}
    for name in dict.fromkeys(path[0] for path in paths):
        old = value.get(name)
        if not old:
            continue  # nothing is in it
        below = tuple(path[1:] for path in paths if path[0] == name)
        new = _hidden(old, word) if () in below else _replaced(old, below, word)
        if new is not old:
            news[name] = new
    return {**value, **news} if news else value


def _hidden(value: Any, word: Callable[[Any], str]) -> Any:
    """Of the same shape, so that the whole is still a spec with the same leaves: keys and names of items stay."""
    if isinstance(value, Mapping) and value:
        return {key: _hidden(item, word) for key, item in value.items()}
    if is_named_list(value):
        return [{**_hidden(item, word), "name": item["name"]} for item in value]
    return word(value)
