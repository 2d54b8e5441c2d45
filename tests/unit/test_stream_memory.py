"""What a stream holds at inference, from encoder to mixed tokens: counted by weak references and by tensor sizes."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fusionkit
from fusionkit.model.runtime import Runtime

LAYERS, WIDTH, GRID = 8, 16, 6


def model(mixer: dict[str, Any]) -> Any:
    encoder = {"type": "small_vit", "image_size": 24, "patch": 4, "width": WIDTH, "depth": LAYERS, "heads": 1}
    recipe = {
        "schema": 1,
        "name": "one",
        "summary": "One stream.",
        "streams": {"only": {"encoder": encoder, "select": {"type": "all"}, "steps": {"mix": mixer}}},
    }
    torch.manual_seed(0)
    return fusionkit.build(recipe).eval()


class States:
    """Counts the outputs of encoder blocks that are alive whenever another one appears."""

    def __init__(self, built: Any) -> None:
        self.seen: list[weakref.ref[Tensor]] = []
        self.most = 0
        for block in built.streams["only"].encoder.blocks:
            block.register_forward_hook(self.count)

    def count(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self.seen.append(weakref.ref(output))
        self.most = max(self.most, sum(ref() is not None for ref in self.seen))


class Largest(TorchDispatchMode):
    """The most numbers in any tensor that was made."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not func.is_view:
            self.numbers = max(self.numbers, result.numel())
        return result


MIXERS = [
    {"type": "orthogonal"},
    {"type": "orthogonal", "share": "encoder"},
    {"type": "orthogonal_two_stage"},
    {"type": "linear_sum"},
    {"type": "softmax_sum", "norm": True},
    {"type": "lln_layerscale"},
]


@pytest.mark.parametrize("mixer", MIXERS, ids=str)
@pytest.mark.parametrize("chunk", [1, 3])
def test_no_more_layers_are_alive_than_a_chunk_and_one(mixer: dict[str, Any], chunk: int) -> None:
    built = model(mixer)
    pixels = {"only": torch.rand(2, 3, 24, 24)}
    states = States(built)
    built.runtime = Runtime(mix_chunk=chunk)
    with torch.no_grad():
        built.encode_streams(pixels)
    assert len(states.seen) == LAYERS
    assert states.most <= chunk + 1
    states.seen.clear()
    built.runtime = Runtime(stream_layers=False)
    with torch.no_grad():
        built.encode_streams(pixels)
    assert states.most == LAYERS, "stored layers are not seen by this count, so it proves nothing"


def test_one_at_a_time_is_the_default() -> None:
    assert Runtime().mix_chunk == 1


@pytest.mark.parametrize("mixer", MIXERS, ids=str)
def test_chunks_change_nothing(mixer: dict[str, Any]) -> None:
    built = model(mixer)
    pixels = {"only": torch.rand(2, 3, 24, 24)}
    found = []
    for runtime in (Runtime(stream_layers=False), Runtime(), Runtime(mix_chunk=3), Runtime(mix_chunk=50)):
        built.runtime = runtime
        with torch.no_grad():
            found.append(built.encode_streams(pixels)["only"].x_BND)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=2e-6)


@pytest.mark.parametrize("mixer", MIXERS, ids=str)
def test_no_tensor_is_as_large_as_all_layers(mixer: dict[str, Any]) -> None:
    built = model(mixer)
    pixels = {"only": torch.rand(2, 3, 24, 24)}
    with torch.no_grad():
        built.encode_streams(pixels)  # folds
        with Largest() as largest:
            out = built.encode_streams(pixels)["only"].x_BND
    assert 0 < largest.numbers < LAYERS * out.numel()
