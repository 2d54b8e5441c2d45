"""A block as a third party writes it in one file."""

TEMPER = """
from typing import Literal

from pydantic import PositiveFloat
from torch import nn

from fusionkit.plugin import API_VERSION, BlockPlan, BlockSpec, StepConfig


class TemperConfig(StepConfig):
    type: Literal["acme.temper"] = "acme.temper"
    factor: PositiveFloat = 0.5


def plan_temper(config, inputs, target_width):
    return BlockPlan.of(inputs["input"], reads=[inputs["input"]])


class Temper(nn.Module):
    def __init__(self, config, site):
        super().__init__()
        self.factor = config.factor

    def forward(self, tokens):
        return tokens.with_x(tokens.x_BND * self.factor)


TEMPER = BlockSpec(
    api=API_VERSION,
    family="adapters",
    config=TemperConfig,
    plan=plan_temper,
    factory="my_block:Temper",
    summary="scale tokens by a constant",
    guarantees=frozenset({"token_count", "grid"}),
)
"""
