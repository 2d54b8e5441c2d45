"""How far a connector's attention reaches in the picture, and what closing a gate or a stream changes.

With a_hnm the attention of head h from query cell n to memory cell m, d_nm the distance between their centres in
sides of the crop:

    reach     mean over n of Σ_m a_hnm d_nm, beside the same for even attention (a = 1/M)
    profile   the attention that falls into each ring of distance, beside the even one
    change    |V - V'| / |V|, V the fused tokens, V' those with one gate shut or one stream's tokens at zero

Shapes: C crops, H heads, N query and M memory cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fusionkit.model.modeling import FusionVLM, vision_inputs
from fusionkit.ops.learned import gates
from fusionkit.ops.tokens import Tokens

RINGS = 12
"""Rings of equal width from 0 to the crop's diagonal."""

_SDPA = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


@dataclass(slots=True)
class Reach:
    """Of one connector, mean over its crops and queries: `heads` [H], `even`, and both profiles [RINGS]."""

    heads: list[float]
    even: float
    profile: list[float]
    even_profile: list[float]

    def as_data(self) -> dict[str, Any]:
        return {"heads": self.heads, "even": self.even, "profile": self.profile, "even_profile": self.even_profile}


def look(model: FusionVLM, batch: Mapping[str, Any]) -> tuple[dict[str, Reach], dict[str, float]]:
    """Of one picture: the reach of every connector that attends between grids, and the change of each removal."""
    inputs = vision_inputs(batch)
    with torch.inference_mode():
        streams = model.encode_streams(**inputs)
        with _watching(model) as watcher:
            whole = model.fuse(streams).x_BND
    changes = {f"gate {name}": _change(whole, model, streams, gate=name) for name in _fusion_gates(model)}
    if len(streams) > 1:
        changes |= {f"stream {name}": _change(whole, model, streams, stream=name) for name in streams}
    return watcher.found, changes


def measure(weights_CHNM: Tensor, distance_NM: Tensor) -> Reach:
    """From attention weights and distances. A query that attends to nothing counts for nothing."""
    weights_HNM = weights_CHNM.double().mean(0)
    distance_NM = distance_NM.double()
    ring_NM = (distance_NM / 2**0.5 * RINGS).long().clamp(max=RINGS - 1)
    even_N = distance_NM.mean(-1)
    mass_NM = weights_HNM.mean(0)
    profile = [float(mass_NM[ring_NM == ring].sum() / mass_NM.sum()) for ring in range(RINGS)]
    even_profile = [float((ring_NM == ring).double().mean()) for ring in range(RINGS)]
    heads = (weights_HNM * distance_NM).sum((-2, -1)) / weights_HNM.sum((-2, -1))
    return Reach(heads.tolist(), float(even_N.mean()), profile, even_profile)


def distances(query: Tokens, memory: Tokens) -> Tensor:
    """Between the centres of cells, [N, M], in sides of the crop."""
    of_query, of_memory = (
        torch.tensor(list(tokens.frame.cell_centres(tokens.grid)), dtype=torch.float64) for tokens in (query, memory)
    )
    return torch.cdist(of_query, of_memory)


@dataclass(slots=True)
class _Watcher:
    """What attends inside the connectors that run now."""

    found: dict[str, Reach] = field(default_factory=dict)
    running: list[tuple[str, Sequence[Tokens]]] = field(default_factory=list)

    def see(self, call: dict[str, Any]) -> None:
        if not self.running:
            return
        address, inputs = self.running[-1]
        queries, keys = call["query"].shape[-2], call["key"].shape[-2]
        asks = next((tokens for tokens in inputs if tokens.grid.tokens == queries == tokens.x_BND.shape[1]), None)
        holds = next(
            (tokens for tokens in inputs if tokens is not asks and tokens.grid.tokens == keys == tokens.x_BND.shape[1]),
            None,
        )
        if asks is None or holds is None:
            return
        name, number = address, 1
        while name in self.found:  # a connector may attend both ways
            number += 1
            name = f"{address} ({number})"
        self.found[name] = measure(_weights(call), distances(asks, holds))


def _weights(call: Mapping[str, Any]) -> Tensor:
    """softmax(q kᵀ scale + mask) [C, H, N, M], as the kernel forms it inside."""
    q, k, mask = call["query"].float().cpu(), call["key"].float().cpu(), call.get("attn_mask")
    if k.shape[1] != q.shape[1]:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    given = call.get("scale")
    logits = q @ k.mT * (q.shape[-1] ** -0.5 if given is None else given)
    if mask is not None:
        mask = mask.cpu()
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask.float()
    weights: Tensor = logits.softmax(-1)
    return weights


class _Mode(TorchFunctionMode):
    def __init__(self, watcher: _Watcher) -> None:
        super().__init__()
        self.watcher = watcher

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.watcher.see(dict(zip(_SDPA, args, strict=False)) | kwargs)
        return func(*args, **kwargs)


@contextmanager
def _watching(model: FusionVLM) -> Iterator[_Watcher]:
    """While open, attention inside the fusion steps is measured."""
    watcher, handles = _Watcher(), []

    def enter(address: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            watcher.running.append((address, [each for each in [*args, *kwargs.values()] if isinstance(each, Tokens)]))

        return hook

    def leave(*_: Any) -> None:
        watcher.running.pop()

    for node in model.plan.fusion:
        module = model.get_submodule(node.address)
        handles.append(module.register_forward_pre_hook(enter(node.address), with_kwargs=True))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        with _Mode(watcher):
            yield watcher
    finally:
        for handle in handles:
            handle.remove()


def _fusion_gates(model: FusionVLM) -> list[str]:
    return [gate.address for gate in gates(model) if gate.address.startswith("fusion.")]


def _change(
    whole: Tensor, model: FusionVLM, streams: Mapping[str, Tokens], *, gate: str = "", stream: str = ""
) -> float:
    with torch.no_grad():
        if stream:
            without = streams[stream].with_x(torch.zeros_like(streams[stream].x_BND))
            other = model.fuse({**streams, stream: without}).x_BND
        else:
            parameter = model.get_parameter(gate)
            before = parameter.detach().clone()
            try:
                parameter.zero_()
                other = model.fuse(streams).x_BND
            finally:
                parameter.copy_(before)
    return float((whole - other).float().norm() / whole.float().norm().clamp(min=torch.finfo(torch.float32).tiny))
