"""Specs of the injectors: how fused tokens enter the language model. Torch-free.

An injector reads the named output, or the last fusion step. `replace` and `add` write the embeddings; the others act
inside the decoder and join one of them.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, FiniteFloat, PositiveInt

from fusionkit.plugin import (
    BlockPlan,
    BlockSpec,
    LayerInjectorConfig,
    LayerStackSpec,
    ShapeError,
    StepConfig,
    TokenSpec,
)

Inputs = Mapping[str, TokenSpec | LayerStackSpec]


class ReplaceConfig(StepConfig):
    """Visual vectors stand where the `<image>` tokens were."""

    type: Literal["replace"] = "replace"


class AddConfig(StepConfig):
    """Visual vectors are added to the embeddings of the `<image>` tokens."""

    type: Literal["add"] = "add"


class DeepstackConfig(LayerInjectorConfig):
    """Visual vectors are added to the hidden states of the `<image>` positions at some decoder blocks."""

    type: Literal["deepstack"] = "deepstack"


class GatedCrossAttentionConfig(LayerInjectorConfig):
    """Text tokens attend to visual tokens that do not stand in the text, through a gate that starts shut."""

    type: Literal["gated_cross_attention"] = "gated_cross_attention"
    heads: PositiveInt = Field(description="Attention heads.")
    kv_heads: PositiveInt | None = Field(None, description="Heads of keys and values; as many as `heads` if not given.")
    head_width: PositiveInt | None = Field(
        None, description="Width of one head; the language model's width / heads if not given."
    )
    gate_init: FiniteFloat = Field(0.0, description="Start of the gates γ; an update is scaled by tanh(γ).")


def plan_deepstack(config: DeepstackConfig, inputs: Inputs, target: int | None) -> BlockPlan:
    plan = plan_injector(config, inputs, target)
    tokens, visual = plan.main, inputs.get("visual")
    if isinstance(visual, TokenSpec) and visual.with_width(tokens.width) != tokens:
        raise ShapeError(
            f"adds {tokens} at the places of {visual}",
            field="input",
            hint="read tokens of the grid that is in the text",
        )
    return plan


def plan_gated_cross_attention(config: GatedCrossAttentionConfig, inputs: Inputs, target: int | None) -> BlockPlan:
    """FLOPs are those of one crop's keys and values and of one text token that looks at them."""
    memory = inputs["input"]
    if isinstance(memory, LayerStackSpec):
        raise ShapeError(f"expected tokens, got {memory}", field="input", hint="mix the layers first")
    width, heads = memory.width if target is None else target, config.heads
    kv_heads = config.kv_heads or heads
    if heads % kv_heads:
        raise ShapeError(f"{kv_heads} kv_heads do not divide {heads} heads", field="kv_heads")
    if config.head_width is None and width % heads:
        raise ShapeError(
            f"{heads} heads do not divide the language model's width {width}",
            field="heads",
            hint="use a divisor, or give head_width",
        )
    head_width = config.head_width or width // heads
    inner, kv_inner = heads * head_width, kv_heads * head_width
    text, visual = 2 * width * inner, 2 * memory.width * kv_inner
    layers = len(config.layers)
    return BlockPlan.of(
        memory.with_width(width),
        params=layers * (text + visual + 2 * width + 1) + 2 * memory.width,
        flops=layers * 2 * (text + memory.tokens * visual + 2 * memory.tokens * inner),
        reads=[memory],
    )


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
    guarantees=frozenset({"placed"}),
)

ADD = BlockSpec(
    api=1,
    family="injectors",
    config=AddConfig,
    plan=plan_injector,
    factory="fusionkit.blocks.injectors.add:Add",
    summary="Adds the visual vectors to the <image> embeddings (Molmo and the released CoME-VL).",
    equation="e_t = e_t + v_{k(t)} where t is an <image> token",
    guarantees=frozenset({"placed"}),
)

DEEPSTACK = BlockSpec(
    api=1,
    family="injectors",
    config=DeepstackConfig,
    plan=plan_deepstack,
    factory="fusionkit.blocks.injectors.deepstack:Deepstack",
    summary="Adds visual vectors to the <image> positions again inside the decoder.",
    paper="DeepStack 2406.04334 (before); Qwen3-VL (after blocks 1, 2, 3, one injector for each)",
    equation="h_t = h_t + v_{k(t)} where t is an <image> token, before or after block l",
    guarantees=frozenset({"placed"}),
    examples=({"layers": [1]}, {"layers": [1, 3], "when": "after"}),
)

GATED_CROSS_ATTENTION = BlockSpec(
    api=1,
    family="injectors",
    config=GatedCrossAttentionConfig,
    plan=plan_gated_cross_attention,
    factory="fusionkit.blocks.injectors.gated_cross_attention:GatedCrossAttention",
    summary="Text tokens attend to a visual memory inside the decoder; the context does not grow.",
    paper="arXiv 2604.03231, equation 15; the gate of Flamingo 2204.14198",
    equation="h = h + tanh(γ_l) W_O softmax(W_Q LN(h) (W_K LN(v))ᵀ / √K) W_V LN(v)",
    guarantees=frozenset({"identity_at_zero_gate", "padding_ignored"}),
    examples=({"layers": [1, 2], "heads": 2}, {"layers": [1], "heads": 4, "kv_heads": 2, "when": "after"}),
)
