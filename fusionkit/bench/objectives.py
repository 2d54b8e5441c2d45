"""What an objective is given: made-up outputs of a model and a batch of pictures with one object each."""

from __future__ import annotations

from typing import Any

import torch

from fusionkit import registry
from fusionkit.bench.case import Case
from fusionkit.geometry import Box, Size, TokenSpec
from fusionkit.plugin import input_names
from fusionkit.sample import Provenance, Sample, SceneObject, Turn

SIDE = 96
"""Of the pictures, in px."""
ROWS = 1024
"""Of the vocabulary whose logits `answer_tokens` reads."""
IGNORED = -100


def token_inputs(case: Case) -> dict[str, TokenSpec]:
    """The streams an objective reads."""
    return {name: case.site.tokens(name) for name in case.site.inputs}


def objective_shapes(case: Case) -> list[tuple[int, ...]]:
    """Shapes of the tensors that it reads: matrices of a mixer, logits, or tokens of its streams."""
    needs = _made(case).needs
    specs = list(token_inputs(case).values())
    if "modules" in needs:
        return [(4, specs[0].width, specs[0].width) for _ in input_names(case.config)]
    if "language_model" in needs:
        return [(case.crops, case.text, ROWS)]
    return [(case.crops, spec.tokens, spec.width) for spec in specs]


def training_batch(case: Case) -> dict[str, Any]:
    """A batch of as many pictures as there are crops; the second half of each text is the answer."""
    labels = {name: values[0] for name, values in dict(getattr(case.config, "labels", {})).items()}
    box = Box(SIDE / 4, SIDE / 4, 3 * SIDE / 4, 3 * SIDE / 4, "thing")
    turn = Turn("Where is the thing?", (box,), "box")
    samples = [
        Sample(None, Size(SIDE, SIDE), (turn,), Provenance("bench", row), (SceneObject(box, labels),))
        for row in range(case.crops)
    ]
    label_ids = torch.full((case.crops, case.text), IGNORED)
    half = case.text // 2
    label_ids[:, half:] = torch.arange(case.text - half) % ROWS
    return {
        "labels": label_ids,
        "crop_counts": torch.ones(case.crops, dtype=torch.long),
        "samples": samples,
        "turns": [(row, turn) for row in range(case.crops)],
        "regions": [(Box(0, 0, SIDE, SIDE),) for _ in samples],
    }


def _made(case: Case) -> Any:
    """The objective, which says what it needs."""
    return registry.factory(case.spec)(case.config, case.site)
