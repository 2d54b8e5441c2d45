"""Procedural scenes with exact truth: the dataset that everything can be tried on without a download.

A sample is a function of `(seed, index)` alone. Its picture is drawn when `open_image` is called; its questions,
boxes and points are exact by construction and in pixels. Boxes give an object's full extent, covered parts included.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from random import Random
from types import MappingProxyType

from fusionkit.blocks.datasets.scene_layout import lay_out
from fusionkit.blocks.datasets.scene_picture import Scene, draw, photographs_in
from fusionkit.blocks.datasets.scene_questions import ask
from fusionkit.blocks.datasets.scene_words import COLOURS, SHAPES
from fusionkit.blocks.datasets.specs import SyntheticScenesConfig
from fusionkit.geometry import Size
from fusionkit.pictures import list_pictures
from fusionkit.plugin import ENDLESS, BlockSite
from fusionkit.sample import Provenance, Sample, SceneObject


class SyntheticScenes:
    """Map-style dataset of scenes.

    Example:
        >>> scenes = SyntheticScenes(SyntheticScenesConfig(samples=8))
        >>> sample = scenes[0]
        >>> sample.open_image().size
        (48, 48)
    """

    label_names: Mapping[str, tuple[str, ...]] = MappingProxyType({"colour": COLOURS, "shape": SHAPES})

    def __init__(self, config: SyntheticScenesConfig, site: BlockSite | None = None) -> None:
        self.config = config
        self._photographs: tuple[Path, ...] = ()
        if config.photographs is not None:
            self._photographs = photographs_in(list_pictures(config.photographs, "synthetic_scenes.photographs"))

    def __len__(self) -> int:
        return ENDLESS if self.config.samples is None else self.config.samples

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"synthetic_scenes has samples 0..{len(self) - 1}, got {index}")
        config = self.config
        provenance = Provenance(f"synthetic_scenes(seed={config.seed})", index)
        picture = index if config.pictures is None else index % config.pictures
        random = Random((config.seed << 64) | picture)
        things = lay_out(config, random, str(provenance))
        if picture != index:
            random = Random((config.seed << 64) | index)  # other questions than the first time
        scene = Scene(config.seed, picture, config.size, things, config.clutter, config.noise, self._photographs)
        return Sample(
            open_image=partial(draw, scene),
            size=Size(config.size, config.size),
            turns=ask(config, things, random),
            provenance=provenance,
            objects=tuple(SceneObject(thing.box, {"colour": thing.colour, "shape": thing.shape}) for thing in things),
        )
