"""Spatial entropy of a layer, in three ways.

With s_hij the attention logits of head h from token i to token j inside block l, P the N patch tokens, C the prefix
tokens (class and register tokens) and x_j the patch tokens that leave the block:

    patch_to_patch     H = mean over h, i in P of  - sum_{j in P} a_hij log a_hij,  a_hij = softmax over j in P of s_hij
    prefix_to_patch    the same with i in C: where the class and register tokens look
    feature_energy     H = - sum_{j in P} p_j log p_j,  p_j = |x_j|^2 / sum_k |x_k|^2

All are in nats, between 0 (one patch has it all) and log N (spread evenly). What goes to prefix tokens is left out
and the rest renormalised, so that encoders with and without a class token are compared on the same N patches. The
paper (Sec. 3) names "spatial entropy" without an equation; these are ours. Feature energy needs no attention.

Shapes: B pictures, H heads, T = prefix + N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fusionkit.analysis.capture import Scores, watch
from fusionkit.plugin import EncoderInfo

PATCH, PREFIX, ENERGY = "patch_to_patch", "prefix_to_patch", "feature_energy"
MEASURES = (PATCH, PREFIX, ENERGY)

EQUATIONS = {
    PATCH: "mean over heads h and patches i of -sum_j a_hij log a_hij; a_hij = softmax over patches j of the logits",
    PREFIX: "the same with i the prefix tokens (class and register tokens)",
    ENERGY: "-sum_j p_j log p_j; p_j = |x_j|^2 / sum_k |x_k|^2 over the patch tokens that leave the block",
}

_UNDERFLOW = -200.0
"""Below this exp is 0 in float32; a logit of -inf (a masked pair) there gives 0 * -200 and not 0 * -inf."""


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of softmax(logits) over the last axis. Overwrites `logits`, which must be float32 or float64.

    Equation: H = log Z - sum_j e_j s_j / Z with s = logits - max, e = exp(s), Z = sum_j e_j. Equal logits give log N
    and a single one above all others 0, both without any rounding but that of the logarithm.
    """
    logits -= logits.amax(-1, keepdim=True)
    logits.clamp_(min=_UNDERFLOW)
    exponentials = logits.exp()
    total = exponentials.sum(-1)
    return total.log() - exponentials.mul_(logits).sum(-1) / total


def attention_entropy(scores: Scores, picture: int) -> dict[str, float]:
    """`patch_to_patch`, and `prefix_to_patch` if there are prefix tokens, of one picture."""
    to_patches_HTN = scores.logits(picture)[..., scores.prefix :]
    found_HT = entropy(to_patches_HTN)
    found = {PATCH: float(found_HT[:, scores.prefix :].mean())}
    if scores.prefix:
        found[PREFIX] = float(found_HT[:, : scores.prefix].mean())
    return found


def energy_entropy(x_BND: Tensor) -> Tensor:
    """`feature_energy` of every picture: [B]. Tokens that are all zero are spread evenly: log N."""
    energy_BN = x_BND.float().square().sum(-1)
    energy_BN += energy_BN.sum(-1, keepdim=True) == 0
    return entropy(energy_BN.log_())


def measure_entropy(
    encoder: nn.Module, info: EncoderInfo, x_BCHW: Tensor, layers: Sequence[int]
) -> tuple[list[dict[str, dict[str, float]]], dict[int, str]]:
    """Every measure of every layer for each picture of a batch: measure -> layer as text -> nats.

    The second value says which layers have no attention to measure, and why.
    """
    rows: list[dict[str, Any]] = [{} for _ in range(len(x_BCHW))]

    def on_tokens(layer: int, x_BND: Tensor) -> None:
        for row, value in zip(rows, energy_entropy(x_BND).tolist(), strict=True):
            row.setdefault(ENERGY, {})[str(layer)] = value

    def on_attention(layer: int, scores: Scores) -> None:
        for picture, row in enumerate(rows):
            for name, value in attention_entropy(scores, picture).items():
                row.setdefault(name, {})[str(layer)] = value

    missing = watch(encoder, info, x_BCHW, layers, on_tokens, on_attention)
    return rows, missing
