"""Constrained decoding: only whole boxes and points, in batches and beams; log p of a box is Eq. 14."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from model_recipe import picture, recipe
from torch import Tensor
from transformers import LogitsProcessor

import fusionkit
from fusionkit.errors import ShapeError, UsageError
from fusionkit.geometry import Box, Point, Size
from fusionkit.model.answer import answer
from fusionkit.model.box_decoding import (
    BoxConstraint,
    BoxGrammar,
    Scored,
    generate_boxes,
    scored_items,
    token_log_probabilities,
    with_log_p,
)
from fusionkit.model.modeling import FusionVLM
from fusionkit.model.processing import FusionProcessor
from fusionkit.model.token_log import TokenLog
from fusionkit.sample import Prediction, Provenance, Sample, Turn

SIZE = Size(40, 30)
Parts = tuple[FusionVLM, FusionProcessor, BoxGrammar]


@pytest.fixture(scope="module")
def parts() -> Parts:
    torch.manual_seed(0)
    model = fusionkit.build(recipe()).eval()
    processor = FusionProcessor.from_plan(model.plan)
    return model, processor, BoxGrammar.of(processor)


class Eager(LogitsProcessor):  # type: ignore[misc]
    """Makes the tokens of boxes likely, in an order of chance that is the same on every run."""

    def __init__(self, grammar: BoxGrammar) -> None:
        self.ids = [form.opens for form in grammar.forms] + [form.closes for form in grammar.forms]
        self.ids += grammar.coordinates
        self.chance = torch.Generator().manual_seed(3)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, self.ids] += 6 + 6 * torch.rand(len(scores), len(self.ids), generator=self.chance)
        return scores


def inputs(processor: FusionProcessor) -> Any:
    questions = ["box red", "where are all of the small blue squares?", "point to green"]
    return processor(images=[picture(n) for n in range(3)], text=[processor.prompt(q) for q in questions])


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}], ids=str)
def test_every_piece_is_well_formed(parts: Parts, options: dict[str, int]) -> None:
    model, processor, grammar = parts
    batch = inputs(processor)
    prompt, new = batch["input_ids"].shape[1], 17

    def texts(*constraint: BoxConstraint) -> list[str]:
        ids = model.generate(
            **batch, max_new_tokens=new, do_sample=False, logits_processor=[Eager(grammar), *constraint], **options
        )
        return processor.tokenizer.batch_decode(ids[:, prompt:])

    pieces = 0
    for text in texts(BoxConstraint(grammar, prompt + new)):
        parsed = processor.box_tokenizer.parse(text, SIZE, strict=True)  # raises for anything malformed
        pieces += len(parsed.boxes) + len(parsed.points)
    assert pieces > 3
    free = [processor.box_tokenizer.parse(text, SIZE) for text in texts()]
    assert any(parsed.malformed for parsed in free), "without the constraint the same model writes broken pieces"


def test_a_box_begun_in_the_prompt_is_finished(parts: Parts) -> None:
    model, processor, grammar = parts
    batch = processor(images=[picture(1)], text=[processor.prompt("box red") + "<BOX><COORD_7>"])
    prompt = batch["input_ids"].shape[1]
    ids = model.generate(**batch, max_new_tokens=4, do_sample=False, logits_processor=[BoxConstraint(grammar)])
    text = "<BOX><COORD_7>" + processor.tokenizer.decode(ids[0, prompt:])
    (box,) = processor.box_tokenizer.parse(text, SIZE, strict=True).boxes
    assert box.x1 >= box.x0 == 7 / 19 * 40


def test_what_is_allowed_at_each_place(parts: Parts) -> None:
    _, processor, grammar = parts
    names = processor.tokenizer.get_vocab()

    def allowed(text: str, max_length: int | None = None) -> set[str]:
        ids = torch.tensor([processor.tokenizer(text, add_special_tokens=False)["input_ids"]])
        scores = BoxConstraint(grammar, max_length)(ids, torch.zeros(1, len(names)))
        return {name for name, token in names.items() if scores[0, token] == 0}

    coordinates = [f"<COORD_{number}>" for number in range(20)]
    assert allowed("at <BOX>") == set(coordinates)
    assert allowed("at <BOX><COORD_5>") == set(coordinates)
    assert allowed("at <BOX><COORD_5><COORD_9>") == set(coordinates[5:])
    assert allowed("at <BOX><COORD_5><COORD_9><COORD_6>") == set(coordinates[9:])
    assert allowed("at <BOX><COORD_5><COORD_9><COORD_6><COORD_9>") == {"<END_BOX>"}
    assert allowed("<POINT><COORD_5><COORD_9>") == {"<END_POINT>"}
    outside = set(names) - set(coordinates) - {"<END_BOX>", "<END_POINT>"}
    assert allowed("<BOX><COORD_5><COORD_9><COORD_6><COORD_9><END_BOX>") == outside
    assert allowed("<COORD_1>" * 9) == outside
    assert allowed("<COORD_1>", max_length=6) == outside - {"<BOX>"}  # a point is 4 tokens, a box 6
    assert allowed("<COORD_1>", max_length=7) == outside


def test_log_p_is_the_sum_over_the_tokens_of_the_box(parts: Parts) -> None:
    """Equation 14 against a plain forward pass over the whole row."""
    model, processor, _ = parts
    prompt = processor.prompt("box red")
    answer = "<BOX><COORD_1><COORD_2><COORD_3><COORD_4><END_BOX> and <POINT><COORD_5><COORD_6><END_POINT>"
    batch = processor(images=[picture(1)], text=[prompt + answer])
    length = len(processor.tokenizer(answer, add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        logits_BTV = model(**batch).logits[:, -length - 1 : -1]
    ids_BT = batch["input_ids"][:, -length:]
    log_p_BT = token_log_probabilities(ids_BT, list(logits_BTV.unbind(1)))
    (scored,) = scored_items(processor, ids_BT, log_p_BT, [SIZE])
    every = logits_BTV.log_softmax(-1)[0].gather(1, ids_BT[0][:, None])[:, 0]
    assert [type(each.item).__name__ for each in scored] == ["Box", "Point"]
    assert scored[0].item.x0 == 1 / 19 * 40
    assert scored[0].log_probability == pytest.approx(float(every[:6].sum()), abs=1e-4)
    assert scored[1].log_probability == pytest.approx(float(every[-4:].sum()), abs=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_generated_boxes_come_with_their_log_p(parts: Parts, beams: int) -> None:
    """What `generate` reports per step, beams followed back, equals scoring the finished row from scratch."""
    model, processor, _ = parts
    prompts = [processor.prompt("box red") + "<BOX>", processor.prompt("where is the blue one?") + "<BOX><COORD_3>"]
    batch = processor(images=[picture(1), picture(2)], text=prompts)
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    visual = model.get_image_features(**{n: v for n, v in batch.items() if n.startswith("pixel_values_")})
    prompt = text["input_ids"].shape[1]
    output = model.generate(
        **text,
        mm_encoder_outputs={"image": visual},
        max_new_tokens=4,  # no more than the boxes take: the model writes image marks, too
        do_sample=False,
        num_beams=beams,
        logits_processor=[BoxConstraint(BoxGrammar.of(processor))],
        return_dict_in_generate=True,
        output_logits=True,
    )
    new = output.sequences[:, prompt:]
    found = token_log_probabilities(new, output.logits, getattr(output, "beam_indices", None))
    mask = torch.cat([text["attention_mask"], torch.ones_like(new)], 1)
    with torch.no_grad():
        logits = model(input_ids=output.sequences, attention_mask=mask, mm_encoder_outputs={"image": visual}).logits
    expected = logits[:, prompt - 1 : -1].log_softmax(-1).gather(2, new[..., None])[..., 0]
    kept = new != processor.tokenizer.pad_token_id
    torch.testing.assert_close(found[kept], expected[kept], atol=2e-4, rtol=0)


def test_generate_boxes_in_one_call(parts: Parts) -> None:
    model, processor, _ = parts
    answers = generate_boxes(model, processor, inputs(processor), [SIZE] * 3, max_new_tokens=6, num_beams=2)
    assert len(answers) == 3
    for prediction, scored in answers:
        assert prediction.malformed == ()
        assert len(scored) == len(prediction.boxes) + len(prediction.points)
        assert all(each.log_probability <= 0 for each in scored)


def test_what_cannot_be_constrained_says_so(parts: Parts) -> None:
    with pytest.raises(ShapeError, match="2 tokens but logits of 1 steps"):
        token_log_probabilities(torch.zeros(1, 2, dtype=torch.long), [torch.zeros(1, 5)])
    plain = FusionProcessor.from_plan(fusionkit.plan(fusionkit.load_recipe(recipe(box_tokenizer={"type": "norm1000"}))))
    with pytest.raises(UsageError, match=r"Norm1000 has no forms\(\).*coordinate_bins"):
        BoxGrammar.of(plain)


@pytest.mark.parametrize("constrained", [False, True])
def test_answers_come_with_the_log_p_of_their_boxes(
    parts: Parts, constrained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `answer` notes step by step is what the kept logits say; boxes get theirs, in order."""
    model, processor, grammar = parts
    kept: list[Tensor] = []
    own = type(model).generate

    def generate(self: Any, **kwargs: Any) -> Tensor:
        kwargs["logits_processor"] = [*kwargs["logits_processor"], Eager(grammar)]
        if constrained:
            kwargs["logits_processor"].append(BoxConstraint(grammar))
        output = own(self, **kwargs, return_dict_in_generate=True, output_logits=True)
        ids_BT = output.sequences[:, kwargs["input_ids"].shape[1] :]
        kept.append(token_log_probabilities(ids_BT, output.logits))
        kept.append(ids_BT)
        return output.sequences

    monkeypatch.setattr(type(model), "generate", generate)
    turns = [Turn(question, ()) for question in ("box red", "point to green", "where are all of the squares?")]
    samples = [
        Sample(partial(picture, number), SIZE, (turn,), Provenance("test", number)) for number, turn in enumerate(turns)
    ]
    answered = [row[2] for row in answer(model, processor, samples, max_new_tokens=15, constrained=constrained)]
    expected = scored_items(processor, kept[1], kept[0], [SIZE] * 3)
    count = 0
    for prediction, scored in zip(answered, expected, strict=True):
        for kind, items, values in (
            (Box, prediction.boxes, prediction.box_log_p),
            (Point, prediction.points, prediction.point_log_p),
        ):
            found = [(item, value) for item, value in zip(items, values, strict=True) if value is not None]
            wanted = [(each.item, each.log_probability) for each in scored if isinstance(each.item, kind)]
            assert [item for item, _ in found] == [item for item, _ in wanted]
            assert [value for _, value in found] == pytest.approx([value for _, value in wanted], abs=1e-4)
            assert not constrained or (len(found) == len(items) and not prediction.malformed)
            count += len(found)
    assert count > 2 or not constrained


def test_log_p_goes_to_the_items_it_belongs_to() -> None:
    one, two, dot = Box(0, 0, 1, 1), Box(0, 0, 2, 2), Point(3, 3)
    prediction = Prediction("", (one, two), (dot, dot))
    found = with_log_p(prediction, [Scored(dot, -1.0), Scored(two, -2.0), Scored(dot, -3.0)])
    assert (found.box_log_p, found.point_log_p) == ((None, -2.0), (-1.0, -3.0))
    assert with_log_p(Prediction("no box"), []) == Prediction("no box")


def test_a_token_log_says_when_it_was_not_watching(parts: Parts) -> None:
    model, processor, _ = parts
    with pytest.raises(ShapeError, match="saw no logits: call generate inside"):
        model.generate(**inputs(processor), max_new_tokens=2, do_sample=False, logits_processor=[TokenLog()])
    with pytest.raises(ShapeError, match="2 tokens, but 0 steps were seen"):
        TokenLog().of(torch.zeros(1, 2, dtype=torch.long))


def test_plain_text_boxes_have_no_log_p_and_cannot_be_constrained() -> None:
    model = fusionkit.build(recipe(box_tokenizer={"type": "norm1000"})).eval()
    processor = FusionProcessor.from_plan(model.plan)
    samples = [Sample(lambda: picture(0), SIZE, (Turn("box red", ()),), Provenance("test", 0))]
    ((_, _, prediction),) = answer(model, processor, samples, max_new_tokens=4)
    assert (prediction.box_log_p, prediction.point_log_p) == ((), ())
    with pytest.raises(UsageError, match=r"Norm1000 has no forms\(\)"):
        list(answer(model, processor, samples, max_new_tokens=4, constrained=True))
