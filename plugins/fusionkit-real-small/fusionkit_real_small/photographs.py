"""`real.photographs`: real pictures with questions whose answers follow from their pixels.

Five pictures that the wheel of scikit-image holds (nothing is downloaded). Boxes and counts are computed, see `boxes`;
what the cat and the cup show is known from what the pictures are.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from fusionkit.pictures import open_picture, picture_size
from fusionkit.plugin import BlockSite, Box, DataError, Point, Provenance, Sample, SceneObject, Turn
from fusionkit_real_small import boxes
from fusionkit_real_small.specs import PhotographsConfig

if TYPE_CHECKING:
    from PIL.Image import Image

NAMES = ("coins", "astronaut", "horse", "chelsea", "coffee")
INSTALL = "pip install scikit-image"


class Photographs:
    """Map-style dataset of the five pictures in `NAMES`.

    Raises DataError when scikit-image is not installed.
    """

    label_names: Mapping[str, tuple[str, ...]] = MappingProxyType({"thing": ("coin", "face", "horse")})

    def __init__(self, config: PhotographsConfig, site: BlockSite | None = None) -> None:
        self.folder = pictures_folder()

    def __len__(self) -> int:
        return len(NAMES)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(NAMES):
            raise IndexError(f"real.photographs has samples 0..{len(NAMES) - 1}, got {index}")
        name = NAMES[index]
        file = self.folder / f"{name}.png"
        turns, objects = _KNOWN[name](file)
        return Sample(
            partial(_open, file), picture_size(file), turns, Provenance(f"skimage.data.{name}", index), objects
        )


Known = tuple[tuple[Turn, ...], tuple[SceneObject, ...]]


def pictures_folder() -> Path:
    """Where scikit-image keeps its pictures; raises DataError with the command that installs them."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"real.photographs: scikit-image is not installed; run: {INSTALL}")
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def _open(file: Path) -> Image:
    return open_picture(file)


@cache
def _coins(file: Path) -> Known:
    found = boxes.coins(np.asarray(open_picture(file).convert("L")))
    largest = max(found, key=_area)
    smallest = min(found, key=_area)
    turns = (
        Turn("how many coins are there?", (str(len(found)),), "count"),
        Turn("box every coin", found, "box"),
        Turn("box the largest coin", (largest,), "box"),
        Turn("box the smallest coin", (smallest,), "box"),
        Turn("point to the top left coin", (_centre(found[0]),), "point"),
        Turn("point to the bottom right coin", (_centre(found[-1]),), "point"),
    )
    return turns, tuple(SceneObject(box, {"thing": "coin"}) for box in found)


@cache
def _astronaut(file: Path) -> Known:
    cascade = file.with_name("lbpcascade_frontalface_opencv.xml")
    return _one_thing("face", boxes.face(np.asarray(open_picture(file)), str(cascade)))


@cache
def _horse(file: Path) -> Known:
    return _one_thing("horse", boxes.silhouette(np.asarray(open_picture(file).convert("L"))))


def _chelsea(file: Path) -> Known:
    return (Turn("what animal is this?", ("a cat",), "free"),), ()


def _coffee(file: Path) -> Known:
    return (Turn("what is in the cup?", ("coffee",), "free"),), ()


_KNOWN: Mapping[str, Callable[[Path], Known]] = MappingProxyType(
    {"coins": _coins, "astronaut": _astronaut, "horse": _horse, "chelsea": _chelsea, "coffee": _coffee}
)


def _one_thing(name: str, box: Box) -> Known:
    turns = (Turn(f"box the {name}", (box,), "box"), Turn(f"point to the {name}", (_centre(box),), "point"))
    return turns, (SceneObject(box, {"thing": name}),)


def _centre(box: Box) -> Point:
    return Point((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)


def _area(box: Box) -> float:
    return (box.x1 - box.x0) * (box.y1 - box.y0)
