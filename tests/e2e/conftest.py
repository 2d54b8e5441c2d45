"""What end-to-end tests share: the command line in this process, and one recipe small enough to train in seconds."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SMALL = """\
schema: 1
name: small
summary: Two small encoders and a small decoder.
sequence_length: 128
cropper: {type: resize, size: 24}
streams:
  semantic:
    encoder: {type: small_vit, image_size: 24, patch: 4, width: 16, depth: 2, heads: 2}
    select: {type: range, first: 1, last: 2}
    steps:
      mix: {type: orthogonal}
  spatial:
    encoder: {type: small_vit, image_size: 24, patch: 6, width: 12, depth: 1, heads: 2}
    select: {type: last}
    steps:
      widen: {type: linear, width: {like: semantic}}
fusion:
  align: {type: rope_cross_attention, query: semantic, memory: spatial, heads: 2}
  pool: {type: average_pool, window: [2, 2]}
  project: {type: mlp, hidden: 32}
injectors:
  visual: {type: replace}
language_model:
  type: token_shift
  tokenizer: builtin:tiny
  new_rows: {init: ordinal, std: 0.3}
  config:
    model_type: llama
    hidden_size: 24
    intermediate_size: 32
    num_hidden_layers: 2
    num_attention_heads: 2
    num_key_value_heads: 2
    vocab_size: 512
    tie_word_embeddings: true
    pad_token_id: 0
box_tokenizer: {type: coordinate_bins, bins: 20}
train:
  global_batch_size: 4
  turns_per_sample: 2
  optimizer: {type: adamw}
  learning_rates: {streams: 1.0e-3, fusion: 1.0e-3, language_model: 1.0e-3}
  log_every: 1
  save_every: 100
  stages:
    encoders:
      steps: 2
      trainable: [streams]
      objectives:
        what: {type: patch_labels, stream: semantic, labels: {colour: [red, green, blue, yellow, purple, cyan]}}
    answers:
      steps: 2
      trainable: [fusion, language_model]
      objectives:
        answers: {type: answer_tokens}
  data:
    - {type: synthetic_scenes, seed: 1, objects: 2}
evaluate:
  - name: held_out
    metrics: [box_accuracy, count_accuracy]
    data: {type: synthetic_scenes, seed: 2, objects: 2, samples: 4}
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code and what it printed."""

    code: int
    out: str
    err: str


Fusionkit = Callable[..., Outcome]


@pytest.fixture
def fusionkit(capfd: pytest.CaptureFixture[str]) -> Fusionkit:
    """Runs a command line in this process: `fusionkit("plan", "tiny")`."""

    def call(*words: object) -> Outcome:
        from fusionkit import registry
        from fusionkit.cli.main import run

        # Blocks of local files are known for a process; every command is a process of its own to a person.
        for local in registry._files.values():
            sys.modules.pop(local.spec.factory.partition(":")[0], None)
        registry._files.clear()
        capfd.readouterr()
        code = 0
        try:
            run([str(word) for word in words])
        except SystemExit as ended:
            code = int(ended.code or 0)
        printed = capfd.readouterr()
        return Outcome(code, printed.out, printed.err)

    return call


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The small recipe as a file."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the small recipe, trained for a few steps. Do not write to it."""
    from fusionkit.recipe import load_recipe
    from fusionkit.train.run import train

    folder = tmp_path_factory.mktemp("runs")
    recipe = folder / "small.yaml"
    recipe.write_text(SMALL, encoding="utf-8")
    return train(load_recipe(recipe), folder / "small").folder


@pytest.fixture(scope="session")
def in_browser() -> Callable[[Path, str], Any]:
    """`in_browser(page, script)`: what a script returns in a page that headless Chromium has loaded, with no network."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium")

    def load(page: Path, script: str) -> Any:
        whole = page.read_text(encoding="utf-8")
        harness = page.with_name("in_browser.html")
        act = f"<script>addEventListener('load', () => {{ document.title = JSON.stringify((() => {{ {script} }})()); }})</script>"
        harness.write_text(whole.replace("</body>", f"{act}</body>"), encoding="utf-8")
        done = subprocess.run(
            [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", harness.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        found = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
        assert found, done.stdout[:500]
        return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))

    return load
