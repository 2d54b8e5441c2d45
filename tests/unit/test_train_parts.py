"""Small parts of training: sealed folders, sharing a batch, what a launcher asks for, trackers, cut logs."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

import fusionkit
from fusionkit.errors import UsageError
from fusionkit.train import world
from fusionkit.train.execution import Execution, check_precision, sharding_asked
from fusionkit.train.partial import cut_log
from fusionkit.train.run import train
from fusionkit.train.sealed import fault, seal


def test_a_sealed_folder_knows_what_is_wrong_with_it(tmp_path: Path) -> None:
    staging = tmp_path / "staging"
    staging.mkdir()
    (staging / "a.bin").write_bytes(b"abc")
    seal(staging, tmp_path / "done")
    assert not staging.exists()
    assert fault(tmp_path / "done") is None
    (tmp_path / "done" / "a.bin").write_bytes(b"abd")
    assert fault(tmp_path / "done") == "a.bin is not what was written (its hash differs)"
    (tmp_path / "done" / "a.bin").unlink()
    assert fault(tmp_path / "done") == "a.bin is missing"
    (tmp_path / "done" / "hashes.json").write_text("{")
    assert fault(tmp_path / "done") == "hashes.json is missing or damaged"


@pytest.mark.parametrize(
    ("size", "batch", "micro", "expected"), [(1, 24, None, (24, 1)), (8, 24, None, (3, 1)), (2, 24, 3, (3, 4))]
)
def test_processes_share_a_batch(
    monkeypatch: pytest.MonkeyPatch, size: int, batch: int, micro: int | None, expected: tuple[int, int]
) -> None:
    monkeypatch.setattr(world, "size", lambda: size)
    assert world.share(batch, micro) == expected


def test_a_batch_that_does_not_divide_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "size", lambda: 64)
    with pytest.raises(UsageError, match=r"global_batch_size 24 does not divide by 64 processes \(set 64 or 64"):
        world.share(24, None)
    monkeypatch.setattr(world, "size", lambda: 2)
    with pytest.raises(UsageError, match="24 is not a multiple of micro_batch_size 5 x 2 processes"):
        world.share(24, 5)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, "none"), ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "fsdp2")],
)
def test_what_accelerate_asks_for(environment: dict[str, str], expected: str) -> None:
    assert sharding_asked(environment) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "asks for DeepSpeed"),
        ({"ACCELERATE_USE_FSDP": "true"}, "asks for FSDP 1; add `--fsdp_version 2`"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"},
            "offloaded to the CPU, which is not supported",
        ),
    ],
)
def test_what_is_not_done_is_told(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sharding_asked(environment)


def test_a_log_is_cut_back_to_the_step_that_is_made_again(tmp_path: Path) -> None:
    rows = [{"stage": stage, "step": step} for stage in ("first", "second") for step in (1, 2, 3)]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"stage": "sec', encoding="utf-8")
    cut_log(log, ["first", "second"], "second", 1)
    assert [json.loads(line) for line in log.read_text().splitlines()] == rows[:4]


@pytest.mark.parametrize(
    ("asked", "precision", "message"),
    [
        (None, "fp32", None),
        ("no", "bf16", None),
        ("bf16", "bf16", None),
        (
            "bf16",
            "fp32",
            "accelerate asks for mixed precision bf16, the recipe for fp32; say train.precision=bf16 in the",
        ),
        (
            "fp16",
            "bf16",
            "accelerate asks for mixed precision fp16, the recipe for bf16; launch with --mixed_precision",
        ),
    ],
)
def test_the_recipe_says_the_precision(asked: str | None, precision: str, message: str | None) -> None:
    environment = {} if asked is None else {"ACCELERATE_MIXED_PRECISION": asked}
    with nullcontext() if message is None else pytest.raises(UsageError, match=message):
        check_precision(precision, environment)


def test_trackers_pass_through(tmp_path: Path) -> None:
    recipe = fusionkit.load_recipe(
        "builtin:tiny_demo",
        set=("train.stages.encoders=null", "train.stages.answers.steps=1", "train.global_batch_size=2"),
    )
    with pytest.raises(UsageError, match="--report-to nothing"):
        train(recipe, tmp_path / "run", execution=Execution(report_to=("nothing",)))
