"""Specs of the connectors: several named inputs to one. Torch-free.

`query` keeps its grid; `memory` may have another grid and width. Widths and grids are checked here, so that a
recipe that does not fit fails before any weight exists.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from fusionkit.plugin import (
    BlockConfig,
    BlockPlan,
    BlockSpec,
    InputName,
    LayerStackSpec,
    ShapeError,
    TokenSpec,
    Width,
    resolve_width,
)

Inputs = Mapping[str, TokenSpec | LayerStackSpec]


def _distinct(sources: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(sources)) < len(sources):
        raise ValueError(f"inputs must be different, got {list(sources)}")
    return sources


Sources = Annotated[tuple[InputName, ...], Field(min_length=2), AfterValidator(_distinct)]


class Rope(BaseModel):
    """Rotary positions on the y and x axes of the crop, half of every head each."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    coordinates: Literal["cell_centres", "corner_aligned"] = Field(
        "cell_centres",
        description="Where a cell stands: at its centre, or spread so that the outer ones touch the border.",
    )
    shortest: PositiveFloat = Field(2.0, description="Shortest wavelength, in cells of the finer of the two grids.")
    longest: PositiveFloat = Field(2.0, description="Longest wavelength, in sides of the crop.")


class RopeCrossAttentionConfig(BlockConfig):
    """Every query token attends to the memory; a gate lets the result in."""

    type: Literal["rope_cross_attention"] = "rope_cross_attention"
    query: InputName = Field(description="Stream or step whose tokens ask, and whose grid and width stay.")
    memory: InputName = Field(description="Stream or step whose tokens are attended to; any grid, any width.")
    heads: PositiveInt = Field(description="Attention heads.")
    kv_heads: PositiveInt | None = Field(None, description="Heads of keys and values; as many as `heads` if not given.")
    head_width: PositiveInt | None = Field(None, description="Width of one head; query width / heads if not given.")
    rope: Rope | None = Field(Rope(), description="Rotary positions; null for none (the ablation's control).")
    radius: PositiveFloat | None = Field(
        None, description="Attend only to memory within this distance, in sides of the crop; null for all of it."
    )
    gate_init: float = Field(0.0, description="Start of the gate γ; the update is scaled by tanh(γ).")
    bias: bool = Field(False, description="Biases on the four projections (the paper has none).")


class RopeCrossAttentionReleasedConfig(BlockConfig):
    """The connector of the released CoME-VL code, quirks included (docs of the module list them)."""

    type: Literal["rope_cross_attention_released"] = "rope_cross_attention_released"
    query: InputName = Field(description="Stream or step whose tokens ask, and whose grid stays.")
    memory: InputName = Field(description="Stream or step whose tokens are attended to.")
    width: Width | None = Field(None, description="Output width; by default the language model's, else the query's.")
    heads: PositiveInt = Field(8, description="Attention heads; must divide the width into heads of at least 6.")
    radius: PositiveFloat | None = Field(
        0.25, description="Attend only to memory within this distance (a query with none attends to all, evenly)."
    )
    frequency_range: PositiveFloat = Field(
        256.0, description="Frequencies start at π/2 · [1 / this, 1] per side of the crop and are learned."
    )
    distance_decay: PositiveFloat | None = Field(
        None, description="Adds a learned multiple of exp(-this · distance) to the logits of each head; null for none."
    )
    bidirectional: bool = Field(False, description="Also update the memory from the query, as the output `memory`.")
    gate_init: float = Field(0.0, description="Start of the gates γ; an update is scaled by tanh(γ).")


class ConcatConfig(BlockConfig):
    """Inputs side by side, on the channel or the token axis."""

    type: Literal["concat"] = "concat"
    inputs: Sources = Field(description="Streams or steps to join, in order.")
    axis: Literal["channel", "token"] = Field("channel", description="channel: widths add up; token: tokens follow on.")


class InterleaveConfig(BlockConfig):
    """Tokens of the inputs in turn: first of each, second of each, ..."""

    type: Literal["interleave"] = "interleave"
    inputs: Sources = Field(description="Streams or steps to interleave, in order.")


class WeightedSumConfig(BlockConfig):
    """A sum of inputs of one shape with fixed or learned weights."""

    type: Literal["weighted_sum"] = "weighted_sum"
    inputs: Sources = Field(description="Streams or steps to add.")
    weights: tuple[float, ...] | None = Field(
        None, description="One weight per input (where learning starts); equal if not given."
    )
    learn: Literal["no", "free", "softmax"] = Field(
        "no", description="no: fixed; free: any value; softmax: positive with sum 1."
    )

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        if self.weights is None:
            return self
        if len(self.weights) != len(self.inputs):
            raise ValueError(f"weights must have one entry per input ({len(self.inputs)}), got {len(self.weights)}")
        if self.learn == "softmax" and min(self.weights) <= 0:
            raise ValueError(f"weights must be positive with learn softmax, got {list(self.weights)}")
        return self


# ------------------------------------------------------------------------------------------------ planners
def plan_rope_cross_attention(config: RopeCrossAttentionConfig, inputs: Inputs, target: int | None) -> BlockPlan:
    query, memory = _tokens(inputs, "query"), _tokens(inputs, "memory")
    heads, kv_heads = config.heads, config.kv_heads or config.heads
    if heads % kv_heads:
        raise ShapeError(
            f"{kv_heads} kv_heads do not divide {heads} heads", field="kv_heads", hint=_divisors(heads, kv_heads)
        )
    if config.head_width is None and query.width % heads:
        raise ShapeError(
            f"{heads} heads do not divide the query width {query.width}",
            field="heads",
            hint=_divisors(query.width, heads),
        )
    head_width = config.head_width or query.width // heads
    if config.rope is not None and head_width % 4:
        raise ShapeError(
            f"heads of {head_width} cannot be rotated on two axes",
            field="head_width" if config.head_width else "heads",
            hint="the head width must be a multiple of 4, or rope: null",
        )
    if config.rope is not None or config.radius is not None:
        _one_grid(query, "query")
        _one_grid(memory, "memory")
    inner, kv_inner = heads * head_width, kv_heads * head_width
    weights = 2 * query.width * inner + 2 * memory.width * kv_inner
    biases = (inner + 2 * kv_inner + query.width) if config.bias else 0
    flops = (
        4 * query.tokens * query.width * inner
        + 4 * memory.tokens * memory.width * kv_inner
        + 4 * query.tokens * memory.tokens * inner
    )
    return BlockPlan.of(
        query,
        params=weights + biases + 2 * (query.width + memory.width) + 1,
        flops=flops,
        reads=[query, memory],
    )


def plan_released(config: RopeCrossAttentionReleasedConfig, inputs: Inputs, target: int | None) -> BlockPlan:
    query, memory = _tokens(inputs, "query"), _tokens(inputs, "memory")
    _one_grid(query, "query")
    _one_grid(memory, "memory")
    width = resolve_width(config.width, target, query.width)
    heads = config.heads
    if width % (2 * heads):
        raise ShapeError(
            f"{heads} heads do not divide the width {width} into heads of even width",
            field="heads",
            hint=_divisors(width // 2, heads) if width % 2 == 0 else "use an even width",
        )
    if width // heads < 6:
        raise ShapeError(
            f"heads of {width // heads} are too narrow for three rotary axes",
            field="heads",
            hint="heads must be at least 6 wide",
        )
    directions = 2 if config.bidirectional else 1
    axis = released_axis_width(width // heads)
    per_direction = 4 * (width * width + width) + axis + 1 + (heads if config.distance_decay else 0)
    params = (query.width + memory.width + 2) * width + 4 * width + directions * per_direction
    pairs = query.tokens * memory.tokens
    flops = 2 * width * (query.tokens * query.width + memory.tokens * memory.width) + directions * (
        4 * (query.tokens + memory.tokens) * width * width + 4 * pairs * width
    )
    extra = {"memory": memory.with_width(width)} if config.bidirectional else {}
    return BlockPlan.of(query.with_width(width), params=params, flops=flops, reads=[query, memory], extra=extra)


def released_axis_width(head_width: int) -> int:
    """Channels of a head that the released code gives to y, and to x; what is left belongs to its time axis."""
    return 2 * (head_width // 6)


def plan_concat(config: ConcatConfig, inputs: Inputs, target: int | None) -> BlockPlan:
    parts = _all_tokens(inputs)
    _same_grid(parts)
    first = next(iter(parts.values()))
    if config.axis == "channel":
        _same(parts, "order")
        return BlockPlan.of(first.with_width(sum(part.width for part in parts.values())), reads=list(parts.values()))
    _same(parts, "width")
    for name, part in parts.items():
        if part.interleaved:
            raise ShapeError(f"'{name}' is interleaved; no grid may follow on it", field="inputs", hint="concat first")
    copies = sum(part.copies for part in parts.values())
    return BlockPlan.of(TokenSpec(first.grid, first.width, first.frame, copies), reads=list(parts.values()))


def plan_interleave(config: InterleaveConfig, inputs: Inputs, target: int | None) -> BlockPlan:
    parts = _all_tokens(inputs)
    _same_grid(parts)
    _same(parts, "width")
    for name, part in parts.items():
        _one_grid(part, name)
    first = next(iter(parts.values()))
    return BlockPlan.of(
        TokenSpec(first.grid, first.width, first.frame, len(parts), interleaved=True), reads=list(parts.values())
    )


def plan_weighted_sum(config: WeightedSumConfig, inputs: Inputs, target: int | None) -> BlockPlan:
    parts = _all_tokens(inputs)
    _same_grid(parts)
    _same(parts, "width")
    _same(parts, "order")
    first = next(iter(parts.values()))
    return BlockPlan.of(first, params=0 if config.learn == "no" else len(parts), reads=list(parts.values()))


# ------------------------------------------------------------------------------------------------- checks
def _tokens(inputs: Inputs, name: str) -> TokenSpec:
    tokens = inputs[name]
    if isinstance(tokens, LayerStackSpec):
        raise ShapeError(f"'{name}' is {tokens}; expected tokens", field=name, hint="mix its layers first")
    return tokens


def _all_tokens(inputs: Inputs) -> dict[str, TokenSpec]:
    return {name: _tokens(inputs, name) for name in inputs}


def _one_grid(tokens: TokenSpec, name: str) -> None:
    if tokens.copies != 1:
        raise ShapeError(
            f"'{name}' is {tokens}; positions need one grid", field=name, hint="connect before joining tokens"
        )


def _same_grid(parts: Mapping[str, TokenSpec]) -> None:
    grids = {name: part.grid for name, part in parts.items()}
    if len(set(grids.values())) > 1:
        shown = ", ".join(f"{name} {grid}" for name, grid in grids.items())
        raise ShapeError(f"inputs need one grid, got {shown}", field="inputs", hint="pool or resize to one grid first")
    if len({part.frame for part in parts.values()}) > 1:
        raise ShapeError(f"inputs {', '.join(parts)} cover different parts of the crop", field="inputs")


def _same(parts: Mapping[str, TokenSpec], what: Literal["width", "order"]) -> None:
    values: dict[str, object] = {
        name: part.width if what == "width" else f"{part.copies} {'interleaved' if part.interleaved else 'in a row'}"
        for name, part in parts.items()
    }
    if len(set(values.values())) > 1:
        shown = ", ".join(f"{name} {value}" for name, value in values.items())
        hint = "add a linear adapter to bring them to one width" if what == "width" else ""
        raise ShapeError(f"inputs need the same {what}, got {shown}", field="inputs", hint=hint)


def _divisors(total: int, wanted: int) -> str:
    near = sorted((d for d in range(1, total + 1) if total % d == 0), key=lambda d: (abs(d - wanted), d))[:3]
    return "use " + " or ".join(str(d) for d in sorted(near))


# -------------------------------------------------------------------------------------------------- specs
ROPE_CROSS_ATTENTION = BlockSpec(
    api=1,
    family="connectors",
    config=RopeCrossAttentionConfig,
    plan=plan_rope_cross_attention,
    factory="fusionkit.blocks.connectors.rope_cross_attention:RopeCrossAttention",
    summary="Gated cross-attention between two grids with rotary positions (RGCA).",
    paper="CoME-VL 2604.03231 section 4.3, Eq. 5-8",
    equation="V = V_q + tanh(γ) W_O softmax(RoPE(W_Q LN V_q) RoPE(W_K LN V_m)ᵀ / √K) W_V LN V_m",
    guarantees=frozenset({"token_count", "grid", "identity_at_zero_gate", "shift_invariant", "padding_ignored"}),
    examples=(
        {"query": "semantic", "memory": "spatial", "heads": 2},
        {"query": "semantic", "memory": "spatial", "heads": 2, "rope": None},
        {
            "query": "semantic",
            "memory": "spatial",
            "heads": 4,
            "kv_heads": 2,
            "head_width": 8,
            "radius": 0.3,
            "gate_init": 0.5,
            "bias": True,
        },
    ),
)

ROPE_CROSS_ATTENTION_RELEASED = BlockSpec(
    api=1,
    family="connectors",
    config=RopeCrossAttentionReleasedConfig,
    plan=plan_released,
    factory="fusionkit.blocks.connectors.rope_cross_attention_released:RopeCrossAttentionReleased",
    summary="The connector of the released CoME-VL code: normalised residual, radius, almost inert rotation.",
    paper="CoME-VL 2604.03231, released code (differs from Eq. 5-8)",
    equation="S = LN(P_q V_q), M = LN(P_m V_m);  "
    "V = S + tanh(γ) W_O softmax(RoPE(W_Q S) RoPE(W_K M)ᵀ / √K + bias) W_V M",
    guarantees=frozenset({"token_count", "grid", "padding_ignored"}),
    examples=(
        {"query": "semantic", "memory": "spatial", "heads": 2, "width": 24, "radius": 0.5, "gate_init": 0.5},
        {
            "query": "semantic",
            "memory": "spatial",
            "heads": 2,
            "width": 24,
            "radius": 0.5,
            "distance_decay": 0.1,
            "bidirectional": True,
            "gate_init": 0.5,
        },
    ),
)

CONCAT = BlockSpec(
    api=1,
    family="connectors",
    config=ConcatConfig,
    plan=plan_concat,
    factory="fusionkit.blocks.connectors.concat:Concat",
    summary="Inputs side by side: channels (Prismatic, Eagle) or tokens (more context).",
    equation="channel: y_n = [x_n; x'_n];  token: y = [x; x']",
    guarantees=frozenset({"padding_ignored"}),
    examples=({"inputs": ["semantic", "spatial"]}, {"inputs": ["semantic", "spatial"], "axis": "token"}),
)

INTERLEAVE = BlockSpec(
    api=1,
    family="connectors",
    config=InterleaveConfig,
    plan=plan_interleave,
    factory="fusionkit.blocks.connectors.interleave:Interleave",
    summary="Tokens of the inputs in turn (interleaved mixture of features).",
    paper="Eyes Wide Shut 2401.06209",
    equation="y_{kn + i} = x^i_n for k inputs",
    guarantees=frozenset({"padding_ignored"}),
    examples=({"inputs": ["semantic", "spatial"]},),
)

WEIGHTED_SUM = BlockSpec(
    api=1,
    family="connectors",
    config=WeightedSumConfig,
    plan=plan_weighted_sum,
    factory="fusionkit.blocks.connectors.weighted_sum:WeightedSum",
    summary="Sum of inputs with fixed or learned weights (additive mixture of features).",
    paper="Eyes Wide Shut 2401.06209",
    equation="y = Σ_i w_i x^i",
    guarantees=frozenset({"token_count", "grid", "permutation_equivariant", "padding_ignored"}),
    examples=(
        {"inputs": ["semantic", "spatial"], "weights": [0.75, 0.25]},
        {"inputs": ["semantic", "spatial"], "learn": "free"},
        {"inputs": ["semantic", "spatial"], "learn": "softmax"},
    ),
)
