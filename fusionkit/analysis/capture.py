"""Attention of chosen blocks, recomputed from the queries and keys that the encoder itself hands to its kernel.

Fused kernels never form the attention matrix. While an encoder runs, calls of scaled-dot-product attention, of
softmax over token pairs (eager attention) and of `nn.MultiheadAttention` are seen, whoever makes them: timm,
transformers or a plugin. A block's queries and keys are kept until the block is done, one layer at a time, and their
logits are formed when somebody asks, one picture at a time. Rotary positions, query norms and biases are in what is
seen, so nothing about an architecture is assumed, except that prefix tokens stand before the patch tokens.

Shapes: B pictures, H heads, T = prefix + N tokens, K head width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fusionkit.errors import NumericsError, ShapeError
from fusionkit.plugin import EncoderInfo

_SOFTMAX = (F.softmax, torch.softmax, torch.Tensor.softmax)
_SDPA = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
_MHA = inspect.signature(F.multi_head_attention_forward)


@dataclass(frozen=True, slots=True)
class Scores:
    """The attention of one block for a batch, before the softmax; rows and columns are prefix tokens, then patches."""

    batch: int
    prefix: int
    tokens: int
    _logits: Callable[[int], Tensor]

    def logits(self, picture: int) -> Tensor:
        """Of one picture, every head: float32 [H, T, T]. The caller may overwrite it."""
        return self._logits(picture)

    def weights(self, picture: int) -> Tensor:
        """softmax of the logits over the keys: [H, T, T]."""
        return torch.softmax(self.logits(picture), dim=-1)


OnTokens = Callable[[int, Tensor], None]
OnAttention = Callable[[int, Scores], None]


def watch(
    encoder: nn.Module,
    info: EncoderInfo,
    x_BCHW: Tensor,
    layers: Sequence[int],
    on_tokens: OnTokens | None = None,
    on_attention: OnAttention | None = None,
) -> dict[int, str]:
    """Run an encoder; hand on the tokens x_BND of `layers` and the attention inside the blocks that end at them.

    Layer 0 has no block. Both callbacks get a layer as soon as it is computed and may keep nothing. Returns the layers
    whose attention could not be had, with the reason: an encoder without attention is no error.

    Raises ShapeError when the encoder does not hand out the layers it was asked for or their shape is not the one it
    describes, NumericsError when they are not finite.
    """
    watcher = _Watcher(info, len(x_BCHW), frozenset(layers) if on_attention is not None else frozenset())
    wanted, given, missing = frozenset(layers), [], dict[int, str]()

    def consume(layer: int, x_BND: Tensor) -> None:
        watcher.busy = True
        given.append(layer)
        _check_tokens(info, layer, x_BND, len(x_BCHW))
        if layer in watcher.wanted and layer > 0 and on_attention is not None:
            scores, reason = watcher.take()
            if scores is None:
                missing[layer] = reason
            else:
                on_attention(layer, scores)
        if layer in wanted and on_tokens is not None:
            on_tokens(layer, x_BND)
        watcher.block = layer + 1
        watcher.reset()
        watcher.busy = False

    if not callable(getattr(encoder, "tap", None)):
        raise ShapeError(
            f"{info.name or 'encoder'}: {type(encoder).__name__} has no tap(x, layers, consume), by which layers are read "
            "(`fusionkit plugin new NAME --family encoder` writes one that has)"
        )
    tapped = list(range(max(wanted) + 1))
    with torch.inference_mode(), watcher:
        encoder.tap(x_BCHW, tapped, consume)  # type: ignore[operator]
    if given != tapped:
        raise ShapeError(f"{info.name or 'encoder'}: tap was asked for layers {tapped} in rising order, gave {given}")
    return missing


def _check_tokens(info: EncoderInfo, layer: int, x_BND: Tensor, batch: int) -> None:
    """Raise ShapeError or NumericsError for tokens that are not what the encoder's facts promise."""
    expected = (batch, info.grid.tokens, info.width)
    if tuple(x_BND.shape) != expected:
        raise ShapeError(
            f"{info.name or 'encoder'}: layer {layer} is of shape {tuple(x_BND.shape)}, expected {expected}: "
            "pictures, patch tokens without prefix, width"
        )
    if not bool(torch.isfinite(x_BND).all()):
        raise NumericsError(
            f"{info.name or 'encoder'}: layer {layer} holds NaN or infinity; check its weights and the pictures' values"
        )


class _Watcher(TorchFunctionMode):
    """Remembers what attends between two layers."""

    def __init__(self, info: EncoderInfo, batch: int, wanted: frozenset[int]) -> None:
        super().__init__()
        self.batch, self.prefix = batch, info.prefix_tokens
        self.tokens = info.grid.tokens + info.prefix_tokens
        self.wanted = wanted
        self.block, self.busy = 1, False
        self.found: list[Scores] = []
        self.others: set[str] = set()

    def reset(self) -> None:
        self.found, self.others = [], set()

    def take(self) -> tuple[Scores | None, str]:
        """The one self-attention of the block that just ended, or why there is none."""
        if len(self.found) == 1:
            return self.found[0], ""
        if self.found:
            return None, f"the block attends {len(self.found)} times over all tokens"
        if self.others:
            return (
                None,
                f"the block attends over {' and '.join(sorted(self.others))}, not over all {self.tokens} tokens",
            )
        return None, "the block computes no attention that can be seen"

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.busy or self.block not in self.wanted:
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            self._see_kernel(dict(zip(_SDPA, args, strict=False)) | kwargs)
        elif func is F.multi_head_attention_forward:
            return self._see_module(func, args, kwargs)
        elif func in _SOFTMAX:
            self._see_softmax(*args, **kwargs)
        return func(*args, **kwargs)

    def _see_kernel(self, call: dict[str, Any]) -> None:
        q, k = call["query"], call["key"]
        if not self._fits(q.shape[:-2], q.shape[-2], k.shape[-2]):
            return
        q_BHTK, k_BGTK = (x.reshape(self.batch, -1, *x.shape[-2:]) for x in (q, k))
        mask, causal = call.get("attn_mask"), call.get("is_causal", False)
        given = call.get("scale")
        scale: float = q.shape[-1] ** -0.5 if given is None else given

        def logits(picture: int) -> Tensor:
            queries, keys = q_BHTK[picture].float(), k_BGTK[picture].float()
            if len(keys) != len(queries):
                keys = keys.repeat_interleave(len(queries) // len(keys), dim=0)
            found: Tensor = (queries * scale) @ keys.transpose(-2, -1)
            if causal:
                found = found.masked_fill(torch.ones_like(found, dtype=torch.bool).triu(1), -torch.inf)
            if mask is None:
                return found
            row = torch.broadcast_to(mask, (self.batch, *found.shape))[picture]
            return found.masked_fill(~row, -torch.inf) if row.dtype == torch.bool else found + row.float()

        self.found.append(Scores(self.batch, self.prefix, self.tokens, logits))

    def _see_softmax(self, logits: Tensor, dim: int | None = None, *rest: Any, **kwargs: Any) -> None:
        # Softmax over anything but pairs of tokens is not attention and none of our business.
        if logits.ndim not in (3, 4) or dim not in (-1, logits.ndim - 1) or logits.shape[-1] != logits.shape[-2]:
            return
        if self._fits(logits.shape[:-2], logits.shape[-2], logits.shape[-1]):
            kept = logits.reshape(self.batch, -1, *logits.shape[-2:])
            self.found.append(
                Scores(self.batch, self.prefix, self.tokens, lambda picture: kept[picture].float().clone())
            )

    def _see_module(self, func: Any, args: Any, kwargs: Any) -> Any:
        """`nn.MultiheadAttention` calls its kernel where it cannot be seen, but gives its weights when asked."""
        call = _MHA.bind(*args, **kwargs)
        call.apply_defaults()
        asked, averaged = call.arguments["need_weights"], call.arguments["average_attn_weights"]
        call.arguments |= {"need_weights": True, "average_attn_weights": False}
        output, weights_BHTS = func(*call.args, **call.kwargs)
        if weights_BHTS is not None and weights_BHTS.ndim == 4:
            batch, heads, queries, keys = weights_BHTS.shape
            if self._fits((batch, heads), queries, keys):
                self.found.append(
                    Scores(self.batch, self.prefix, self.tokens, lambda picture: weights_BHTS[picture].float().log())
                )
        weights = None if not asked else weights_BHTS.mean(1) if averaged else weights_BHTS
        return output, weights

    def _fits(self, leading: Sequence[int], queries: int, keys: int) -> bool:
        """Whether these are all tokens of every picture with themselves; notes what else it is."""
        rows = 1
        for size in leading:
            rows *= size
        if queries == keys == self.tokens and rows % self.batch == 0 and leading[0] % self.batch == 0:
            return True
        self.others.add(f"{queries} x {keys} tokens")
        return False
