"""What every cropper must do: cut what it counted, count before it cuts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fusionkit.blocks.croppers.coverage import cell_coverage
from fusionkit.geometry import Grid, Size
from fusionkit.plugin import IMAGE_TOKEN, BlockSite, EncoderInfo, TokenLayout
from fusionkit.testing import fakes
from fusionkit.testing.checks.selectors import INFO
from fusionkit.testing.subjects import Subject, require

SIZES = (Size(48, 48), Size(64, 40), Size(30, 90), Size(200, 50), Size(1, 1))


def check_counts_what_it_cuts(subject: Subject) -> None:
    """layout() announces as many crops as split() returns, for every stream."""
    cropper, streams, grid = _setting(subject)
    for size, layout, crops in _splits(cropper, streams, grid):
        require(len(crops.regions) == layout.crops, f"{size}: {layout.crops} crops announced, {len(crops.regions)} cut")
        require(set(crops.pixels) == set(streams), f"pixels for {set(crops.pixels)}, streams are {set(streams)}")
        for name, info in streams.items():
            pixels, shape = crops.pixels[name], (layout.crops, 3, *info.input_size)
            require(pixels.shape == shape, f"{size}: pixels of '{name}' are {pixels.shape}, expected {shape}")
            require(pixels.dtype == np.float32, f"pixels are {pixels.dtype}, expected float32")
            require(bool(np.isfinite(pixels).all()), f"{size}: pixels of '{name}' are not finite")


def check_places_fused_tokens_once(subject: Subject) -> None:
    """Every <image> position takes a fused token that exists, and none is used twice."""
    cropper, _, grid = _setting(subject)
    for size in SIZES:
        layout = cropper.layout(size, grid)
        require(len(set(layout.patches)) == len(layout.patches), f"{size}: a fused token is placed twice")
        highest = layout.crops * grid.tokens
        inside = all(0 <= patch < highest for patch in layout.patches)
        require(inside, f"{size}: a placed token is outside the {highest} that {layout.crops} crops give")
        require(bool(layout.patches), f"{size}: no visual token at all")


def check_special_tokens_are_declared(subject: Subject) -> None:
    """Every symbol of a layout is among special_tokens(), <image> included."""
    cropper, _, grid = _setting(subject)
    declared = cropper.special_tokens()
    require(IMAGE_TOKEN in declared, f"special_tokens() lacks {IMAGE_TOKEN}")
    require(len(set(declared)) == len(declared), "special_tokens() names one twice")
    for size in SIZES:
        unknown = set(cropper.layout(size, grid).symbols) - set(declared)
        require(not unknown, f"{size}: layout uses {sorted(unknown)}, which special_tokens() does not name")


def check_largest_layout(subject: Subject) -> None:
    """No picture takes more tokens or crops than largest_layout()."""
    cropper, _, grid = _setting(subject)
    largest = cropper.largest_layout(grid)
    for size in (*SIZES, Size(4000, 3000), Size(100, 8000), Size(5000, 5000)):
        layout = cropper.layout(size, grid)
        require(
            layout.tokens <= largest.tokens, f"{size} takes {layout.tokens} tokens, at most {largest.tokens} announced"
        )
        require(layout.crops <= largest.crops, f"{size} takes {layout.crops} crops, at most {largest.crops} announced")


def check_repeatable(subject: Subject) -> None:
    """The same picture is cut into the same pixels, bit for bit, and the picture is left alone."""
    cropper, streams, _ = _setting(subject)
    image = fakes.picture(SIZES[1])
    before = image.tobytes()
    first, second = cropper.split(image, streams), cropper.split(image, streams)
    require(image.tobytes() == before, "split() changes the picture it is given")
    require(first.regions == second.regions, "split() twice gives other regions")
    same = all(np.array_equal(first.pixels[name], second.pixels[name]) for name in streams)
    require(same, "split() twice gives other pixels")


def check_statistics_are_applied(subject: Subject) -> None:
    """Pixels are normalised by each stream's own mean and std."""
    cropper, streams, _ = _setting(subject)
    crops = cropper.split(fakes.picture(SIZES[1]), streams)
    raw, scaled = crops.pixels["plain"], crops.pixels["scaled"]
    mean, std = (
        np.array(value, np.float32).reshape(3, 1, 1) for value in (streams["scaled"].mean, streams["scaled"].std)
    )
    gap = float(np.abs((raw - mean) / std - scaled).max())
    require(gap <= 1e-4, f"normalised pixels differ by {gap:.1e} from (pixels - mean) / std")
    inside = float(raw.min()) >= -1e-6 and float(raw.max()) <= 1 + 1e-6
    require(inside, f"pixels of mean 0 and std 1 span {raw.min()}..{raw.max()}, expected 0..1")


def check_regions_tell_padding(subject: Subject) -> None:
    """Every crop sees some of the picture, and what its region has outside the picture is of one colour.

    `padding_embedding` and the maps drawn over pictures rely on the regions for what is picture and what is not.
    """
    cropper, streams, _ = _setting(subject)
    plain = {"plain": streams["plain"]}
    for number, size in enumerate(SIZES):
        crops = cropper.split(fakes.picture(size, number), plain)
        for place, (region, pixels) in enumerate(zip(crops.regions, crops.pixels["plain"], strict=True)):
            shares = cell_coverage(region, size, streams["plain"])
            require(any(shares), f"{size}: crop {place} with region {region} shows nothing of the picture")
            cells = _cells(pixels, streams["plain"].stride[0])
            outside = cells[:, [share == 0 for share in shares]].reshape(3, -1)
            gap = float(np.ptp(outside, axis=1).max()) if outside.size else 0.0
            require(gap <= 1e-6, f"{size}: crop {place} has a picture where its region {region} says padding")


def _cells(pixels: Any, patch: int) -> Any:
    """Pixels [3, H, W] by square cell, row-major: [3, cells, patch * patch]."""
    rows, columns = (side // patch for side in pixels.shape[1:])
    cells = pixels.reshape(3, rows, patch, columns, patch).transpose(0, 1, 3, 2, 4)
    return cells.reshape(3, rows * columns, patch * patch)


CROPPER_CHECKS = (
    check_counts_what_it_cuts,
    check_places_fused_tokens_once,
    check_special_tokens_are_declared,
    check_largest_layout,
    check_repeatable,
    check_statistics_are_applied,
    check_regions_tell_padding,
)


def _setting(subject: Subject) -> tuple[Any, dict[str, EncoderInfo], Grid]:
    """The cropper, three streams (two of one size, one of another), and a grid of fused tokens.

    Croppers with a `size` and a `patch` get the grid of that size, as tiles with margins need it.
    """
    side = getattr(subject.config, "size", None) or 48
    patch = getattr(subject.config, "patch", None) or 8
    unit = EncoderInfo(
        **{
            name: getattr(INFO, name)
            for name in ("depth", "width", "prefix_tokens", "licence", "count_params", "count_flops")
        },
        stride=(patch, patch),
        input_size=(side, side),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    scaled = _changed(unit, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    small = _changed(unit, input_size=(32, 24), stride=(8, 8))
    cropper = subject.make(BlockSite(address="cropper"))
    return cropper, {"plain": unit, "scaled": scaled, "small": small}, unit.grid


def _changed(info: EncoderInfo, **changes: Any) -> EncoderInfo:
    from dataclasses import replace

    return replace(info, **changes)


def _splits(cropper: Any, streams: dict[str, EncoderInfo], grid: Grid) -> Iterator[tuple[Size, TokenLayout, Any]]:
    for number, size in enumerate(SIZES):
        yield size, cropper.layout(size, grid), cropper.split(fakes.picture(size, number), streams)
