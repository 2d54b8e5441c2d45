"""Layers of frozen encoders on disk: the same numbers, computed once, shared and mended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fusionkit
from fusionkit.errors import DataError, UsageError
from fusionkit.train.execution import Execution
from fusionkit.train.features import keep_features
from fusionkit.train.run import train

CHANGES = (
    "train.stages.encoders=null",
    "train.stages.answers.steps=4",
    "train.stages.answers.trainable=[streams.semantic.steps, streams.spatial.steps, fusion]",
    "train.data=[{type: synthetic_scenes, samples: 8}]",
    "train.global_batch_size=4",
    "train.turns_per_sample=1",
)


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return fusionkit.build("builtin:tiny_demo").requires_grad_(False).train()


def pixels(model: Any, seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(3, 3, *stream.info.input_size, generator=draw) for name, stream in model.plan.streams.items()
    }


def test_training_from_kept_features_gives_the_same_weights(tmp_path: Path) -> None:
    recipe = fusionkit.load_recipe("builtin:tiny_demo", set=CHANGES)
    folder = tmp_path / "features"
    plain = train(recipe, tmp_path / "plain").folder
    first = train(recipe, tmp_path / "first", execution=Execution(features=folder)).folder
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert len(written) == 2 * 8  # two encoders, eight pictures, each seen twice
    second = train(recipe, tmp_path / "second", execution=Execution(features=folder)).folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == written
    expected = load_file(plain / "model.safetensors")
    for other in (first, second):
        found = load_file(other / "model.safetensors")
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5, msg=name)


def test_known_crops_are_not_encoded_again(model: Any, tmp_path: Path) -> None:
    given = pixels(model)
    expected = model.encode_streams(given)
    with keep_features(model, tmp_path, sharded=False):
        once = model.encode_streams(given)
        for stream in model.streams.values():
            stream.encoder.forward_layers.compute = None  # calling it would be an error
        again = model.encode_streams({name: value.flip(0) for name, value in given.items()})
    for name, tokens in expected.items():
        assert torch.equal(once[name].x_BND, tokens.x_BND)
        torch.testing.assert_close(again[name].x_BND.flip(0), tokens.x_BND, rtol=0, atol=1e-6)
    assert all("forward_layers" not in vars(stream.encoder) for stream in model.streams.values())


def test_other_weights_are_other_features(model: Any, tmp_path: Path) -> None:
    given = pixels(model)
    with keep_features(model, tmp_path, sharded=False):
        model.encode_streams(given)
    with torch.no_grad():
        model.streams["spatial"].encoder.positions.add_(1)
    with keep_features(model, tmp_path, sharded=False):
        model.encode_streams(given)
    assert len(list(tmp_path.iterdir())) == 3


def test_what_cannot_be_kept_or_read_is_told(model: Any, tmp_path: Path) -> None:
    given = pixels(model)
    with keep_features(model, tmp_path, sharded=False):
        model.encode_streams(given)
        broken = next(tmp_path.rglob("*.safetensors"))
        broken.write_bytes(broken.read_bytes()[:-3])
        with pytest.raises(DataError, match=r"cannot be read .*delete it, it is computed anew"):
            model.encode_streams(given)
        broken.unlink()
        model.encode_streams(given)
    (tmp_path / "file").write_text("")
    with keep_features(model, tmp_path / "file", sharded=False), pytest.raises(DataError, match="cannot be written"):
        model.encode_streams(pixels(model, 1))
    with pytest.raises(UsageError, match="cannot be used with --shard fsdp2"), keep_features(model, tmp_path, True):
        pass
    model.requires_grad_(True)
    said: list[str] = []
    with keep_features(model, tmp_path, False, said.append):
        model.encode_streams(given)
    assert said == ["every encoder learns in this stage, so --features keeps nothing"]
