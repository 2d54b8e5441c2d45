"""The released connector reproduces the recorded numbers, forward and gradients.

Its coordinates are float32 values inside a float64 module, ours are exact: hence 1e-5, and 1e-12 with its rounding.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fusionkit.blocks.connectors.cross_attention import CrossAttention
from fusionkit.blocks.connectors.rope_cross_attention_released import RopeCrossAttentionReleased
from fusionkit.blocks.connectors.specs import RopeCrossAttentionReleasedConfig, plan_released
from fusionkit.geometry import Grid, TokenSpec
from fusionkit.ops.rope import Phases, rotate_interleaved
from fusionkit.ops.tokens import Tokens
from fusionkit.plugin import BlockSite

DIRECTION = {
    "q_proj": "attention.query",
    "k_proj": "attention.key",
    "v_proj": "attention.value",
    "out_proj": "attention.output",
    "rope.freqs.1": "frequencies_y",
    "rope.freqs.2": "frequencies_x",
    "alpha": "distance_weight",
}
OFFICIAL = {
    "proj_sig": "project_query",
    "proj_din": "project_memory",
    "ln_sig": "norm_query",
    "ln_din": "norm_memory",
    "gate_sig": "to_query.gate",
    "gate_din": "to_memory.gate",
    **{f"cross_sig_from_dino.{old}": f"to_query.{new}" for old, new in DIRECTION.items()},
    **{f"cross_dino_from_sig.{old}": f"to_memory.{new}" for old, new in DIRECTION.items()},
}


def connector(file) -> tuple[RopeCrossAttentionReleased, Tokens, Tokens]:
    h = file.hparams
    radius, dist = h["cutoff"], h.get("dist")
    decay = {None: None, "v0": 0.1, "v1": 5 / (radius or 1)}[dist]
    config = RopeCrossAttentionReleasedConfig(
        query="semantic",
        memory="spatial",
        width=h["d_model"],
        heads=h["n_head"],
        radius=radius,
        distance_decay=decay,
        bidirectional=h.get("bidir", False),
    )
    inputs = {"query": TokenSpec(Grid(*h["hw_sig"]), h["d_sig"]), "memory": TokenSpec(Grid(*h["hw_din"]), h["d_din"])}
    block = RopeCrossAttentionReleased(config, BlockSite(inputs=inputs, plan=plan_released(config, inputs, None)))
    block = block.double()
    mapping = dict(OFFICIAL)
    if decay is None:
        mapping = {old: new for old, new in mapping.items() if not old.endswith("alpha")}
    state = {name: t.flatten() if "frequencies" in name else t for name, t in file.params(mapping).items()}
    block.load_state_dict(state)
    tokens = [
        Tokens(file[f"input.{name}"].flatten(0, 1).clone().requires_grad_(), spec.grid)
        for name, spec in (("feat_siglip", inputs["query"]), ("feat_dino", inputs["memory"]))
    ]
    return block, *tokens


def outputs(block: RopeCrossAttentionReleased, query: Tokens, memory: Tokens) -> dict[str, Tensor]:
    out = block(query, memory)
    out = out if isinstance(out, dict) else {"main": out}
    return {name: tokens.x_BND for name, tokens in out.items()}


def official_places(block: RopeCrossAttentionReleased, tokens: Tokens) -> Tensor:
    """Coordinates that give the released angles: float32 linspace, and π/2 times it in float32 too."""
    y, x = (torch.linspace(0, 1, n) for n in (tokens.grid.height, tokens.grid.width))
    places = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).reshape(-1, 2)
    return (places * (math.pi / 2)).double() / (math.pi / 2)


@pytest.mark.parametrize("number", range(10))
def test_cross_rope(golden, number):
    check_cross_rope(golden(f"cross_rope_dev{number}"), atol=1e-5)


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 5, 8, 9])  # 6 and 7 have distance terms, taken in float32
def test_cross_rope_with_the_released_rounding(golden, number, monkeypatch):
    monkeypatch.setattr(RopeCrossAttentionReleased, "_places", official_places)
    check_cross_rope(golden(f"cross_rope_dev{number}"), atol=1e-12)


def check_cross_rope(file, atol: float) -> None:
    block, query, memory = connector(file)
    out = outputs(block, query, memory)

    expected = file["output.sig_fused"].flatten(0, 1)
    torch.testing.assert_close(out["main"], expected, atol=atol, rtol=0)
    loss = (out["main"] * file["input.cotangent"].flatten(0, 1)).sum()
    if "memory" in out:
        torch.testing.assert_close(out["memory"], file["output.din_fused"].flatten(0, 1), atol=atol, rtol=0)
        loss = loss + out["memory"].sum()
    loss.backward()

    # Gradients add up over many tokens: their tolerance follows their size.
    def near(ours: Tensor | None, name: str) -> None:
        theirs = file[f"grad.{name}"].reshape(ours.shape)
        slack = 5 * atol * max(1.0, theirs.abs().max().item())
        torch.testing.assert_close(ours, theirs, atol=slack, rtol=0)

    near(query.x_BND.grad, "feat_siglip")
    near(memory.x_BND.grad, "feat_dino")
    near(block.to_query.gate.grad, "gate_sig")
    near(block.to_query.frequencies_y.grad, "cross_sig_from_dino.rope.freqs.1")
    near(block.to_query.frequencies_x.grad, "cross_sig_from_dino.rope.freqs.2")
    if "memory" in out:
        near(block.to_memory.frequencies_y.grad, "cross_dino_from_sig.rope.freqs.1")
        near(block.to_memory.frequencies_x.grad, "cross_dino_from_sig.rope.freqs.2")


def test_time_frequencies_have_no_gradient(golden):
    """The reason why this connector has no parameters for the released time axis."""
    for number in range(10):
        file = golden(f"cross_rope_dev{number}")
        gradients = [t for name, t in file.tensors.items() if name.startswith("grad.") and "freqs.0" in name]
        assert gradients
        assert max(g.abs().max().item() for g in gradients) < 1e-6


def test_query_without_a_key_attends_to_all_evenly(golden):
    """The quirk of the released code that `rope_cross_attention` does not share."""
    file = golden("cross_rope_dev4")
    block, query, memory = connector(file)
    attention = block.to_query.attention
    holds = block.norm_memory(block.project_memory(memory.x_BND))
    even = attention.output(attention.value(holds).mean(1, keepdim=True))
    residual = block.norm_query(block.project_query(query.x_BND))
    update = (outputs(block, query, memory)["main"] - residual) / math.tanh(0.7)
    alone = (update - even).abs().amax(-1) < 1e-9
    assert alone.any()
    assert not alone.all()


def test_padded_keys(golden):
    """The shared attention with explicit coordinates on three axes and a padding mask."""
    file = golden("cross_attn_padmask_dev0")
    heads, width = file.hparams["n_head"], file.hparams["D"]
    attention = CrossAttention(
        width, width, heads=heads, kv_heads=heads, head_width=width // heads, bias=True, rotate=rotate_interleaved
    ).double()
    renamed = {old: new.removeprefix("attention.") for old, new in DIRECTION.items() if old.endswith("proj")}
    attention.load_state_dict(file.params(renamed))

    def phases(coordinates: Tensor) -> Phases:
        # [B, T, N, 3] -> one row of frequencies per axis, in the order t, y, x.
        axes = [
            coordinates[..., axis : axis + 1] * file[f"param.rope.freqs.{axis}"].flatten() * (math.pi / 2)
            for axis in range(3)
        ]
        return Phases.of(torch.cat(axes, -1).flatten(0, 1)[:, None], torch.float64)

    mask = ~file["input.kv_pad_mask"].bool().flatten(0, 1)[:, None, None, :]
    out = attention(
        file["input.q"].flatten(0, 1),
        file["input.kv"].flatten(0, 1),
        (phases(file["input.coords_q"]), phases(file["input.coords_k"])),
        mask,
    )
    torch.testing.assert_close(out, file["output.out"].flatten(0, 1), atol=1e-12, rtol=0)
