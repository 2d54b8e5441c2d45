"""Selectors: which layers of an encoder a stream reads.

A selector is a torch-free object with `layers(info) -> tuple[int, ...]`: sorted, unique, within 0..depth. Layer 0
is the input of block 1 and layer l the output of block l, so `all` is 1..depth.
"""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt, ValidationInfo, field_validator, model_validator

from fusionkit.blocks.selectors.entropy_report import Report
from fusionkit.plugin import API_VERSION, BlockConfig, BlockSpec

Fraction = Annotated[float, Field(ge=0, le=1)]


class AllConfig(BlockConfig):
    """Every layer, 1 to the encoder's depth."""

    type: Literal["all"] = "all"


class LastConfig(BlockConfig):
    """The deepest layers."""

    type: Literal["last"] = "last"
    count: PositiveInt = Field(1, description="How many layers, counted back from the deepest.")


class RangeConfig(BlockConfig):
    """Consecutive layers, both ends included."""

    type: Literal["range"] = "range"
    first: NonNegativeInt = Field(1, description="Lowest layer; 0 is the input of block 1.")
    last: NonNegativeInt = Field(description="Highest layer, included.")

    @field_validator("last")
    @classmethod
    def _not_before_first(cls, last: int, info: ValidationInfo) -> int:
        first = info.data.get("first")
        if first is not None and last < first:
            raise ValueError(f"must be at least first ({first}), got {last}")
        return last


class ListConfig(BlockConfig):
    """Exactly the layers named."""

    type: Literal["list"] = "list"
    layers: tuple[NonNegativeInt, ...] = Field(min_length=1, description="Layer numbers in rising order, each once.")

    @field_validator("layers")
    @classmethod
    def _rising(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if any(low >= high for low, high in pairwise(layers)):
            raise ValueError(f"must rise, each layer once, got {list(layers)}; use {sorted(set(layers))}")
        return layers


class EvenlySpacedConfig(BlockConfig):
    """Layers at equal steps through the depth; the deepest is always one of them."""

    type: Literal["evenly_spaced"] = "evenly_spaced"
    count: PositiveInt = Field(description="How many layers.")


class RelativeConfig(BlockConfig):
    """Layers by their share of the depth, so that one recipe fits encoders of 12 and of 24 blocks."""

    type: Literal["relative"] = "relative"
    first: Fraction | None = Field(None, description="Lowest layer as a share of the depth, 0 to 1.")
    last: Fraction | None = Field(None, description="Highest layer as a share of the depth, included.")
    fractions: tuple[Fraction, ...] | None = Field(
        None, min_length=1, description="Single layers as shares of the depth, rising; instead of first and last."
    )

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        ends = (self.first, self.last)
        if (self.fractions is None) == (ends == (None, None)):
            raise ValueError("give either first and last, or fractions")
        if self.fractions is None and (self.first is None or self.last is None or self.last < self.first):
            raise ValueError(f"first and last must both be given, first <= last, got {self.first} and {self.last}")
        if self.fractions is not None and any(low >= high for low, high in pairwise(self.fractions)):
            raise ValueError(f"fractions must rise, got {list(self.fractions)}")
        return self


class RandomConfig(BlockConfig):
    """A seeded draw of layers: the control that a chosen set must beat."""

    type: Literal["random"] = "random"
    count: PositiveInt = Field(description="How many layers, drawn from 1..depth without repetition.")
    seed: NonNegativeInt = Field(0, description="Seed of the draw; the same on every platform and Python version.")


class EntropyConfig(BlockConfig):
    """Layers of high or low entropy, by a saved report: the choice is data."""

    type: Literal["entropy"] = "entropy"
    report: Report = Field(
        description="Path of a layer-entropy report (JSON), or its content. A path is read together with the recipe, "
        "which from then on holds the numbers: so does its lock."
    )
    direction: Literal["high", "low"] = Field(
        "low", description="Which layers are wanted: low finds spatial ones in self-supervised encoders."
    )
    threshold: FiniteFloat | None = Field(
        None, description="Layers at least this high, or at most this low, in the report's unit."
    )
    top_k: PositiveInt | None = Field(None, description="How many layers, the most extreme first.")
    knee: bool = Field(False, description="Put the threshold where the curve over the layers bends most.")

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if (self.threshold is not None) + (self.top_k is not None) + self.knee != 1:
            raise ValueError("give exactly one of threshold, top_k and knee: true")
        return self


ALL = BlockSpec(
    api=API_VERSION,
    family="selectors",
    config=AllConfig,
    factory="fusionkit.blocks.selectors.consecutive:AllLayers",
    summary="Every layer of the encoder, 1 to its depth.",
)
LAST = BlockSpec(
    api=API_VERSION,
    family="selectors",
    config=LastConfig,
    factory="fusionkit.blocks.selectors.consecutive:LastLayers",
    summary="The deepest layers of the encoder.",
    examples=({}, {"count": 2}),
)
RANGE = BlockSpec(
    api=API_VERSION,
    family="selectors",
    config=RangeConfig,
    factory="fusionkit.blocks.selectors.consecutive:LayerRange",
    summary="Consecutive layers, both ends included.",
    paper="arXiv 2604.03231, section 4.2",
    equation="L_s = {1..27}, L_d = {11..24}",
    examples=({"first": 1, "last": 3}, {"first": 0, "last": 2}),
)
LIST = BlockSpec(
    api=API_VERSION,
    family="selectors",
    config=ListConfig,
    factory="fusionkit.blocks.selectors.chosen:ListedLayers",
    summary="Exactly the layers named.",
    examples=({"layers": [1, 3]},),
)
EVENLY_SPACED = BlockSpec(
    api=API_VERSION,
    family="selectors",
    config=EvenlySpacedConfig,
    factory="fusionkit.blocks.selectors.spaced:EvenlySpacedLayers",
    summary="Layers at equal steps through the depth, the deepest included.",
    equation="layer_i = floor(i * depth / count), i = 1..count",
    examples=({"count": 2},),
)
RELATIVE = BlockSpec(
    api=API_VERSION,
    family="selectors",
    config=RelativeConfig,
    factory="fusionkit.blocks.selectors.spaced:RelativeLayers",
    summary="Layers by their share of the depth: one recipe for encoders of any depth.",
    equation="layer = floor(fraction * depth + 1/2)",
    examples=({"first": 0.5, "last": 1.0}, {"fractions": [0.5, 1.0]}),
)
RANDOM = BlockSpec(
    api=API_VERSION,
    family="selectors",
    config=RandomConfig,
    factory="fusionkit.blocks.selectors.chosen:RandomLayers",
    summary="A seeded random draw of layers: the control for any choice of layers.",
    examples=({"count": 2, "seed": 0},),
)

_REPORT = {
    "kind": "layer_entropy",
    "version": 1,
    "encoder": "made up",
    "depth": 12,
    "layers": [{"layer": layer, "entropy": round(5.0 - 0.1 * layer - (layer > 6) * 0.4, 1)} for layer in range(1, 13)],
}
ENTROPY = BlockSpec(
    api=API_VERSION,
    family="selectors",
    config=EntropyConfig,
    factory="fusionkit.blocks.selectors.entropic:EntropyLayers",
    summary="Layers of high or low entropy by a saved report: threshold, top_k or the knee of the curve.",
    paper="arXiv 2604.03231, section 4.1 (entropy-guided selection; the paper gives no rule, so the rule is named here)",
    equation="L = {l : H_l <= t}, {l : H_l >= t}, or the k lowest or highest",
    examples=(
        {"report": _REPORT, "top_k": 3},
        {"report": _REPORT, "threshold": 4.5, "direction": "high"},
        {"report": _REPORT, "knee": True},
    ),
)
