"""`small_vit` and `small_conv`: the layer contract, gradients, and what they refuse."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from fusionkit.blocks.encoders import specs
from fusionkit.blocks.encoders.base import PlainEncoder
from fusionkit.blocks.encoders.small_conv import SmallConv
from fusionkit.blocks.encoders.small_vit import SmallVit
from fusionkit.errors import ShapeError
from fusionkit.plugin import BlockSite, EncoderInfo


def vit(layers: tuple[int, ...] = (0, 1, 2, 3)) -> SmallVit:
    config = specs.SmallVitConfig(image_size=(12, 18), patch=6, width=16, depth=3, heads=2)
    torch.manual_seed(0)
    return SmallVit(config, BlockSite(info=specs.describe_small_vit(config), layers=layers))


def conv(layers: tuple[int, ...] = (0, 1, 2, 3)) -> SmallConv:
    config = specs.SmallConvConfig(image_size=(8, 12), widths=(8, 16), strides=(2, 2), depth=3, heads=2)
    torch.manual_seed(0)
    return SmallConv(config, BlockSite(info=specs.describe_small_conv(config), layers=layers))


def pictures(encoder: PlainEncoder, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *encoder.info.input_size, generator=torch.Generator().manual_seed(1))


BOTH = pytest.mark.parametrize("make", [vit, conv], ids=["small_vit", "small_conv"])


@BOTH
def test_layers_chain_block_by_block(make: type[PlainEncoder]) -> None:
    encoder, x_BCHW = make(), pictures(make())
    layers = encoder(x_BCHW)
    assert [tuple(x.shape) for x in layers] == [(2, 6, 16)] * 4
    torch.testing.assert_close(layers[0], encoder.stem(x_BCHW) + encoder.positions)
    for block, before, after in zip(encoder.blocks, layers, layers[1:], strict=False):
        torch.testing.assert_close(block(before), after)


@BOTH
def test_blocks_beyond_the_deepest_layer_are_not_built(make: type[PlainEncoder]) -> None:
    assert len(make((0, 2)).blocks) == 2
    assert len(make((0,)).blocks) == 0


@BOTH
def test_layers_come_in_the_order_asked_for(make: type[PlainEncoder]) -> None:
    encoder, x_BCHW = make(), pictures(make())
    first, last = encoder.forward_layers(x_BCHW, (3, 1))
    torch.testing.assert_close([last, first], encoder.forward_layers(x_BCHW, (1, 3)))


@BOTH
def test_tap_hands_out_layers_in_rising_order_and_keeps_none(make: type[PlainEncoder]) -> None:
    encoder, seen, alive = make(), [], []

    def consume(layer: int, x_BND: Tensor) -> None:
        # All earlier layers but the one this one was computed from are gone.
        assert sum(reference() is not None for reference in alive) <= 1
        seen.append(layer)
        alive.append(weakref.ref(x_BND))

    with torch.no_grad():
        encoder.tap(pictures(encoder), (3, 0, 1, 2), consume)
    assert seen == [0, 1, 2, 3]


@BOTH
def test_tokens_are_row_major(make: type[PlainEncoder]) -> None:
    """Changing pixels at the left edge of the patch in row 1, column 0 of a 2x3 grid changes token 3 most."""
    encoder, x_BCHW = make(), pictures(make(), 1)
    patch = encoder.info.stride[0]
    changed = x_BCHW.clone()
    changed[..., patch:, :1] += 5
    with torch.no_grad():
        difference = (encoder(x_BCHW)[0] - encoder(changed)[0]).abs().sum(-1)[0]
    assert int(difference.argmax()) == 3
    if isinstance(encoder, SmallVit):
        assert difference.count_nonzero() == 1


@BOTH
def test_every_parameter_learns(make: type[PlainEncoder]) -> None:
    encoder = make()
    sum(x.square().sum() for x in encoder(pictures(encoder))).backward()
    without = [name for name, parameter in encoder.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert without == []


@BOTH
def test_crops_of_a_batch_do_not_mix(make: type[PlainEncoder]) -> None:
    """Two equal pictures in a batch give equal tokens, and the batch size changes nothing."""
    encoder, x_BCHW = make(), pictures(make(), 1)
    with torch.no_grad():
        one, three = encoder(x_BCHW)[-1], encoder(x_BCHW.expand(3, -1, -1, -1))[-1]
    torch.testing.assert_close(three, one.expand(3, -1, -1))


@BOTH
def test_meta_and_cpu_have_the_same_state(make: type[PlainEncoder]) -> None:
    with torch.device("meta"):
        empty = make()
    real = make()
    assert {n: t.shape for n, t in empty.state_dict().items()} == {n: t.shape for n, t in real.state_dict().items()}
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(real.state_dict())
    torch.testing.assert_close(filled(pictures(real)), real(pictures(real)))


@BOTH
def test_wrong_pixels_and_absent_layers_are_named(make: type[PlainEncoder]) -> None:
    encoder = make((0, 2))
    with pytest.raises(ShapeError, match=r"expected pixels of shape \(B, 3, \d+, \d+\), got \(2, 3, \d+, \d+\)"):
        encoder(pictures(encoder).transpose(2, 3))
    with pytest.raises(ShapeError, match=r"layers \[3\] are not there; it was built with layers 0\.\.2 of 0\.\.3"):
        encoder.forward_layers(pictures(encoder), (1, 3))


def test_a_site_without_facts_or_layers_is_refused() -> None:
    config = specs.SmallVitConfig()
    with pytest.raises(ShapeError, match="an encoder needs `info`"):
        SmallVit(config, BlockSite(layers=(1,)))
    with pytest.raises(ShapeError, match="and `layers`"):
        SmallVit(config, BlockSite(info=specs.describe_small_vit(config)))
    with pytest.raises(ShapeError, match=r"layers \[1, 9\] are not all in 0\.\.2"):
        SmallVit(config, BlockSite(info=specs.describe_small_vit(config), layers=(1, 9)))


def test_statistics_come_from_the_config() -> None:
    info = specs.describe_small_conv(specs.SmallConvConfig(mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 2.0)))
    assert isinstance(info, EncoderInfo)
    assert (info.mean, info.std) == ((0.1, 0.2, 0.3), (1.0, 1.0, 2.0))
    with pytest.raises(ValueError, match="must be positive in every channel"):
        specs.SmallConvConfig(std=(1.0, 0.0, 1.0))
