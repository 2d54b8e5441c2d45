"""Shapes from the command line, and what a case costs by formula. Torch-free."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fusionkit.errors import UsageError
from fusionkit.geometry import Grid, LayerStackSpec, TokenSpec
from fusionkit.plugin import BlockConfig, BlockSite, EncoderInfo, LanguageModelInfo, LayerInjectorConfig


@dataclass(frozen=True, slots=True)
class Shape:
    """What `--shape` says; `memory_*` are for the second and further inputs of a connector, `text` for decoders."""

    layers: int = 12
    grid: Grid = field(default_factory=lambda: Grid(16, 16))
    width: int = 384
    crops: int = 1
    memory_grid: Grid | None = None
    memory_width: int | None = None
    text: int = 64

    def inputs(self, family: str, names: Sequence[str]) -> dict[str, TokenSpec | LayerStackSpec]:
        """The shapes of a block's inputs."""
        if family == "mixers":
            return {"input": LayerStackSpec(tuple(range(1, self.layers + 1)), self.grid, self.width)}
        first, *others = names or ["input"]
        memory = TokenSpec(self.memory_grid or self.grid, self.memory_width or self.width)
        return {first: TokenSpec(self.grid, self.width), **dict.fromkeys(others, memory)}


def parse_shape(text: str) -> Shape:
    """A shape from `layers=27,grid=24x24,width=1152,crops=1,memory_grid=14x14,memory_width=1024`, in any order."""
    example = "for example layers=27,grid=24x24,width=1152"
    values: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        if name not in Shape.__dataclass_fields__:
            raise UsageError(f"--shape: unknown '{name}'; expected {', '.join(Shape.__dataclass_fields__)} ({example})")
        if name in values:
            raise UsageError(f"--shape: '{name}' is given twice")
        pattern = r"([1-9]\d*)x([1-9]\d*)" if name.endswith("grid") else r"([1-9]\d*)"
        found = re.fullmatch(pattern, value)
        if not found:
            wanted = "HEIGHTxWIDTH" if name.endswith("grid") else "a whole number of at least 1"
            raise UsageError(f"--shape: {name} must be {wanted}, got '{value}' ({example})")
        given = [int(number) for number in found.groups()]
        values[name] = Grid(*given) if len(given) == 2 else given[0]
    return Shape(**values)


class Costs(NamedTuple):
    """By formula: `flops` and `numbers` (inputs and outputs, each once) of one crop, and parameters."""

    flops: int = 0
    params: int = 0
    numbers: int = 0


def costs_of(site: BlockSite, config: BlockConfig, text: int) -> Costs:
    """Costs of a block in its place; all zero where there is no formula (injectors inside the decoder, objectives)."""
    if isinstance(site.info, EncoderInfo):
        read = 3 * math.prod(site.info.input_size)
        written = len(site.layers) * site.info.grid.tokens * site.info.width
        return Costs(site.info.flops(site.layers), site.info.params(site.layers), read + written)
    if isinstance(site.info, LanguageModelInfo):
        moved = text * site.info.width + site.rows
        return Costs(site.info.count_flops(text), site.info.count_params(site.rows), moved)
    if site.plan is None or isinstance(config, LayerInjectorConfig):
        return Costs()
    specs = (*site.inputs.values(), *site.plan.outputs.values())
    return Costs(site.plan.flops, site.plan.params, sum(numbers(spec) for spec in specs))


def numbers(spec: TokenSpec | LayerStackSpec) -> int:
    """How many numbers such tokens are, for one crop."""
    if isinstance(spec, LayerStackSpec):
        return spec.depth * spec.grid.tokens * spec.width
    return spec.tokens * spec.width


def sizes(spec: TokenSpec | LayerStackSpec) -> dict[str, Any]:
    """A spec as JSON-able values."""
    grid = [spec.grid.height, spec.grid.width]
    if isinstance(spec, LayerStackSpec):
        return {"layers": spec.depth, "grid": grid, "width": spec.width}
    return {"grid": grid, "width": spec.width, **({"copies": spec.copies} if spec.copies > 1 else {})}
