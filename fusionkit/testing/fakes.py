"""Small made-up inputs: tokens, layer stacks, pictures and samples, each a function of a seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fusionkit.geometry import Box, Grid, LayerStackSpec, Point, Size, TokenSpec
from fusionkit.ops.tokens import Tokens
from fusionkit.sample import Prediction, Provenance, Sample, SceneObject, Turn

if TYPE_CHECKING:
    from PIL.Image import Image

GRID = Grid(4, 6)
WIDTH = 16
STACK = LayerStackSpec((1, 2, 3), Grid(3, 4), WIDTH)


def random(shape: Iterable[int], seed: int = 0) -> Tensor:
    """Standard normal numbers, float32."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


def tokens(spec: TokenSpec, batch: int = 2, seed: int = 0) -> Tokens:
    """Random tokens of a planned shape; some cells are padding, some lie on the picture's edge."""
    x_BND = random((batch, spec.tokens, spec.width), seed)
    coverage_BN = (random((batch, spec.tokens), seed + 1000) + 1).clamp(0, 1)
    return Tokens(x_BND, spec.grid, spec.frame, None, spec.copies, spec.interleaved, coverage_BN)


def layers(stack: LayerStackSpec, batch: int = 2, seed: int = 0) -> list[Tensor]:
    """Random hidden states, one x_BND per layer."""
    return list(random((stack.depth, batch, stack.grid.tokens, stack.width), seed).unbind())


def like(spec: TokenSpec | LayerStackSpec, batch: int = 2, seed: int = 0) -> Tokens | list[Tensor]:
    """What a step is given for a planned input."""
    return layers(spec, batch, seed) if isinstance(spec, LayerStackSpec) else tokens(spec, batch, seed)


def step_inputs(family: str, names: Mapping[str, str]) -> Iterator[dict[str, TokenSpec | LayerStackSpec]]:
    """Input shapes to try on a step's planner, the least alike first; `names` as of `plugin.input_names`."""
    if family == "mixers":
        yield {"input": STACK}
        return
    first, *others = list(names) or ["input"]
    for grid, width in ((Grid(3, 3), 8), (Grid(3, 3), WIDTH), (GRID, 8), (GRID, WIDTH)):
        yield {first: TokenSpec(GRID, WIDTH), **{name: TokenSpec(grid, width) for name in others}}
        if not others:
            return


def picture(size: Size, seed: int = 0) -> Image:
    """A picture of smooth random colours."""
    from PIL import Image

    coarse = torch.randint(0, 256, (5, 7, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(coarse.numpy()).resize((size.width, size.height), Image.Resampling.BICUBIC)


def samples(count: int = 4, seed: int = 0) -> list[Sample]:
    """Samples with one turn of every kind, about one object each."""
    found = []
    for row in range(count):
        size = Size(60 + 10 * row, 50)
        box = Box(5.0 + row, 6.0, 25.0 + row, 30.0, "thing")
        turns = (
            Turn("Where is the thing?", (box,), "box"),
            Turn("Point to the thing.", (Point(15.0 + row, 18.0, "thing"),), "point"),
            Turn("How many things?", (str(row + 1),), "count"),
            Turn("Describe the picture.", ("a thing on a ground",), "describe"),
            Turn("What is it?", ("a thing",), "free"),
        )

        def open_image(size: Size = size, row: int = row) -> Image:
            return picture(size, seed + row)

        found.append(Sample(open_image, size, turns, Provenance("fake", row), (SceneObject(box, {"shape": "thing"}),)))
    return found


def perfect(turn: Turn) -> Prediction:
    """The prediction that is the turn's own answer."""
    return Prediction(turn.text, turn.boxes, turn.points)
