"""The base of every part of a recipe that is not a block, and the field type that holds a block.

A field `Annotated[BlockConfig, BlockOf("mixers")]` takes a mapping with a `type`, asks the registry for the spec of
that name and holds an instance of the spec's own config class. Nothing is imported but that one spec.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from fusionkit import registry
from fusionkit.errors import PluginError, UnknownBlockError
from fusionkit.plugin import FAMILIES, BlockConfig, BlockSpec

STEP = "step"
"""Stands for all step families: their names are unique, so a step needs only its `type`."""

FAMILY_KEY = "x-fusionkit-family"
"""Marks, in the JSON schema of `Recipe`, where the blocks of a family go (see `recipe.export`)."""


class Section(BaseModel):
    """A part of a recipe: strict, frozen, unknown keys refused."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", validate_default=True, protected_namespaces=())


@dataclass(frozen=True, slots=True)
class BlockOf:
    """Says which family's blocks a field takes. With `short`, a string stands for a mapping with only that `type`."""

    family: str
    short: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.validate,
            serialization=core_schema.plain_serializer_function_ser_schema(dump_block),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {FAMILY_KEY: self.family, "x-fusionkit-short": True} if self.short else {FAMILY_KEY: self.family}

    @property
    def kind(self) -> str:
        """What a reader calls these blocks."""
        return STEP if self.family == STEP else FAMILIES[self.family].singular

    def spec(self, name: str) -> BlockSpec:
        return registry.step_spec(name) if self.family == STEP else registry.spec(self.family, name)

    def validate(self, value: Any) -> BlockConfig:
        """The config of the block that `value` describes.

        Raises: ValidationError, with addresses below this block, whatever is wrong with it.
        """
        if isinstance(value, BlockConfig):
            return value
        if self.short and isinstance(value, str):
            value = {"type": value}
        if not isinstance(value, Mapping):
            raise PydanticCustomError(
                "block_type", "must be a {kind}: a mapping with a `type`", {"kind": self.kind, "family": self.family}
            )
        name = value.get("type")
        if name is None:
            raise _error("missing_block_type", f"missing: which {self.kind} is it?", self._hint(), value)
        if not isinstance(name, str):
            raise _error("block_name", "must be the name of a block", self._hint(), name)
        try:
            spec = self.spec(name)
        except UnknownBlockError as error:
            raise _error("unknown_block", str(error), "", name) from error
        except PluginError as error:
            raise _error("broken_block", str(error), "", name) from error
        return spec.config.model_validate_json(json.dumps(value))

    def _hint(self) -> str:
        return (
            f"`fusionkit list` shows the {self.kind}s" if self.family == STEP else f"see `fusionkit list {self.family}`"
        )


def dump_block(block: BlockConfig) -> dict[str, Any]:
    """The block as JSON-able values, defaults filled in."""
    return block.model_dump(mode="json", by_alias=True)


def _error(kind: str, message: str, hint: str, value: Any) -> ValidationError:
    """An error that stands at the block's `type`."""
    # The message goes in as a value: braces in it must not be read as a template.
    fault = PydanticCustomError("block", "{message}", {"kind": kind, "message": message, "hint": hint})
    return ValidationError.from_exception_data("block", [InitErrorDetails(type=fault, loc=("type",), input=value)])
