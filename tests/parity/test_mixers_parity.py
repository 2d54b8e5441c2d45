"""The released CoME-VL mixers, reproduced to 1e-12 in fp64: outputs and gradients.

`goldens/mixer_*.safetensors` hold inputs, parameters, outputs and gradients recorded from the released modules
(WeightedLLNSum, TwoStageWeightedLLNSum). Three differences in form are bridged here, none in function:

- The released code may list a layer twice; its two logits become one by logaddexp.
- One LayerNorm serves all layers there. `orthogonal` has one per layer: same values, gradients summed.
- Square maps are B expm(A) there and here. Other shapes are a Householder product there, which is another
  parametrisation: the finished matrix is compared and stands in as `base`, and skew gradients are not.
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
from fusionkit.geometry import Grid, LayerStackSpec
from fusionkit.ops.mixing import merge_repeated_logits
from fusionkit.ops.orthogonal import orthogonal_matrices, skew_count, strict_lower
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

    def map_state(self, layer: str, effective: Tensor) -> dict[str, Tensor]:
        """`skew` and `base` of our map from `original` and `base` of the released one."""
        original = self[f"param.{layer}.parametrizations.weight.original"]
        if original.shape[0] == original.shape[1]:
            return {
                "skew": strict_lower(original.unsqueeze(0)),
                "base": self[f"param.{layer}.parametrizations.weight.0.base"].unsqueeze(0),
            }
        return {
            "skew": original.new_zeros(1, skew_count(max(original.shape))),
            "base": effective.unsqueeze(0),
        }


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
    for ours, theirs, effective in (("first", "fc1", "aux.W1"), ("second", "fc2", "aux.W2")):
        state |= {f"{ours}.{key}": value for key, value in golden.map_state(theirs, golden[effective]).items()}
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
    maps = {f"maps.{key}": value for key, value in golden.map_state("fc", golden["aux.W"]).items()}
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


@pytest.mark.parametrize(("name", "layer"), [("mixer_two_stage_dev0", "fc1"), ("mixer_one_stage_dev4", "fc")])
def test_released_maps_convert_both_ways(name: str, layer: str) -> None:
    golden = Golden.load(name)
    state = golden.map_state(layer, torch.empty(0))
    width = golden.width_in
    theirs = nn.utils.parametrizations.orthogonal(nn.Linear(width, width, bias=False, dtype=torch.float64))
    original = torch.zeros(width, width, dtype=torch.float64)
    original[torch.tril_indices(width, width, -1).unbind()] = state["skew"][0]
    with torch.no_grad():
        theirs.parametrizations.weight.original.copy_(original)
        theirs.parametrizations.weight[0].base.copy_(state["base"][0])
    ours = orthogonal_matrices(state["skew"], width, width, "exp", state["base"])
    close(ours[0], theirs.weight.detach())
