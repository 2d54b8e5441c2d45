"""What a sweep file says. YAML as recipes are written in; unknown keys are errors.

    name: mixers
    summary: Does the orthogonal mixer help?
    recipe: builtin:tiny
    seeds: [0, 1, 2]
    reference: base
    changes: [train.stages.answers.steps=400]
    match: {visual_tokens: 0, parameters: 0.05}
    metrics: [box_accuracy, count_accuracy]
    variants:
      base: {}
      free: {changes: ["streams.semantic.steps.mix={type: linear_sum}"]}
      wide: {changes: [fusion.align=null], adjust: fusion.project.hidden}

Torch-free.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Annotated, Self

from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError, model_validator

from fusionkit.errors import UsageError
from fusionkit.recipe.names import Name
from fusionkit.recipe.section import Section
from fusionkit.recipe.source import read_text
from fusionkit.recipe.tree import plain
from fusionkit.recipe.yaml_subset import parse_yaml

SHIPPED = resources.files("fusionkit") / "assets" / "sweeps"


class Match(Section):
    """What variants must have in common with the reference: the greatest relative difference allowed."""

    parameters: NonNegativeFloat | None = Field(None, description="Of the model's parameters.")
    visual_tokens: NonNegativeFloat | None = Field(None, description="Of the visual tokens a picture takes.")
    training_tokens: bool = Field(
        False, description="Give every variant as many training tokens as the reference, by its number of steps."
    )


class Variant(Section):
    """One row of the table: the recipe with some changes."""

    summary: str = Field("", description="What is different, in words.")
    changes: tuple[str, ...] = Field((), description="Changes as `--set` takes them.")
    adjust: str | None = Field(
        None, description="Address of a whole number that is chosen so that the parameters match the reference's."
    )
    exempt: str = Field("", description="Why this variant need not match the budget; it is marked in the table.")


class Grid(Section):
    """A sweep: variants x seeds of one recipe, compared with a reference, paired over seeds."""

    model_config = ConfigDict(title="sweep")

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="Name of the sweep.")
    summary: str = Field("", description="The question it answers, in a sentence.")
    recipe: str = Field(description="The recipe; another may be given on the command line.")
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = Field(description="Seeds, the same for all.")
    reference: Name = Field(description="The variant the others are compared with.")
    changes: tuple[str, ...] = Field((), description="Changes for all variants, as `--set` takes them.")
    match: Match = Field(default_factory=Match, description="The budget that variants share.")
    metrics: Annotated[tuple[str, ...], Field(min_length=1)] = Field(description="Columns: metrics of `data`.")
    data: str | None = Field(None, description="Which of the recipe's evaluations; the first if not given.")
    pictures: PositiveInt | None = Field(None, description="At most so many pictures for every score.")
    contrasts: tuple[tuple[Name, Name], ...] = Field(
        (), description="Pairs of variants, first minus second, paired by seed; each minus the reference if not given."
    )
    variants: dict[Name, Variant] = Field(min_length=2, description="Variants by name.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.reference not in self.variants:
            raise ValueError(f"reference: no variant is called '{self.reference}'")
        unknown = [name for pair in self.contrasts for name in pair if name not in self.variants]
        if unknown:
            raise ValueError(f"contrasts: no variant is called '{unknown[0]}'")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds are repeated: {list(self.seeds)}")
        return self


def pairs(grid: Grid) -> list[tuple[str, str]]:
    """The contrasts of a sweep."""
    others = [name for name in grid.variants if name != grid.reference]
    return list(grid.contrasts) or [(name, grid.reference) for name in others]


def load_grid(source: str) -> Grid:
    """Read a sweep file, or a shipped one by name. Raises UsageError, RecipeSyntaxError."""
    path = Path(source)
    if not path.is_file():
        names = shipped()
        if source not in names:
            raise UsageError(f"--grid {source}: no such file; shipped sweeps: {', '.join(names)}")
        path = Path(str(SHIPPED / f"{source}.yaml"))
    tree = plain(parse_yaml(read_text(path, source), source))
    try:
        return Grid.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"{source}: {where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}"
        ) from error


def shipped() -> list[str]:
    """The sweeps that come with fusionkit."""
    return sorted(Path(path.name).stem for path in SHIPPED.iterdir() if path.name.endswith(".yaml"))
