"""The YAML that recipes are written in, read into a tree of values with places.

One document of mappings with unique string keys, lists and scalars (see `scalars`). No anchors, aliases, tags, merge
keys or directives; limits as in `source`. Nothing is constructed but strings, numbers, booleans and null. All faults
that do not stop the parser are collected.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
    StreamStartEvent,
)

from fusionkit.errors import Problem, RecipeSyntaxError
from fusionkit.recipe.scalars import Scalar, resolve
from fusionkit.recipe.source import CONTROL, MAX_DEPTH, MAX_NODES, shorten
from fusionkit.recipe.tree import Items, Leaf, Node, Origin, Table

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Only its parser is used, never its constructor."""


def parse_yaml(text: str, name: str) -> Table:
    """The tree of a recipe's text.

    Raises: RecipeSyntaxError, with all faults found.
    """
    reader = _Reader(name)
    root = reader.document(text)
    if reader.problems:
        raise RecipeSyntaxError(reader.problems)
    if not isinstance(root, Table):
        found = "it is empty" if isinstance(root, Leaf) and root.value is None else "found something else"
        raise RecipeSyntaxError([Problem(name, 1, 1, "", f"a recipe is a mapping of keys to values; {found}")])
    return root


def parse_value(text: str, name: str) -> Node:
    """The tree of one value, as `--set` gives it.

    Raises: RecipeSyntaxError, with all faults found.
    """
    reader = _Reader(name)
    node = reader.document(text)
    if reader.problems:
        raise RecipeSyntaxError(reader.problems)
    return node


class _Refused(Enum):
    """In place of a scalar that is not allowed."""

    REFUSED = "refused"


_REFUSED = _Refused.REFUSED


class _StopReading(Exception):  # noqa: N818, control flow, never seen outside
    """The rest of the text cannot be understood, or is not worth it."""


class _Reader:
    """Composes the parser's events into a tree, collecting what is not in the subset."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.problems: list[Problem] = []
        self._nodes = 0
        self._events: Iterator[Event] = iter(())

    def document(self, text: str) -> Node:
        node: Node = Leaf(None)
        try:
            self._events = _events(text)
            for event in self._events:
                if isinstance(event, StreamStartEvent):
                    continue
                if isinstance(event, StreamEndEvent):
                    break
                self._start(event, second=self._nodes > 0)
                node = self._node(next(self._events), depth=1)
                next(self._events)  # the document's end
        except _StopReading:
            pass
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self._problem(mark, _explain(error, text))
        return node

    def _start(self, event: Event, second: bool) -> None:
        if second:
            self._stop(event, "a second document starts here; a recipe is one document")
        if isinstance(event, DocumentStartEvent) and (event.version or event.tags):
            self._problem(event.start_mark, "directives (%YAML, %TAG) are not allowed", "remove the line")

    def _node(self, event: Event, depth: int) -> Node:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            self._stop(event, f"more than {MAX_NODES} values")
        if isinstance(event, AliasEvent):
            self._problem(event.start_mark, f"aliases (*{event.anchor}) are not allowed", "write the value out")
            return Leaf(None, self._origin(event))
        self._refuse_decorations(event)
        if isinstance(event, ScalarEvent):
            value = self._scalar(event)
            return Leaf(None if value is _REFUSED else value, self._origin(event))
        if depth > MAX_DEPTH:
            self._stop(event, f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, SequenceStartEvent):
            return self._items(event, depth)
        return self._table(event, depth)

    def _items(self, start: Event, depth: int) -> Items:
        items = Items(origin=self._origin(start))
        for event in self._events:
            if isinstance(event, SequenceEndEvent):
                break
            items.values.append(self._node(event, depth + 1))
        return items

    def _table(self, start: Event, depth: int) -> Table:
        table = Table(origin=self._origin(start))
        for event in self._events:
            if isinstance(event, MappingEndEvent):
                break
            origin = self._origin(event)
            key = self._key(event, depth)
            value = self._node(next(self._events), depth + 1)
            if key is None:
                continue
            if key in table.entries:
                first = table.entries[key].origin
                self._problem(event.start_mark, f"key '{shorten(key)}' again; the first is on line {first.line}")
                continue
            value.origin = origin
            table.entries[key] = value
        return table

    def _key(self, event: Event, depth: int) -> str | None:
        """The key, or None when it is no legal one (the problem is noted)."""
        if not isinstance(event, ScalarEvent):
            if not isinstance(event, AliasEvent):
                self._problem(event.start_mark, "a key must be a string, not a list or mapping")
            # Read it all the same, so that the parser stays in step.
            self._node(event, depth + 1)
            return None
        self._refuse_decorations(event)
        key = self._scalar(event)
        if not event.style and key == "<<":
            self._problem(event.start_mark, "merge keys (<<) are not allowed", "write the values out, or use `extends`")
        elif isinstance(key, str):
            return key
        elif key is not _REFUSED:
            self._problem(event.start_mark, f"key {event.value or 'nothing'} is not a string", "quote it")
        return None

    def _scalar(self, event: ScalarEvent) -> Scalar | _Refused:
        if not event.style:  # a plain scalar: None from one of PyYAML's parsers, '' from the other
            try:
                return resolve(event.value)
            except ValueError as error:
                self._problem(event.start_mark, str(error))
                return _REFUSED
        if bad := CONTROL.search(event.value):
            self._problem(event.start_mark, f"text holds the control character U+{ord(bad.group()):04X}", "remove it")
        return str(event.value)

    def _refuse_decorations(self, event: Any) -> None:
        if event.anchor is not None:
            self._problem(
                event.start_mark, f"anchors (&{shorten(event.anchor)}) are not allowed", "write the value out"
            )
        if event.tag is not None:
            self._problem(event.start_mark, f"tags ({shorten(event.tag)}) are not allowed", "remove it")

    def _origin(self, event: Any) -> Origin:
        return Origin(self.name, event.start_mark.line + 1, event.start_mark.column + 1)

    def _problem(self, mark: Any, message: str, hint: str = "") -> None:
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        self.problems.append(Problem(self.name, line, column, "", message, hint))

    def _stop(self, event: Event, message: str) -> None:
        self._problem(event.start_mark, message)
        raise _StopReading


def _events(text: str) -> Iterator[Event]:
    """The parser's events, one at a time, so that a limit stops it early."""
    loader = LOADER(text)
    try:
        while loader.check_event():
            yield loader.get_event()
    finally:
        loader.dispose()


_EXPLANATIONS = (
    ("mapping values are not allowed", "a colon is not allowed here (check the indentation, or quote the value)"),
    ("sequence entries are not allowed", "a list item is not allowed here (check the indentation)"),
    ("',' or ']'", "expected ',' or ']' (is the list closed?)"),
    ("',' or '}'", "expected ',' or '}' (is the mapping closed?)"),
    ("unexpected end of stream", "the text ends inside quotes (close them)"),
    ("could not find expected ':'", "expected `key: value` (check the indentation and the quotes above)"),
    ("escape", "unknown escape in a double-quoted string (use single quotes, or double the backslash)"),
    ("expected key", "expected a key (check the indentation, brackets and quotes)"),
    ("expected <block end>", "expected a key (check the indentation, brackets and quotes)"),
)
"""What PyYAML's two parsers say (by a part both share), and what it means to the writer of a recipe."""


def _explain(error: yaml.MarkedYAMLError, text: str) -> str:
    said, mark = error.problem or error.context or "no reason given", error.problem_mark
    if "cannot start any token" in said and mark is not None:
        character = text.split("\n")[mark.line][mark.column : mark.column + 1]
        if character == "\t":
            return "a tab cannot indent (use spaces)"
        return f"a value cannot start with {character} (quote it)"
    return next((meaning for part, meaning in _EXPLANATIONS if part in said), f"not YAML: {said}")
