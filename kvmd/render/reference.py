"""The language as Markdown, from the schema that ``explain`` reads: the tables of ``docs/language.md``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from pydantic import BaseModel

from kvmd.api.resource import Metadata
from kvmd.api.schema import Leaf, leaves
from kvmd.render.values import as_text


@dataclass(frozen=True, slots=True)
class Entry:
    """A kind as its reference names it."""

    spec: type[BaseModel]
    plural: str
    short: str


def metadata_reference() -> str:
    """A table of everything under ``metadata``."""
    return _table(leaves(Metadata, "metadata"), "metadata.", with_change=False)


def kinds_reference(kinds: Mapping[str, Entry]) -> str:
    """One section for each kind, in the order of their names."""
    return "\n".join(_kind(kind, entry) for kind, entry in sorted(kinds.items()))


def shown_reference(specs: Mapping[str, type[BaseModel]], shown: Callable[[str, str], str]) -> str:
    """For each kind a table of its leaves with what shows them, as *shown* says of a kind and a path."""
    return "\n".join(_shown(kind, spec, shown) for kind, spec in sorted(specs.items()))


def _shown(kind: str, spec: type[BaseModel], shown: Callable[[str, str], str]) -> str:
    lines = [f"## {kind}", "", "| field | change | default | shown by |", "|---|---|---|---|"]
    for node in leaves(spec):
        if node.leaf:
            path = node.path.removeprefix("spec.")
            lines.append(f"| `{path}` | {_change(node)} | {_default(node)} | {_cell(shown(kind, path))} |")
    return "\n".join(lines) + "\n"


def _kind(kind: str, entry: Entry) -> str:
    about = " ".join((entry.spec.__doc__ or "").split())
    names = f"On the command line: `{kind.lower()}`, `{entry.plural}` or `{entry.short}`."
    return f"### {kind}\n\n{about} {names}\n\n{_table(leaves(entry.spec), 'spec.')}"


def _table(nodes: Iterable[Leaf], prefix: str, *, with_change: bool = True) -> str:
    change = " change |" if with_change else ""
    lines = [f"| field | type | default |{change} meaning |", f"|---|---|---|{'---|' if with_change else ''}---|"]
    for node in nodes:
        cells = [f"`{node.path.removeprefix(prefix)}`", _cell(node.type), _default(node)]
        cells += [_change(node)] if with_change else []
        lines.append(f"| {' | '.join([*cells, _meaning(node)])} |")
    return "\n".join(lines) + "\n"


def _default(node: Leaf) -> str:
    if node.required:
        return "required"
    if not node.leaf or node.default is None:
        return ""
    return f"`{_cell(as_text(node.default))}`" if node.default not in ([], {}, ()) else "empty"


def _change(node: Leaf) -> str:
    if node.update is None:
        return ""
    return node.update.value + (f"; {_cell(node.unless)}" if node.unless else "")


def _meaning(node: Leaf) -> str:
    example = f" Example: `{_cell(as_text(node.example))}`" if node.example is not None else ""
    return f"{_cell(node.about)}{example}"


def _cell(text: str) -> str:
    """Text that a cell of a table can hold."""
    return " ".join(text.split()).replace("|", "\\|")
