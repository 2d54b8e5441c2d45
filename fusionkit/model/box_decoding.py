"""Generation that can only write well-formed boxes and points, and how sure the model is of each.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from fusionkit.errors import ShapeError, UsageError
from fusionkit.geometry import Box, Point, Size
from fusionkit.model.modeling import FusionVLM
from fusionkit.model.processing import FusionProcessor
from fusionkit.model.text import token_ids
from fusionkit.sample import Prediction


@dataclass(frozen=True, slots=True)
class Form:
    """A kind of piece as token ids: what opens it, how many coordinates follow, what closes it."""

    opens: int
    coordinates: int
    closes: int


@dataclass(frozen=True)
class BoxGrammar:
    """The token ids that boxes and points are made of; `coordinates` in rising order."""

    forms: tuple[Form, ...]
    coordinates: tuple[int, ...]

    @classmethod
    def of(cls, processor: FusionProcessor) -> BoxGrammar:
        """The grammar of a processor's box tokenizer; raises UsageError when it has no tokens of its own for boxes."""
        boxes = processor.box_tokenizer
        if not has_grammar(processor):
            raise UsageError(
                f"{'the recipe has no box tokenizer' if boxes is None else f'{type(boxes).__name__} has no forms()'}; "
                "constrained decoding needs one with tokens for boxes, for example {type: coordinate_bins}"
            )

        def ids(*tokens: str) -> list[int]:
            return token_ids(processor.tokenizer, tokens)

        forms = tuple(Form(*(*ids(opens), count, *ids(closes))) for opens, count, closes in boxes.forms())
        return cls(forms, processor.coordinate_ids)

    def unfinished(self, ids: Sequence[int]) -> tuple[Form, list[int]] | None:
        """The piece that is open at the end of `ids`, and the ranks of its coordinates so far."""
        ranks: list[int] = []
        for token in reversed(ids):
            form = next((form for form in self.forms if form.opens == token), None)
            if form is not None:
                return (form, ranks[::-1]) if len(ranks) <= form.coordinates else None
            if token not in self.rank:
                return None
            ranks.append(self.rank[token])
        return None

    @property
    def longest(self) -> int:
        """Tokens of the longest piece."""
        return max(form.coordinates for form in self.forms) + 2

    @property
    def rank(self) -> Mapping[int, int]:
        """Coordinate id -> its place in rising order."""
        found: dict[int, int] | None = self.__dict__.get("_rank")
        if found is None:
            found = self.__dict__["_rank"] = {token: rank for rank, token in enumerate(self.coordinates)}
        return found


def has_grammar(processor: FusionProcessor) -> bool:
    """Whether the processor's box tokenizer has tokens of its own for boxes."""
    return hasattr(processor.box_tokenizer, "forms")


class BoxConstraint(LogitsProcessor):
    """Lets `generate` write only whole boxes and points, with corners in order; other text is free.

    After an opening token come its coordinates and its closing token, nothing else; the second corner is at or beyond
    the first. Outside a piece coordinates and closing tokens are barred. With `max_length` (tokens of the whole row,
    prompt included) no piece is opened that could not be closed in time. It keeps no state, so rows of a batch and
    beams may be reordered at will.

    Example: `model.generate(**inputs, logits_processor=[BoxConstraint(BoxGrammar.of(processor))])`
    """

    def __init__(self, grammar: BoxGrammar, max_length: int | None = None) -> None:
        self.grammar = grammar
        self.max_length = max_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        grammar = self.grammar
        coordinates_K = torch.tensor(grammar.coordinates, device=scores.device)
        scores = scores.clone()
        for row, ids in enumerate(input_ids[:, -grammar.longest :].tolist()):
            piece = grammar.unfinished(ids)
            if piece is None:
                scores[row, coordinates_K] = -torch.inf
                for form in grammar.forms:
                    scores[row, form.closes] = -torch.inf
                    if self.max_length is not None and input_ids.shape[1] + form.coordinates + 2 > self.max_length:
                        scores[row, form.opens] = -torch.inf
                continue
            form, ranks = piece
            if len(ranks) == form.coordinates:
                allowed = torch.tensor([form.closes], device=scores.device)
            else:
                allowed = coordinates_K[ranks[-2] if len(ranks) >= 2 else 0 :]
            kept = scores[row, allowed]
            scores[row] = -torch.inf
            scores[row, allowed] = kept
        return scores


@dataclass(frozen=True, slots=True)
class Scored:
    """A box or point in pixels of the picture, and log p of all its tokens (Eq. 14; natural logarithm)."""

    item: Box | Point
    log_probability: float


def token_log_probabilities(ids_BT: Tensor, logits: Sequence[Tensor], beam_indices_BT: Tensor | None = None) -> Tensor:
    """log p of every generated token, fp32 [B, T], from the `logits` (one [rows, V] per token) that `generate` returns.

    `beam_indices_BT`, as `generate` returns it, says which row of each step a beam came from. Raises ShapeError when
    there are fewer steps than tokens.
    """
    if len(logits) < ids_BT.shape[1]:
        raise ShapeError(f"{ids_BT.shape[1]} tokens but logits of {len(logits)} steps; pass what generate returned")
    found = []
    for step in range(ids_BT.shape[1]):
        rows_BV = logits[step]
        if beam_indices_BT is not None:
            rows_BV = rows_BV[beam_indices_BT[:, step].clamp(min=0)]  # -1 stands behind the end of a row
        found.append(rows_BV.float().log_softmax(-1).gather(1, ids_BT[:, step : step + 1]))
    return torch.cat(found, 1) if found else torch.zeros(ids_BT.shape, device=ids_BT.device)


def scored_items(
    processor: FusionProcessor, ids_BT: Tensor, log_p_BT: Tensor, sizes: Sequence[Size]
) -> list[list[Scored]]:
    """The well-formed boxes and points of generated rows, in order, each with its log p.

    Equation (14): log p(box) = log p(BOX) + sum of log p(coordinate) + log p(END_BOX), each given all before it.
    """
    grammar = BoxGrammar.of(processor)
    forms = {form.opens: form for form in grammar.forms}
    found = []
    for ids, log_p, size in zip(ids_BT.tolist(), log_p_BT.tolist(), sizes, strict=True):
        row: list[Scored] = []
        for start, token in enumerate(ids):
            form = forms.get(token)
            stop = 0 if form is None else start + form.coordinates + 2
            if form is None or stop > len(ids) or ids[stop - 1] != form.closes:
                continue
            if not all(inner in grammar.rank for inner in ids[start + 1 : stop - 1]):
                continue
            parsed = processor.box_tokenizer.parse(processor.tokenizer.decode(ids[start:stop]), size)
            row += [Scored(item, sum(log_p[start:stop])) for item in (*parsed.boxes, *parsed.points)]
        found.append(row)
    return found


def with_log_p(prediction: Prediction, scored: Sequence[Scored]) -> Prediction:
    """The prediction with the log p of its boxes and points; None for one that is not among `scored`.

    Lenient parsing also takes pieces with spaces between their tokens, which Eq. 14 says nothing of.
    """

    def found(items: Sequence[Box | Point]) -> tuple[float | None, ...]:
        left = iter([each for each in scored if type(each.item) in {type(item) for item in items}])
        values: list[float | None] = []
        waiting = next(left, None)
        for item in items:
            same = waiting is not None and waiting.item == item
            values.append(waiting.log_probability if waiting is not None and same else None)
            waiting = next(left, None) if same else waiting
        return tuple(values)

    return replace(prediction, box_log_p=found(prediction.boxes), point_log_p=found(prediction.points))


def generate_boxes(
    model: FusionVLM,
    processor: FusionProcessor,
    inputs: Mapping[str, Any],
    sizes: Sequence[Size],
    *,
    max_new_tokens: int = 64,
    num_beams: int = 1,
) -> list[tuple[Prediction, list[Scored]]]:
    """Answers whose boxes and points are all well formed, each with its log p under the model itself, unconstrained.

    `inputs` are those of `processor(...)` or `processor.batch(..., answers=False)`, one picture size per row.
    """
    prompt = inputs["input_ids"].shape[1]
    constraint = BoxConstraint(BoxGrammar.of(processor), prompt + max_new_tokens)
    output = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=num_beams,
        logits_processor=[constraint],
        return_dict_in_generate=True,
        output_logits=True,
    )
    ids_BT = output.sequences[:, prompt:]
    log_p_BT = token_log_probabilities(ids_BT, output.logits, getattr(output, "beam_indices", None))
    predictions = processor.decode_answers(ids_BT, sizes)
    scored = scored_items(processor, ids_BT, log_p_BT, sizes)
    return [(with_log_p(each, found), found) for each, found in zip(predictions, scored, strict=True)]
