"""Near-duplicates are found through scaling, compression and brightness, and other pictures are not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from fusionkit.data.overlap import overlap, picture_hash
from fusionkit.errors import DataError, UsageError


def photograph(seed: int, size: int = 256) -> Image.Image:
    """Soft shapes: noise at several scales, as natural pictures have it."""
    draw = np.random.default_rng(seed)
    total = np.zeros((size, size, 3))
    for cells in (4, 8, 16, 32):
        coarse = Image.fromarray(draw.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=float) / cells
    return Image.fromarray((255 * total / total.max()).astype(np.uint8))


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path]:
    train, test = tmp_path / "train", tmp_path / "test"
    train.mkdir()
    test.mkdir()
    for seed in range(40):
        photograph(seed).save(train / f"{seed:02d}.png")
    photograph(3).resize((97, 97)).save(test / "smaller.png")
    photograph(5).save(test / "compressed.jpg", quality=30)
    ImageEnhance.Brightness(photograph(7)).enhance(1.15).save(test / "brighter.png")
    photograph(9).filter(ImageFilter.GaussianBlur(1.5)).save(test / "blurred.png")
    photograph(1000).save(test / "other.png")
    return train, test


def test_near_duplicates_are_found_and_nothing_else(sets: tuple[Path, Path]) -> None:
    found = overlap(*sets)
    assert (found.first, found.second) == (40, 5)
    twins = {Path(pair.second).stem: Path(pair.first).stem for pair in found.pairs}
    assert twins == {"smaller": "03", "compressed": "05", "brighter": "07", "blurred": "09"}
    assert found.share == 0.8


def test_the_search_by_bands_finds_what_comparing_all_finds(sets: tuple[Path, Path]) -> None:
    for distance in (0, 3, 7):
        hashes = [{p: picture_hash(Image.open(p)) for p in sorted(folder.iterdir())} for folder in sets]
        expected = {
            (str(a), str(b))
            for a, one in hashes[0].items()
            for b, two in hashes[1].items()
            if (one ^ two).bit_count() <= distance
        }
        assert {(pair.first, pair.second) for pair in overlap(*sets, distance).pairs} == expected


def test_files_that_name_pictures_will_do(sets: tuple[Path, Path], tmp_path: Path) -> None:
    rows = [{"image": f"train/{seed:02d}.png", "conversations": []} for seed in (3, 8, 3)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = overlap(tmp_path / "train.jsonl", sets[1])
    assert found.first == 2
    assert [Path(pair.second).stem for pair in found.pairs] == ["smaller"]


def test_what_cannot_be_compared_is_told(sets: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected 0 to 7 of 64 bits"):
        overlap(*sets, 8)
    (tmp_path / "text.jsonl").write_text('{"conversations": []}\n', encoding="utf-8")
    with pytest.raises(DataError, match="no row names a picture"):
        overlap(tmp_path / "text.jsonl", sets[1])
