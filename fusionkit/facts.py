"""What is known before anything is built: of encoders, of decoders, of a picture's tokens, of an answer's boxes.

Block authors import these from `fusionkit.plugin`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fusionkit.errors import ShapeError
from fusionkit.geometry import Box, Grid, Point

IMAGE_TOKEN = "<image>"
"""Stands where one fused visual token goes."""


@dataclass(frozen=True, slots=True)
class EncoderInfo:
    """What is known of an encoder without loading it.

    `input_size`, `stride` are (height, width) in pixels; `mean` and `std` per RGB channel for pixels in 0..1;
    `count_params(deepest)` counts the encoder pruned after layer `deepest` (final norm and head removed) and
    `count_flops(deepest, grid)` its forward cost for one crop.

    All layers an encoder hands out lie on one grid, that of `stride`. One that computes them at several strides
    resamples them itself, and declares it: `layer_strides` has the stride at which each layer 0..depth is computed.

    With `reads_coverage` the encoder takes pictures of any shape inside its input (NaFlex): `forward_layers` and `tap`
    get a keyword `coverage_BN`, the share of each token's cell that shows the picture (None: all of it), and must not
    let cells without any picture touch the others. The tokens of such cells are marked invalid for what follows.
    """

    depth: int
    width: int
    stride: tuple[int, int]
    input_size: tuple[int, int]
    prefix_tokens: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    licence: str
    count_params: Callable[[int], int]
    count_flops: Callable[[int, Grid], int]
    name: str = ""
    layer_strides: tuple[tuple[int, int], ...] = ()
    reads_coverage: bool = False

    @property
    def grid(self) -> Grid:
        """The token grid at `input_size`; raises ShapeError when the stride does not divide it."""
        (height, width), (down, right) = self.input_size, self.stride
        if height % down or width % right:
            raise ShapeError(
                f"input {height}x{width} is not a multiple of the patch {down}x{right}",
                field="image_size",
                hint=f"use {height // down * down or down}x{width // right * right or right}",
            )
        return Grid(height // down, width // right)

    def params(self, layers: Sequence[int]) -> int:
        return self.count_params(max(layers))

    def flops(self, layers: Sequence[int], grid: Grid | None = None) -> int:
        return self.count_flops(max(layers), grid or self.grid)


@dataclass(frozen=True, slots=True)
class LanguageModelInfo:
    """What is known of a decoder without loading it.

    `count_params(rows)` counts it with `rows` embedding rows (tied embeddings once); `count_flops(tokens)` is the
    forward cost of one sequence of `tokens`, attention included, without the output head of all but the last.
    `tokenizer_size` is the number of entries of its tokenizer before fusionkit adds any. `state` says in words what
    besides attention hands something on from token to token: it would from one sample of a packed row to the next.
    """

    width: int
    depth: int
    vocab_size: int
    tokenizer_size: int
    context_length: int
    tied: bool
    licence: str
    count_params: Callable[[int], int]
    count_flops: Callable[[int], int]
    name: str = ""
    state: str = ""

    def embedding_rows(self, new_tokens: int) -> int:
        """Rows after adding `new_tokens`: never fewer than now, rounded up to a multiple of 64 when they grow."""
        needed = self.tokenizer_size + new_tokens
        return self.vocab_size if needed <= self.vocab_size else -(-needed // 64) * 64


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """How the crops of one picture stand in the text: the one token count.

    `symbols` is the sequence of special tokens; `patches` gives, for each `<image>` symbol in order, the index of
    its vector in the picture's fused tokens laid out as crop * tokens_per_crop + token.
    """

    crops: int
    symbols: tuple[str, ...]
    patches: tuple[int, ...]

    def __post_init__(self) -> None:
        placed = sum(symbol == IMAGE_TOKEN for symbol in self.symbols)
        if placed != len(self.patches):
            raise ShapeError(f"token layout has {placed} {IMAGE_TOKEN} symbols for {len(self.patches)} vectors")

    @property
    def tokens(self) -> int:
        """All tokens the picture takes in the sequence, special ones included."""
        return len(self.symbols)


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a box tokenizer found in an answer, in pixels of the original image; `malformed` keeps bad pieces' text."""

    boxes: tuple[Box, ...] = ()
    points: tuple[Point, ...] = ()
    malformed: tuple[str, ...] = ()
