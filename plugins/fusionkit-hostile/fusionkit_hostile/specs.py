"""Specs that load, with something wrong in them."""

from typing import Literal

from fusionkit.plugin import BlockConfig, BlockSpec


class OtherConfig(BlockConfig):
    type: Literal["hostile.other"] = "hostile.other"


class NoFactoryConfig(BlockConfig):
    type: Literal["hostile.no_factory"] = "hostile.no_factory"


MISLABELLED = BlockSpec(
    api=1, family="encoders", config=OtherConfig, describe=lambda config: None, factory="builtins:object", summary="x"
)
NO_FACTORY = BlockSpec(
    api=1, family="selectors", config=NoFactoryConfig, factory="fusionkit_hostile.specs:Nothing", summary="x"
)
