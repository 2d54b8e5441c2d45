"""The pictures of an analysis: listed once, decoded when their turn comes.

Shapes: B pictures of a batch, H and W the encoder's input size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fusionkit import registry
from fusionkit.errors import DataError
from fusionkit.model.parts import build_object
from fusionkit.pictures import list_pictures, open_picture
from fusionkit.plugin import EncoderInfo


@dataclass(frozen=True, slots=True)
class Photo:
    """A picture file; `name` and `bytes` tell whether a result is of this very file."""

    path: Path
    name: str
    bytes: int

    def open(self) -> Image.Image:
        """Decode it as RGB; raises DataError that says how to go on."""
        try:
            return open_picture(self.path)
        except DataError as error:
            raise DataError(f"{error}; then give the same command again: it goes on from here") from error


def find_photos(where: str | Path) -> list[Photo]:
    """The pictures in a folder, sorted by name, or the one of a file; raises DataError when there is none."""
    path = Path(where)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; the last argument is a folder with pictures, or one picture")
    files = list_pictures(path) if path.is_dir() else [path]
    return [Photo(file, file.name, file.stat().st_size) for file in files]


class Reader:
    """Turns pictures into an encoder's pixels: the whole picture, stretched to the input size and normalised."""

    def __init__(self, info: EncoderInfo) -> None:
        self.info = info
        self.cropper = build_object("croppers", registry.spec("croppers", "resize").config(type="resize"))

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB pictures of any size -> x_BCHW."""
        crops = [self.cropper.split(image, {"encoder": self.info}).pixels["encoder"] for image in images]
        return torch.cat([torch.from_numpy(pixels) for pixels in crops])


def batches(photos: Iterable[Photo], size: int) -> Iterator[list[Photo]]:
    """The pictures in groups of `size`; the last may be smaller."""
    group: list[Photo] = []
    for photo in photos:
        group.append(photo)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
