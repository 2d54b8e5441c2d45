"""Mixers: the selected layers of one encoder -> one x_BND. Configs, planners and specs; torch-free.

Notation in the equations: z_l is layer l of the L selected ones, LN_l its LayerNorm, w = softmax(logits), d the
encoder's width, m the output width.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt

from fusionkit.geometry import LayerStackSpec, TokenSpec
from fusionkit.plugin import (
    API_VERSION,
    BlockPlan,
    BlockSpec,
    ShapeError,
    StepConfig,
    Width,
    resolve_width,
)

Inputs = Mapping[str, TokenSpec | LayerStackSpec]
Init = Literal["identity", "haar"]
Map = Literal["cayley", "exp"]


class _WeightedConfig(StepConfig):
    """Mixers that weight layers by a softmax over one logit each."""

    logit_init: tuple[FiniteFloat, ...] | None = Field(
        None, description="Starting logits, one per selected layer, lowest layer first; equal weights if not given."
    )


class SoftmaxSumConfig(_WeightedConfig):
    """A weighted mean of the layers, nothing else."""

    type: Literal["softmax_sum"] = "softmax_sum"
    norm: bool = Field(False, description="Apply a LayerNorm of its own to each layer first.")


class OrthogonalConfig(_WeightedConfig):
    """Each layer normalised, rotated by an orthogonal map, then summed with softmax weights."""

    type: Literal["orthogonal"] = "orthogonal"
    width: Width | None = Field(None, description="Output width; the encoder's if not given.")
    share: Literal["layer", "encoder"] = Field(
        "layer", description="One map per layer, or one for the encoder (then applied once, after the sum)."
    )
    map: Map = Field("cayley", description="From skew-symmetric to orthogonal: cayley, or the matrix exponential.")
    init: Init = Field("identity", description="Start at the identity, or at random rotations kept in a buffer.")


class OrthogonalTwoStageConfig(_WeightedConfig):
    """The mixer of the released code: one shared map after the weighted sum, the same LayerNorm again, a second map."""

    type: Literal["orthogonal_two_stage"] = "orthogonal_two_stage"
    width: Width | None = Field(None, description="Output width; the encoder's if not given.")
    map: Map = Field("exp", description="From skew-symmetric to orthogonal; the released code uses exp.")
    init: Init = Field("haar", description="Start at random rotations kept in a buffer (as released), or the identity.")


class LinearSumConfig(_WeightedConfig):
    """`orthogonal` with free matrices: the control that shows what the constraint is worth."""

    type: Literal["linear_sum"] = "linear_sum"
    width: Width | None = Field(None, description="Output width; the encoder's if not given.")
    init: Init = Field("identity", description="Start at the identity, or at random rotations.")


class LlnLayerscaleConfig(StepConfig):
    """LayerNorm and a linear map per layer, summed with one free scale each (COMM)."""

    type: Literal["lln_layerscale"] = "lln_layerscale"
    width: Width | None = Field(None, description="Output width; the encoder's if not given.")
    scale_init: FiniteFloat | None = Field(None, description="Starting scale of every layer; 1/L if not given.")


class GroupMeanConfig(StepConfig):
    """Means over groups of layers, side by side on the channel axis (Dense Connector, DCI)."""

    type: Literal["group_mean"] = "group_mean"
    groups: PositiveInt | Annotated[tuple[tuple[NonNegativeInt, ...], ...], Field(min_length=1)] = Field(
        2,
        description="How many consecutive groups (sizes differ by one at most, larger last), or the layers of each; "
        "a layer may be in several.",
    )


class ChannelConcatConfig(StepConfig):
    """All layers side by side on the channel axis."""

    type: Literal["channel_concat"] = "channel_concat"


# ------------------------------------------------------------------------------------------------- planners
def layer_stack(inputs: Inputs) -> LayerStackSpec:
    """The stack a mixer reads; raises ShapeError when it stands after a step that already made one tensor."""
    stack = inputs["input"]
    if not isinstance(stack, LayerStackSpec):
        raise ShapeError(
            f"a mixer reads the selected layers of an encoder, got {stack}",
            field="input",
            hint="make it the first step of its stream",
        )
    return stack


def layer_groups(groups: int | tuple[tuple[int, ...], ...], layers: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Each group as indices into `layers`; raises ShapeError for empty groups, and for layers unknown or unused."""
    if isinstance(groups, int):
        if groups > len(layers):
            raise ShapeError(f"{groups} groups of {len(layers)} layers: one would be empty", field="groups")
        ends = [len(layers) * group // groups for group in range(groups + 1)]
        return tuple(tuple(range(start, end)) for start, end in pairwise(ends))
    if any(not group or len(set(group)) != len(group) for group in groups):
        raise ShapeError("every group needs at least one layer, each once", field="groups")
    named = {layer for group in groups for layer in group}
    if wrong := sorted(named.symmetric_difference(layers)):
        raise ShapeError(
            f"layers {wrong} are in the groups or in the selection, but not in both; selected are {list(layers)}",
            field="groups",
            hint="select exactly the layers that the groups name",
        )
    return tuple(tuple(layers.index(layer) for layer in group) for group in groups)


def _logit_count(config: _WeightedConfig, stack: LayerStackSpec) -> int:
    if config.logit_init is not None and len(config.logit_init) != stack.depth:
        raise ShapeError(
            f"{stack.depth} layers are selected, got {len(config.logit_init)} logits",
            field="logit_init",
            hint="give one per selected layer, lowest first",
        )
    return stack.depth


def _skew_count(n: int) -> int:
    return n * (n - 1) // 2


def plan_softmax_sum(config: SoftmaxSumConfig, inputs: Inputs, target_width: int | None) -> BlockPlan:
    stack = layer_stack(inputs)
    norms = 2 * stack.depth * stack.width if config.norm else 0
    return BlockPlan.of(stack.tokens, params=_logit_count(config, stack) + norms, reads=[stack])


def plan_orthogonal(config: OrthogonalConfig, inputs: Inputs, target_width: int | None) -> BlockPlan:
    """FLOPs are those of the mixing alone: the maps are made once per optimizer step, and never at inference."""
    stack = layer_stack(inputs)
    width = resolve_width(config.width, target_width, stack.width)
    maps = stack.depth if config.share == "layer" else 1
    skews = maps * _skew_count(max(width, stack.width))
    return BlockPlan.of(
        stack.tokens.with_width(width),
        params=skews + _logit_count(config, stack) + 2 * stack.depth * stack.width,
        flops=maps * 2 * stack.tokens.tokens * stack.width * width,
        reads=[stack],
    )


def plan_orthogonal_two_stage(config: OrthogonalTwoStageConfig, inputs: Inputs, target_width: int | None) -> BlockPlan:
    stack = layer_stack(inputs)
    width = resolve_width(config.width, target_width, stack.width)
    skews = _skew_count(stack.width) + _skew_count(max(width, stack.width))
    return BlockPlan.of(
        stack.tokens.with_width(width),
        params=skews + _logit_count(config, stack) + 2 * stack.width,
        flops=2 * stack.tokens.tokens * stack.width * (stack.width + width),
        reads=[stack],
    )


def plan_linear_sum(config: LinearSumConfig, inputs: Inputs, target_width: int | None) -> BlockPlan:
    stack = layer_stack(inputs)
    width = resolve_width(config.width, target_width, stack.width)
    return BlockPlan.of(
        stack.tokens.with_width(width),
        params=_logit_count(config, stack) + stack.depth * stack.width * (width + 2),
        flops=2 * stack.depth * stack.tokens.tokens * stack.width * width,
        reads=[stack],
    )


def plan_lln_layerscale(config: LlnLayerscaleConfig, inputs: Inputs, target_width: int | None) -> BlockPlan:
    stack = layer_stack(inputs)
    width = resolve_width(config.width, target_width, stack.width)
    return BlockPlan.of(
        stack.tokens.with_width(width),
        params=stack.depth * (1 + 2 * stack.width + width * stack.width + width),
        flops=2 * stack.depth * stack.tokens.tokens * stack.width * width,
        reads=[stack],
    )


def plan_group_mean(config: GroupMeanConfig, inputs: Inputs, target_width: int | None) -> BlockPlan:
    stack = layer_stack(inputs)
    groups = layer_groups(config.groups, stack.layers)
    return BlockPlan.of(stack.tokens.with_width(len(groups) * stack.width), reads=[stack])


def plan_channel_concat(config: ChannelConcatConfig, inputs: Inputs, target_width: int | None) -> BlockPlan:
    stack = layer_stack(inputs)
    return BlockPlan.of(stack.tokens.with_width(stack.depth * stack.width), reads=[stack])


# ---------------------------------------------------------------------------------------------------- specs
_ALWAYS = frozenset({"token_count", "grid", "permutation_equivariant"})
_PAPER = "arXiv 2604.03231"
_WHERE = "z_l: selected layer l, d wide; LN_l: its LayerNorm; w = softmax(logits); V: m wide"

ORTHOGONAL = BlockSpec(
    api=API_VERSION,
    family="mixers",
    config=OrthogonalConfig,
    plan=plan_orthogonal,
    factory="fusionkit.blocks.mixers.orthogonal:OrthogonalMixer",
    summary="Normalise each layer, rotate it by an orthogonal map, sum with softmax weights.",
    guarantees=_ALWAYS | {"orthogonal", "simplex_weights", "foldable", "streaming"},
    paper=f"{_PAPER}, equations 2-4 and 9 (Q per layer as in 3, not per encoder as in 4; `share` chooses)",
    equation="V = Σ_l w_l Q_l LN_l(z_l)\n"
    "QᵀQ = I if m >= d, QQᵀ = I if m < d;  Q = (I + A/2)(I - A/2)⁻¹ or exp(A), A = -Aᵀ learned\n" + _WHERE,
    examples=({}, {"share": "encoder"}, {"map": "exp", "init": "haar"}, {"width": 8}, {"width": 40, "init": "haar"}),
)
ORTHOGONAL_TWO_STAGE = BlockSpec(
    api=API_VERSION,
    family="mixers",
    config=OrthogonalTwoStageConfig,
    plan=plan_orthogonal_two_stage,
    factory="fusionkit.blocks.mixers.orthogonal_two_stage:OrthogonalTwoStageMixer",
    summary="The mixer of the released code: sum, shared map, the same LayerNorm again, second map.",
    guarantees=_ALWAYS | {"orthogonal", "simplex_weights", "foldable", "streaming"},
    paper=f"{_PAPER}, released code; the paper has no second stage",
    equation="V = Q₂ LN(Σ_l w_l Q₁ LN(z_l)),  one LN for all\n"
    "z_l: selected layer l, d wide; w = softmax(logits); Q₁ dxd and Q₂ mxd orthogonal",
    examples=({}, {"map": "cayley", "init": "identity"}, {"width": 8}),
)
LINEAR_SUM = BlockSpec(
    api=API_VERSION,
    family="mixers",
    config=LinearSumConfig,
    plan=plan_linear_sum,
    factory="fusionkit.blocks.mixers.linear_sum:LinearSumMixer",
    summary="A free matrix per layer instead of an orthogonal one: the control of the ablation.",
    guarantees=_ALWAYS | {"simplex_weights", "foldable", "streaming"},
    paper=f"{_PAPER}, figure 6 (without the orthogonal layer)",
    equation="V = Σ_l w_l W_l LN_l(z_l),  W_l free\n" + _WHERE,
    examples=({}, {"init": "haar", "width": 8}),
)
SOFTMAX_SUM = BlockSpec(
    api=API_VERSION,
    family="mixers",
    config=SoftmaxSumConfig,
    plan=plan_softmax_sum,
    factory="fusionkit.blocks.mixers.softmax_sum:SoftmaxSumMixer",
    summary="A learned weighted mean of the layers.",
    guarantees=_ALWAYS | {"simplex_weights", "foldable", "streaming"},
    equation="V = Σ_l w_l z_l,  or Σ_l w_l LN_l(z_l)\n"
    "z_l: selected layer l, d wide; LN_l: its LayerNorm; w = softmax(logits)",
    examples=({}, {"norm": True}),
)
LLN_LAYERSCALE = BlockSpec(
    api=API_VERSION,
    family="mixers",
    config=LlnLayerscaleConfig,
    plan=plan_lln_layerscale,
    factory="fusionkit.blocks.mixers.lln_layerscale:LlnLayerscaleMixer",
    summary="LayerNorm and a linear map per layer, summed with free scales (COMM).",
    guarantees=_ALWAYS | {"foldable", "streaming"},
    paper="COMM, arXiv 2310.08825",
    equation="V = Σ_l α_l (W_l LN_l(z_l) + c_l)\n"
    "z_l: selected layer l, d wide; LN_l: its LayerNorm; α_l free numbers; V: m wide",
    examples=({}, {"width": 8, "scale_init": 0.5}),
)
GROUP_MEAN = BlockSpec(
    api=API_VERSION,
    family="mixers",
    config=GroupMeanConfig,
    plan=plan_group_mean,
    factory="fusionkit.blocks.mixers.group_mean:GroupMeanMixer",
    summary="Means over groups of layers, side by side on the channel axis (Dense Connector).",
    guarantees=_ALWAYS | {"streaming"},
    paper="Dense Connector, arXiv 2405.13800 (DCI)",
    equation="V = [mean of group 1; ...; mean of group G],  G d wide",
    examples=({}, {"groups": 1}),
)
CHANNEL_CONCAT = BlockSpec(
    api=API_VERSION,
    family="mixers",
    config=ChannelConcatConfig,
    plan=plan_channel_concat,
    factory="fusionkit.blocks.mixers.channel_concat:ChannelConcatMixer",
    summary="All layers side by side on the channel axis (Molmo, Granite).",
    guarantees=_ALWAYS,
    equation="V = [z_1; ...; z_L],  L d wide",
)
