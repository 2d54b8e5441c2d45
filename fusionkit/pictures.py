"""Opening pictures as people have them. Torch-free; Pillow is imported inside the functions.

Every picture comes out as 8-bit RGB in the orientation it is meant to be seen in: EXIF rotation applied, the first
frame of an animation, CMYK and palettes converted, 16-bit grey scaled to 8, transparency laid on white.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fusionkit.errors import DataError
from fusionkit.geometry import Size

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""File name endings taken for pictures when a folder is listed."""

_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
_PNG_METADATA = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")

Source = str | Path | IO[bytes]


def open_picture(source: Source, where: str = "") -> Image:
    """Decode a file, path or open binary file as RGB.

    `where` (a data file and row) is put before the message of any error. Raises DataError for a missing file, one
    that is no picture, a truncated one, one over Pillow's size limit, or grey values with no defined range.
    """
    from PIL import ImageOps

    with _opened(source, where) as picture:
        picture.load()
        return _as_rgb(ImageOps.exif_transpose(picture), _name(source, where))


def picture_size(source: Source, where: str = "") -> Size:
    """Width and height as `open_picture` would give them, without decoding the pixels if that can be; raises DataError."""
    with _opened(source, where) as picture:
        if picture.format == "TIFF":
            picture.load()  # Pillow turns TIFFs itself, before or while it decodes, depending on its version
            return Size(*picture.size)
        width, height = picture.size
        return Size(height, width) if _is_sideways(picture) else Size(width, height)


def list_pictures(folder: str | Path, where: str = "") -> list[Path]:
    """The picture files directly in a folder, sorted by name; raises DataError when there are none."""
    path = Path(folder)
    if not path.is_dir():
        raise DataError(f"{_name(path, where)}: not a folder; give the path of a folder with pictures")
    found = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES and entry.is_file())
    if not found:
        raise DataError(f"{_name(path, where)}: no pictures in this folder (looked for {', '.join(SUFFIXES)})")
    return found


def _is_sideways(picture: Image) -> bool:
    """Whether EXIF turns the picture by a quarter."""
    if picture.format == "PNG" and not _png_has_metadata(picture):
        return False
    return picture.getexif().get(_ORIENTATION) in _SIDEWAYS


def _png_has_metadata(picture: Image) -> bool:
    """Whether a PNG has any chunk that could hold EXIF. Pillow decodes the whole picture to find out."""
    file: Any = getattr(picture, "fp")  # noqa: B009 - Pillow has it on opened files only and does not declare it
    position = file.tell()
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            if head[4:] in _PNG_METADATA:
                return True
            file.seek(int.from_bytes(head[:4], "big") + 4, 1)
        return False
    finally:
        file.seek(position)


@contextmanager
def _opened(source: Source, where: str) -> Iterator[Image]:
    """Open lazily and turn every way in which decoding fails into one DataError."""
    from PIL import Image, UnidentifiedImageError

    name = _name(source, where)
    if isinstance(source, str | Path):
        if not str(source):
            raise DataError(f"{where + ': ' if where else ''}no picture given; expected the path of a picture file")
        if not Path(source).exists():
            raise DataError(f"{name}: no such picture; check the path")
        if Path(source).is_dir():
            raise DataError(f"{name}: is a folder, expected a picture file")
    try:
        with _open(source) as picture:
            yield picture
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: not a picture that Pillow can read; convert it to PNG or JPEG") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: too many pixels ({error}); scale it down first") from error
    # Pillow's decoders report damage as any of these; ValueError and SyntaxError come from broken headers and chunks,
    # struct.error from broken EXIF.
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error) as error:
        raise DataError(f"{name}: damaged or truncated picture ({error}); save it again or leave it out") from error


def _open(source: Source) -> Image:
    """Pillow's open, without its word of caution about large pictures: photographs of 100 megapixels are none.

    Its limit, at which it refuses, is twice that (179 megapixels).
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(source)


def _as_rgb(picture: Image, name: str) -> Image:
    from PIL import Image

    if picture.mode == "RGB":
        return picture.copy()
    if picture.mode == "F" or picture.mode.startswith("I"):
        return _scaled_grey(picture, name).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


def _scaled_grey(picture: Image, name: str) -> Image:
    """8-bit grey from 16-bit integers (full range 65535) or floats (0..1 or 0..255)."""
    import numpy as np
    from PIL import Image

    values: Any = np.asarray(picture, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    full = (1.0 if high <= 1.0 else 255.0) if picture.mode == "F" else 65535.0
    if not (low >= 0.0 and high <= full):
        raise DataError(
            f"{name}: grey values from {low:g} to {high:g}, expected 0..{full:g}; convert it to 8 bits first"
        )
    return Image.fromarray(np.rint(values * (255.0 / full)).astype(np.uint8))


def _name(source: Source, where: str) -> str:
    name = str(source) if isinstance(source, str | Path) else str(getattr(source, "name", "picture"))
    return f"{where}: {name}" if where else name
