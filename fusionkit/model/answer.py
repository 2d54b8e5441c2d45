"""Ask a model: samples with questions in, parsed predictions out, one generate call per batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers import LogitsProcessor

from fusionkit.errors import DataError
from fusionkit.geometry import Size
from fusionkit.model.box_decoding import BoxConstraint, BoxGrammar, has_grammar, scored_items, with_log_p
from fusionkit.model.modeling import VISION, FusionVLM
from fusionkit.model.processing import FusionProcessor
from fusionkit.model.token_log import TokenLog
from fusionkit.sample import Prediction, Sample, Turn

TENSORS = ("input_ids", "attention_mask", "visual_index", *VISION)


def answer(
    model: FusionVLM,
    processor: FusionProcessor,
    samples: Sequence[Sample],
    *,
    turns_per_sample: int | None = None,
    max_new_tokens: int = 64,
    constrained: bool = False,
) -> Iterator[tuple[Sample, Turn, Prediction]]:
    """Greedy answers to the turns of samples, in order; each picture is encoded once.

    Boxes and points of a prediction are in pixels of the sample's picture; where the box tokenizer has tokens of its own
    they come with their log p (Eq. 14). `constrained`: the model can write well-formed boxes and points only.

    Raises DataError for an empty question, and UsageError for `constrained` with a box tokenizer that writes plain text.
    """
    for sample in samples:
        for turn in sample.turns[:turns_per_sample]:
            if not turn.question.strip():
                raise DataError(f'{sample.provenance}: the question is empty; ask something, for example "count red"')
    batch = processor.batch(samples, turns_per_sample, answers=False)
    inputs = {name: value.to(model.device) for name, value in batch.items() if name.startswith(TENSORS)}
    prompt = inputs["input_ids"].shape[1]
    grammar = BoxGrammar.of(processor) if constrained or has_grammar(processor) else None
    log = TokenLog()
    processors: list[LogitsProcessor] = [] if grammar is None else [log]
    if constrained and grammar is not None:
        processors.append(BoxConstraint(grammar, prompt + max_new_tokens))
    with torch.inference_mode(), log.watching(model):
        ids_BT = model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, logits_processor=processors
        )[:, prompt:]
    rows = batch["turns"]
    sizes = [samples[index].size or Size(1, 1) for index, _ in rows]
    predictions = processor.decode_answers(ids_BT, sizes)
    if grammar is not None:
        scored = scored_items(processor, ids_BT, log.of(ids_BT), sizes)
        predictions = [with_log_p(prediction, found) for prediction, found in zip(predictions, scored, strict=True)]
    for (index, turn), prediction in zip(rows, predictions, strict=True):
        yield samples[index], turn, prediction
