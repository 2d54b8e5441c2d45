"""The released CoME-VL mixers, reproduced to 1e-12 in fp64: outputs and gradients.

`goldens/mixer_*.safetensors` hold inputs, parameters, outputs and gradients recorded from the released modules
(WeightedLLNSum, TwoStageWeightedLLNSum). Three differences in form are bridged here, none in function:

- The released code may list a layer twice; its two logits become one by logaddexp.
- One LayerNorm serves all layers there. `orthogonal` has one per layer: same values, gradients summed.
- Square maps are B expm(A) there and here. Other shapes are a Householder product there, which is another
  parametrisation: the finished matrix becomes our `base` (`fusionkit.ops.released`), and skew gradients differ.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from fusionkit import registry
from fusionkit.errors import ShapeError
from fusionkit.geometry import Grid, LayerStackSpec
from fusionkit.ops.maps import OrthogonalMaps
from fusionkit.ops.mixing import merge_repeated_logits
from fusionkit.ops.orthogonal import orthogonal_matrices, strict_lower
from fusionkit.ops.released import from_released, to_released
from fusionkit.plugin import BlockSite

FOLDER = Path(__file__).parent / "goldens"
TOLERANCE = 1e-12


@dataclass
class Golden:
    tensors: dict[str, Tensor]
    hparams: dict[str, Any]

    @classmethod
    def load(cls, stem: str) -> Golden:
        with safe_open(FOLDER / f"{stem}.safetensors", "pt") as file:
            names = list(file.keys())
            return cls({name: file.get_tensor(name) for name in names}, json.loads(file.metadata()["hparams"]))

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    @property
    def positions(self) -> list[int]:
        return list(self.hparams["used_positions_0based"])

    @property
    def width_in(self) -> int:
        return int(self.hparams["d_in"])

    @property
    def width_out(self) -> int:
        return int(self.hparams["d_out"] or self.width_in)

    def map_state(self, layer: str) -> dict[str, Tensor]:
        """`skew` and `base` of our map from `original` and `base` of the released one."""
        stem = f"param.{layer}.parametrizations.weight"
        return from_released(self[f"{stem}.original"], self[f"{stem}.0.base"])


def build(golden: Golden, name: str, layers: tuple[int, ...], **fields: Any) -> nn.Module:
    spec = registry.spec("mixers", name)
    config = spec.config(width=golden.width_out, **fields)
    tokens = golden["output.out"][..., 0].numel() // golden["output.out"].shape[0]
    stack = LayerStackSpec(layers, Grid(1, tokens), golden.width_in)
    assert spec.plan is not None
    plan = spec.plan(config, {"input": stack}, None)
    module: nn.Module = registry.factory(spec)(config, BlockSite(inputs={"input": stack}, plan=plan))
    return module.double()


def run(golden: Golden, module: nn.Module, layers: tuple[int, ...]) -> dict[int, Tensor]:
    """Compare the output, stored and folded, and give the gradients of the features used."""
    features = {layer: golden[f"input.feature.{layer}"].clone().requires_grad_() for layer in layers}
    flat = [feature.flatten(1, -2) for feature in features.values()]
    out = module(flat)
    expected = golden["output.out"].flatten(1, -2)
    torch.testing.assert_close(out, expected, rtol=0, atol=TOLERANCE)
    module.eval()
    with torch.no_grad():
        torch.testing.assert_close(module(flat), expected, rtol=0, atol=TOLERANCE)
    module.train()
    (out * golden["input.cotangent"].flatten(1, -2)).sum().backward()
    return {layer: feature.grad for layer, feature in features.items() if feature.grad is not None}


def close(found: Tensor | None, expected: Tensor) -> None:
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


def logit_gradient(golden: Golden, merged_gradient: Tensor | None) -> Tensor:
    """Gradient of the released logits, back through the merging of repeated layers."""
    logits = golden["input.logits"].clone().requires_grad_()
    _, merged = merge_repeated_logits(golden.positions, logits)
    (gradient,) = torch.autograd.grad(merged, logits, merged_gradient)
    return gradient


def check_map_gradient(golden: Golden, layer: str, skew: Tensor) -> None:
    expected = golden[f"grad.{layer}.parametrizations.weight.original"]
    if expected.shape[0] == expected.shape[1]:
        close(skew.grad, strict_lower(expected.unsqueeze(0)))


@pytest.mark.parametrize("name", [f"mixer_two_stage_dev{index}" for index in range(4)])
def test_two_stage(name: str) -> None:
    golden = Golden.load(name)
    layers, logits = merge_repeated_logits(golden.positions, golden["input.logits"])
    module: Any = build(golden, "orthogonal_two_stage", layers)
    state = {"logits": logits, "norm.weight": golden["param.ln.weight"], "norm.bias": golden["param.ln.bias"]}
    for ours, theirs in (("first", "fc1"), ("second", "fc2")):
        state |= {f"{ours}.{key}": value for key, value in golden.map_state(theirs).items()}
    module.load_state_dict(state, strict=True)
    close(module.first.matrices()[0], golden["aux.W1"])
    close(module.second.matrices()[0], golden["aux.W2"])

    gradients = run(golden, module, layers)
    for layer in layers:
        close(gradients[layer], golden[f"grad.feature.{layer}"])
    close(logit_gradient(golden, module.logits.grad), golden["grad.logits"])
    close(module.norm.weight.grad, golden["grad.ln.weight"])
    close(module.norm.bias.grad, golden["grad.ln.bias"])
    check_map_gradient(golden, "fc1", module.first.skew)
    check_map_gradient(golden, "fc2", module.second.skew)


@pytest.mark.parametrize("name", ["mixer_one_stage_dev4", "mixer_one_stage_dev5"])
def test_one_stage(name: str) -> None:
    golden = Golden.load(name)
    layers, logits = merge_repeated_logits(golden.positions, golden["input.logits"])
    module: Any = build(golden, "orthogonal", layers, share="encoder", map="exp", init="haar")
    maps = {f"maps.{key}": value for key, value in golden.map_state("fc").items()}
    norm = {f"norm.{key}": golden[f"param.ln.{key}"].expand(len(layers), -1) for key in ("weight", "bias")}
    module.load_state_dict({"logits": logits, **norm, **maps}, strict=True)
    close(module.weights(), golden["aux.weights"])

    gradients = run(golden, module, layers)
    for layer in layers:
        close(gradients[layer], golden[f"grad.feature.{layer}"])
    close(logit_gradient(golden, module.logits.grad), golden["grad.logits"])
    close(module.norm.weight.grad.sum(0), golden["grad.ln.weight"])
    close(module.norm.bias.grad.sum(0), golden["grad.ln.bias"])
    check_map_gradient(golden, "fc", module.maps.skew)


def test_one_stage_with_free_weights() -> None:
    """With softmax off the released weights are free scales: `lln_layerscale` with the same matrix everywhere."""
    golden = Golden.load("mixer_one_stage_dev6")
    assert not golden.hparams["softmax"]
    layers = tuple(golden.positions)
    module: Any = build(golden, "lln_layerscale", layers)
    module.load_state_dict(
        {
            "scale": golden["input.logits"],
            **{f"norm.{key}": golden[f"param.ln.{key}"].expand(len(layers), -1) for key in ("weight", "bias")},
            **{f"projections.{index}.weight": golden["aux.W"] for index in range(len(layers))},
            **{f"projections.{index}.bias": torch.zeros(golden.width_out) for index in range(len(layers))},
        },
        strict=True,
    )
    gradients = run(golden, module, layers)
    for layer in layers:
        close(gradients[layer], golden[f"grad.feature.{layer}"])
    close(module.scale.grad, golden["grad.logits"])
    close(module.norm.weight.grad.sum(0), golden["grad.ln.weight"])
    close(module.norm.bias.grad.sum(0), golden["grad.ln.bias"])


LAYERS = [
    *((f"mixer_two_stage_dev{index}", layer, f"aux.W{layer[-1]}") for index in range(4) for layer in ("fc1", "fc2")),
    *((f"mixer_one_stage_dev{index}", "fc", "aux.W") for index in (4, 5, 6)),
]


@pytest.mark.parametrize(("name", "layer", "effective"), LAYERS)
def test_released_maps_convert_both_ways(name: str, layer: str, effective: str) -> None:
    """Theirs to ours is the recorded W; back in torch's own layer, with its shapes and keys, it is that again."""
    golden = Golden.load(name)
    state, expected = golden.map_state(layer), golden[effective]
    m, d = expected.shape
    close(orthogonal_matrices(state["skew"], d, m, "exp", state["base"])[0], expected)
    back = to_released(state["skew"], state["base"], d, m)
    theirs = nn.utils.parametrizations.orthogonal(nn.Linear(d, m, bias=False, dtype=torch.float64))
    theirs.load_state_dict({f"parametrizations.weight.{key}": back[value] for key, value in THEIR_KEYS.items()})
    close(theirs.weight.detach(), expected)
    again = from_released(back["original"], back["base"])
    close(orthogonal_matrices(again["skew"], d, m, "exp", again["base"])[0], expected)
    if m == d:
        assert torch.equal(again["skew"], state["skew"])
        assert torch.equal(again["base"], state["base"])


THEIR_KEYS = {"original": "original", "0.base": "base"}


@pytest.mark.parametrize(("d", "m"), [(4, 4), (4, 6), (6, 4)])
def test_trained_maps_of_ours_convert_too(d: int, m: int) -> None:
    """Away from skew 0, with and without a base."""
    torch.manual_seed(0)
    for init in ("identity", "haar"):
        maps = OrthogonalMaps(1, d, m, "exp", init).double()
        nn.init.normal_(maps.skew, std=0.5)
        weight = maps.matrices()[0].detach()
        back = to_released(maps.skew.detach(), maps.base, d, m)
        again = from_released(back["original"], back["base"])
        close(orthogonal_matrices(again["skew"], d, m, "exp", again["base"])[0], weight)


def test_a_base_of_another_shape_is_refused() -> None:
    with pytest.raises(ShapeError, match="base of a 4x6 layer must be 6x6, got 4x6"):
        from_released(torch.zeros(4, 6), torch.zeros(4, 6))
