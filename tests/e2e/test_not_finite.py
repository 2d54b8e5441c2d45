"""A loss or a gradient that is no number stops the training and names the samples to blame."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

import fusionkit
from fusionkit.errors import DataError
from fusionkit.train.run import train

sys.path.insert(0, str(Path(__file__).parent))
from conftest import SMALL
from nan_objective import BAD


def failing(tmp_path: Path, objective: str, *changes: str) -> str:
    """What a training says that fails."""
    objectives = f"train.stages.answers.objectives={{answers: {{type: test.bad, {objective}}}}}"
    with fusionkit.override(BAD):
        recipe = fusionkit.load_recipe(
            yaml.safe_load(SMALL),
            set=("train.stages.encoders=null", "train.stages.answers.steps=3", objectives, *changes),
        )
        with pytest.raises(DataError) as failed:
            train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    return str(failed.value)


def test_the_sample_is_named(tmp_path: Path) -> None:
    """One of the four of the second step, endless data being read in order."""
    assert re.fullmatch(
        r"the loss is not finite at step 2 \(answers\.tokens nan\): because of synthetic_scenes\S*:6",
        failing(tmp_path, "rows: [6]"),
    )


def test_a_batch_that_is_bad_as_a_whole_is_told_from_a_bad_sample(tmp_path: Path) -> None:
    said = failing(tmp_path, "rows: [4, 5, 6, 7]")
    assert "every sample of the batch gives this, so training has diverged (lower train.learning_rates)" in said
    assert said.endswith(":7")


def test_weights_that_are_lost_are_told(tmp_path: Path) -> None:
    said = failing(tmp_path, "rows: []", "train.learning_rates={streams: 1e30, fusion: 1e30, language_model: 1e30}")
    assert "not finite at step" in said
    assert "diverged (lower train.learning_rates)" in said


def test_a_gradient_is_stopped_before_it_reaches_the_weights(tmp_path: Path) -> None:
    said = failing(tmp_path, "rows: [5], what: gradient", "train.micro_batch_size=2")
    assert re.fullmatch(
        r"the gradient is not finite at step 2, though the loss is; the batch has (synthetic_scenes\S*:\d(, )?){4}",
        said,
    )
