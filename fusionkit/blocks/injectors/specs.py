"""Specs of the injectors: how fused tokens enter the language model. Torch-free.

An injector reads the named output, or the last fusion step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from fusionkit.plugin import BlockPlan, BlockSpec, LayerStackSpec, ShapeError, StepConfig, TokenSpec

Inputs = Mapping[str, TokenSpec | LayerStackSpec]


class ReplaceConfig(StepConfig):
    """Visual vectors stand where the `<image>` tokens were."""

    type: Literal["replace"] = "replace"


class AddConfig(StepConfig):
    """Visual vectors are added to the embeddings of the `<image>` tokens."""

    type: Literal["add"] = "add"


def plan_injector(config: StepConfig, inputs: Inputs, target: int | None) -> BlockPlan:
    tokens = inputs["input"]
    if isinstance(tokens, LayerStackSpec):
        raise ShapeError(f"expected tokens, got {tokens}", field="input", hint="mix the layers first")
    if target is not None and tokens.width != target:
        raise ShapeError(
            f"visual tokens have width {tokens.width}, the language model {target}",
            field="input",
            hint=f"end the fusion with {{type: linear, width: {target}}} or an mlp",
        )
    return BlockPlan.of(tokens, reads=[tokens])


REPLACE = BlockSpec(
    api=1,
    family="injectors",
    config=ReplaceConfig,
    plan=plan_injector,
    factory="fusionkit.blocks.injectors.replace:Replace",
    summary="Puts the visual vectors in place of the <image> embeddings.",
    equation="e_t = v_{k(t)} where t is an <image> token",
)

ADD = BlockSpec(
    api=1,
    family="injectors",
    config=AddConfig,
    plan=plan_injector,
    factory="fusionkit.blocks.injectors.add:Add",
    summary="Adds the visual vectors to the <image> embeddings (Molmo and the released CoME-VL).",
    equation="e_t = e_t + v_{k(t)} where t is an <image> token",
)
