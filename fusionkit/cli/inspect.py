"""`fusionkit inspect`: what a recipe makes of one picture: crops, tokens, prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusionkit.cli.options import JsonOption, PluginOption, RecipeArg, SetOption, open_recipe
from fusionkit.cli.output import emit, emit_json, heading, note, table
from fusionkit.cli.writing import write_picture
from fusionkit.errors import BuildError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from fusionkit.geometry import Box, Size
    from fusionkit.plugin import TokenLayout
    from fusionkit.recipe.plan import Plan


@dataclass(frozen=True, slots=True)
class Inspection:
    """One picture as a recipe sees it: crop regions in px of the picture, their pixels' shapes, tokens and prompt."""

    plan: Plan
    size: Size
    layout: TokenLayout
    regions: tuple[Box, ...]
    shapes: dict[str, tuple[int, ...]]
    prompt: str | None
    prompt_tokens: int | None

    @property
    def kept(self) -> list[int]:
        """How many visual tokens of each crop stand in the text."""
        counts = Counter(patch // self.plan.visual.tokens for patch in self.layout.patches)
        return [counts[crop] for crop in range(self.layout.crops)]


def command(
    recipe: RecipeArg,
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="Any picture file.", show_default=False)],
    question: Annotated[
        str, typer.Option("-q", "--question", help="What the prompt asks.")
    ] = "What is in the picture?",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Draw the crops and kept tokens over the picture, as PNG."),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch the tokenizer for the prompt if it is not on this machine.")
    ] = False,
    json: JsonOption = False,
    set: SetOption = None,
    plugin: PluginOption = None,
) -> None:
    """Show what a recipe makes of one picture: the crops, which of their tokens are kept, the prompt and the counts.

    \b
    Examples:
      fusionkit inspect tiny photo.jpg
      fusionkit inspect recipes/mine.yaml photo.jpg -q "point to the cat" -o crops.png
      fusionkit inspect recipes/mine.yaml photo.jpg --set cropper.max_crops=4
    """
    from fusionkit.pictures import open_picture
    from fusionkit.recipe.plan import plan

    if output is not None and output.suffix.lower() != ".png":
        raise UsageError(f"-o {output}: expected a name that ends in .png")
    planned = plan(open_recipe(recipe, set, plugin))
    image = open_picture(picture)
    found = inspect_picture(planned, image, question, download=download)
    if json:
        emit_json(as_json(found))
    else:
        show(found, picture.name)
    if output is not None:
        from fusionkit.cli.inspect_picture import draw

        write_picture(output, draw(image, found.regions, found.layout, planned.visual))
        note(f"wrote {output}")


def inspect_picture(plan: Plan, image: Image, question: str, *, download: bool = False) -> Inspection:
    """Crop a picture as training would, and put it into a prompt if the recipe has a language model."""
    from fusionkit import registry
    from fusionkit.geometry import Size
    from fusionkit.plugin import BlockSite

    config = plan.recipe.cropper
    size = Size(*image.size)
    layout = plan.layout(size)
    if config is None:
        raise UsageError(f"recipe '{plan.recipe.name}' has no cropper")
    cropper = registry.factory(registry.spec("croppers", config.type))(config, BlockSite(address="cropper"))
    crops = cropper.split(image, {name: stream.info for name, stream in plan.streams.items()})
    shapes = {name: tuple(pixels.shape) for name, pixels in crops.pixels.items()}
    prompt, count = _prompt(plan, image, question, download) if plan.language_model is not None else (None, None)
    return Inspection(plan, size, layout, tuple(crops.regions), shapes, prompt, count)


def _prompt(plan: Plan, image: Image, question: str, download: bool) -> tuple[str | None, int | None]:
    """The prompt and its tokens; without the tokenizer the rest is still worth showing."""
    from fusionkit.model.processing import FusionProcessor

    try:
        with nullcontext() if download else _local_files_only():
            processor = FusionProcessor.from_plan(plan)
    except BuildError as error:
        note(f"no prompt: {error}" + ("" if download else "; --download fetches it"))
        return None, None
    prompt = processor.prompt(question)
    return prompt, int(processor(images=[image], text=[prompt])["input_ids"].shape[1])


@contextmanager
def _local_files_only() -> Iterator[None]:
    """Keep the hub's client from asking the network, which takes a minute of retries where there is none."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def as_json(found: Inspection) -> dict[str, Any]:
    """Everything the text shows, as JSON-able values."""
    regions = ([region.x0, region.y0, region.x1, region.y1] for region in found.regions)
    return {
        "recipe": found.plan.recipe.name,
        "size": [found.size.width, found.size.height],
        "crops": [{"region": region, "kept_tokens": kept} for region, kept in zip(regions, found.kept, strict=True)],
        "pixels": {name: list(shape) for name, shape in found.shapes.items()},
        "visual_tokens": len(found.layout.patches),
        "picture_tokens": found.layout.tokens,
        "prompt": found.prompt,
        "prompt_tokens": found.prompt_tokens,
        "sequence_length": found.plan.recipe.sequence_length,
        "symbols": list(found.layout.symbols),
    }


def show(found: Inspection, name: str) -> None:
    """Print an inspection as text."""
    per_crop = found.plan.visual.tokens
    heading(f"{name}, {found.size} px, through {found.plan.recipe.name}")
    emit()
    table(
        ("crop", "left", "top", "right", "bottom", f"kept of {per_crop} tokens"),
        [
            (crop, *(f"{edge:.1f}" for edge in (box.x0, box.y0, box.x1, box.y1)), kept)
            for crop, (box, kept) in enumerate(zip(found.regions, found.kept, strict=True))
        ],
        right=frozenset({"left", "top", "right", "bottom", f"kept of {per_crop} tokens"}),
    )
    emit()
    table(
        ("stream", "pixels", "encoder grid", "output"),
        [
            (stream, "x".join(map(str, shape)), plan.stack.grid, plan.output)
            for (stream, shape), plan in zip(found.shapes.items(), found.plan.streams.values(), strict=True)
        ],
    )
    emit()
    heading("token layout")
    for line in layout_lines(found.layout.symbols):
        emit(f"  {line}")
    emit()
    limit = found.plan.recipe.sequence_length
    emit(f"visual tokens {len(found.layout.patches):,}; with their special tokens {found.layout.tokens:,} of {limit:,}")
    if found.prompt is not None and found.prompt_tokens is not None:
        emit(
            f"whole prompt  {found.prompt_tokens:,} tokens, which leaves {limit - found.prompt_tokens:,} for the answer"
        )
        emit()
        heading("prompt (<image> stands for the picture's tokens)")
        emit(found.prompt)


def layout_lines(symbols: Sequence[str]) -> list[str]:
    """The symbols as short text: one row of visual tokens a line, equal lines written once with a count."""
    from fusionkit.plugin import IMAGE_TOKEN

    lines: list[str] = []
    run = 0
    for symbol in (*symbols, ""):
        if symbol == IMAGE_TOKEN:
            run += 1
            continue
        lines.append(" ".join(filter(None, (f"{IMAGE_TOKEN} x{run}" if run else "", symbol))))
        run = 0
    grouped = ((line, len(list(group))) for line, group in groupby(filter(None, lines)))
    return [line if count == 1 else f"{count} times: {line}" for line, count in grouped]
