"""Made for plugin API 99."""

from typing import Literal

from fusionkit.plugin import BlockConfig, BlockSpec


class Config(BlockConfig):
    type: Literal["hostile.new_api"] = "hostile.new_api"


SPEC = BlockSpec(
    api=99, family="encoders", config=Config, describe=lambda config: None, factory="builtins:object", summary="x"
)
