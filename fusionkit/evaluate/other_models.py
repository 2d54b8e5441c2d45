"""Answers of any transformers image-text model, so that it can be scored on the same questions by the same metrics.

The model is asked in its own chat format; its boxes and points are read by the box tokenizer of its family (or the one
named). Nothing of it is executed but transformers' own code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from fusionkit import registry
from fusionkit.errors import CheckpointError, DataError, UsageError
from fusionkit.evaluate.scores import Answered
from fusionkit.geometry import Size
from fusionkit.model.parts import build_object
from fusionkit.plugin import Parsed
from fusionkit.sample import Prediction, Sample, Turn

FORMATS = {
    "florence2": "florence2",
    "internvl": "internvl",
    "kosmos-2": "kosmos2",
    "molmo2": "molmo_points",
    "paligemma": "paligemma",
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen3_vl": "norm1000",
}
"""The box tokenizer of model families that answer with boxes, by `model_type`."""


class OtherModel:
    """A transformers image-text model as an `Answerer`.

    `boxes`: the box tokenizer that reads its answers; that of its family if not given, none for a family without.
    `prompt`: how a question is asked, with `{question}` in it, for example "Locate: {question}".

    Raises CheckpointError when the model cannot be loaded, UsageError for a prompt without `{question}`.
    """

    def __init__(
        self, source: str, *, boxes: str | None = None, prompt: str = "{question}", max_new_tokens: int = 64
    ) -> None:
        if "{question}" not in prompt:
            raise UsageError(
                f'--prompt {prompt!r}: must say where the question goes, for example "Locate: {{question}}"'
            )
        self.source, self.prompt, self.max_new_tokens = source, prompt, max_new_tokens
        self.processor, self.model = _load(source)
        name = boxes or FORMATS.get(self.model.config.model_type)
        self.boxes: Any = None
        if name is not None:
            spec = registry.spec("box_tokenizers", name)
            self.boxes = build_object("box_tokenizers", spec.config(type=name))

    def __call__(self, samples: Sequence[Sample]) -> Iterator[Answered]:
        for sample in samples:
            for turn in sample.turns:
                text = self._answer(sample, turn)
                parsed = (
                    Parsed() if self.boxes is None else self.boxes.parse(text, sample.size or Size(1, 1), strict=False)
                )
                yield sample, turn, Prediction(text, parsed.boxes, parsed.points, parsed.malformed)

    def _answer(self, sample: Sample, turn: Turn) -> str:
        images = [open_image() for open_image in (sample.open_image, *sample.more) if open_image is not None]
        question = self.prompt.format(question=turn.question)
        content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": question}]
        try:
            if getattr(self.processor, "chat_template", None):
                messages = [{"role": "user", "content": content}]
                text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
            else:
                text = getattr(self.processor, "image_token", "") * len(images) + question
            inputs = self.processor(images=images or None, text=[text], return_tensors="pt").to(self.model.device)
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{sample.provenance}: the processor of {self.source} cannot prepare the question: {error}"
            ) from error
        with torch.inference_mode():
            ids = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        if not self.model.config.is_encoder_decoder:
            ids = ids[:, inputs["input_ids"].shape[1] :]
        # Coordinates are special tokens in some families, so those are kept; padding and the end are not.
        tokenizer = self.processor.tokenizer
        answer: str = tokenizer.decode(ids[0], skip_special_tokens=False)
        for token in (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token):
            answer = answer.replace(token, "") if token else answer
        return answer.strip()


def _load(source: str) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        processor: Any = AutoProcessor.from_pretrained(source)
        model: Any = AutoModelForImageTextToText.from_pretrained(source)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise CheckpointError(
            f"{source}: cannot be loaded as a transformers image-text model: {str(error).splitlines()[0]} "
            "(a folder or an id that AutoModelForImageTextToText knows; without network it must be in the cache)"
        ) from error
    return processor, model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
