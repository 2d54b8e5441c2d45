"""FusionProcessor: pictures and text in, model inputs out, and answers back to boxes and points.

Shapes: B rows, T tokens, C crops, V visual tokens placed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from fusionkit.architectures import asking_libraries
from fusionkit.errors import DataError, UsageError
from fusionkit.geometry import Size
from fusionkit.model.modeling import COVERAGE, PIXELS, VISION
from fusionkit.model.parts import build_object
from fusionkit.model.pictures import Pictures, prepare_pictures
from fusionkit.model.prepare import coordinate_tokens
from fusionkit.model.text import load_tokenizer, token_ids
from fusionkit.pictures import open_picture
from fusionkit.plugin import IMAGE_TOKEN, Parsed
from fusionkit.recipe import load_recipe
from fusionkit.recipe.lock import lock as make_lock
from fusionkit.recipe.lock import unlock
from fusionkit.recipe.plan import Plan
from fusionkit.recipe.plan import plan as plan_recipe
from fusionkit.sample import Prediction, Sample, Segment, Turn

IGNORED = -100
"""Label of a token that carries no loss."""


class FusionProcessor(ProcessorMixin):
    """Cropping, per-stream normalisation, chat template, image tokens and the box tokenizer of a recipe.

    Example: `processor(images=[photo], text=[processor.prompt("point to the cat")], return_tensors="pt")`
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, lock: dict[str, Any], chat_template: str | None = None
    ) -> None:
        super().__init__(tokenizer, chat_template=chat_template or tokenizer.chat_template)  # type: ignore[no-untyped-call]
        self.lock = lock
        with asking_libraries():
            self._plan = plan_recipe(load_recipe(unlock(lock)))
        settings = self._plan.recipe
        self._cropper = None if settings.cropper is None else build_object("croppers", settings.cropper)
        self._boxes = None if settings.box_tokenizer is None else build_object("box_tokenizers", settings.box_tokenizer)
        self.image_token = IMAGE_TOKEN
        self.image_token_id = int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))  # type: ignore[arg-type]

    @classmethod
    def from_plan(cls, plan: Plan) -> FusionProcessor:
        """The processor of a plan, with a fresh tokenizer."""
        return cls(load_tokenizer(plan), make_lock(plan.recipe))

    @property
    def plan(self) -> Plan:
        return self._plan

    @property
    def box_tokenizer(self) -> Any:
        """The recipe's box tokenizer; None without one."""
        return self._boxes

    @property
    def coordinate_ids(self) -> tuple[int, ...]:
        """Token ids of the coordinate tokens, in rising order."""
        return tuple(token_ids(self.tokenizer, coordinate_tokens(self._plan)))

    @property
    def new_token_ids(self) -> tuple[int, ...]:
        """Token ids of what the recipe added to the tokenizer: image and crop marks, and box tokens."""
        return tuple(token_ids(self.tokenizer, self._plan.new_tokens))

    @property
    def model_input_names(self) -> list[str]:
        return [
            "input_ids",
            "attention_mask",
            "visual_index",
            "crop_counts",
            *(prefix + name for prefix in VISION for name in self._plan.streams),
        ]

    # ---------------------------------------------------------------------------------------------- inference
    def __call__(
        self,
        images: Image | Sequence[Image] | None = None,
        text: str | Sequence[str] | None = None,
        *,
        padding: bool = True,
        padding_side: str = "left",
        return_tensors: str = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Model inputs for rows of text in which each `<image>` stands for the next picture.

        Raises UsageError when the number of `<image>` marks and of pictures differ, DataError when a row is longer
        than the recipe's sequence_length.
        """
        if kwargs:
            raise UsageError(f"FusionProcessor does not take {', '.join(sorted(kwargs))}")
        if text is None or return_tensors != "pt":
            raise UsageError("FusionProcessor needs text and returns torch tensors (return_tensors='pt')")
        rows = [text] if isinstance(text, str) else list(text)
        shown = [] if images is None else [images] if isinstance(images, Image) else _flat(images)
        marks = sum(row.count(IMAGE_TOKEN) for row in rows)
        if marks != len(shown):
            raise UsageError(f"the text has {marks} {IMAGE_TOKEN} marks, but {len(shown)} pictures were given")
        pictures = self._pictures(shown)
        remaining = iter(range(len(shown)))
        order, encoded = [], []
        for row in rows:
            mine = [next(remaining) for _ in range(row.count(IMAGE_TOKEN))]
            order.append(mine)
            encoded.append(self._encode(row, pictures, mine))
        batch = self._pad(encoded, padding_side) | self._visual_inputs(pictures, chain.from_iterable(order))
        self._verify(batch, pictures.sizes, order, [f"text {number}" for number in range(1, len(rows) + 1)])
        return BatchFeature(batch)

    def prompt(self, question: str, *, pictures: int = 1) -> str:
        """One user turn through the chat template, after `pictures` image marks, ready for the answer."""
        return self.render([{"role": "user", "content": IMAGE_TOKEN * pictures + question}])

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """Messages through the tokenizer's chat template. Content may be a string or a list of image and text parts."""
        flat = [{"role": message["role"], "content": _flatten(message["content"])[0]} for message in messages]
        return str(
            self.tokenizer.apply_chat_template(flat, tokenize=False, add_generation_prompt=add_generation_prompt)
        )

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """As in transformers: text, or with `tokenize=True` the model inputs, pictures taken from the content."""
        tokenize = kwargs.pop("tokenize", False)
        add_generation_prompt = kwargs.pop("add_generation_prompt", False)
        return_dict = kwargs.pop("return_dict", True)
        return_tensors = kwargs.pop("return_tensors", "pt")
        if kwargs:
            raise UsageError(f"FusionProcessor.apply_chat_template does not take {', '.join(sorted(kwargs))}")
        single = isinstance(conversation[0], Mapping)
        conversations = [conversation] if single else list(conversation)
        texts = [self.render(messages, add_generation_prompt=add_generation_prompt) for messages in conversations]
        if not tokenize:
            return texts[0] if single else texts
        images = [
            image for messages in conversations for message in messages for image in _flatten(message["content"])[1]
        ]
        batch = self(images=images or None, text=texts, return_tensors=return_tensors)
        return batch if return_dict else batch["input_ids"]

    def parse(self, text: str, size: Size, *, strict: bool = False) -> Prediction:
        """An answer as text, boxes and points in pixels of the picture; malformed pieces are kept as text."""
        for token in (self.tokenizer.eos_token, self.tokenizer.pad_token):
            if token:
                text = text.replace(token, "")
        text = text.strip()
        parsed = Parsed() if self._boxes is None else self._boxes.parse(text, size, strict=strict)
        return Prediction(text, parsed.boxes, parsed.points, parsed.malformed)

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **kwargs: Any) -> str:
        """As in transformers, but words for boxes and points are never skipped: they are the answer."""
        ids = torch.as_tensor(token_ids).tolist()
        if skip_special_tokens:
            skipped = set(self.tokenizer.all_special_ids) - self._box_ids
            ids = [token for token in ids if token not in skipped]
        return str(self.tokenizer.decode(ids, **kwargs))

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False, **kwargs: Any) -> list[str]:
        """`decode` for every row."""
        return [self.decode(row, skip_special_tokens, **kwargs) for row in sequences]

    @cached_property
    def _box_ids(self) -> frozenset[int]:
        return frozenset(token_ids(self.tokenizer, () if self._boxes is None else tuple(self._boxes.vocabulary())))

    def decode_answers(self, ids_BT: Tensor, sizes: Sequence[Size]) -> list[Prediction]:
        """Generated ids (answers only, no prompt) as predictions, one per row."""
        texts = [self.tokenizer.decode(_until(row, self.tokenizer.eos_token_id)) for row in ids_BT.tolist()]
        return [self.parse(text, size) for text, size in zip(texts, sizes, strict=True)]

    # ----------------------------------------------------------------------------------------------- training
    def batch(
        self, samples: Sequence[Sample], turns_per_sample: int | None = None, *, answers: bool = True
    ) -> dict[str, Any]:
        """Rows of question (and answer) for samples; every picture is prepared once, however many rows ask about it.

        With `answers` the batch is padded on the right and has `labels` (-100 outside answers); without, it is
        padded on the left, ready for `generate`. Besides tensors it holds `samples`, `turns` as (sample index,
        turn) per row, and `regions`, each sample's crops as boxes in pixels of the picture.
        """
        opened = [_open(sample) for sample in samples]
        names = [str(sample.provenance) for sample, images in zip(samples, opened, strict=True) for _ in images]
        pictures = self._pictures([image for images in opened for image in images], names)
        starts = [0, *accumulate(len(images) for images in opened)]
        shown = [range(start, stop) for start, stop in pairwise(starts)]
        encoded, labels, turns = [], [], []
        order: list[Sequence[int]] = []
        for index, sample in enumerate(samples):
            mine = shown[index]
            for turn in sample.turns[:turns_per_sample]:
                prompt = self._encode(self.prompt(turn.question, pictures=len(mine)), pictures, mine, sample)
                answer = self._answer_ids(turn, sample) if answers else []
                self._check_length(len(prompt) + len(answer), sample)
                encoded.append(prompt + answer)
                labels.append([IGNORED] * len(prompt) + answer)
                turns.append((index, turn))
                order.append(mine)
        side = "right" if answers else "left"
        batch: dict[str, Any] = self._pad(encoded, side) | self._visual_inputs(pictures, chain.from_iterable(order))
        self._verify(batch, pictures.sizes, order, [str(samples[index].provenance) for index, _ in turns])
        if answers:
            batch["labels"] = _pad_rows(labels, IGNORED, side)
        regions = [tuple(region for slot in mine for region in pictures.regions[slot]) for mine in shown]
        return {**batch, "samples": list(samples), "turns": turns, "regions": regions}

    def collate(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """A `data_collator` for transformers' Trainer: a batch as `batch` makes it, what is no tensor left out."""
        return {name: value for name, value in self.batch(samples).items() if isinstance(value, Tensor)}

    def answer_text(self, answer: Sequence[Segment], size: Size | None) -> str:
        """An answer's segments as text, boxes and points written by the recipe's box tokenizer."""
        pieces = []
        for segment in answer:
            if isinstance(segment, str):
                pieces.append(segment)
            elif self._boxes is None or size is None:
                raise DataError(
                    "an answer has a box or point, but the recipe has no box_tokenizer or the sample no picture"
                )
            else:
                pieces.append(self._boxes.encode(segment, size))
        return "".join(pieces)

    # -------------------------------------------------------------------------------------------------- parts
    def _pictures(self, images: Sequence[Image], names: Sequence[str] = ()) -> Pictures:
        if images and self._cropper is None:
            raise UsageError("this recipe has no cropper, so it takes no pictures")
        return prepare_pictures(self._plan, self._cropper, images, names)

    def _encode(self, row: str, pictures: Pictures, mine: Sequence[int], sample: Sample | None = None) -> list[int]:
        pieces = row.split(IMAGE_TOKEN)
        if len(pieces) != len(mine) + 1:
            raise DataError(f"{sample.provenance if sample else 'text'}: a question must not contain {IMAGE_TOKEN}")
        text = pieces[0]
        for picture, piece in zip(mine, pieces[1:], strict=True):
            text += "".join(pictures.layouts[picture].symbols) + piece
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        expected = sum(len(pictures.layouts[picture].patches) for picture in mine)
        if (found := ids.count(self.image_token_id)) != expected:
            where = f"{sample.provenance}: " if sample else ""
            raise DataError(f"{where}expected {expected} image tokens, the tokenizer made {found}")
        if sample is None:
            self._check_length(len(ids), None)
        return ids

    def _answer_ids(self, turn: Turn, sample: Sample) -> list[int]:
        text = self.answer_text(turn.answer, sample.size)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*ids, self.tokenizer.eos_token_id]

    def _check_length(self, length: int, sample: Sample | None) -> None:
        limit = self._plan.recipe.sequence_length
        if length > limit:
            where = f"{sample.provenance}: " if sample else ""
            raise DataError(
                f"{where}{length} tokens are more than sequence_length {limit}; shorten the text or raise it in the recipe"
            )

    def _pad(self, rows: Sequence[list[int]], side: str) -> dict[str, Tensor]:
        return {
            "input_ids": _pad_rows(rows, self.tokenizer.pad_token_id, side),
            "attention_mask": _pad_rows([[1] * len(row) for row in rows], 0, side),
        }

    def _verify(
        self, batch: Mapping[str, Tensor], sizes: Sequence[Size], order: Sequence[Sequence[int]], names: Sequence[str]
    ) -> None:
        """Hold what is about to leave against the plan's layout, the one place where tokens are counted.

        `order` has each row's pictures, `names` what an error calls the row. Raises DataError naming the first row that
        is wrong, the number expected and the number found: a model would notice, but not know whose fault it is.
        """
        counts = [len(self._plan.layout(size).patches) for size in sizes]
        expected = [sum(counts[picture] for picture in mine) for mine in order]
        found = (batch["input_ids"] == self.image_token_id).sum(1).tolist()
        for name, wanted, have in zip(names, expected, found, strict=True):
            if wanted != have:
                raise DataError(f"{name}: expected {wanted} image tokens, the processor made {have}")
        shown = len(batch["visual_index"]) if "visual_index" in batch else 0
        if shown != sum(expected):
            others = f" and {len(names) - 1} other rows" if len(names) > 1 else ""
            raise DataError(f"{names[0]}{others}: expected {sum(expected)} visual tokens, the processor placed {shown}")

    def _visual_inputs(self, pictures: Pictures, order: Iterable[int]) -> dict[str, Tensor]:
        if not pictures.counts:
            return {}
        inputs = {PIXELS + name: pixels for name, pixels in pictures.pixels.items()}
        inputs |= {COVERAGE + name: shares for name, shares in pictures.coverage.items()}
        inputs["visual_index"] = pictures.visual_index(self._plan.visual.tokens, list(order))
        inputs["crop_counts"] = torch.tensor(pictures.counts)
        return inputs


def _pad_rows(rows: Sequence[list[int]], value: int, side: str) -> Tensor:
    longest = max((len(row) for row in rows), default=0)
    fill = [[value] * (longest - len(row)) for row in rows]
    padded = [pad + row if side == "left" else row + pad for row, pad in zip(rows, fill, strict=True)]
    return torch.tensor(padded, dtype=torch.long).reshape(len(rows), longest)


def _flatten(content: Any) -> tuple[str, list[Any]]:
    """A message's content as text with image marks, and its pictures."""
    if isinstance(content, str):
        return content, []
    text, images = "", []
    for part in content:
        if part["type"] == "image":
            text += IMAGE_TOKEN
            images += _shown(part)
        elif part["type"] == "text":
            text += part["text"]
        else:
            raise UsageError(f"message parts are 'image' or 'text', got '{part['type']}'")
    return text, images


def _shown(part: Mapping[str, Any]) -> list[Image]:
    """The picture of a message's part, opened if it is a file; none for a mark whose picture is passed beside the text."""
    given = part.get("image", part.get("path", part.get("url")))
    if given is None or isinstance(given, Image):
        return [] if given is None else [given]
    if not isinstance(given, str | Path):
        raise UsageError(f"the picture of a message is an image or the path of one, got a {type(given).__name__}")
    if "://" in str(given):
        raise UsageError(f"pictures are not fetched: {given}: download it and give its path")
    return [open_picture(given)]


def _flat(images: Sequence[Any]) -> list[Image]:
    return [image for item in images for image in (item if isinstance(item, (list, tuple)) else [item])]


def _open(sample: Sample) -> list[Image]:
    return [open_image() for open_image in (sample.open_image, *sample.more) if open_image is not None]


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
