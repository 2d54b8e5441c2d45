"""Training with packed rows learns what training without them learns: the losses, the norms and the weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fusionkit import load_recipe, override
from fusionkit.errors import DataError, UsageError
from fusionkit.recipe import Recipe
from fusionkit.train.run import Interrupted, train

sys.path.insert(0, str(Path(__file__).parent))
from conftest import SMALL, Fusionkit
from mixed_samples import MIXED

CHANGES = (
    "train.precision=fp64",
    "train.stages.encoders=null",
    "train.stages.answers.steps=8",
    "train.stages.answers.trainable=[streams, fusion, language_model]",
    "train.data=[{type: test.mixed}]",
    "train.save_every=3",
    "train.log_every=2",
)
PACKED = "train.packing=true"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipes") / "small.yaml"
    file.write_text(SMALL, encoding="utf-8")
    return file


def load(path: Path, *changes: str) -> Recipe:
    return load_recipe(path, set=(*CHANGES, *changes))


@pytest.fixture(scope="module")
def plain(path: Path) -> Path:
    with override(MIXED):
        return train(load(path), path.parent / "plain").folder


@pytest.fixture(scope="module")
def packed(path: Path) -> Path:
    with override(MIXED):
        return train(load(path, PACKED), path.parent / "packed").folder


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_losses_norms_and_weights_are_those_of_rows_padded_apart(plain: Path, packed: Path) -> None:
    for found, expected in zip(rows(packed), rows(plain), strict=True):
        assert found["step"] == expected["step"]
        assert [found["loss"], found["grad_norm"]] == pytest.approx([expected["loss"], expected["grad_norm"]], rel=1e-9)
    one, two = weights(plain), weights(packed)
    assert one.keys() == two.keys()
    for name in one:  # stored in fp32
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-6, msg=name)


def test_the_log_says_how_full_the_rows_were(plain: Path, packed: Path) -> None:
    for found, expected in zip(rows(packed), rows(plain), strict=True):
        assert 0 < found["tokens"] <= expected["tokens"]
        assert expected["filled"] < found["filled"] <= 1


def test_the_person_is_told_at_the_end_of_a_stage(path: Path, packed: Path, tmp_path: Path) -> None:
    told: list[str] = []
    with override(MIXED):
        train(load(path, PACKED), tmp_path / "told", say=told.append)
        train(load(path), tmp_path / "plain", say=lambda text: pytest.fail(text))
    tokens = [row["tokens"] for row in rows(packed)]
    positions = [row["tokens"] / row["filled"] for row in rows(packed)]
    (line,) = told
    assert line.startswith("stage 'answers': packed rows were ")
    assert float(line.split()[5].rstrip("%")) == pytest.approx(100 * sum(tokens) / sum(positions), abs=0.1)


def test_interrupted_and_resumed_it_ends_at_the_same_weights(path: Path, packed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "resumed"
    with override(MIXED):
        recipe = load(path, PACKED)
        with pytest.raises(Interrupted):
            train(recipe, folder, stop_after=5)
        assert train(recipe, folder, resume=True).steps == 3
    one, two = weights(packed), weights(folder)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("shard", [(), ("--shard", "fsdp2")], ids=["ddp", "fsdp2"])
def test_two_processes_learn_the_same(path: Path, plain: Path, tmp_path: Path, shard: tuple[str, ...]) -> None:
    """Each packs its own share of the batch: as many steps in both, and the losses over all answers."""
    words = [part for change in (*CHANGES, PACKED) for part in ("--set", change)]
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fusionkit")
    plugin = Path(__file__).with_name("mixed_samples.py")
    arguments = ("train", str(path), "-o", str(tmp_path / "two"), "--plugin", str(plugin), *shard, *words)
    ended = subprocess.run(
        [sys.executable, *launcher, *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert ended.returncode == 0, ended.stderr
    assert "2 processes train together" in ended.stderr
    for found, expected in zip(rows(tmp_path / "two"), rows(plain), strict=True):
        assert [found["loss"], found["grad_norm"]] == pytest.approx([expected["loss"], expected["grad_norm"]], rel=1e-9)
        assert found["filled"] > expected["filled"]


def test_a_sample_longer_than_the_sequence_is_an_error_as_ever(path: Path, tmp_path: Path) -> None:
    with override(MIXED):
        recipe = load(path, PACKED, "sequence_length=16")
        with pytest.raises(DataError, match=r"mixed:\d+: \d+ tokens are more than sequence_length 16"):
            train(recipe, tmp_path / "long")


def test_a_decoder_that_convolves_is_refused_by_name_before_anything_is_made(
    path: Path, tmp_path: Path, fusionkit: Fusionkit
) -> None:
    config = json.dumps(
        {
            "model_type": "lfm2",
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "layer_types": ["conv", "full_attention"],
            "vocab_size": 512,
            "pad_token_id": 0,
        }
    )
    file = tmp_path / "conv.yaml"
    begin, _, rest = SMALL.partition("language_model:\n")
    end = rest[rest.index("box_tokenizer:") :]
    decoder = f"language_model: {{type: causal, tokenizer: 'builtin:tiny', config: {config}}}\n"
    file.write_text(begin + decoder + end.replace("train:\n", "train:\n  packing: true\n"), encoding="utf-8")
    said = fusionkit("plan", str(file))
    assert said.code == 2
    assert "train.packing: language_model lfm2 has short convolutions in 1 of its 2 blocks" in said.err
    said = fusionkit("train", str(file), "-o", str(tmp_path / "run"))
    assert said.code == 2
    assert not (tmp_path / "run.partial").exists()


@pytest.mark.parametrize("earlier", ["train.stages.encoders=null", "train.stages.encoders.steps=2"])
def test_what_the_trial_finds_ends_the_run_before_its_first_step(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: str
) -> None:
    """Also where a stage that needs no text, and packs nothing, comes first."""
    changes = (*(change for change in CHANGES if "encoders" not in change and "data" not in change), earlier, PACKED)
    monkeypatch.setattr(
        "fusionkit.ops.packing.Packed.allowed",
        lambda packed: (
            packed.sample_BT.new_ones((1, 1, packed.sample_BT.shape[1], packed.sample_BT.shape[1])).tril().bool()
        ),
    )
    begun: list[str] = []
    with pytest.raises(UsageError, match="what stands before a sample in its row changes"):
        train(load_recipe(path, set=changes), tmp_path / "mixing", on_stage=lambda name, _: begun.append(name))
    assert not begun
    assert not (tmp_path / "mixing.partial").exists()
