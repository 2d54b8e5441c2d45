"""What every selector must do: name layers that are there."""

from __future__ import annotations

from dataclasses import replace

from fusionkit.errors import ShapeError
from fusionkit.plugin import BlockSite, EncoderInfo
from fusionkit.testing.subjects import Subject, require

INFO = EncoderInfo(
    depth=12,
    width=16,
    stride=(8, 8),
    input_size=(32, 32),
    prefix_tokens=1,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    licence="none",
    count_params=lambda deepest: 100 * (deepest + 1),
    count_flops=lambda deepest, grid: 1000 * (deepest + 1) * grid.tokens,
    name="made up",
)


def check_layers_are_sorted_and_there(subject: Subject) -> None:
    """For encoders of any depth: sorted, unique layers in 0..depth, the same each time, or ShapeError."""
    selector = subject.make(BlockSite(address="streams.checked.select", info=INFO))
    answered = 0
    for depth in (1, 2, 3, 12, 24):
        info = replace(INFO, depth=depth)
        try:
            layers = selector.layers(info)
        except ShapeError:
            continue
        answered += 1
        require(isinstance(layers, tuple) and bool(layers), f"expected a tuple of layers, got {layers!r}")
        require(list(layers) == sorted(set(layers)), f"layers must be sorted and unique, got {layers}")
        require(layers[0] >= 0 and layers[-1] <= depth, f"layers {layers} are not in 0..{depth}")
        require(selector.layers(info) == layers, f"asked twice, got {layers} and {selector.layers(info)}")
    require(answered > 0, "refuses encoders of every depth tried (1, 2, 3, 12, 24)")


SELECTOR_CHECKS = (check_layers_are_sorted_and_there,)
