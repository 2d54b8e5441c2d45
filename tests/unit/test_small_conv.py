"""Where the tokens of `small_conv` look: what its docstring says, measured by gradients."""

from __future__ import annotations

import pytest
import torch

from fusionkit import registry
from fusionkit.plugin import BlockSite


@pytest.mark.parametrize("strides", [(2,), (2, 2), (2, 2, 2), (1, 2, 2), (2, 1, 2)])
def test_a_token_looks_at_the_corner_of_its_cell_and_sees_all_of_it(strides: tuple[int, ...]) -> None:
    spec = registry.spec("encoders", "small_conv")
    stride = torch.tensor(strides).prod().item()
    widths = (4,) * len(strides)
    config = spec.config(image_size=8 * stride, widths=widths, strides=strides, depth=1, heads=1)
    encoder = registry.factory(spec)(config, BlockSite(info=spec.describe(config), layers=(0,)))
    # Positive weights without norm or gelu: the gradient says how much of each pixel a token takes.
    convolutions = torch.nn.Sequential(*(each for each in encoder.stages if isinstance(each, torch.nn.Conv2d)))
    for convolution in convolutions:
        torch.nn.init.ones_(convolution.weight)
    pixels = torch.zeros(1, 3, 8 * stride, 8 * stride, requires_grad=True)
    row, column = 3, 4
    convolutions(pixels)[0, 0, row, column].backward()
    assert pixels.grad is not None
    share_HW = pixels.grad[0, 0] / pixels.grad[0, 0].sum()
    places = torch.arange(8 * stride) + 0.5
    assert (share_HW.sum(1) @ places).item() == pytest.approx(stride * row + 0.5, abs=1e-4)
    assert (share_HW.sum(0) @ places).item() == pytest.approx(stride * column + 0.5, abs=1e-4)
    cell = share_HW[stride * row : stride * (row + 1), stride * column : stride * (column + 1)]
    assert (cell > 0).all()
