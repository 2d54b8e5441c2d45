"""How many tokens a picture takes, and whether they fit the sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

from fusionkit.geometry import Grid, Size, TokenSpec
from fusionkit.plugin import IMAGE_TOKEN, LanguageModelInfo, TokenLayout
from fusionkit.recipe.planning import Planning, torch_free


class Cropper(Protocol):
    """The torch-free half of a cropper."""

    def special_tokens(self) -> tuple[str, ...]: ...

    def layout(self, size: Size, grid: Grid) -> TokenLayout: ...

    def largest_layout(self, grid: Grid) -> TokenLayout: ...


@dataclass(frozen=True, slots=True)
class Layouts:
    """A cropper's layouts for the tokens that the injectors get.

    Croppers lay out one grid per crop. Several grids that follow each other (`copies`) are laid out one after the
    other, each like a picture of its own; interleaved ones cell by cell, so that the vectors of a cell stay together.
    """

    cropper: Cropper
    visual: TokenSpec

    @property
    def largest(self) -> TokenLayout:
        return self._with_copies(self.cropper.largest_layout(self.visual.grid))

    def of(self, size: Size) -> TokenLayout:
        return self._with_copies(self.cropper.layout(size, self.visual.grid))

    def _with_copies(self, layout: TokenLayout) -> TokenLayout:
        copies, cells = self.visual.copies, self.visual.grid.tokens
        if copies == 1:
            return layout
        places = [divmod(patch, cells) for patch in layout.patches]
        if self.visual.interleaved:
            symbols = tuple(
                copy for symbol in layout.symbols for copy in (symbol,) * (copies if symbol == IMAGE_TOKEN else 1)
            )
            patches = [(crop * cells + cell) * copies + copy for crop, cell in places for copy in range(copies)]
        else:
            symbols = layout.symbols * copies
            patches = [(crop * copies + copy) * cells + cell for copy in range(copies) for crop, cell in places]
        return TokenLayout(layout.crops, symbols, tuple(patches))


def make_cropper(planning: Planning) -> Cropper | None:
    """The recipe's cropper; None when it has none, or when it has a problem."""
    config = planning.recipe.cropper
    if config is None:
        if planning.recipe.language_model is not None:
            planning.fault("cropper", "missing: how does a picture become crops?", "add `cropper: {type: resize}`")
        return None
    made = planning.attempt("cropper", config.type, lambda: torch_free("croppers", config, "cropper"))
    return cast(Cropper | None, made)


def new_tokens(planning: Planning, cropper: Cropper | None) -> tuple[str, ...]:
    """The tokens that the tokenizer must learn: the cropper's, then the box tokenizer's, each once."""
    tokens = list(cropper.special_tokens()) if cropper is not None else []
    config = planning.recipe.box_tokenizer
    if config is not None:
        made = planning.attempt(
            "box_tokenizer", config.type, lambda: torch_free("box_tokenizers", config, "box_tokenizer")
        )
        tokens += made.vocabulary() if made is not None else ()
    return tuple(dict.fromkeys(tokens))


def check_budget(
    planning: Planning, cropper: Cropper | None, visual: TokenSpec | None, info: LanguageModelInfo | None
) -> Layouts | None:
    """The layouts, after checking that the largest picture leaves room for text in the sequence."""
    limit = planning.recipe.sequence_length
    if info is not None and limit > info.context_length:
        planning.fault(
            "sequence_length",
            f"{limit} tokens are more than the {info.context_length} the language model can read",
            f"set `sequence_length: {info.context_length}` or less",
        )
    if cropper is None or visual is None:
        return None
    layouts = Layouts(cropper, visual)
    largest = planning.attempt("cropper", type(cropper).__name__, lambda: layouts.largest)
    if largest is not None and info is not None and largest.tokens >= limit:
        planning.fault(
            "sequence_length",
            f"the largest picture takes {largest.tokens} tokens ({largest.crops} crops of {visual.tokens}), "
            f"which leaves no room for text in {limit}",
            f"set at least `sequence_length: {-(-(largest.tokens + 1) // 64) * 64}`, allow fewer crops, or pool more",
        )
    return layouts if largest is not None else None
