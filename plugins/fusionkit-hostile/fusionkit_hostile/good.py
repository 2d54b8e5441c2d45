"""A selector as it should be, for modules that misbehave beside it."""

from typing import Literal

from pydantic import create_model

from fusionkit.plugin import BlockConfig, BlockSite, BlockSpec, EncoderInfo


class Last:
    def __init__(self, config: BlockConfig, site: BlockSite) -> None:
        pass

    def layers(self, info: EncoderInfo) -> tuple[int, ...]:
        return (info.depth,)


def selector(name: str) -> BlockSpec:
    config = create_model("Config", __base__=BlockConfig, __module__=__name__, type=(Literal[name], name))
    return BlockSpec(
        api=1, family="selectors", config=config, factory="fusionkit_hostile.good:Last", summary="The last layer."
    )
