"""`--gradient-checkpointing`: the same losses, gradients and weights to the bit, with fewer activations kept."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import fusionkit
from fusionkit.data.collate import Collate
from fusionkit.model.parts import build_object
from fusionkit.model.processing import FusionProcessor
from fusionkit.train.addresses import set_trainable
from fusionkit.train.execution import Execution
from fusionkit.train.objectives import build_objectives
from fusionkit.train.stage import checkpoint_activations
from fusionkit.train.stage_model import StageModel

sys.path.insert(0, str(Path(__file__).parent))
from conftest import SMALL
from kept_memory import kept_for_backward

DEPTH = 6


@pytest.fixture(scope="module")
def recipe() -> fusionkit.recipe.Recipe:
    content = yaml.safe_load(SMALL)
    content["language_model"]["config"]["num_hidden_layers"] = DEPTH
    content["train"]["stages"]["answers"]["trainable"] = ["streams", "fusion", "language_model"]
    return fusionkit.load_recipe(content)


def one_pass(recipe: Any, *, checkpointing: bool) -> tuple[int, torch.Tensor, dict[str, torch.Tensor]]:
    """Bytes kept, loss and gradients of one batch through every block."""
    stage = recipe.train.stages["answers"]
    torch.manual_seed(0)
    model = fusionkit.build(recipe).train()
    processor = FusionProcessor.from_plan(model.plan)
    set_trainable(model, stage.trainable, "test")
    # Every row runs through every block, with and without: what rows share is otherwise computed once without.
    wrapped = StageModel(model, build_objectives(stage, "answers", model, processor, 0), uniform=True)
    checkpoint_activations(model, Execution(gradient_checkpointing=checkpointing))
    data = build_object("datasets", recipe.train.data[0])
    kept, loss = kept_for_backward(wrapped, Collate(processor, 2)([data[0], data[1]]))
    loss.backward()
    gradients = {name: each.grad for name, each in wrapped.named_parameters() if each.grad is not None}
    return kept, loss.detach(), gradients


def test_losses_and_gradients_are_equal_to_the_bit_and_less_is_kept(recipe: Any) -> None:
    (plain_bytes, plain_loss, plain), (bytes_, loss, found) = (
        one_pass(recipe, checkpointing=checkpointing) for checkpointing in (False, True)
    )
    assert torch.equal(loss, plain_loss)
    assert found.keys() == plain.keys()
    for name in plain:
        assert torch.equal(found[name], plain[name]), name
    assert any(name.startswith("model.streams") and plain[name].abs().max() > 0 for name in plain)
    # What is left: the encoders', the fusion's, the loss's, and one hidden state of each block.
    assert bytes_ < plain_bytes / 2


def test_a_training_with_it_ends_at_the_same_weights(fusionkit, small: Path, tmp_path: Path) -> None:
    """In fp64, where training takes the same road with and without."""
    words = ("train", small, "--set", "train.precision=fp64")
    for name, more in (("plain", ()), ("again", ("--gradient-checkpointing",))):
        done = fusionkit(*words, "-o", tmp_path / name, *more)
        assert done.code == 0, done.err
        assert "Warning" not in done.err
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "again"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
