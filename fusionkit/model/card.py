"""The model card: README.md of a checkpoint folder, made from what is in the folder. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionkit.errors import CheckpointError
from fusionkit.model.folder import CONFIG_FILE, read_lock
from fusionkit.recipe import load_recipe
from fusionkit.recipe.export import to_yaml
from fusionkit.recipe.lock import unlock
from fusionkit.recipe.plan import Plan
from fusionkit.recipe.plan import plan as plan_recipe
from fusionkit.recipe.plan_table import licences

CARD_FILE = "README.md"
SCORE_FILES = ("scores.json", "scores/scores.json")
"""Where the scores of a checkpoint are looked for, in its folder: `fusionkit evaluate DIR -o DIR/scores`."""

USE = """```python
import fusionkit.auto
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{where}")
processor = AutoProcessor.from_pretrained("{where}")
content = [{{"type": "image", "image": Image.open("photo.jpg")}}, {{"type": "text", "text": "what is there?"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}], add_generation_prompt=True, tokenize=True, return_dict=True
)
answer = model.generate(**inputs, max_new_tokens=64)[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(answer, skip_special_tokens=True)[0])
```"""


def write_card(folder: str | Path, plan: Plan | None = None, where: str | None = None) -> Path:
    """Write README.md into a checkpoint folder: parts, licences, scores if they are there, recipe and lock.

    `where` is what `from_pretrained` is shown with: the folder's name if not given.

    Raises CheckpointError when the folder has no lock, or scores that cannot be read.
    """
    folder = Path(folder)
    locked = read_lock(folder)
    stored = unlock(locked)
    planned = plan or plan_recipe(load_recipe(stored))
    recipe = {key: stored[key] for key in planned.recipe.canonical() if key in stored}  # in the order people write
    sections = [
        _front_matter(planned),
        f"# {planned.recipe.name}\n\n{planned.recipe.summary}".rstrip(),
        f"A vision-language model with {planned.parameters:,} parameters, composed by fusionkit from the recipe below.",
        "## Use\n\n" + USE.format(where=where or folder.name),
        "## Parts\n\n" + _parts(planned),
        "## Licences\n\n" + _licences(planned),
        "## Scores\n\n" + _scores(folder),
        "## Recipe\n\n```yaml\n" + to_yaml(recipe).rstrip() + "\n```",
        "## Lock\n\n" + _lock(locked),
    ]
    path = folder / CARD_FILE
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return path


def _front_matter(plan: Plan) -> str:
    """What the hub reads. No `license`: that of the whole follows from those of its parts, and is for people to say."""
    named = [node.config for node in plan.nodes if node.site.info is not None]
    models = [str(getattr(config, "model", None) or "") for config in named]
    bases = [model for model in models if "/" in model and not Path(model).exists()]
    facts: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["fusionkit", plan.recipe.name],
    }
    if bases:
        facts["base_model"] = list(dict.fromkeys(bases))
    return "---\n" + to_yaml(facts).rstrip() + "\n---"


def _parts(plan: Plan) -> str:
    rows = [(f"`{node.address}`", f"`{node.type}`", f"{node.params:,}") for node in plan.nodes]
    return _table(("part", "block", "parameters"), rows, right=(2,))


def _licences(plan: Plan) -> str:
    rows = [(f"`{each.address}`", each.name, each.licence, each.note) for each in licences(plan)]
    if not rows:
        return "No part came with weights of its own."
    return (
        "Weights that come from others stay under their licences:\n\n"
        + _table(("part", "weights", "licence", "look out"), rows)
        + "\n\nAs fusionkit's table and the blocks state them; read the originals before use."
    )


def _scores(folder: Path) -> str:
    for name in SCORE_FILES:
        path = folder / name
        if not path.is_file():
            continue
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            rows = [_score(row) for row in found["scores"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: no readable scores: {error}") from error
        return f"From `{name}`, with 95 % intervals where the metric has one:\n\n" + _table(
            ("data", "metric", "value", "low", "high", "answers"), rows, right=(2, 3, 4, 5)
        )
    return "Not measured, or not stored here (`fusionkit evaluate DIR -o DIR/scores`)."


def _score(row: Mapping[str, Any]) -> tuple[str, ...]:
    numbers = ("" if row.get(key) is None else f"{row[key]:.3f}" for key in ("value", "low", "high"))
    return (str(row["data"]), str(row["metric"]), *numbers, str(row["count"]))


def _lock(locked: Mapping[str, Any]) -> str:
    environment = locked.get("environment", {})
    versions = {"python": environment.get("python", "unknown"), **environment.get("distributions", {})}
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"`{locked['model']['hash']}`: what the weights belong to; `{CONFIG_FILE}` and `lock.json` hold it whole.\n\n"
        f"Made with {listed}."
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    rule = ["---:" if column in right else "---" for column in range(len(head))]
    lines = [head, rule, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
