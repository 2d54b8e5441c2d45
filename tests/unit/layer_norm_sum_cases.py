"""Run by test_layer_norm_sum with TRITON_INTERPRET=1, which Triton reads when it is imported: kernels on CPU tensors.

Prints one JSON object: for every case, how far `triton`, `eager` and float64 are from each other, in shares of
Σ_k (|gain_k| (1 + |LN_k|) + |shift_k|) at each place; and what else was seen. Interpreted kernels take about a
millisecond for every row and layer, hence the small counts.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

import fusionkit
from fusionkit.errors import UsageError
from fusionkit.model.runtime import Runtime
from fusionkit.ops.layer_norm_sum import layer_norm_sum, use_layer_norm_sum

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def made(count: int, crops: int, tokens: int, width: int, dtype: torch.dtype, layout: str) -> list[Tensor]:
    """Random layers with a mean, laid out as encoders leave them."""

    def one(k: int) -> Tensor:
        if layout == "prefix" or (layout == "mixed" and k % 2):
            return (torch.randn(crops, tokens + 3, width) * 2 + 1).to(dtype)[:, 3:]
        if layout == "channels":
            return (torch.randn(crops, width, tokens) * 2 + 1).to(dtype).transpose(1, 2)
        return (torch.randn(crops, tokens, width) * 2 + 1).to(dtype)

    layers = [one(k) for k in range(count)]
    return [layers[0]] * count if layout == "repeated" else layers


def distances(layers: list[Tensor], gain: Tensor, shift: Tensor | None) -> dict[str, Any]:
    before = [layer.clone() for layer in layers]
    found = {name: layer_norm_sum(layers, gain, shift, backend=name).double() for name in ("eager", "triton")}
    doubles = [layer.double() for layer in layers]
    found["exact"] = layer_norm_sum(doubles, gain.double(), None if shift is None else shift.double())
    scale = torch.zeros_like(doubles[0])
    for k, layer in enumerate(doubles):
        scale += gain[k].double().abs() * (1 + torch.nn.functional.layer_norm(layer, layer.shape[-1:]).abs())
        scale += 0 if shift is None else shift[k].double().abs()

    def share(a: str, b: str) -> float:
        return float(((found[a] - found[b]).abs() / scale).max())

    return {
        "triton to eager": share("triton", "eager"),
        "triton to float64": share("triton", "exact"),
        "eager to float64": share("eager", "exact"),
        "untouched": all(torch.equal(a, b) for a, b in zip(before, layers, strict=True)),
        "finite": bool(found["triton"].isfinite().all()),
    }


def cases() -> dict[str, dict[str, Any]]:
    found = {}
    for name, count, crops, tokens, width in [
        ("fp32", 1, 1, 1, 1),
        ("bf16", 1, 1, 2, 16),
        ("fp16", 2, 1, 2, 7),
        ("fp32", 3, 2, 2, 37),
        ("bf16", 3, 2, 2, 37),
        ("fp16", 3, 2, 2, 37),
        ("bf16", 14, 1, 1, 130),
        ("bf16", 27, 1, 1, 1152),
        ("fp32", 27, 1, 1, 1152),
        ("fp16", 2, 1, 1, 1600),
        ("bf16", 2, 1, 1, 8192),
        ("fp32", 2, 1, 2, 8200),
        ("bf16", 3, 1, 1, 9001),
    ]:
        layers, what = (
            made(count, crops, tokens, width, DTYPES[name], "plain"),
            f"{name} {count}x{crops}x{tokens}x{width}",
        )
        found[what] = distances(layers, torch.randn(count, width), torch.randn(count, width))
        found[f"{what} plain"] = distances(layers, torch.rand(count, 1), None)
    for name, layout in zip(("bf16", "fp32", "fp16", "bf16"), ("prefix", "channels", "mixed", "repeated"), strict=True):
        found[layout] = distances(made(3, 2, 3, 40, DTYPES[name], layout), torch.randn(3, 40), torch.randn(3, 40))
    return found


def in_parts() -> dict[str, Any]:
    """Sums that are continued, as streaming does."""
    layers = made(5, 2, 3, 24, torch.bfloat16, "plain")
    gain, shift = torch.randn(5, 24), torch.randn(5, 24)
    whole = layer_norm_sum(layers, gain, shift, backend="triton")
    total = layer_norm_sum(layers[:2], gain[:2], shift[:2], backend="triton")
    more = layer_norm_sum(layers[2:], gain[2:], shift[2:], total, backend="triton")
    empty = layer_norm_sum([torch.zeros(0, 3, 24)] * 2, gain[:2], shift[:2], backend="triton")
    return {
        "gap": float((whole - more).abs().max()),
        "in place": total.data_ptr() == more.data_ptr(),
        "no crops": list(empty.shape),
        "wrong": float((whole - layer_norm_sum(layers[:4], gain[:4], shift[:4], backend="triton")).abs().max()),
    }


def in_mixers() -> dict[str, Any]:
    """Whole models, streamed, in chunks and from a list, and blocks by themselves, against eager."""
    found: dict[str, Any] = {}
    encoder = {"type": "small_vit", "image_size": 16, "patch": 8, "width": 24, "depth": 3, "heads": 2}
    mixers = {
        "shared": {"type": "orthogonal", "share": "encoder"},
        "two_stage": {"type": "orthogonal_two_stage"},
        "softmax": {"type": "softmax_sum", "norm": True},
        "per_layer": {"type": "orthogonal"},
    }
    for name, mixer in mixers.items():
        stream = {"encoder": encoder, "select": {"type": "all"}, "steps": {"mix": mixer}}
        model = fusionkit.build({"schema": 1, "name": "one", "summary": "One.", "streams": {"only": stream}}).eval()
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
        pixels = {"only": torch.rand(2, 3, 16, 16)}
        with torch.no_grad():
            expected = model.encode_streams(pixels)["only"].x_BND
            gaps = []
            for options in ({}, {"mix_chunk": 2}, {"stream_layers": False}):
                model.runtime = Runtime(layer_norm_sum="triton", **options)
                gaps.append(float((model.encode_streams(pixels)["only"].x_BND - expected).abs().max()))
        step = model.streams["only"].steps["mix"]
        found[name] = {"gaps": gaps, "uses": step.layer_norm_sum_backend, "sums": step.sums_layer_norms}
    return found


def with_grad() -> dict[str, Any]:
    layers = [layer.requires_grad_() for layer in made(3, 1, 2, 12, torch.float32, "plain")]
    gain = torch.randn(3, 12, requires_grad=True)
    grads = []
    for backend in ("eager", "triton"):
        total = layer_norm_sum(layers, gain, backend=backend)
        grads.append(torch.autograd.grad(total.square().sum(), [*layers, gain]))
    return {"same": all(torch.equal(a, b) for a, b in zip(*grads, strict=True))}


def refused() -> list[str]:
    """Messages of what the kernel does not take."""
    texts = []
    for layers in ([torch.zeros(1, 2, 4).double()], [torch.zeros(1, 2, 4), torch.zeros(1, 2, 4).half()]):
        try:
            layer_norm_sum(layers, torch.ones(len(layers), 1), backend="triton")
        except UsageError as error:
            texts.append(str(error))
    return texts


def main() -> None:
    torch.manual_seed(0)
    use_layer_norm_sum(torch.nn.Identity(), "triton")
    with torch.no_grad():
        found: dict[str, Any] = {"cases": cases(), "parts": in_parts(), "mixers": in_mixers(), "refused": refused()}
    print(json.dumps({**found, "grad": with_grad()}))


if __name__ == "__main__":
    main()
