"""A block from one line of text, as commands take it: `refcoco,root=data/refcoco,splits=[val,testA]`. Torch-free."""

from __future__ import annotations

import json
import re
from typing import Any

from fusionkit import registry
from fusionkit.errors import UsageError
from fusionkit.plugin import BlockConfig, BlockSite, BlockSpec

# A comma that is not inside brackets.
_COMMA = re.compile(r",(?![^\[\]]*\])")


def make_block(family: str, text: str) -> Any:
    """The object of a block named with its settings: `NAME` or `NAME,SETTING=VALUE,...`.

    A value is JSON, a list of words in brackets, or text as it is. Raises UsageError for settings that are not
    NAME=VALUE or that the block refuses, and PluginError for an unknown name.

    Example:
        >>> make_block("box_tokenizers", "coordinate_bins,bins=100").bins
        100
    """
    spec, config = read_block(family, text)
    return registry.factory(spec)(config, BlockSite(address=family.removesuffix("s")))


def read_block(family: str, text: str) -> tuple[BlockSpec, BlockConfig]:
    """The spec and the config of a block named with its settings; raises as `make_block` does."""
    from pydantic import ValidationError

    name, *settings = _COMMA.split(text)
    spec = registry.spec(family, name.strip())
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UsageError(f"'{text}': expected NAME,SETTING=VALUE, for example {_example(spec)}")
        if key.strip() in values:
            raise UsageError(f"'{text}': {key.strip()} is given twice")
        values[key.strip()] = _value(value.strip())
    try:
        return spec, spec.config.model_validate_json(json.dumps(values))
    except ValidationError as error:
        problems = "; ".join(
            ": ".join(filter(None, (".".join(map(str, each["loc"])), each["msg"].removeprefix("Value error, "))))
            for each in error.errors()
        )
        raise UsageError(f"{family.replace('_', ' ').removesuffix('s')} '{text}': {problems}") from error


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        if text.startswith("[") and text.endswith("]"):
            return [_value(part.strip()) for part in text[1:-1].split(",") if part.strip()]
        return text


def _example(spec: BlockSpec) -> str:
    key, value = next((item for example in spec.examples for item in example.items()), ("SETTING", "VALUE"))
    return f"{spec.name},{key}={value if isinstance(value, str) else json.dumps(value)}"
