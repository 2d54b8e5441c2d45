"""Near-duplicate pictures in two sets: does the training data hold the test data?

Each picture is reduced to 64 bits (the signs of the low frequencies of its cosine transform, at 32 x 32 grey), which
survive scaling, compression and slight changes of colour. Pictures whose bits differ in few places are reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fusionkit.data.read import open_jsonl
from fusionkit.errors import DataError, UsageError
from fusionkit.pictures import list_pictures, open_picture

SIDE, LOW = 32, 8
BANDS = 8
"""Bits are compared in 8 bands of 8: pictures that differ in fewer than 8 bits agree in at least one band."""
DEFAULT_DISTANCE = 4


@dataclass(frozen=True, slots=True)
class Pair:
    """Two pictures that look the same, and in how many of 64 bits they differ."""

    first: str
    second: str
    distance: int


@dataclass(frozen=True, slots=True)
class Overlap:
    """Pictures compared, and the pairs found; `share` of the second set that has a twin in the first."""

    first: int
    second: int
    pairs: tuple[Pair, ...]

    @property
    def share(self) -> float:
        return len({pair.second for pair in self.pairs}) / self.second if self.second else 0.0


def overlap(
    first: Path, second: Path, distance: int = DEFAULT_DISTANCE, watch: Callable[[Iterable[str]], Iterable[str]] = iter
) -> Overlap:
    """Compare two sets of pictures: folders of them, or JSONL files that name them.

    Raises UsageError for a distance that the search cannot promise, DataError for a set without pictures or a picture
    that cannot be read.
    """
    if not 0 <= distance < BANDS:
        raise UsageError(f"--distance {distance}: expected 0 to {BANDS - 1} of 64 bits")
    (names, known), (others, asked) = (_hashes(_pictures(path), watch) for path in (first, second))
    buckets: dict[tuple[int, int], list[int]] = {}
    for index, bands in enumerate(_bands(known)):
        for place, value in enumerate(bands):
            buckets.setdefault((place, value), []).append(index)
    pairs = []
    for index, bands in enumerate(_bands(asked)):
        near = {other for place, value in enumerate(bands) for other in buckets.get((place, value), ())}
        for other in sorted(near):
            differing = (int(known[other]) ^ int(asked[index])).bit_count()
            if differing <= distance:
                pairs.append(Pair(names[other], others[index], differing))
    return Overlap(
        len(names), len(others), tuple(sorted(pairs, key=lambda pair: (pair.distance, pair.second, pair.first)))
    )


def picture_hash(image: Image.Image) -> int:
    """64 bits that near-duplicates share most of."""
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    places = np.arange(SIDE)
    basis = np.cos(np.pi * np.arange(LOW)[:, None] * (2 * places + 1) / (2 * SIDE))
    low = basis @ grey @ basis.T
    signs = (low > np.median(low.ravel()[1:])).ravel()
    return int.from_bytes(np.packbits(signs).tobytes(), "big")


def _pictures(path: Path) -> list[Path]:
    if path.is_dir():
        found: Sequence[Path] = list_pictures(str(path), "data overlap")
        return list(found)
    rows = open_jsonl(path).rows
    named = [
        row["image"] for row in (rows.row(index) for index in range(len(rows))) if isinstance(row.get("image"), str)
    ]
    if not named:
        raise DataError(f"{path}: no row names a picture")
    return [path.parent / name for name in dict.fromkeys(named)]


def _hashes(paths: Sequence[Path], watch: Callable[[Iterable[str]], Iterable[str]]) -> tuple[list[str], list[int]]:
    names = [str(path) for path in paths]
    return names, [picture_hash(open_picture(Path(name), name)) for name in watch(names)]


def _bands(hashes: Iterable[int]) -> Iterator[bytes]:
    return (value.to_bytes(BANDS, "big") for value in hashes)
