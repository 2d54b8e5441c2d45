"""Which keys a recipe may have at an address: read from the models, for suggestions and hints."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fusionkit.errors import PluginError
from fusionkit.recipe.schema import Recipe
from fusionkit.recipe.section import BlockOf
from fusionkit.recipe.tree import Leaf, Node, Table, child


def fields_at(tree: Table, path: Sequence[str | int]) -> dict[str, FieldInfo]:
    """The fields of the mapping at `path`, by the key a recipe writes; empty where keys are free."""
    options: list[Any] = [Recipe]
    node: Node | None = tree
    for key in path:
        node = child(node, key) if node is not None else None
        below = [(annotation, extra) for option in options for annotation, extra in _below(option, key)]
        options = [each for annotation, extra in below for each in _options(annotation, extra, node)]
    models = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
    found: dict[str, FieldInfo] = {}
    for model in _matching(models, node):
        found.update({info.alias or name: info for name, info in model.model_fields.items()})
    return found


def _below(option: Any, key: str | int) -> Iterator[tuple[Any, Sequence[Any]]]:
    """The annotation under one key, with its metadata."""
    if isinstance(option, type) and issubclass(option, BaseModel):
        for name, info in option.model_fields.items():
            if key == (info.alias or name):
                yield info.annotation, info.metadata
    elif get_origin(option) is dict:
        yield get_args(option)[1], ()
    elif get_origin(option) in (list, tuple):
        yield get_args(option)[0], ()


def _options(annotation: Any, metadata: Iterable[Any], node: Node | None) -> Iterator[Any]:
    """The models and containers that an annotation allows, blocks resolved by the `type` written in the recipe."""
    block = next((item for item in metadata if isinstance(item, BlockOf)), None)
    if block is not None:
        yield from _config_of(block, node)
    elif get_origin(annotation) is Annotated:
        inner, *extra = get_args(annotation)
        yield from _options(inner, extra, node)
    elif get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _options(part, (), node)
    else:
        yield annotation


def _config_of(block: BlockOf, node: Node | None) -> Iterator[Any]:
    name = _type_of(node)
    if name is not None:
        try:
            yield block.spec(name).config
        except PluginError:
            # The unknown block is a problem of its own, reported where it stands.
            return


def _matching(models: list[type[BaseModel]], node: Node | None) -> list[type[BaseModel]]:
    """Of several models, those whose default `type` is the one written."""
    name = _type_of(node)
    same = [model for model in models if "type" in model.model_fields and model.model_fields["type"].default == name]
    return same or models


def _type_of(node: Node | None) -> str | None:
    found = child(node, "type") if node is not None else None
    return found.value if isinstance(found, Leaf) and isinstance(found.value, str) else None
