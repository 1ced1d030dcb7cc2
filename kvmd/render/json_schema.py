"""The JSON Schema (draft 2020-12) of every kind, for editors and CI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from kvmd.api.resource import API_VERSION, Metadata

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def json_schema(specs: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    """The schema of the given kinds in the form ``if kind then $ref``.

    ``oneOf`` would answer every mistake with "not valid under any of the given schemas".
    """
    definitions: dict[str, Any] = {"Metadata": Metadata.model_json_schema()}
    for kind, spec in specs.items():
        definitions |= _definitions(kind, spec)
    return {
        "$schema": _DRAFT,
        "$id": "https://kvmd.dev/schema/v1alpha1/kvmd.schema.json",
        "title": "kvmd objects",
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"const": API_VERSION, "description": "Version of the language."},
            "kind": {"enum": sorted(specs), "description": "What the object is."},
        },
        "allOf": [
            {
                "if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]},
                "then": {"$ref": f"#/$defs/{kind}"},
            }
            for kind in sorted(specs)
        ],
        "$defs": definitions,
    }


def _definitions(kind: str, spec: type[BaseModel]) -> dict[str, Any]:
    """The definitions of one kind; the kind's name goes in front, since two kinds may use one model name."""
    schema = spec.model_json_schema(by_alias=True, ref_template=f"#/$defs/{kind}.{{model}}")
    inner = schema.pop("$defs", {})
    definitions = {f"{kind}.{name}": value for name, value in inner.items()}
    definitions[f"{kind}.Spec"] = schema
    definitions[kind] = {
        "type": "object",
        "description": schema.get("description", ""),
        "additionalProperties": False,
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"const": API_VERSION},
            "kind": {"const": kind},
            "metadata": {"$ref": "#/$defs/Metadata"},
            "spec": {"$ref": f"#/$defs/{kind}.Spec"},
        },
    }
    return definitions
