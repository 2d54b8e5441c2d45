"""What an encoder must do that is told how much of its input shows the picture."""

from __future__ import annotations

import torch
from torch import Tensor

from fusionkit.testing.subjects import EncoderSubject, relative_error, require

TOLERANCE = 2e-6


def check_padding_is_ignored(subject: EncoderSubject) -> None:
    """Full coverage changes nothing, what is beside the picture touches no token of it, and tap() agrees."""
    info = subject.info
    require(info.reads_coverage, "padding_ignored is claimed, but the description does not say reads_coverage")
    grid, right = info.grid, info.stride[1]
    require(grid.width > 1, f"coverage cannot be checked on a grid of {grid}; give an example with more columns")
    edge = grid.width // 2
    left_BN = torch.zeros(2, grid.height, grid.width)
    left_BN[:, :, :edge] = 1
    left_BN, inside = left_BN.flatten(1), left_BN.flatten(1).bool()
    pixels = subject.arguments(batch=2)["x_BCHW"]
    beside = pixels.clone()
    beside[:, :, :, edge * right :] = 7.0

    whole, said = _run(subject, pixels, None), _run(subject, pixels, torch.ones_like(left_BN))
    before, after = _run(subject, pixels, left_BN), _run(subject, beside, left_BN)
    for number, layer in enumerate(subject.layers):
        error = relative_error(said[number], whole[number])
        require(error <= TOLERANCE, f"layer {layer} changes by {error:.1e} when told that all of it is picture")
        error = relative_error(after[number][inside], before[number][inside])
        require(
            error <= TOLERANCE, f"layer {layer}: tokens of the picture change by {error:.1e} with what is beside it"
        )
    tapped: list[Tensor] = []
    with torch.no_grad():
        subject.module.tap(pixels, subject.layers, lambda _, x_BND: tapped.append(x_BND), coverage_BN=left_BN)  # type: ignore[operator]
    require(all(map(torch.equal, tapped, before)), "tap() and forward_layers() differ when given coverage")


def _run(subject: EncoderSubject, x_BCHW: Tensor, coverage_BN: Tensor | None) -> list[Tensor]:
    with torch.no_grad():
        found: list[Tensor] = subject.module.forward_layers(x_BCHW, subject.layers, coverage_BN=coverage_BN)  # type: ignore[operator]
    return found
