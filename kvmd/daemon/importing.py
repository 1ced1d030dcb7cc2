"""``kvmd import``: what others made, as specs; each is planned, and what would change anything is taken out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from kvmd.api.problem import Position
from kvmd.api.resource import ANNOTATION_ADOPT, API_VERSION, Metadata, Ref, Resource
from kvmd.daemon.session import Session
from kvmd.errors import KvmdError
from kvmd.kinds import CONTROLLERS
from kvmd.observed import Domain, Key, Marked, Network, Observed, Pool
from kvmd.plan.model import Controller, Desired, Memory, ObjectPlan, Rules
from kvmd.plan.planner import make_plan
from kvmd.plan.wording import Describer, cut
from kvmd.render.values import sized

ROUNDS = 100  # one word is taken out a round


@dataclass(frozen=True, slots=True)
class Imported:
    """One object: its document, and what of it the language cannot say."""

    ref: Ref
    document: dict[str, Any]
    unsaid: tuple[str, ...] = ()


def import_objects(session: Session, kind: str | None, name: str | None) -> tuple[list[Imported], list[str]]:
    """Every object of the host that carries no mark, or those called *name*; and what could not be imported."""
    observed, rules = session.host(), session.rules()
    imported, failures = [], []
    for controller in CONTROLLERS.values():
        if kind not in (None, controller.KIND) or not isinstance(controller, Describer):
            continue
        for key in sorted(observed.facts):
            if name not in (None, key.name) or _is_ours(observed, key):
                continue
            try:
                found = import_object(controller, key, observed, rules)
            except KvmdError as error:
                failures.append(f"{controller.KIND} {key.name}: {error.message}")
                continue
            imported += [found] if found is not None else []
    return imported, failures


def import_object(controller: Controller, key: Key, observed: Observed, rules: Rules) -> Imported | None:
    """The spec of one object; None where it is none of that kind. Raises KvmdError where each would change it."""
    assert isinstance(controller, Describer)
    described = controller.describe(key, observed)
    if described is None:
        return None
    ref = Ref(controller.KIND, _label(key.name))
    spec, unsaid = dict(described.spec), list(described.unsaid)
    if ref.name != key.name:
        spec["nameOnHost"] = key.name
    fact = observed.facts[key]
    adopt = f"uuid:{fact.uuid}" if isinstance(fact, Domain | Network | Pool) else "true"
    for _ in range(ROUNDS):
        try:
            typed = controller.Spec.model_validate(spec)
        except ValidationError as error:
            unsaid += _take_out_invalid(spec, error)
            continue
        # What is at its default need not be said: a leaf that nobody writes is left alone.
        short = sized(typed.model_dump(mode="json", by_alias=True, exclude_defaults=True))
        resource = _resource(ref, controller, short, adopt)
        paths = tuple(_changed(resource, observed, rules))
        if not paths:
            document = {"apiVersion": API_VERSION, "kind": ref.kind}
            metadata = {"name": ref.name, "annotations": {ANNOTATION_ADOPT: adopt}}
            return Imported(ref, document | {"metadata": metadata, "spec": short}, tuple(dict.fromkeys(unsaid)))
        taken = [taken for path in paths if (taken := _take_out(spec, path))]
        if not taken:
            raise KvmdError(f"a spec would change {', '.join(paths)}")
        unsaid += taken
    raise KvmdError("no spec of it plans to no change")


def _take_out(spec: dict[str, Any], path: str) -> str:
    """Take out that leaf, or, where it is a default that came with others, the nearest branch above; what went."""
    while path and not cut(spec, path):
        path = path.rpartition(".")[0]
    return path


def _is_ours(observed: Observed, key: Key) -> bool:
    fact = observed.facts[key]
    return isinstance(fact, Marked) and fact.mark is not None and key in observed.marks.get(fact.mark.ref, ())


def _label(name: str) -> str:
    """The nearest name that is a DNS-1123 label."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:63].strip("-")
    return label or "unnamed"


def _resource(ref: Ref, controller: Controller, spec: dict[str, Any], adopt: str) -> Resource:
    metadata = Metadata(name=ref.name, annotations={ANNOTATION_ADOPT: adopt})
    return Resource(ref, metadata, controller.Spec.model_validate(spec), spec, Position("import"))


def _changed(resource: Resource, observed: Observed, rules: Rules) -> Iterator[str]:
    """The paths that this spec would change. Raises KvmdError where it could not be adopted at all."""
    alone = Desired(resources={resource.ref: resource}, complete=False)
    item = make_plan(alone, observed, Memory(), replace(rules, allowed_paths=("/",)), 0.0, CONTROLLERS).objects[
        resource.ref
    ]
    refused = [c for c in item.conditions if c.status and c.type in ("Conflict", "Stalled", "CopiedMark")]
    if refused:
        raise KvmdError(refused[0].message)
    yield from (change.path for change in _changes(item))
    yield from (pending.path.removeprefix("spec.") for pending in item.pending)


def _changes(item: ObjectPlan) -> tuple[Any, ...]:
    return item.step.changes if item.step is not None else ()


def _take_out_invalid(spec: dict[str, Any], error: ValidationError) -> list[str]:
    """Take out what the language refuses: the leaf, or the whole device that it belongs to."""
    detail = error.errors(include_url=False)[0]
    reason = str(detail["msg"]).removeprefix("Value error, ")
    place = [step for step in detail["loc"] if isinstance(step, int) or not step.startswith("function-")]
    while place:
        here: Any = spec
        for step in place[:-1]:
            here = here[step] if _has(here, step) else None
        last = place[-1]
        if isinstance(here, list) and isinstance(last, int) and last < len(here):
            return [f"{'.'.join(map(str, place[:-1]))}[{here.pop(last).get('name', last)}]: {reason}"]
        if isinstance(here, dict) and last in here and detail["type"] != "missing":
            here.pop(last)
            return [f"{'.'.join(map(str, place))}: {reason}"]
        place.pop()
    raise KvmdError(f"the language cannot say it: {reason}")


def _has(here: Any, step: Any) -> bool:
    return (isinstance(here, dict) and step in here) or (isinstance(here, list) and isinstance(step, int))
