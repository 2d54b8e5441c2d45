"""Pictures with objects: a dataset named on a command line, and what its samples say patch by patch.

    synthetic_scenes                    a registered dataset
    synthetic_scenes,seed=3,size=96     the same with options
    coco_boxes,path=...                 your own

Shapes: N patches, O objects of one picture, K label values. Boxes are in sides of the picture: 0 to 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from fusionkit.analysis.photos import Photo
from fusionkit.analysis.subjects import split_options
from fusionkit.errors import DataError, RecipeError, RecipeValidationError, UsageError
from fusionkit.geometry import Frame, Grid
from fusionkit.model.parts import build_object
from fusionkit.plugin import BlockConfig
from fusionkit.recipe import load_recipe
from fusionkit.recipe.overrides import override
from fusionkit.recipe.tree import Table, plain
from fusionkit.sample import Sample

_ADDRESS = "evaluate.0.data"


@dataclass(frozen=True, slots=True)
class Annotated:
    """A dataset: the words that name it, its config as data, and all label values as (name, value)."""

    words: str
    config: Mapping[str, Any]
    samples: Any
    labels: tuple[tuple[str, str], ...]

    def items(self, count: int) -> list[Photo]:
        """The first `count` samples, or all there are; `bytes` is a checksum of what they say, so that results of a
        file that has changed since are not taken for those of the new one."""
        return [
            Photo(Path(), f"{self.words}[{index}]", _checksum(self.samples[index]))
            for index in range(min(count, len(self.samples)))
        ]

    def sample(self, item: Photo) -> Sample:
        """The sample of that name. Raises DataError as the dataset does."""
        found: Sample = self.samples[int(item.name.rpartition("[")[2].removesuffix("]"))]
        return found


def _checksum(sample: Sample) -> int:
    things = [(thing.box, sorted(thing.labels.items())) for thing in sample.objects]
    answers = [turn.boxes for turn in sample.turns]
    return crc32(repr((sample.size, sample.path, things, answers)).encode())


def open_data(words: str) -> Annotated:
    """What `NAME` or `NAME,KEY=VALUE,...` names. Raises UsageError and what the dataset's config and opening raise."""
    name, *options = split_options(words)
    if wrong := [option for option in options if "=" not in option]:
        raise UsageError(f"{words}: '{wrong[0]}' is not KEY=VALUE; for example {name},seed=3")
    config = _config(words, name, options)
    samples = build_object("datasets", config)
    if len(samples) == 0:
        raise DataError(f"{words}: has no samples")
    labels = tuple((label, value) for label, values in samples.label_names.items() for value in values)
    return Annotated(words, config.model_dump(mode="json"), samples, labels)


def _config(words: str, name: str, options: Sequence[str]) -> BlockConfig:
    """The checked config of a registered dataset; its errors read as those of a recipe do, at the option's name."""
    try:
        values = plain(override(Table({}), options))
        recipe = load_recipe(
            {
                "schema": 1,
                "name": "analyze",
                "streams": {"analysed": {"encoder": {"type": "small_vit"}, "select": {"type": "last"}}},
                "evaluate": [{"metrics": ["box_accuracy"], "data": {"type": name, **values}}],
            }
        )
    except RecipeError as error:
        raise RecipeValidationError(
            replace(problem, source=words, address=problem.address.removeprefix(_ADDRESS).lstrip("."))
            for problem in error.problems
        ) from error
    return recipe.evaluate[0].data


@dataclass(frozen=True, slots=True)
class Scene:
    """The objects of one picture on a grid of patches.

    `boxes` [O, 4] (x0, y0, x1, y1); `owner` [N] is the object that each patch is on, or -1: a patch is on the smallest
    object that holds its centre, and an object that holds no centre owns the patch under its own. `columns` are the
    label columns of each object; `unique` says whether its labels are those of no other object here.
    """

    boxes: Tensor
    owner: Tensor
    columns: tuple[tuple[int, ...], ...]
    unique: tuple[bool, ...]


def scene(sample: Sample, grid: Grid, labels: Sequence[tuple[str, str]]) -> Scene | None:
    """None for a sample without a picture or without boxes. Boxes are cut at the picture's edge."""
    if sample.open_image is None or sample.size is None:
        return None
    width, height = sample.size.width, sample.size.height
    objects: dict[tuple[float, ...], Mapping[str, str]] = {}
    named = [(thing.box, thing.labels) for thing in sample.objects]
    for box, tags in named or [(box, {}) for turn in sample.turns for box in turn.boxes]:
        edges = [box.x0 / width, box.y0 / height, box.x1 / width, box.y1 / height]
        x0, y0, x1, y1 = (min(1.0, max(0.0, edge)) for edge in edges)
        if x1 > x0 and y1 > y0:
            objects.setdefault((x0, y0, x1, y1), tags)
    if not objects:
        return None
    boxes_O4 = torch.tensor(list(objects), dtype=torch.float64)
    places = {label: place for place, label in enumerate(labels)}
    columns = tuple(tuple(sorted(places[item] for item in tags.items() if item in places)) for tags in objects.values())
    unique = tuple(bool(own) and columns.count(own) == 1 for own in columns)
    return Scene(boxes_O4, _owner(boxes_O4, centres(grid)), columns, unique)


def centres(grid: Grid) -> Tensor:
    """(x, y) of every patch's centre, [N, 2], row-major: encoders see the whole picture, stretched to their input."""
    return torch.tensor([(x, y) for y, x in Frame().cell_centres(grid)], dtype=torch.float64)


def _owner(boxes_O4: Tensor, centres_N2: Tensor) -> Tensor:
    inside_NO = (centres_N2[:, None] >= boxes_O4[:, :2]).all(-1) & (centres_N2[:, None] <= boxes_O4[:, 2:]).all(-1)
    area_O = (boxes_O4[:, 2:] - boxes_O4[:, :2]).prod(-1)
    smallest_N = torch.where(inside_NO, area_O, torch.inf).argmin(-1)
    owner_N = torch.where(inside_NO.any(-1), smallest_N, -1)
    for number, box in enumerate(boxes_O4):
        if not (owner_N == number).any():
            middle = (box[:2] + box[2:]) / 2
            owner_N[(centres_N2 - middle).square().sum(-1).argmin()] = number
    return owner_N
