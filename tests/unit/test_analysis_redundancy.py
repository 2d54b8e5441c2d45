"""CKA, cosine and the spectrum of V: equal to their definitions, streamed or not, and what maps cannot change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fusionkit.analysis import linear
from fusionkit.analysis.redundancy import FREE, IDENTITY, ROTATIONS, products, summarise
from fusionkit.analysis.subjects import Subject, subjects
from fusionkit.analysis.trained import mixer_of
from fusionkit.ops import diagnostics
from fusionkit.ops.orthogonal import haar

WIDTH = 64


def tokens(seed: int, count: int = 50, width: int = 6) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cka_of(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    return linear.cka(x.T @ x, y.T @ y, x.T @ y)


@given(st.integers(0, 10**6), st.floats(1e-3, 1e3), st.integers(1, 9))
def test_cka_sees_neither_rotation_nor_scale_nor_offset(seed: int, scale: float, width: int) -> None:
    x, y = tokens(seed, width=width), tokens(seed + 1, width=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rotation = haar(1, width, width)[0]
    assert cka_of(x, x @ rotation) == pytest.approx(1, abs=1e-12)
    between = cka_of(x, y)
    assert 0 <= between <= 1 + 1e-12
    assert cka_of(x @ rotation * scale + 3, y) == pytest.approx(between, abs=1e-9)
    assert cka_of(y, x) == pytest.approx(between, abs=1e-12)
    assert between == pytest.approx(diagnostics.linear_cka(x, y), abs=1e-12)
    sigma = linear.singular_values((x - x.mean(0)).T @ (x - x.mean(0)))
    turned = (x - x.mean(0)) @ rotation
    assert torch.allclose(linear.singular_values(turned.T @ turned), sigma, atol=1e-9)


def test_cka_sees_a_map_that_is_not_orthogonal() -> None:
    x = tokens(0)
    assert cka_of(x, x @ torch.diag(torch.tensor([1.0, 1, 1, 1, 1, 30], dtype=torch.float64))) < 0.9
    assert cka_of(x, torch.ones_like(x)) == 0, "tokens that do not vary are like nothing"


def test_effective_rank_at_its_ends() -> None:
    assert linear.effective_rank(torch.ones(7)) == pytest.approx(7)
    assert linear.effective_rank(torch.tensor([3.0, 0, 0])) == pytest.approx(1)
    assert linear.effective_rank(torch.zeros(3)) == 0
    x = tokens(3)
    centred = x - x.mean(0)
    assert linear.effective_rank(linear.singular_values(centred.T @ centred)) == pytest.approx(
        diagnostics.effective_rank(x)
    )


def streamed(subject: Subject, batches: list[dict[int, Tensor]], mixer: Any = None) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    for batch in batches:
        for name, part in products(batch, mixer).items():
            value = part().double()
            sums[name] = sums[name] + value if name in sums else value
    return sums


def batches_of(layers: tuple[int, ...], count: int) -> list[dict[int, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    base = [torch.randn(2, 16, WIDTH, generator=generator) for _ in range(count)]
    return [{layer: x * layer + torch.randn(x.shape, generator=generator) for layer in layers} for x in base]


def test_streamed_sums_give_what_all_tokens_at_once_give() -> None:
    (subject,) = subjects(["small_vit,depth=3"])
    layers = (1, 2, 3)
    batches = batches_of(layers, 5)
    found = summarise(subject, layers, layers, streamed(subject, batches))
    whole = [linear.normalised(torch.cat([batch[layer] for batch in batches])) for layer in layers]
    assert found.tokens == 5 * 2 * 16
    for i in range(3):
        assert found.ranks[layers[i]] == pytest.approx(diagnostics.effective_rank(whole[i]), rel=1e-4)
        for j in range(3):
            assert float(found.cka[i, j]) == pytest.approx(diagnostics.linear_cka(whole[i], whole[j]), abs=1e-5)
    assert torch.allclose(found.cosine, diagnostics.token_cosine(whole), atol=1e-6)
    mean = sum(whole) / 3
    assert torch.allclose(found.spectra[IDENTITY], diagnostics.spectrum(mean), rtol=1e-3, atol=1e-3)
    assert set(found.spectra) == {IDENTITY, ROTATIONS, FREE}


def test_one_layer_has_the_same_rank_under_rotations_but_not_under_free_maps() -> None:
    (subject,) = subjects(["small_vit,depth=3"])
    found = summarise(subject, (2,), (2,), streamed(subject, batches_of((2,), 4)))
    assert torch.allclose(found.spectra[ROTATIONS], found.spectra[IDENTITY], atol=1e-6)
    assert linear.effective_rank(found.spectra[FREE]) < linear.effective_rank(found.spectra[IDENTITY]) - 1


def test_a_checkpoints_own_maps_are_measured_as_its_mixer_runs() -> None:
    (subject,) = subjects(["checkpoint:tiny:spatial"])
    mixer = mixer_of(subject)
    assert mixer is not None
    batches = batches_of(mixer.layers, 3)
    found = summarise(subject, mixer.layers, mixer.layers, streamed(subject, batches, mixer), mixer)
    with torch.inference_mode():
        v = torch.cat([mixer.module([batch[layer] for layer in mixer.layers]) for batch in batches])
    own = found.spectra["its own (orthogonal)"]
    assert torch.allclose(own, diagnostics.spectrum(v), rtol=1e-3, atol=1e-3)
    assert sum(float(gain.mean()) for gain in mixer.gains()) == pytest.approx(1, abs=0.5)
    assert mixer_of(subjects(["small_vit"])[0]) is None
    assert mixer_of(subjects(["tiny:spatial"])[0]) is None, "a recipe has no trained maps"
