"""Rollout: identity stays identity, rows stay distributions, links are discarded as said, queries read their row."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fusionkit.analysis.capture import Scores, watch
from fusionkit.analysis.rollout import Fusion, Query, links, parse_query, rollout_maps
from fusionkit.analysis.subjects import subjects
from fusionkit.errors import UsageError


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("discard", [0.0, 0.5, 0.9])
def test_rollout_of_identity_attention_is_identity(fusion: Fusion, discard: float) -> None:
    identity_HTT = torch.eye(7).expand(3, 7, 7)
    rolled_TT = torch.eye(7)
    for _ in range(4):
        rolled_TT = links(identity_HTT, fusion, discard) @ rolled_TT
    assert torch.equal(rolled_TT, torch.eye(7))


@given(st.integers(1, 4), st.integers(2, 9), st.floats(0, 0.95), st.integers(0, 99))
def test_links_are_distributions_and_keep_those_of_the_class_token(
    heads: int, tokens: int, discard: float, seed: int
) -> None:
    weights_HTT = torch.rand(heads, tokens, tokens, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    linked_TT = links(weights_HTT, "mean", discard)
    assert torch.allclose(linked_TT.sum(-1), torch.ones(tokens), atol=1e-6)
    assert (linked_TT[0] > 0).all()
    assert (linked_TT[:, 0] > 0).all()
    dropped = int((links(weights_HTT, "mean", discard, class_token=False) == 0).sum())
    # A diagonal link that is discarded comes back with the residual path.
    assert int(discard * tokens**2) - tokens <= dropped <= int(discard * tokens**2)


def test_discarding_drops_the_weakest_links() -> None:
    weights_HTT = torch.tensor([[[0.1, 0.3, 0.6], [0.2, 0.5, 0.3], [0.05, 0.15, 0.8]]])
    linked_TT = links(weights_HTT, "mean", discard=4 / 9, class_token=False)
    assert (linked_TT == 0).tolist() == [[False, False, False], [True, False, False], [True, True, False]]
    assert torch.allclose(linked_TT[1], torch.tensor([0.0, 1.5, 0.3]) / 1.8)


def test_heads_are_fused_by_name() -> None:
    weights_HTT = torch.tensor([[[0.2, 0.8], [0.6, 0.4]], [[0.5, 0.5], [0.1, 0.9]]])
    expected = {"mean": weights_HTT.mean(0), "max": weights_HTT.amax(0), "min": weights_HTT.amin(0)}
    for fusion, fused_TT in expected.items():
        linked_TT = fused_TT + torch.eye(2)
        assert torch.allclose(links(weights_HTT, cast(Fusion, fusion)), linked_TT / linked_TT.sum(-1, keepdim=True))


def test_rollout_is_the_product_of_the_links_and_queries_read_it() -> None:
    (subject,) = subjects(["timm,model=test_vit.r160_in1k,image_size=64,weights=random"])
    encoder, x_BCHW = subject.open(), torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    weights: dict[int, Any] = {}
    watch(
        encoder,
        subject.info,
        x_BCHW,
        [1, 2, 3],
        on_attention=lambda layer, scores: weights.update({layer: scores.weights(1)}),
    )
    rolled_TT = links(weights[3], "mean", 0.5) @ links(weights[2], "mean", 0.5) @ links(weights[1], "mean", 0.5)
    prefix, grid = subject.info.prefix_tokens, subject.info.grid
    assert prefix == 1
    rows = {
        "class": rolled_TT[0, prefix:],
        "mean": rolled_TT[prefix:, prefix:].mean(0),
        "0.99,0.3": rolled_TT[prefix + 1 * grid.width + grid.width - 1, prefix:],
    }
    for text, expected_N in rows.items():
        query = parse_query(text, subject.info)
        maps = rollout_maps(encoder, subject.info, x_BCHW, [3], query, discard=0.5)[1]
        assert torch.allclose(maps["cumulative"]["3"], expected_N, atol=1e-6)
        assert torch.allclose(maps["layer"]["3"], query.row(links(weights[3], "mean", 0.5), subject.info), atol=1e-6)


def test_queries_that_cannot_be_had_are_explained() -> None:
    (plain,) = subjects(["small_vit"])
    assert parse_query(None, plain.info) == Query("mean")
    for text, words in (
        ("class", "small_vit has no class token; use mean"),
        ("pool", "without their pooling head"),
        ("1.5,0", r"a point X,Y in 0..1"),
        ("middle", "expected class, mean"),
    ):
        with pytest.raises(UsageError, match=words):
            parse_query(text, plain.info)


def test_an_encoder_without_attention_has_no_rollout_and_is_told_what_works() -> None:
    (subject,) = subjects(["timm,model=test_convnext.r160_in1k,image_size=64,stride=16,weights=random"])
    encoder: nn.Module = subject.open()
    with pytest.raises(UsageError, match=r"no rollout, layer 1: the block computes no attention.*analyze pca"):
        rollout_maps(encoder, subject.info, torch.zeros(1, 3, 64, 64), [1], Query("mean"))


def test_scores_can_be_asked_twice() -> None:
    scores = Scores(1, 0, 2, lambda picture: torch.zeros(1, 2, 2))
    first = scores.logits(0)
    first += 5
    assert torch.equal(scores.weights(0), torch.full((1, 2, 2), 0.5))
