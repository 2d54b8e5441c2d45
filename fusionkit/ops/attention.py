"""Attention behind one function, with a choice of backend.

`sdpa` is the default, `eager` the readable reference, `xformers` and `flex` run where they can. A backend that is
missing or does not suit the call is an error that says why; nothing falls back in silence. B batch, H heads,
G key and value heads (G divides H), N queries, M keys, K head width.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionkit.errors import UsageError

BACKENDS = ("sdpa", "eager", "xformers", "flex")
"""Names for `attend(backend=...)` and `Runtime.attention`."""


class UsesAttention:
    """Mixin of modules whose attention backend the runtime chooses."""

    attention_backend: str = "sdpa"


def attend(
    q_BHNK: Tensor, k_BGMK: Tensor, v_BGMK: Tensor, mask: Tensor | None = None, *, backend: str = "sdpa"
) -> Tensor:
    """softmax(q kᵀ / √K) v.

    Shapes: mask broadcasts to [B, H, N, M]; bool (True may be attended) or float (added to the logits). Returns
    [B, H, N, K]. A query that no bool mask entry lets see anything gets exactly 0.

    Raises: UsageError if the backend is unknown, missing or cannot serve these tensors.
    """
    if backend not in BACKENDS:
        raise UsageError(f"unknown attention backend '{backend}'; expected one of {', '.join(BACKENDS)}")
    if mask is None or mask.dtype != torch.bool:
        return _run(backend, q_BHNK, k_BGMK, v_BGMK, mask)
    # Backends disagree about rows without a key (0, NaN, or the mean of all): open those rows, then zero them.
    seen = mask.any(-1, keepdim=True)
    out_BHNK = _run(backend, q_BHNK, k_BGMK, v_BGMK, mask | ~seen)
    return torch.where(seen, out_BHNK, out_BHNK.new_zeros(()))


def use_attention_backend(model: nn.Module, backend: str) -> None:
    """Make every fusionkit attention in `model` use `backend`.

    Raises: UsageError if it is unknown or not available on this machine.
    """
    if reason := why_unavailable(backend):
        raise UsageError(f"attention backend '{backend}' cannot be used: {reason}")
    for module in model.modules():
        if isinstance(module, UsesAttention):
            module.attention_backend = backend


def why_unavailable(backend: str) -> str:
    """Why a backend cannot be used on this machine at all, or the empty string if it can."""
    if backend not in BACKENDS:
        return f"it is unknown; expected one of {', '.join(BACKENDS)}"
    if backend == "xformers":
        if importlib.util.find_spec("xformers") is None:
            return "the package xformers is not installed (pip install 'fusionkit[xformers]', or use sdpa)"
        if not torch.cuda.is_available():
            return "xformers runs on CUDA devices only and there is none (use sdpa)"
    return ""


def _run(backend: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return _IMPLEMENTATIONS[backend](q, k, v, mask)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    mask = mask if mask is None or mask.dtype == torch.bool else mask.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


def _eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    k, v = _every_head(k, q.shape[1]), _every_head(v, q.shape[1])
    logits_BHNM = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    if mask is not None:
        added = torch.zeros_like(logits_BHNM).masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask
        logits_BHNM = logits_BHNM + added
    # Half precision keeps its logits but not its sum of exponentials.
    weights_BHNM = torch.softmax(logits_BHNM, dim=-1, dtype=torch.promote_types(q.dtype, torch.float32))
    return weights_BHNM.to(v.dtype) @ v


def _xformers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    _require_xformers(q)
    efficient = importlib.import_module("xformers.ops").memory_efficient_attention
    heads, (queries, keys) = q.shape[1], (q.shape[2], k.shape[2])
    bias = None
    if mask is not None:
        added = (
            torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask
        )
        # Its kernels want the rows of the bias aligned to 8 entries: lay them out in a wider buffer.
        wide = added.new_zeros(q.shape[0], heads, queries, -(-keys // 8) * 8, dtype=q.dtype)
        wide[..., :keys] = added
        bias = wide[..., :keys]
    by_token = [part.transpose(1, 2) for part in (q, _every_head(k, heads), _every_head(v, heads))]
    out: Tensor = efficient(*by_token, attn_bias=bias)
    return out.transpose(1, 2)


def _require_xformers(q: Tensor) -> None:
    if reason := why_unavailable("xformers"):
        raise UsageError(f"attention backend 'xformers' cannot be used: {reason}")
    if q.device.type != "cuda":
        raise UsageError(f"attention backend 'xformers' needs CUDA tensors, got {q.device.type} (use sdpa)")


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    if q.device.type != "cuda" and torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        raise UsageError(f"attention backend 'flex' has no backward on {q.device.type} (use sdpa, or no_grad)")
    if mask is None:
        plain: Tensor = _flex_kernel()(q, k, v, enable_gqa=q.shape[1] != k.shape[1])
        return plain
    full = mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])

    def change(score: Tensor, b: Tensor, h: Tensor, n: Tensor, m: Tensor) -> Tensor:
        entry = full[b, h, n, m]
        return torch.where(entry, score, -torch.inf) if full.dtype == torch.bool else score + entry

    out: Tensor = _flex_kernel()(q, k, v, score_mod=change, enable_gqa=q.shape[1] != k.shape[1])
    return out


@cache
def _flex_kernel() -> Callable[..., Any]:
    flex = importlib.import_module("torch.nn.attention.flex_attention").flex_attention
    # Uncompiled it would materialise all scores, which is what it exists to avoid.
    compiled: Callable[..., Any] = torch.compile(flex)
    return compiled


def _every_head(x_BGMK: Tensor, heads: int) -> Tensor:
    repeat = heads // x_BGMK.shape[1]
    return x_BGMK if repeat == 1 else x_BGMK.repeat_interleave(repeat, dim=1)


_IMPLEMENTATIONS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]] = {
    "sdpa": _sdpa,
    "eager": _eager,
    "xformers": _xformers,
    "flex": _flex,
}
