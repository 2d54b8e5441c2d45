"""Mixers against plain fp64 implementations of their equations, and what must hold for any numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fusionkit import registry
from fusionkit.geometry import Grid, LayerStackSpec
from fusionkit.ops.mixing import merge_repeated_logits, softmax_weights
from fusionkit.ops.orthogonal import skew_count
from fusionkit.plugin import BlockSite

SEEDS = st.integers(0, 2**31)
quick = settings(max_examples=25, deadline=None)


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, dict[str, Any], int, int, int]:
    """A mixer, its config fields, the number of layers, the width and a seed."""
    name = draw(st.sampled_from(registry.names("mixers")))
    layers, width = draw(st.integers(1, 4)), draw(st.integers(2, 7))
    fields: dict[str, Any] = {}
    allowed = registry.spec("mixers", name).config.model_fields
    if "width" in allowed and draw(st.booleans()):
        fields["width"] = draw(st.integers(1, 9))
    for field, values in {
        "map": ["cayley", "exp"],
        "init": ["identity", "haar"],
        "share": ["layer", "encoder"],
    }.items():
        if field in allowed:
            fields[field] = draw(st.sampled_from(values))
    if "norm" in allowed:
        fields["norm"] = draw(st.booleans())
    if "groups" in allowed:
        fields["groups"] = draw(st.integers(1, layers))
    return name, fields, layers, width, draw(SEEDS)


def build(name: str, fields: dict[str, Any], layers: int, width: int, seed: int) -> nn.Module:
    """In fp64, with every parameter moved from where it starts."""
    torch.manual_seed(seed)
    spec = registry.spec("mixers", name)
    config = spec.config(**fields)
    stack = LayerStackSpec(tuple(range(1, layers + 1)), Grid(1, 3), width)
    assert spec.plan is not None
    plan = spec.plan(config, {"input": stack}, None)
    module: nn.Module = registry.factory(spec)(config, BlockSite(inputs={"input": stack}, plan=plan))
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return module


def inputs(layers: int, width: int, seed: int, tokens: int = 3) -> list[Tensor]:
    torch.manual_seed(seed + 1)
    return [torch.randn(2, tokens, width, dtype=torch.float64) for _ in range(layers)]


# ------------------------------------------------------------------------- the equations, token by token
def slow_norm(z: np.ndarray, gain: np.ndarray, shift: np.ndarray) -> np.ndarray:
    return np.asarray(gain * (z - z.mean()) / np.sqrt(((z - z.mean()) ** 2).mean() + 1e-5) + shift)


def slow_rotation(skew: np.ndarray, d: int, m: int, name: str, base: np.ndarray | None) -> np.ndarray:
    n = max(d, m)
    a = np.zeros((n, n))
    a[np.tril_indices(n, -1)] = skew
    a -= a.T
    if name == "exp":
        values, vectors = np.linalg.eigh(1j * a)
        square = np.asarray((vectors * np.exp(-1j * values)) @ vectors.conj().T).real
    else:
        square = (np.eye(n) + a / 2) @ np.linalg.inv(np.eye(n) - a / 2)
    start = np.eye(m, d) if base is None else base
    return start @ square if m <= d else square @ start


def slow_mix(name: str, fields: dict[str, Any], state: dict[str, np.ndarray], zs: list[np.ndarray]) -> np.ndarray:
    """The output for one token, from the state dict and that token's vectors."""
    d, count = len(zs[0]), len(zs)
    m = fields.get("width", d)
    if name == "channel_concat":
        return np.concatenate(zs)
    if name == "group_mean":
        groups = np.split(np.stack(zs), [count * g // fields["groups"] for g in range(1, fields["groups"])])
        return np.concatenate([group.mean(axis=0) for group in groups])
    scales = state["scale"] if name == "lln_layerscale" else np.exp(state["logits"]) / np.exp(state["logits"]).sum()
    out = np.zeros(m if name != "orthogonal_two_stage" else d)
    for layer, z in enumerate(zs):
        if "norm.weight" in state:
            shared = state["norm.weight"].ndim == 1
            gain, shift = (
                state[f"norm.{key}"] if shared else state[f"norm.{key}"][layer] for key in ("weight", "bias")
            )
            z = slow_norm(z, gain, shift)
        if name == "orthogonal":
            which = layer if fields["share"] == "layer" else 0
            base = state["maps.base"][which] if "maps.base" in state else None
            z = slow_rotation(state["maps.skew"][which], d, m, fields["map"], base) @ z
        elif name == "orthogonal_two_stage":
            base = state["first.base"][0] if "first.base" in state else None
            z = slow_rotation(state["first.skew"][0], d, d, fields["map"], base) @ z
        elif name in ("linear_sum", "lln_layerscale"):
            z = state[f"projections.{layer}.weight"] @ z + state.get(f"projections.{layer}.bias", 0)
        out = out + scales[layer] * z
    if name == "orthogonal_two_stage":
        base = state["second.base"][0] if "second.base" in state else None
        normed = slow_norm(out, state["norm.weight"], state["norm.bias"])
        return slow_rotation(state["second.skew"][0], d, m, fields["map"], base) @ normed
    return out


@settings(max_examples=80, deadline=None)
@given(cases())
def test_equals_the_equation(case: tuple[str, dict[str, Any], int, int, int]) -> None:
    name, fields, layers, width, seed = case
    module, xs = build(*case), inputs(layers, width, seed)
    out = module(xs).detach().numpy()
    state = {key: value.numpy() for key, value in module.state_dict().items()}
    for place in np.ndindex(2, 3):
        expected = slow_mix(name, fields, state, [x[place].numpy() for x in xs])
        np.testing.assert_allclose(out[place], expected, rtol=0, atol=1e-10)


# --------------------------------------------------------------------------------------------- properties
@quick
@given(cases())
def test_tokens_keep_their_places(case: tuple[str, dict[str, Any], int, int, int]) -> None:
    _, _, layers, width, seed = case
    module, xs = build(*case), inputs(layers, width, seed, tokens=5)
    order = torch.randperm(5)
    torch.testing.assert_close(module([x[:, order] for x in xs]), module(xs)[:, order], rtol=0, atol=1e-12)
    one = module([x[1:, 2:3] for x in xs])
    torch.testing.assert_close(one, module(xs)[1:, 2:3], rtol=0, atol=1e-12)


@quick
@given(cases(), st.integers(1, 5))
def test_streamed_and_folded_equal_forward(case: tuple[str, dict[str, Any], int, int, int], chunk: int) -> None:
    name, _, layers, width, seed = case
    assume(name != "channel_concat")
    module: Any = build(*case)
    xs = inputs(layers, width, seed)
    expected = module(xs)
    module.eval()
    with torch.no_grad():
        state = module.begin(chunk)
        for index, x in enumerate(xs):
            state = module.accumulate(state, index, x)
        torch.testing.assert_close(module.finish(state), expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(module(xs), expected, rtol=0, atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(cases())
def test_gradients(case: tuple[str, dict[str, Any], int, int, int]) -> None:
    _, _, layers, width, seed = case
    assume(layers * width <= 12)
    module = build(*case)
    names = [key for key, _ in module.named_parameters()]
    xs = [x[:1, :2].clone().requires_grad_() for x in inputs(layers, width, seed)]

    def run(*tensors: Tensor) -> Tensor:
        parameters = dict(zip(names, tensors[layers:], strict=True))
        return torch.func.functional_call(module, parameters, (list(tensors[:layers]),))

    assert torch.autograd.gradcheck(run, (*xs, *module.parameters()))


@quick
@given(st.integers(1, 4), st.integers(2, 7), SEEDS)
def test_hoisted_equals_looped(layers: int, width: int, seed: int) -> None:
    """One shared map applied once is the same as that map in every layer."""
    shared: Any = build("orthogonal", {"share": "encoder"}, layers, width, seed)
    looped: Any = build("orthogonal", {"share": "layer"}, layers, width, seed)
    state = shared.state_dict()
    looped.load_state_dict({**state, "maps.skew": state["maps.skew"].expand(layers, skew_count(width))})
    xs = inputs(layers, width, seed)
    torch.testing.assert_close(shared(xs), looped(xs), rtol=0, atol=1e-12)


@quick
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=8))
def test_weights_are_on_the_simplex(logits: list[float]) -> None:
    w = softmax_weights(torch.tensor(logits, dtype=torch.float64))
    assert (w >= 0).all()
    assert abs(float(w.sum()) - 1) < 1e-12
    shifted = softmax_weights(torch.tensor(logits, dtype=torch.float64) + 3.0)
    torch.testing.assert_close(shifted, w, rtol=1e-9, atol=1e-15)


@quick
@given(st.integers(1, 5), st.integers(2, 7), SEEDS)
def test_softmax_sum_stays_between_its_layers(layers: int, width: int, seed: int) -> None:
    xs = inputs(layers, width, seed)
    out = build("softmax_sum", {}, layers, width, seed)(xs)
    stacked = torch.stack(xs)
    assert (out <= stacked.amax(0) + 1e-12).all()
    assert (out >= stacked.amin(0) - 1e-12).all()


@quick
@given(st.lists(st.tuples(st.integers(0, 5), st.floats(-5, 5)), min_size=1, max_size=9), SEEDS)
def test_repeated_layers_merge_exactly(entries: list[tuple[int, float]], seed: int) -> None:
    layers = [layer for layer, _ in entries]
    logits = torch.tensor([logit for _, logit in entries], dtype=torch.float64)
    torch.manual_seed(seed)
    values = torch.randn(6, dtype=torch.float64)
    unique, merged = merge_repeated_logits(layers, logits)
    assert list(unique) == sorted(set(layers))
    expected = (logits.softmax(0) * values[layers]).sum()
    torch.testing.assert_close((merged.softmax(0) * values[list(unique)]).sum(), expected, rtol=0, atol=1e-12)
