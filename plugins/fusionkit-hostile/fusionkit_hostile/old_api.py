"""Made for plugin API 0."""

from typing import Literal

from fusionkit.plugin import BlockConfig, BlockSpec


class Config(BlockConfig):
    type: Literal["hostile.old_api"] = "hostile.old_api"


SPEC = BlockSpec(
    api=0, family="encoders", config=Config, describe=lambda config: None, factory="builtins:object", summary="x"
)
