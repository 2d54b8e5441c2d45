"""What a plan is: nodes, streams and the whole, each a frozen value. Made by `fusionkit.recipe.plan.plan`.

Costs of a node are for one crop, except the language model's, whose `flops` are for the largest picture's tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusionkit.errors import UsageError
from fusionkit.geometry import LayerStackSpec, Size, TokenSpec
from fusionkit.plugin import BlockConfig, BlockPlan, BlockSite, EncoderInfo, LanguageModelInfo, TokenLayout

if TYPE_CHECKING:
    from fusionkit.recipe.plan_budget import Layouts
    from fusionkit.recipe.schema import Recipe

ENCODER = "encoder"
"""How a stream's steps name what the encoder hands them: the stack of its selected layers, or the one layer."""


@dataclass(frozen=True, slots=True)
class Node:
    """One block in its place.

    `sources` maps each argument of the block to what it reads, by the names a recipe uses: inside a stream
    `encoder` or an earlier step; under `fusion` and `injectors` a stream, an earlier fusion step, or `step.output`.
    """

    address: str
    family: str
    type: str
    config: BlockConfig
    sources: Mapping[str, str]
    site: BlockSite
    plan: BlockPlan
    params: int
    flops: int
    distribution: tuple[str, str]

    @property
    def name(self) -> str:
        """The last part of the address: how later steps name this one."""
        return self.address.rpartition(".")[2]

    @property
    def output(self) -> TokenSpec:
        return self.plan.main


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """One stream: the encoder, the layers read from it, the steps, and the tokens that come out."""

    name: str
    info: EncoderInfo
    layers: tuple[int, ...]
    stack: LayerStackSpec
    encoder: Node
    steps: tuple[Node, ...]
    output: TokenSpec

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (self.encoder, *self.steps)

    def __deepcopy__(self, memo: dict[int, Any]) -> StreamPlan:
        return self  # a frozen value; modules that hold it are copied


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe whose blocks are known to fit: every shape and cost, before any weight exists.

    `visual` is what the injectors get, per crop, and `visual_source` the name of it; `new_tokens` are the tokens to add to the tokenizer, the cropper's
    first, then the box tokenizer's; `embedding_rows` is 0 without a language model.
    """

    recipe: Recipe
    streams: Mapping[str, StreamPlan]
    fusion: tuple[Node, ...]
    injectors: tuple[Node, ...]
    visual: TokenSpec
    visual_source: str
    language_model: LanguageModelInfo | None
    language_model_node: Node | None
    embedding_rows: int
    new_tokens: tuple[str, ...]
    layouts: Layouts | None

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All blocks that hold weights or do work, in the order they run."""
        encoded = [node for stream in self.streams.values() for node in stream.nodes]
        last = () if self.language_model_node is None else (self.language_model_node,)
        return (*encoded, *self.fusion, *self.injectors, *last)

    @property
    def parameters(self) -> int:
        """Parameters of the built model, exactly."""
        return sum(node.params for node in self.nodes)

    @property
    def largest_layout(self) -> TokenLayout:
        """The layout of the picture that takes the most tokens."""
        return self._layouts().largest

    def layout(self, size: Size) -> TokenLayout:
        """How a picture of `size` pixels stands in the text."""
        return self._layouts().of(size)

    def flops(self, crops: int, tokens: int = 0) -> int:
        """Forward cost of a picture of `crops` crops, plus a language model pass over `tokens` tokens."""
        vision = crops * sum(node.flops for node in self.nodes if node is not self.language_model_node)
        if self.language_model is None or tokens == 0:
            return vision
        return vision + self.language_model.count_flops(tokens)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-able values, as `fusionkit plan --json` prints it."""
        from fusionkit.recipe.plan_table import to_dict

        return to_dict(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        return self  # a frozen value; models and processors that hold it are copied

    def _layouts(self) -> Layouts:
        if self.layouts is None:
            raise UsageError(f"recipe '{self.recipe.name}' has no token layout (add `cropper: {{type: resize}}`)")
        return self.layouts
