"""YAML as plain data with positions: composed from libyaml's events, under limits, without aliases and tags."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from sys import intern
from typing import Any

import yaml

from kvmd.api.problem import Position, Problem
from kvmd.settings import Source
from kvmd.sources.scalars import FORBIDDEN, resolve

Path = tuple[str | int, ...]
MAX_PROBLEMS = 50  # a file of another format would otherwise fill the screen
_WORD = re.compile(r"[\w-]+")
_CONFLICT = re.compile(r"^(<{7}|>{7})( |$)", re.MULTILINE)


class Positions(Mapping[Path, Position]):
    """Where each node of a document stands; a Position is made when somebody asks for it."""

    def __init__(self, file: str) -> None:
        self._file = file
        self.marks: dict[Path, Any] = {}  # as libyaml has them

    def __getitem__(self, path: Path) -> Position:
        mark = self.marks[path]
        return Position(self._file, mark.line + 1, mark.column + 1)

    def __iter__(self) -> Iterator[Path]:
        return iter(self.marks)

    def __len__(self) -> int:
        return len(self.marks)

    def __contains__(self, path: object) -> bool:
        return path in self.marks


@dataclass(frozen=True, slots=True)
class Document:
    """One document: *positions* has the place of each value, *keys* that of the key (or the ``-``'s item)."""

    value: dict[str, Any]
    positions: Mapping[Path, Position]
    keys: Mapping[Path, Position]
    file: str
    position: Position

    def name(self, path: Path) -> str:
        """Name a node as people do: ``spec.disks[root].bus``."""
        text = ""
        value: Any = self.value
        for part in path:
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                value = None
            if isinstance(part, int):
                name = value.get("name") if isinstance(value, dict) else None
                text += f"[{name if isinstance(name, str) else part}]"
            elif _WORD.fullmatch(part):
                text += f".{part}" if text else part
            else:
                text += f'["{part}"]'
        return text

    def place(self, path: Path, key: bool = False) -> Position:
        """The place of a node (or of its key), or of the nearest one above that was written."""
        for length in range(len(path), 0, -1):
            for positions in (self.keys, self.positions) if key else (self.positions,):
                if path[:length] in positions:
                    return positions[path[:length]]
        return self.position


@dataclass(slots=True)
class _Frame:
    """A mapping or list that is still open."""

    path: Path
    value: dict[str, Any] | list[Any]
    due: bool = False  # in a mapping: a key was read, its value comes next
    key: str | None = None  # that key; None where it was refused and its value is dropped
    marks: dict[str, Any] = field(default_factory=dict)

    @property
    def wants_key(self) -> bool:
        """True where the next node is a key."""
        return isinstance(self.value, dict) and not self.due


class _Stop(Exception):
    """Nothing that follows in this file can be read."""


def compose(text: bytes, file: str, limits: Source) -> tuple[list[Document], list[Problem]]:
    """Read every document of a file; those at fault are left out and their faults are listed."""
    decoded, problems = _decode(text, file, limits)
    if problems:
        return [], problems
    composer = _Composer(file, limits)
    try:
        # PyYAML's loaders recurse in C and die of deep nesting; its event stream does not.
        parser = yaml.CSafeLoader(text)
        while (event := parser.get_event()) is not None:
            composer.take(event)
    except _Stop:
        pass
    except (yaml.YAMLError, ValueError) as error:
        composer.problems.append(_syntax(error, decoded, file))
    return composer.documents, composer.problems


def _decode(text: bytes, file: str, limits: Source) -> tuple[str, list[Problem]]:
    """Check what libyaml would misread or report without a line: size, encoding, control characters."""
    start = Position(file)
    if len(text) > limits.max_file_bytes:
        message = f"the file is larger than {limits.max_file_bytes} bytes"
        return "", [Problem(start, "too-large", message, "split it, or raise source.maxFileBytes")]
    if text.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "", [Problem(start, "encoding", "the file is UTF-16", "save it as UTF-8")]
    if text.startswith(b"\xef\xbb\xbf"):
        return "", [Problem(start, "encoding", "the file begins with a byte-order mark", "save it without")]
    try:
        decoded = text.decode()
    except UnicodeDecodeError as error:
        place = _place(text[: error.start].decode(), error.start, file)
        message = f"byte 0x{text[error.start]:02x} is not UTF-8"
        return "", [Problem(place, "encoding", message, "save the file as UTF-8")]
    problems = []
    for match in FORBIDDEN.finditer(decoded):
        message = f"the character U+{ord(match[0]):04X} is not allowed in YAML"
        place = _place(decoded, match.start(), file)
        problems.append(Problem(place, "control-character", message, "remove it"))
        if len(problems) == MAX_PROBLEMS:
            break
    return decoded, problems


def _place(text: str, index: int, file: str) -> Position:
    before = text[:index]
    return Position(file, before.count("\n") + 1, len(before) - before.rfind("\n"))


def _syntax(error: Exception, text: str, file: str) -> Problem:
    """Say what libyaml found in the words of somebody who writes YAML."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    position = Position(file, mark.line + 1, mark.column + 1) if mark else Position(file)
    conflict = _CONFLICT.search(text)
    if conflict is not None:
        place = _place(text, conflict.start(), file)
        return Problem(place, "syntax", "a merge conflict was left in the file", "resolve it and save again")
    lines = text.split("\n")
    line = lines[mark.line] if mark and mark.line < len(lines) else ""
    if mark and line[mark.column : mark.column + 1] == "\t":
        return Problem(position, "syntax", "a tab stands where YAML wants spaces", "indent with spaces")
    context = getattr(error, "context", None)
    detail = getattr(error, "problem", None) or str(error).split("\n")[0]
    message = f"{detail}, {context}" if context else str(detail)
    hint = "check indentation, brackets, quotes and the blank after each ':'"
    return Problem(position, "syntax", f"this is not YAML: {message}", hint)


class _Composer:
    """Turns events into documents; its stack is a list, so nesting costs no C stack."""

    def __init__(self, file: str, limits: Source) -> None:
        self.documents: list[Document] = []
        self.problems: list[Problem] = []
        self._file = file
        self._limits = limits
        self._stack: list[_Frame] = []
        self._count = 0
        self._begin(None)

    def _begin(self, mark: Any) -> None:
        self._root: Any = None
        self._nodes = 0
        self._faults = len(self.problems)
        self._start = mark
        self._positions, self._keys = Positions(self._file), Positions(self._file)

    def take(self, event: yaml.Event) -> None:
        """Take the next event."""
        act = _ACTS.get(type(event))
        if act is not None:
            act(self, event)

    def _close(self, event: yaml.Event) -> None:
        self._stack.pop()

    def _start_document(self, event: Any) -> None:
        self._begin(event.start_mark)
        self._count += 1

    def _finish(self, event: yaml.Event) -> None:
        if self._count > self._limits.max_documents:
            message = f"the file holds more than {self._limits.max_documents} documents"
            self._fault(self._start, "too-large", message, "split it, or raise source.maxDocuments")
            raise _Stop
        if self._root is None or len(self.problems) > self._faults:
            return
        if not isinstance(self._root, dict):
            found = "a list" if isinstance(self._root, list) else "a single value"
            hint = "write lines of `key: value`; part documents with ---"
            self._fault(self._start, "wrong-type", f"a document must be a mapping, not {found}", hint)
            return
        position = self._positions[()]
        self.documents.append(Document(self._root, self._positions, self._keys, self._file, position))

    def _fault(self, mark: Any, rule: str, message: str, hint: str) -> None:
        position = Position(self._file, mark.line + 1, mark.column + 1)
        self.problems.append(Problem(position, rule, message, hint))
        if len(self.problems) == MAX_PROBLEMS:
            message = f"the file has {MAX_PROBLEMS} faults or more; the rest of it was not read"
            self.problems.append(Problem(position, "too-many-faults", message, "mend these first"))
            raise _Stop

    def _check(self, event: Any) -> None:
        """What holds for every node: no anchor, no tag, a bound on their number."""
        self._nodes += 1
        if self._nodes > self._limits.max_nodes:
            message = f"the document has more than {self._limits.max_nodes} values"
            self._fault(event.start_mark, "too-large", message, "split it, or raise source.maxNodes")
            raise _Stop
        if event.anchor is not None:
            message = f"the anchor &{event.anchor} is not allowed"
            self._fault(event.start_mark, "anchor", message, "remove it and write its uses out")
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._fault(event.start_mark, "tag", f"the tag {tag} is not allowed", "quote the value for text")

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        self._check(event)
        text = event.value
        # Unescaped ones were found in the whole text before.
        match = FORBIDDEN.search(text) if event.style == '"' else None
        if match is not None:
            message = f"the text holds the control character U+{ord(match[0]):04X}"
            self._fault(event.start_mark, "control-character", message, "remove it")
        value = resolve(text) if event.implicit[0] else text
        if self._stack and self._stack[-1].wants_key:
            self._key(self._stack[-1], event, value)
        else:
            self._add(value, event)

    def _key(self, frame: _Frame, event: Any, value: Any) -> None:
        mark, text = event.start_mark, event.value
        frame.due = True
        if not isinstance(value, str):
            shown = f"the key {text} is not text" if text else "a key is missing before this ':'"
            self._fault(mark, "key", shown, f'quote it: "{text}"' if text else "write the key")
        elif text == "<<" and event.implicit[0]:
            self._fault(mark, "merge-key", "the merge key << is not allowed", "write the merged fields out")
        elif text in frame.marks:
            first = frame.marks[text]
            place = f"{self._file}:{first.line + 1}:{first.column + 1}"
            message = f"the key '{text}' is already at {place}"
            self._fault(mark, "duplicate-key", message, "keep one of the two")
        else:
            frame.marks[text] = mark
            frame.key = intern(text)  # a thousand specs have the same few
            self._keys.marks[(*frame.path, text)] = mark

    def _open(self, event: Any) -> None:
        self._check(event)
        value: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
        if len(self._stack) >= self._limits.max_depth:
            message = f"the nesting is deeper than {self._limits.max_depth} levels"
            self._fault(event.start_mark, "too-deep", message, "flatten it, or raise source.maxDepth")
            raise _Stop
        if self._stack and self._stack[-1].wants_key:
            self._no_key(event)
            self._stack.append(_Frame((), value))  # read on and dropped
        else:
            self._stack.append(_Frame(self._add(value, event), value))

    def _alias(self, event: yaml.AliasEvent) -> None:
        self._fault(event.start_mark, "alias", f"the alias *{event.anchor} is not allowed", "write it out")
        if self._stack and self._stack[-1].wants_key:
            self._stack[-1].due = True
        else:
            self._add(None, event)

    def _no_key(self, event: Any) -> None:
        message = "a key must be plain text, not a list or a mapping"
        self._fault(event.start_mark, "key", message, "quote it if its brackets or braces are meant as text")
        self._stack[-1].due = True

    def _add(self, value: Any, event: Any) -> Path:
        """Put a value where it is due and return its path."""
        path: Path = ()
        if not self._stack:
            self._root = value
        else:
            frame = self._stack[-1]
            if isinstance(frame.value, list):
                path = (*frame.path, len(frame.value))
                frame.value.append(value)
                self._keys.marks[path] = event.start_mark
            elif frame.key is not None:
                path = (*frame.path, frame.key)
                frame.value[frame.key] = value
            frame.due, frame.key = False, None
        self._positions.marks[path] = event.start_mark
        return path


_ACTS: Mapping[type[yaml.Event], Callable[[_Composer, Any], None]] = {
    yaml.ScalarEvent: _Composer._scalar,
    yaml.MappingStartEvent: _Composer._open,
    yaml.SequenceStartEvent: _Composer._open,
    yaml.MappingEndEvent: _Composer._close,
    yaml.SequenceEndEvent: _Composer._close,
    yaml.AliasEvent: _Composer._alias,
    yaml.DocumentStartEvent: _Composer._start_document,
    yaml.DocumentEndEvent: _Composer._finish,
}
