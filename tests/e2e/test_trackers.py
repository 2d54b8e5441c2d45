"""`--report-to`: trackers that transformers knows get the loss curve, and what they write outlives the training."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

Curve = dict[str, list[tuple[int, float]]]


def scalars(folder: Path, tag: str = "train/loss") -> list[tuple[int, float]]:
    """What TensorBoard's own reader finds in a folder of event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(each.step, each.value) for each in events.Scalars(tag)]


def logged(folder: Path) -> Curve:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    found: Curve = {}
    for row in rows:
        found.setdefault(row["stage"], []).append((row["step"], pytest.approx(row["loss"], rel=1e-6)))
    return found


def test_event_files_hold_the_loss_curve(fusionkit, small: Path, tmp_path: Path) -> None:
    done = fusionkit("train", small, "-o", tmp_path / "run", "--report-to", "tensorboard")
    assert done.code == 0, done.err
    curve = logged(tmp_path / "run")
    assert {stage: len(rows) for stage, rows in curve.items()} == {"encoders": 2, "answers": 2}
    for stage, rows in curve.items():
        assert scalars(tmp_path / "run" / "trackers" / stage) == rows
    from fusionkit.model.checkpoint import load_checkpoint

    load_checkpoint(tmp_path / "run")  # the folder beside the weights is in nobody's way


def test_an_interrupted_run_has_one_curve(fusionkit, small: Path, tmp_path: Path) -> None:
    words = ("train", small, "-o", tmp_path / "run", "--report-to", "tensorboard", "--gradient-checkpointing")
    stopped = fusionkit(*words, "--stop-after", "1")
    assert stopped.code == 0
    # The command to paste goes on as this one was executed.
    assert stopped.err.rstrip().endswith(" --gradient-checkpointing --report-to tensorboard --resume")
    assert len(scalars(tmp_path / "run.partial" / "trackers" / "encoders")) == 1
    assert fusionkit(*words, "--resume").code == 0
    for stage, rows in logged(tmp_path / "run").items():
        assert scalars(tmp_path / "run" / "trackers" / stage) == rows


def test_the_persons_own_folder_is_used_and_the_run_has_none(
    fusionkit, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "mine"))
    assert fusionkit("train", small, "-o", tmp_path / "run", "--report-to", "tensorboard").code == 0
    assert scalars(tmp_path / "mine" / "answers") == logged(tmp_path / "run")["answers"]
    assert not (tmp_path / "run" / "trackers").exists()


class Writer(TrainerCallback):
    """A tracker that writes into the Trainer's own folder, as some do."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        folder = Path(args.output_dir) / "mine"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "losses.txt").open("a") as file:
            file.write(f"{logs.get('loss')}\n")
        (Path(args.output_dir) / "last.txt").write_text(str(state.global_step))


def test_what_a_tracker_leaves_beside_the_states_is_kept(
    fusionkit, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "writer", Writer)
    assert fusionkit("train", small, "-o", tmp_path / "run", "--report-to", "writer").code == 0
    for stage, rows in logged(tmp_path / "run").items():
        kept = tmp_path / "run" / "trackers" / stage
        assert (kept / "last.txt").read_text() == "2"
        assert [float(line) for line in (kept / "mine" / "losses.txt").read_text().split()[:2]] == [
            loss for _, loss in rows
        ]
        assert not list(kept.glob("checkpoint-*"))


def test_a_tracker_that_nobody_knows(fusionkit, small: Path, tmp_path: Path) -> None:
    done = fusionkit("train", small, "-o", tmp_path / "run", "--report-to", "notebook")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: --report-to notebook: no such tracker; transformers knows azure_ml, ")
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [small]


MISSING = [
    name
    for name in ("wandb", "mlflow", "neptune", "comet_ml", "azure_ml", "flyte")
    if find_spec(name.split("_")[0]) is None
]


@pytest.mark.parametrize("name", MISSING)
def test_a_tracker_that_is_not_installed(name: str, fusionkit, small: Path, tmp_path: Path) -> None:
    done = fusionkit("train", small, "-o", tmp_path / "run", "--report-to", name)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: --report-to {name}: "), done.err
    assert "install" in done.err
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [small]
