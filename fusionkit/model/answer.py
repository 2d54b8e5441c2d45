"""Ask a model: samples with questions in, parsed predictions out, one generate call per batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from fusionkit.errors import DataError
from fusionkit.geometry import Size
from fusionkit.model.modeling import VISION, FusionVLM
from fusionkit.model.processing import FusionProcessor
from fusionkit.sample import Prediction, Sample, Turn

TENSORS = ("input_ids", "attention_mask", "visual_index", *VISION)


def answer(
    model: FusionVLM,
    processor: FusionProcessor,
    samples: Sequence[Sample],
    *,
    turns_per_sample: int | None = None,
    max_new_tokens: int = 64,
) -> Iterator[tuple[Sample, Turn, Prediction]]:
    """Greedy answers to the turns of samples, in order; each picture is encoded once.

    Boxes and points of a prediction are in pixels of the sample's picture. Raises DataError for an empty question.
    """
    for sample in samples:
        for turn in sample.turns[:turns_per_sample]:
            if not turn.question.strip():
                raise DataError(f'{sample.provenance}: the question is empty; ask something, for example "count red"')
    batch = processor.batch(samples, turns_per_sample, answers=False)
    inputs = {name: value.to(model.device) for name, value in batch.items() if name.startswith(TENSORS)}
    prompt = inputs["input_ids"].shape[1]
    with torch.inference_mode():
        ids_BT = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    rows = batch["turns"]
    sizes = [samples[index].size or Size(1, 1) for index, _ in rows]
    predictions = processor.decode_answers(ids_BT[:, prompt:], sizes)
    for (index, turn), prediction in zip(rows, predictions, strict=True):
        yield samples[index], turn, prediction
