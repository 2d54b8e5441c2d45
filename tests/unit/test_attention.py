"""Attention backends agree with a plain loop, and say why when they cannot run."""

from __future__ import annotations

import math
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from fusionkit.errors import UsageError
from fusionkit.ops import attention
from fusionkit.ops.attention import BACKENDS, UsesAttention, attend, use_attention_backend, why_unavailable


def slow(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """The definition, one query and one head at a time."""
    out = torch.zeros_like(q)
    group = q.shape[1] // k.shape[1]
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for n in range(q.shape[2]):
                keys, values = k[b, h // group], v[b, h // group]
                logits = keys @ q[b, h, n] / math.sqrt(q.shape[-1])
                if mask is not None:
                    row = mask.expand(*q.shape[:3], k.shape[2])[b, h, n]
                    if row.dtype == torch.bool:
                        if not row.any():
                            continue
                        logits = logits.masked_fill(~row, -math.inf)
                    else:
                        logits = logits + row
                weights = (logits - logits.max()).exp()
                out[b, h, n] = (weights / weights.sum()) @ values
    return out


def qkv(kv_heads: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 4, 5, 8), (2, kv_heads, 7, 8), (2, kv_heads, 7, 8)
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return q, k, v


def bool_mask() -> Tensor:
    mask = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(1)) > 0.4
    mask[0, :, 2] = False  # a query that sees nothing
    return mask


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("kind", ["none", "bool", "float"])
def test_backends_agree_with_the_definition(backend, kv_heads, kind):
    q, k, v = qkv(kv_heads)
    mask = {"none": None, "bool": bool_mask(), "float": torch.randn(4, 5, 7, dtype=torch.float64)}[kind]
    torch.testing.assert_close(attend(q, k, v, mask, backend=backend), slow(q, k, v, mask), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_query_that_sees_nothing_gets_exactly_zero(backend, dtype):
    q, k, v = qkv(dtype=dtype)
    q.requires_grad_()
    out = attend(q, k, v, bool_mask(), backend=backend)
    assert torch.equal(out[0, :, 2], torch.zeros_like(out[0, :, 2]))
    assert out.isfinite().all()
    out.sum().backward()
    assert q.grad is not None
    assert torch.equal(q.grad[0, :, 2], torch.zeros_like(q.grad[0, :, 2]))
    assert q.grad.isfinite().all()


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_half_precision_is_close_to_exact(backend):
    q, k, v = qkv(2, torch.bfloat16)
    exact = slow(*(x.double() for x in (q, k, v)))
    found = attend(q, k, v, backend=backend)
    assert found.dtype == torch.bfloat16
    assert (found.double() - exact).norm() / exact.norm() < 5e-3


def test_unknown_backend():
    with pytest.raises(
        UsageError, match="unknown attention backend 'flash'; expected one of sdpa, eager, xformers, flex"
    ):
        attend(*qkv(), backend="flash")


def test_missing_xformers_says_so(monkeypatch):
    monkeypatch.setattr("fusionkit.ops.attention.importlib.util.find_spec", lambda name: None)
    expected = "attention backend 'xformers' cannot be used: the package xformers is not installed"
    with pytest.raises(UsageError, match=expected):
        attend(*qkv(), backend="xformers")
    with pytest.raises(UsageError, match=re.escape("pip install 'fusionkit[xformers]'")):
        use_attention_backend(nn.Linear(2, 2), "xformers")


def test_xformers_without_a_gpu_says_so(monkeypatch):
    monkeypatch.setattr("fusionkit.ops.attention.importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="xformers runs on CUDA devices only and there is none"):
        attend(*qkv(), backend="xformers")


@pytest.mark.parametrize("kind", ["none", "bool", "float"])
def test_xformers_gets_its_own_layout(kind, monkeypatch):
    """Against a stand-in with the documented call: tokens before heads, an additive bias, as many key heads as heads."""

    def efficient(q, k, v, attn_bias=None):
        assert q.shape == (2, 5, 4, 8)
        assert k.shape == v.shape == (2, 7, 4, 8)
        if attn_bias is not None:
            assert attn_bias.shape == (2, 4, 5, 7)
            assert attn_bias.stride(-2) % 8 == 0  # rows start aligned
        return slow(*(x.transpose(1, 2) for x in (q, k, v)), attn_bias).transpose(1, 2)

    monkeypatch.setitem(sys.modules, "xformers", ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", SimpleNamespace(memory_efficient_attention=efficient))
    monkeypatch.setattr(attention, "_require_xformers", lambda q: None)
    q, k, v = qkv(2)
    mask = {"none": None, "bool": bool_mask(), "float": torch.randn(4, 5, 7, dtype=torch.float64)}[kind]
    torch.testing.assert_close(attend(q, k, v, mask, backend="xformers"), slow(q, k, v, mask), atol=1e-12, rtol=1e-12)


def test_flex_without_backward_says_so():
    q, k, v = qkv(dtype=torch.float32)
    with pytest.raises(UsageError, match="'flex' has no backward on cpu"):
        attend(q.requires_grad_(), k, v, backend="flex")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none", "bool", "float"])
def test_flex_agrees_with_sdpa(kind):
    """Compiles a kernel: half a minute on a CPU."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 4, 16, 16, generator=generator)
    k, v = torch.randn(2, 1, 2, 16, 16, generator=generator)
    mask = torch.rand(1, 1, 16, 16, generator=generator) > 0.4
    mask[:, :, 3] = False
    mask = {"none": None, "bool": mask, "float": torch.randn(1, 4, 16, 16, generator=generator)}[kind]
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v, mask, backend="flex"), attend(q, k, v, mask), atol=2e-6, rtol=1e-5)


def test_backend_is_set_on_every_attention_of_a_model():
    class Block(nn.Module, UsesAttention):
        pass

    model = nn.Sequential(Block(), nn.Linear(2, 2), nn.Sequential(Block()))
    use_attention_backend(model, "eager")
    assert [m.attention_backend for m in model.modules() if isinstance(m, UsesAttention)] == ["eager", "eager"]
    assert Block().attention_backend == "sdpa"
    with pytest.raises(UsageError, match="it is unknown"):
        use_attention_backend(model, "fast")


def test_every_backend_is_known_to_why_unavailable():
    for backend in BACKENDS:
        assert isinstance(why_unavailable(backend), str)
    assert why_unavailable("sdpa") == why_unavailable("eager") == ""
