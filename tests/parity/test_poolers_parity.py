"""Attention pooling reproduces the recorded numbers."""

from __future__ import annotations

import pytest
import torch

from fusionkit.blocks.poolers.attention_pool import AttentionPool
from fusionkit.blocks.poolers.specs import AttentionPoolConfig, plan_attention
from fusionkit.geometry import Grid, TokenSpec
from fusionkit.ops.tokens import Tokens
from fusionkit.plugin import BlockSite

OFFICIAL = {"wq": "query", "wk": "key", "wv": "value", "wo": "output"}


@pytest.mark.parametrize("number", range(4))
def test_attention_pool(golden, number):
    file = golden(f"pool_meanq_dev{number}")
    h, x = file.hparams, file["input.x"].flatten(0, 1)
    config = AttentionPoolConfig(
        window=tuple(h["window"]), heads=h["h"], kv_heads=h["kvh"], uneven="pad_attended" if number == 2 else "error"
    )
    spec = TokenSpec(Grid(*h["hw"]), h["d"])
    plan = plan_attention(config, {"input": spec}, None)
    block = AttentionPool(config, BlockSite(inputs={"input": spec}, plan=plan)).to(x.dtype)
    block.load_state_dict(file.params(OFFICIAL))
    out = block(Tokens(x, spec.grid))
    assert [out.grid.height, out.grid.width] == h["out_hw"]
    atol = 1e-5 if x.dtype == torch.float32 else 1e-12
    torch.testing.assert_close(out.x_BND, file["output.out"].flatten(0, 1), atol=atol, rtol=0)


def test_window_order(golden):
    """Windows and their tokens come in the recorded order."""
    from fusionkit.ops.windows import split_windows

    for number in range(4):
        file = golden(f"pool_meanq_dev{number}")
        x = file["input.x"].flatten(0, 1)
        windows = split_windows(x, Grid(*file.hparams["hw"]), tuple(file.hparams["window"]))
        assert torch.equal(windows.flatten(0, 1), file["aux.windows"])
