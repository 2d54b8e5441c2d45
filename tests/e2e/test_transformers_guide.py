"""The snippets of docs/transformers.md run as written, one after the other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from model_recipe import decoder, picture, recipe

import fusionkit
from fusionkit.model.checkpoint import save_checkpoint
from fusionkit.model.processing import FusionProcessor

GUIDE = Path(__file__).parents[2] / "docs" / "transformers.md"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_the_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = fusionkit.build(recipe(language_model=decoder()))
    save_checkpoint(tmp_path / "runs" / "mine", model, FusionProcessor.from_plan(model.plan))
    picture(1).save(tmp_path / "photo.jpg")
    turns = [{"from": "human", "value": "box the red car"}, {"from": "gpt", "value": "<box>"}]
    row = {"image": "photo.jpg", "conversations": turns, "boxes": [[4, 3, 20, 21]]}
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(4)))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for snippet in re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL):
        exec(snippet, names)
    assert isinstance(names["text"], str)
    assert type(names["merged"]).__name__ == "FusionVLM"
    assert (tmp_path / "runs" / "adapter" / "adapter_config.json").is_file()
