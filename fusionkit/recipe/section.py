"""The base of every part of a recipe that is not a block, and the field type that holds a block.

A field `Annotated[BlockConfig, BlockOf("mixers")]` takes a mapping with a `type`, asks the registry for the spec of
that name and holds an instance of the spec's own config class. Nothing is imported but that one spec.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError, ValidationInfo
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from fusionkit import registry
from fusionkit.errors import PluginError
from fusionkit.plugin import FAMILIES, STEP_FAMILIES, BlockConfig, BlockSpec
from fusionkit.recipe.source import shorten

STEP = "step"
"""Stands for all step families: their names are unique, so a step needs only its `type`."""

FAMILY_KEY = "x-fusionkit-family"
SHORT_KEY = "x-fusionkit-short"
"""Mark, in the JSON schema of `Recipe`, where the blocks of a family go, and whether a name may stand for one."""

MAX_FAILED_LOOKUPS = 10
"""For each unknown name the registry reads all metadata anew; beyond so many it is only asked what it knows."""

_BLOCK_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)?")


@dataclass(slots=True)
class Lookups:
    """What one validation has asked the registry for in vain; passed as pydantic's context."""

    failed: dict[tuple[str, str], str] = field(default_factory=dict)


class Section(BaseModel):
    """A part of a recipe: strict, frozen, unknown keys refused."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", validate_default=True, protected_namespaces=(), defer_build=True
    )


@dataclass(frozen=True, slots=True)
class BlockOf:
    """Says which family's blocks a field takes. With `short`, a string stands for a mapping with only that `type`."""

    family: str
    short: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(
            self._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(dump_block),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {FAMILY_KEY: self.family, SHORT_KEY: self.short}

    @property
    def kind(self) -> str:
        """What a reader calls these blocks."""
        return STEP if self.family == STEP else FAMILIES[self.family].singular

    def spec(self, name: str) -> BlockSpec:
        """The spec of the block of that name; raises as `registry.spec` does."""
        return registry.step_spec(name) if self.family == STEP else registry.spec(self.family, name)

    def _validate(self, value: Any, info: ValidationInfo) -> BlockConfig:
        """The config of the block that `value` describes.

        Raises: ValidationError, with addresses below this block, whatever is wrong with it.
        """
        if isinstance(value, BlockConfig):
            return value
        if self.short and isinstance(value, str):
            value = {"type": value}
        if not isinstance(value, Mapping):
            raise PydanticCustomError("block_type", "must be a {kind}: a mapping with a `type`", {"kind": self.kind})
        name = value.get("type")
        if name is None:
            raise _error(f"missing: which {self.kind} is it?", self._where_to_look(), None)
        if not isinstance(name, str):
            raise _error(f"must be the name of a block, got {json.dumps(name)}", self._where_to_look(), name)
        spec = self._find(name, info.context)
        try:
            return spec.config.model_validate_json(json.dumps(value))
        except ValidationError:
            raise
        except Exception as error:
            # A validator of a third-party config may raise anything; the error must name the block, not look like ours.
            cause = f"{type(error).__name__}: {error}"
            raise _error(f"the config of {spec.address} fails ({cause})", "report it to its author", name) from error

    def _find(self, name: str, lookups: Any) -> BlockSpec:
        """The spec of that name; raises ValidationError, at `type`."""
        if not _BLOCK_NAME.fullmatch(name):
            raise _error(f"'{shorten(name)}' is not the name of a block", self._where_to_look(), name)
        if isinstance(lookups, Lookups) and (self.family, name) in lookups.failed:
            raise _error(lookups.failed[self.family, name], "", name)
        if isinstance(lookups, Lookups) and len(lookups.failed) >= MAX_FAILED_LOOKUPS and not self._is_known(name):
            raise _error(f"no {self.kind} called '{name}' is installed", self._where_to_look(), name)
        try:
            return self.spec(name)
        except PluginError as error:
            if isinstance(lookups, Lookups):
                lookups.failed[self.family, name] = str(error)
            raise _error(str(error), "", name) from error

    def _is_known(self, name: str) -> bool:
        """Whether metadata read already has that name."""
        families = STEP_FAMILIES if self.family == STEP else (self.family,)
        return any(name in registry.names(family) for family in families)

    def _where_to_look(self) -> str:
        return (
            f"`fusionkit list` shows the {self.kind}s" if self.family == STEP else f"see `fusionkit list {self.family}`"
        )


def dump_block(block: BlockConfig) -> dict[str, Any]:
    """The block as JSON-able values, defaults filled in."""
    return block.model_dump(mode="json", by_alias=True)


def _error(message: str, hint: str, value: Any) -> ValidationError:
    """An error that stands at the block's `type`."""
    # The message goes in as a value: braces in it must not be read as a template.
    fault = PydanticCustomError("block", "{message}", {"message": message, "hint": hint})
    return ValidationError.from_exception_data("block", [InitErrorDetails(type=fault, loc=("type",), input=value)])
