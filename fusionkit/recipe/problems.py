"""Pydantic's errors in the words of a recipe: address, place, what was expected, what was found, how to go on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from pydantic import ValidationError

from fusionkit.errors import Problem
from fusionkit.recipe.keys import fields_at
from fusionkit.recipe.nearest import nearest
from fusionkit.recipe.source import shorten
from fusionkit.recipe.tree import Items, Leaf, Node, Origin, Table, child

MAX_SUGGESTIONS = 50
"""Unknown keys beyond these are reported without a guess, so that a huge wrong file does not take minutes."""

_KINDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "string": "a string",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "frozen_set": "a list",
    "dict": "a mapping",
    "mapping": "a mapping",
    "model": "a mapping",
    "model_attributes": "a mapping",
    "dataclass": "a mapping",
}
"""What `X_type` errors wanted."""


@dataclass(frozen=True, slots=True)
class _Fault:
    """One error of pydantic's, with its place in the tree.

    `path` leads as far as the tree goes, and on where a key is missing or a default is wrong; `union` is the path of the value of which this error
    concerns one alternative, if there are several.
    """

    error: Mapping[str, Any]
    path: tuple[str | int, ...]
    node: Node
    exists: bool
    union: tuple[str | int, ...] | None

    @property
    def kind(self) -> str:
        return str(self.error["type"])

    @property
    def context(self) -> Mapping[str, Any]:
        context: Mapping[str, Any] = self.error.get("ctx", {})
        return context

    @property
    def is_mismatch(self) -> bool:
        """Whether the value is of another kind than this alternative wants, so that it says nothing else about it."""
        return self.path == self.union and (self.kind.endswith("_type") or self.kind == "int_from_float")

    @property
    def is_untrue(self) -> bool:
        """Whether it counts items and found too few only because it left the wrong ones out."""
        return self.kind == "too_short" and _length(self.node) >= self.context["min_length"]


def translate(error: ValidationError, tree: Table) -> list[Problem]:
    """All problems that a failed validation of `tree` found, each once."""
    faults = [_place(each, tree) for each in error.errors(include_url=False)]
    guesses = MAX_SUGGESTIONS
    problems: dict[Problem, None] = {}
    for union, group in groupby(faults, key=lambda fault: fault.union):
        some = [fault for fault in group if not fault.is_untrue]
        if union is not None and some and all(fault.is_mismatch for fault in some):
            problems[_no_alternative(some, tree)] = None
            continue
        for fault in some:
            if union is None or not fault.is_mismatch:
                guesses -= fault.kind == "extra_forbidden"
                problems[_problem(fault, tree, guess=guesses >= 0)] = None
    return list(problems)


def unset_leaves(error: ValidationError, tree: Table) -> Iterator[tuple[str | int, ...]]:
    """Paths of the nulls that mean "back to the default" and that their blocks did not take."""
    for each in error.errors(include_url=False):
        fault = _place(each, tree)
        if isinstance(fault.node, Leaf) and fault.node.unset and fault.exists:
            yield fault.path


# ---------------------------------------------------------------------------------------------------- placing
def _place(error: Mapping[str, Any], tree: Table) -> _Fault:
    """Follow pydantic's location through the tree; what is not in the tree is the name of an alternative."""
    node: Node = tree
    path: tuple[str | int, ...] = ()
    union: tuple[str | int, ...] | None = None
    location: Sequence[str | int] = error["loc"]
    for index, key in enumerate(location):
        below = child(node, key)
        if below is not None:
            node, path = below, (*path, key)
        elif (index == len(location) - 1 and _is_about_missing(error)) or key in fields_at(tree, path):
            return _Fault(error, (*path, *location[index:]), node, False, union)
        elif key != "[key]" and union is None:
            union = path
    return _Fault(error, path, node, True, union)


def _is_about_missing(error: Mapping[str, Any]) -> bool:
    return error["type"] == "missing" or (error["type"] == "block" and error["input"] is None)


# --------------------------------------------------------------------------------------------------- speaking
def _no_alternative(faults: Sequence[_Fault], tree: Table) -> Problem:
    """The value is of a kind that no alternative wants."""
    first = faults[0]
    wanted = list(dict.fromkeys(_wanted(fault) for fault in faults))
    if keys := [f"`{key}`" for key in fields_at(tree, first.path)]:
        wanted = [f"{each} with {', '.join(keys)}" if each == "a mapping" else each for each in wanted]
    return _at(first, first.path, f"must be {' or '.join(wanted)}, got {got(first.node)}")


def _problem(fault: _Fault, tree: Table, *, guess: bool) -> Problem:
    kind, context = fault.kind, fault.context
    if kind == "missing" and isinstance(fault.path[-1], int):
        return _at(fault, fault.path[:-1], f"has too few items, got {_length(fault.node)}")
    if kind == "missing":
        return _at(fault, fault.path, "missing", _description(fault, tree))
    if kind == "extra_forbidden":
        return _at(fault, fault.path, "unknown key", _known_keys(fault, tree) if guess else "")
    if kind == "block":
        return _at(fault, fault.path, context["message"], context["hint"])
    if kind == "block_type":
        hint = f"write {{type: {fault.node.value}}}" if isinstance(fault.node, Leaf) and _is_word(fault.node) else ""
        return _at(fault, fault.path, f"{fault.error['msg']}, got {got(fault.node)}", hint)
    if kind == "name":
        return _at(fault, fault.path, context["message"])
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _wrong_tag(fault)
    if kind in ("value_error", "assertion_error"):
        return _at(fault, fault.path, str(context["error"]))
    found = _length(fault.node) if kind in ("too_short", "too_long") else got(fault.node)
    return _at(fault, fault.path, f"{_expectation(fault)}, got {found}", _way_on(fault, tree))


def _wrong_tag(fault: _Fault) -> Problem:
    key = str(fault.context["discriminator"]).strip("'")
    known = [tag.strip(" '") for tag in str(fault.context.get("expected_tags", "")).split(",") if tag.strip()]
    written = child(fault.node, key)
    if written is None:
        return _at(fault, (*fault.path, key), "missing")
    message = f"must be {_listed(known)}, got {got(written)}"
    return _at(fault, (*fault.path, key), message, _near(_text(written), known), written.origin)


def _expectation(fault: _Fault) -> str:
    kind, context = fault.kind, fault.context
    match kind:
        case "too_short" | "string_too_short":
            least = context["min_length"]
            return f"must have at least {least} {_unit(fault, least)}"
        case "too_long" | "string_too_long":
            most = context["max_length"]
            return f"must have at most {most} {_unit(fault, most)}"
        case "string_pattern_mismatch":
            return f"must match {context['pattern']}"
        case _:
            wanted = _wanted(fault)
            return f"must be {wanted}" if wanted else str(fault.error["msg"]).replace("Input should", "must")


def _wanted(fault: _Fault) -> str:
    """What the value should be, to follow "must be"; empty if this is not known."""
    kind, context = fault.kind, fault.context
    if kind == "greater_than" and isinstance(context["gt"], int):
        return f">= {context['gt'] + 1}"
    bounds = {"greater_than": (">", "gt"), "greater_than_equal": (">=", "ge")}
    bounds |= {"less_than": ("<", "lt"), "less_than_equal": ("<=", "le")}
    if kind in bounds:
        sign, name = bounds[kind]
        return f"{sign} {context[name]:g}"
    if kind in ("literal_error", "enum"):
        return str(context["expected"])
    simple = {
        "int_from_float": "an integer",
        "finite_number": "a finite number",
        "none_required": "null",
        "multiple_of": f"a multiple of {context.get('multiple_of')}",
    }
    return simple.get(kind) or _KINDS.get(kind.removesuffix("_type"), "")


def _way_on(fault: _Fault, tree: Table) -> str:
    """A hint for mistakes whose cure can be written down."""
    if fault.path == ("schema",):
        return "a later schema needs a later fusionkit"
    if fault.kind == "string_pattern_mismatch":
        return _description(fault, tree)
    value = fault.node.value if isinstance(fault.node, Leaf) else None
    if fault.kind in ("int_type", "int_from_float") and isinstance(value, float) and value.is_integer():
        return f"write {int(value)}"
    if fault.kind == "literal_error" and isinstance(value, str):
        return _near(
            value, [word.strip(" '") for word in str(fault.context["expected"]).replace(" or ", ",").split(",")]
        )
    if fault.kind == "string_type" and value is not None:
        return "quote it"
    if fault.kind in ("list_type", "tuple_type") and isinstance(fault.node, Leaf) and value is not None:
        return f"write [{shorten(_text(fault.node), 40)}]"
    return ""


def _known_keys(fault: _Fault, tree: Table) -> str:
    key = str(fault.path[-1])
    known = list(fields_at(tree, fault.path[:-1]))
    near = nearest(key, known)
    beside = _beside(fault, tree).get(near) if near else None
    if near and beside is not None and beside.origin.source == fault.node.origin.source:
        return f"'{near}' is given already"
    return _near(key, known) or (f"known: {', '.join(known)}" if known else "")


def _beside(fault: _Fault, tree: Table) -> Mapping[str, Node]:
    """The entries beside the one at fault."""
    node: Node | None = tree
    for key in fault.path[:-1]:
        node = child(node, key) if node is not None else None
    return node.entries if isinstance(node, Table) else {}


def _description(fault: _Fault, tree: Table) -> str:
    field = fields_at(tree, fault.path[:-1]).get(str(fault.path[-1]))
    return (field.description or "").rstrip(".") if field is not None else ""


def _near(word: str, known: Sequence[str]) -> str:
    near = nearest(word, known)
    return f"did you mean '{near}'?" if near else ""


def _listed(words: Sequence[str]) -> str:
    quoted = [f"'{word}'" for word in words]
    return " or ".join(quoted) if len(quoted) < 3 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def _unit(fault: _Fault, count: int) -> str:
    if fault.kind.startswith("string"):
        return "character" if count == 1 else "characters"
    if isinstance(fault.node, Table):
        return "entry" if count == 1 else "entries"
    return "item" if count == 1 else "items"


def _length(node: Node) -> int:
    """How many items or entries there are; a value that may stand for a list of one counts as one."""
    return len(node.values) if isinstance(node, Items) else len(node.entries) if isinstance(node, Table) else 1


def got(node: Node) -> str:
    """The value found, short."""
    if isinstance(node, Table):
        return "a mapping" if node.entries else "{}"
    if isinstance(node, Items):
        return "a list" if node.values else "[]"
    if isinstance(node.value, str):
        return f"'{shorten(node.value)}'"
    return json.dumps(node.value)


def _is_word(leaf: Leaf) -> bool:
    return isinstance(leaf.value, str) and leaf.value.replace(".", "_").isidentifier()


def _text(node: Node) -> str:
    return str(node.value) if isinstance(node, Leaf) else ""


def _at(
    fault: _Fault, path: Sequence[str | int], message: str, hint: str = "", origin: Origin | None = None
) -> Problem:
    where = origin or fault.node.origin
    return Problem(where.source, where.line, where.column, ".".join(map(str, path)), message, hint)
