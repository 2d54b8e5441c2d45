"""How a config's options read on a terminal: name, kind, default, description."""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_PLAIN_KINDS = {bool: "true | false", int: "integer", float: "number", str: "text", type(None): "null"}
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "multiple_of": "a multiple of"}


@dataclass(frozen=True, slots=True)
class OptionText:
    """One option in words. `default` is None when a value must be given."""

    name: str
    kind: str
    default: str | None
    description: str


def option_texts(config: type[BaseModel]) -> list[OptionText]:
    """Every option of a config class but its `type`, in the order they are written."""
    return [
        OptionText(info.alias or name, _kind_of(info), _default(info), info.description or "")
        for name, info in config.model_fields.items()
        if name != "type"
    ]


def value_text(value: Any) -> str:
    """A value as recipes write it."""
    if isinstance(value, BaseModel):
        return value_text(value.model_dump(by_alias=True))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {value_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(value_text(item) for item in value) + "]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return '""' if value == "" else str(value)


def _default(info: FieldInfo) -> str | None:
    return None if info.is_required() else value_text(info.get_default(call_default_factory=True, validated_data={}))


def _kind_of(info: FieldInfo) -> str:
    return _kind(Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation)


def _kind(annotation: Any) -> str:
    """An annotation in the words of a recipe: `integer >= 1`, `layer | encoder`, `[number, number]`."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = [text for item in parts[1:] if (text := _bounds(item))]
        return " ".join([_kind(parts[0]), " and ".join(bounds)]).strip()
    if origin is Literal:
        return " | ".join(value_text(part) for part in parts)
    if origin in (Union, types.UnionType):
        return " | ".join(_kind(part) for part in parts)
    if origin in (list, tuple, set, frozenset):
        return "[" + ", ".join("..." if part is Ellipsis else _kind(part) for part in parts) + "]"
    if origin is not None and len(parts) == 2:
        return f"{{{_kind(parts[0])}: {_kind(parts[1])}}}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "{" + ", ".join(f"{each.name}: {each.kind}" for each in option_texts(annotation)) + "}"
    return _PLAIN_KINDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _bounds(item: Any) -> str:
    """A constraint such as `Gt(0)`, or the constraints within a nested `Field(...)`."""
    if isinstance(item, FieldInfo):
        return " and ".join(text for inner in item.metadata if (text := _bounds(inner)))
    return " and ".join(
        f"{sign} {value_text(getattr(item, name))}"
        for name, sign in _BOUNDS.items()
        if getattr(item, name, None) is not None
    )
