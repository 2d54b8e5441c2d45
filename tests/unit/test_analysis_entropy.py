"""Entropy and the attention it is measured on: exact ends, invariances, and equality with eager attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fusionkit.analysis.capture import Scores, watch
from fusionkit.analysis.measures import (
    ENERGY,
    PATCH,
    PREFIX,
    attention_entropy,
    energy_entropy,
    entropy,
    measure_entropy,
)
from fusionkit.analysis.running import Running, student_t
from fusionkit.analysis.subjects import subjects
from fusionkit.errors import NumericsError, ShapeError
from fusionkit.plugin import EncoderInfo


@pytest.mark.parametrize("count", [1, 2, 64, 196, 1369])
def test_uniform_is_log_n_and_one_hot_is_zero_exactly(count: int) -> None:
    uniform = torch.full((3, count), 7.3)
    one_hot = torch.full((3, count), -torch.inf)
    one_hot[:, count // 2] = 5.0
    assert torch.equal(entropy(uniform), torch.full((3,), float(count)).log())
    assert torch.equal(entropy(one_hot), torch.zeros(3))


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=40), st.floats(-50, 50), st.randoms(use_true_random=False))
def test_entropy_is_in_bounds_and_sees_neither_order_nor_offset(values: list[float], offset: float, order: Any) -> None:
    logits = torch.tensor(values, dtype=torch.float64)
    found = float(entropy(logits.clone()))
    assert -1e-12 <= found <= math.log(len(values)) + 1e-12
    probabilities = logits.softmax(0)
    assert found == pytest.approx(float(torch.special.entr(probabilities).sum()), abs=1e-9)
    shuffled = values[:]
    order.shuffle(shuffled)
    assert float(entropy(torch.tensor(shuffled, dtype=torch.float64) + offset)) == pytest.approx(found, abs=1e-9)


def test_feature_energy_of_equal_and_of_single_tokens() -> None:
    x_BND = torch.zeros(3, 5, 4)
    x_BND[0] = 2.0
    x_BND[1, 3] = 1.0
    found_B = energy_entropy(x_BND)
    assert found_B[0] == torch.tensor(5.0).log()
    assert found_B[1] == 0
    assert found_B[2] == torch.tensor(5.0).log(), "tokens that are all zero are spread evenly"
    assert torch.allclose(energy_entropy(x_BND[:1] * 3), found_B[:1])


def test_attention_entropy_leaves_out_prefix_tokens() -> None:
    logits_HTT = torch.zeros(2, 6, 6)
    logits_HTT[..., 0] = 40.0  # everybody looks at the class token; the rest is even
    scores = Scores(1, 2, 6, lambda picture: logits_HTT.clone())
    assert attention_entropy(scores, 0) == pytest.approx({PATCH: math.log(4), PREFIX: math.log(4)}, abs=1e-7)


# ------------------------------------------------------------------------------------- capture against eager attention
def eager_reference(encoder: nn.Module, blocks: Any, x_BCHW: Tensor, layers: list[int]) -> dict[int, Tensor]:
    """Attention weights [B, H, T, T] by timm's own eager path: what its attention dropout is given."""
    found: dict[int, Tensor] = {}
    handles = []
    for layer in layers:
        attention = blocks[layer - 1].attn
        attention.fused_attn = False
        handles.append(
            attention.attn_drop.register_forward_pre_hook(lambda _, given, at=layer: found.update({at: given[0]}))
        )
    with torch.inference_mode():
        encoder.forward_layers(x_BCHW, layers)  # type: ignore[operator]
    for handle in handles:
        handle.remove()
    for layer in layers:
        blocks[layer - 1].attn.fused_attn = True
    return found


def captured(encoder: nn.Module, info: EncoderInfo, x_BCHW: Tensor, layers: list[int]) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {}

    def keep(layer: int, scores: Scores) -> None:
        found[layer] = torch.stack([scores.weights(picture) for picture in range(scores.batch)])

    assert watch(encoder, info, x_BCHW, layers, on_attention=keep) == {}
    return found


TIMM = (
    "timm,model=test_vit.r160_in1k,image_size=64,weights=random",
    "timm,model=vit_small_patch16_dinov3.lvd1689m,image_size=64,weights=random",
)


@pytest.mark.parametrize("word", TIMM)
def test_captured_attention_equals_timms_eager_attention(word: str) -> None:
    (subject,) = subjects([word])
    encoder, x_BCHW = subject.open(), torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    layers = [1, subject.kept]
    reference = eager_reference(encoder, encoder.model.blocks, x_BCHW, layers)  # type: ignore[union-attr]
    found = captured(encoder, subject.info, x_BCHW, layers)
    assert found.keys() == reference.keys() == set(layers), "only the layers asked for"
    for layer in layers:
        assert found[layer].shape[-1] == subject.info.grid.tokens + subject.info.prefix_tokens
        assert torch.allclose(found[layer], reference[layer], atol=2e-6), layer
    # The encoder's own eager path is seen too, and gives the same.
    for block in encoder.model.blocks:  # type: ignore[union-attr]
        block.attn.fused_attn = False
    again = captured(encoder, subject.info, x_BCHW, layers)
    assert all(torch.allclose(again[layer], reference[layer], atol=2e-6) for layer in layers)


def test_captured_attention_of_small_vit() -> None:
    (subject,) = subjects(["small_vit,depth=3"])
    encoder: Any = subject.open()
    x_BCHW = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    found = captured(encoder, subject.info, x_BCHW, [2, 3])
    for layer in (2, 3):
        block = encoder.blocks[layer - 1]
        with torch.inference_mode():
            x_BND = encoder.forward_layers(x_BCHW, [layer - 1])[0]
            qkv = block.qkv(block.norm_attention(x_BND)).view(2, 64, 3, block.heads, -1).permute(2, 0, 3, 1, 4)
            expected = (qkv[0] @ qkv[1].transpose(-2, -1) / qkv.shape[-1] ** 0.5).softmax(-1)
        assert torch.allclose(found[layer], expected, atol=2e-6)


class Attends(nn.Module):
    """An encoder with one block that attends the way a test says; 2 prefix tokens before a 2x3 grid."""

    def __init__(self, attend: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.attend = attend
        self.module = nn.MultiheadAttention(8, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def tap(self, x_BCHW: Tensor, layers: list[int], consume: Callable[[int, Tensor], None]) -> None:
        x_BTD = x_BCHW.flatten(1)[:, : 8 * 8].reshape(-1, 8, 8)
        consume(0, x_BTD[:, 2:])
        if 1 in layers:
            consume(1, self.attend(self, x_BTD)[:, 2:])


def tiny_info(**changes: Any) -> EncoderInfo:
    facts: dict[str, Any] = {
        "depth": 1,
        "width": 8,
        "stride": (4, 4),
        "input_size": (8, 12),
        "prefix_tokens": 2,
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "licence": "none",
        "count_params": lambda deepest: 0,
        "count_flops": lambda deepest, grid: 0,
        "name": "attends",
    }
    return EncoderInfo(**(facts | changes))


def by_module(module: Any, x: Tensor) -> Tensor:
    out, weights = module.module(x, x, x, need_weights=False)
    assert weights is None
    return x + out  # type: ignore[no-any-return]


def with_weights(module: Any, x: Tensor) -> Tensor:
    out, weights = module.module(x, x, x)
    assert weights.shape == (len(x), 8, 8), "the encoder still gets its averaged weights"
    return x + out  # type: ignore[no-any-return]


def grouped(module: Any, x: Tensor) -> Tensor:
    q, k = x.view(-1, 8, 4, 2).transpose(1, 2), x[..., :4].reshape(-1, 8, 2, 2).transpose(1, 2)
    out = F.scaled_dot_product_attention(q, k, k, enable_gqa=True, scale=0.3, is_causal=True)
    return x + out.transpose(1, 2).reshape(x.shape)


def masked(module: Any, x: Tensor) -> Tensor:
    heads = x[:, None]
    mask = torch.ones(8, 8, dtype=torch.bool)
    mask[:, 5] = False
    return x + F.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask)[:, 0]


def flat_eager(module: Any, x: Tensor) -> Tensor:
    return x + F.softmax(x @ x.transpose(1, 2), dim=-1) @ x


def _grouped_reference(x: Tensor) -> Tensor:
    q = x.view(-1, 8, 4, 2).transpose(1, 2)
    k = x[..., :4].reshape(-1, 8, 2, 2).transpose(1, 2).repeat_interleave(2, dim=1)
    logits = 0.3 * q @ k.transpose(-2, -1)
    return logits.masked_fill(torch.ones(8, 8, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)


def _masked_reference(x: Tensor) -> Tensor:
    logits = (x @ x.transpose(1, 2) / 8**0.5)[:, None]
    logits[..., 5] = -torch.inf
    return logits.softmax(-1)


PIXELS = torch.randn(3, 3, 8, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("attend", "reference"),
    [
        (grouped, _grouped_reference),
        (masked, _masked_reference),
        (flat_eager, lambda x: (x @ x.transpose(1, 2)).softmax(-1)[:, None]),
    ],
)
def test_every_way_to_attend_is_seen(
    attend: Callable[[nn.Module, Tensor], Tensor], reference: Callable[[Tensor], Tensor]
) -> None:
    found = captured(Attends(attend).eval(), tiny_info(), PIXELS, [1])
    assert torch.allclose(found[1], reference(PIXELS.flatten(1)[:, :64].reshape(-1, 8, 8)), atol=2e-6)


@pytest.mark.parametrize("attend", [by_module, with_weights, lambda module, x: module.layer(x)])
def test_torchs_own_attention_modules_are_seen(attend: Callable[[nn.Module, Tensor], Tensor]) -> None:
    encoder = Attends(attend).eval()
    x_BTD = PIXELS.flatten(1)[:, :64].reshape(-1, 8, 8)
    found = captured(encoder, tiny_info(), PIXELS, [1])
    module = encoder.layer.self_attn if attend not in (by_module, with_weights) else encoder.module
    with torch.inference_mode():
        expected = module(x_BTD, x_BTD, x_BTD, average_attn_weights=False)[1]
    assert torch.allclose(found[1], expected, atol=2e-6)


@pytest.mark.parametrize(
    ("attend", "reason"),
    [
        (lambda module, x: x * 2, "computes no attention that can be seen"),
        (lambda module, x: flat_eager(module, flat_eager(module, x)), "attends 2 times over all tokens"),
        (
            lambda module, x: torch.cat([flat_eager(module, x[:, :4]), flat_eager(module, x[:, 4:])], 1),
            "attends over 4 x 4 tokens, not over all 8 tokens",
        ),
    ],
)
def test_attention_that_cannot_be_had_is_explained(attend: Callable[[nn.Module, Tensor], Tensor], reason: str) -> None:
    rows, missing = measure_entropy(Attends(attend).eval(), tiny_info(), PIXELS, [1])
    assert reason in missing[1]
    assert [set(row) for row in rows] == [{ENERGY}] * 3


# ------------------------------------------------------------------------------------------------------------ means
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30))
def test_running_mean_and_interval_equal_those_of_the_whole_list(values: list[float]) -> None:
    running = Running()
    for value in values:
        running.add(value)
    whole = torch.tensor(values, dtype=torch.float64)
    assert running.mean == pytest.approx(float(whole.mean()), abs=1e-9)
    assert running.std == pytest.approx(float(whole.std()), abs=1e-7)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (2, 4.30265), (5, 2.57058), (30, 2.04227), (999, 1.96234)]
)
def test_students_t(freedom: int, quantile: float) -> None:
    assert student_t(freedom) == pytest.approx(quantile, abs=2e-4)


def test_one_number_has_no_interval() -> None:
    running = Running()
    running.add(3.0)
    assert running.summary() == {"mean": 3.0, "low": None, "high": None, "std": None, "count": 1}


# ------------------------------------------------------------------------------------------------------ transformers
TOWERS = (
    "transformers,config={model_type: dinov3_vit, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 3, "
    "num_attention_heads: 2, num_register_tokens: 4, patch_size: 8},image_size=[32, 48]",
    "transformers,config={model_type: siglip_vision_model, hidden_size: 24, intermediate_size: 40, "
    "num_hidden_layers: 3, num_attention_heads: 2, image_size: 32, patch_size: 8},image_size=32",
)


@pytest.mark.parametrize("word", TOWERS)
def test_captured_attention_equals_that_of_transformers_eager_path(word: str) -> None:
    (subject,) = subjects([word])
    encoder: Any = subject.open()
    x_BCHW = torch.randn(2, 3, *subject.info.input_size, generator=torch.Generator().manual_seed(0))
    fused = captured(encoder, subject.info, x_BCHW, [1, 3])
    reference: list[Tensor] = []
    tower = next(module for module in encoder.modules() if hasattr(module, "set_attn_implementation"))
    tower.set_attn_implementation("eager")
    for module in encoder.modules():
        if type(module).__name__.endswith("Attention"):
            module.register_forward_hook(lambda _, given, output: reference.append(output[1]))
    with torch.inference_mode():
        encoder.forward_layers(x_BCHW, [3])
    assert len(reference) == 3
    assert torch.allclose(fused[1], reference[0], atol=2e-6)
    assert torch.allclose(fused[3], reference[2], atol=2e-6)


# ------------------------------------------------------------------------------------------------- broken encoders
@pytest.mark.parametrize(
    ("attend", "error", "message"),
    [
        (lambda module, x: x[..., :4], ShapeError, r"layer 1 is of shape \(3, 6, 4\), expected \(3, 6, 8\)"),
        (lambda module, x: x / 0, NumericsError, "layer 1 holds NaN or infinity"),
    ],
)
def test_encoders_that_break_their_promise_are_named(
    attend: Callable[[nn.Module, Tensor], Tensor], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        watch(Attends(attend).eval(), tiny_info(), PIXELS, [1])


def test_an_encoder_without_tap_is_told_what_it_lacks() -> None:
    with pytest.raises(ShapeError, match=r"Identity has no tap\(x, layers, consume\)"):
        watch(nn.Identity(), tiny_info(), PIXELS, [1])


def test_layers_out_of_order_are_refused() -> None:
    class Late(nn.Module):
        def tap(self, x_BCHW: Tensor, layers: list[int], consume: Callable[[int, Tensor], None]) -> None:
            for layer in reversed(layers):
                consume(layer, torch.zeros(3, 6, 8))

    with pytest.raises(ShapeError, match=r"asked for layers \[0, 1\] in rising order, gave \[1, 0\]"):
        watch(Late(), tiny_info(), PIXELS, [1])


def test_random_weights_are_noticed_whether_the_config_says_so_or_not() -> None:
    for word, random in (
        ("small_vit", True),
        ("timm,model=test_vit.r160_in1k,image_size=64,weights=random", True),
        ("checkpoint:tiny:spatial", False),
    ):
        (subject,) = subjects([word])
        assert subject.starts_random(subject.open()) is random
