"""What is measured: one block in its place, or a whole part of a recipe. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fusionkit.bench.shape import Costs, costs_of, numbers, sizes
from fusionkit.plugin import BlockConfig, BlockSite, BlockSpec, EncoderInfo
from fusionkit.recipe.plan import Plan

HOST_FAMILIES = ("selectors", "box_tokenizers", "croppers", "datasets", "metrics")
"""Families whose blocks are no modules: they run on the CPU, on what one picture or one answer gives them."""

VISION = "vision"
"""The name of a recipe's whole vision side: every stream and the fusion."""


@dataclass(frozen=True, slots=True)
class Case:
    """One block in one place; `name` is its address in a recipe, or `family/name`.

    `text` is how many tokens of text an injector or a language model is given.
    """

    name: str
    spec: BlockSpec
    config: BlockConfig
    site: BlockSite
    crops: int = 1
    text: int = 0

    @property
    def address(self) -> str:
        """`family/name`: what is computed."""
        return self.spec.address

    @property
    def options(self) -> dict[str, Any]:
        """The config as JSON-able values."""
        return self.config.model_dump(mode="json")

    @property
    def shape(self) -> dict[str, Any]:
        """Crops, inputs and output as JSON-able values."""
        outputs = {} if self.site.plan is None else self.site.plan.outputs
        found: dict[str, Any] = {
            "crops": self.crops,
            "inputs": {name: sizes(spec) for name, spec in self.site.inputs.items()},
            "outputs": {name: sizes(spec) for name, spec in outputs.items()},
        }
        if isinstance(self.site.info, EncoderInfo):
            found |= {"inputs": {"pixels": list(self.site.info.input_size)}, "layers": list(self.site.layers)}
        return {**found, **({"text": self.text} if self.text else {})}

    @property
    def costs(self) -> Costs:
        """FLOPs and numbers moved for one crop, and parameters, by formula; see `fusionkit.bench.shape`."""
        return costs_of(self.site, self.config, self.text)


@dataclass(frozen=True, slots=True)
class Whole:
    """Streams of a recipe from pixels to tokens; all of them with the fusion if `fused`."""

    name: str
    plan: Plan
    streams: tuple[str, ...]
    fused: bool
    crops: int = 1

    @property
    def address(self) -> str:
        """What is computed: the recipe and the part of it."""
        return f"{self.plan.recipe.name}/{self.name}"

    @property
    def options(self) -> dict[str, Any]:
        """The recipe's blocks, by address."""
        nodes = [node for node in self.plan.nodes if self._has(node.address)]
        return {node.address: node.config.model_dump(mode="json") for node in nodes}

    @property
    def shape(self) -> dict[str, Any]:
        """Crops, pixels and output tokens as JSON-able values."""
        streams = [self.plan.streams[name] for name in self.streams]
        return {
            "crops": self.crops,
            "inputs": {stream.name: list(stream.info.input_size) for stream in streams},
            "outputs": {"main": sizes(self.plan.visual if self.fused else streams[-1].output)},
        }

    @property
    def costs(self) -> Costs:
        """Sums over the blocks; only pixels and the last tokens need to be moved, beside the weights."""
        nodes = [node for node in self.plan.nodes if self._has(node.address)]
        pixels = sum(3 * height * width for height, width in self.shape["inputs"].values())
        output = numbers(self.plan.visual if self.fused else self.plan.streams[self.streams[-1]].output)
        return Costs(sum(node.flops for node in nodes), sum(node.params for node in nodes), pixels + output)

    def _has(self, address: str) -> bool:
        head, _, rest = address.partition(".")
        return (head == "streams" and rest.partition(".")[0] in self.streams) or (head == "fusion" and self.fused)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A part of a recipe that is not measured, and why."""

    name: str
    block: str
    reason: str


AnyCase = Case | Whole
