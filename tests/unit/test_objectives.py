"""Objectives: what the losses count, what they ignore, and the truth they are given."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from fusionkit.blocks.objectives.answer_tokens import AnswerTokens
from fusionkit.blocks.objectives.patch_boxes import PatchBoxes
from fusionkit.blocks.objectives.patch_labels import PatchLabels
from fusionkit.blocks.objectives.patch_targets import patch_targets
from fusionkit.blocks.objectives.specs import AnswerTokensConfig, PatchBoxesConfig, PatchLabelsConfig
from fusionkit.errors import DataError, UsageError
from fusionkit.geometry import Box, Frame, Grid, Size, TokenSpec
from fusionkit.ops.tokens import Tokens
from fusionkit.plugin import BlockSite
from fusionkit.sample import Provenance, Sample, SceneObject

VOCABULARY, BINS = 20, 8
COORDINATES = tuple(range(10, 10 + BINS))


def answers(soft_labels: float = 0.0, weight: float = 1.0) -> AnswerTokens:
    return AnswerTokens(
        AnswerTokensConfig(soft_labels=soft_labels, weight=weight), BlockSite(coordinate_ids=COORDINATES)
    )


def text(labels: list[list[int]]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    labels_BT = torch.tensor(labels)
    logits_BTV = torch.randn(*labels_BT.shape, VOCABULARY, generator=torch.Generator().manual_seed(0))
    return logits_BTV, {"labels": labels_BT}


def loss_of(objective: AnswerTokens, logits_BTV: torch.Tensor, batch: dict[str, Any]) -> float:
    loss = objective(SimpleNamespace(logits=logits_BTV), batch)["tokens"]
    return float(loss.detach())


# ------------------------------------------------------------------------------------------------ answer_tokens
def test_the_loss_of_an_answer_is_the_mean_cross_entropy_of_its_tokens() -> None:
    logits_BTV, batch = text([[-100, -100, 3, 4], [-100, 5, -100, -100]])
    places = [(0, 1, 3), (0, 2, 4), (1, 0, 5)]  # the logit before a label predicts it
    expected = -sum(F.log_softmax(logits_BTV[row, at], -1)[label] for row, at, label in places) / 3
    assert loss_of(answers(), logits_BTV, batch) == pytest.approx(float(expected), abs=1e-6)
    assert loss_of(answers(weight=0.5), logits_BTV, batch) == pytest.approx(float(expected) / 2, abs=1e-6)


def test_logits_outside_answers_change_nothing() -> None:
    logits_BTV, batch = text([[-100, -100, 3, 12, -100]])
    before = loss_of(answers(1.0), logits_BTV, batch)
    logits_BTV[:, [0, 3, 4]] += 7 * torch.randn(1, 3, VOCABULARY)
    assert loss_of(answers(1.0), logits_BTV, batch) == before


def test_a_soft_label_costs_a_near_miss_less_than_a_far_one() -> None:
    batch = {"labels": torch.tensor([[-100, COORDINATES[3]]])}

    def sure_of(bin: int) -> torch.Tensor:
        return 10.0 * F.one_hot(torch.tensor([[COORDINATES[bin], 0]]), VOCABULARY).float()

    soft = [loss_of(answers(1.0), sure_of(bin), batch) for bin in range(BINS)]
    hard = [loss_of(answers(), sure_of(bin), batch) for bin in range(BINS)]
    assert soft[3] < soft[2] < soft[1] < soft[0]
    assert soft[4] == pytest.approx(soft[2], abs=1e-5)
    assert hard[3] < hard[2]
    assert hard[2] == pytest.approx(hard[0], abs=1e-5)


def test_a_soft_label_is_a_normalised_gaussian_over_the_coordinate_tokens() -> None:
    logits_BTV = torch.randn(1, 2, VOCABULARY, generator=torch.Generator().manual_seed(1)).requires_grad_()
    batch = {"labels": torch.tensor([[-100, COORDINATES[0]]])}
    answers(2.0)(SimpleNamespace(logits=logits_BTV), batch)["tokens"].backward()
    weights = [math.exp(-0.5 * (bin / 2.0) ** 2) for bin in range(BINS)]
    wanted_V = torch.zeros(VOCABULARY)
    wanted_V[list(COORDINATES)] = torch.tensor(weights) / sum(weights)
    # The gradient of a cross-entropy in the logits is softmax minus label.
    label_V = logits_BTV.detach()[0, 0].softmax(-1) - logits_BTV.grad[0, 0]
    torch.testing.assert_close(label_V, wanted_V, rtol=0, atol=1e-6)


def test_words_keep_their_hard_labels_beside_soft_coordinates() -> None:
    logits_BTV, batch = text([[-100, 3, 4]])
    assert loss_of(answers(1.0), logits_BTV, batch) == pytest.approx(loss_of(answers(), logits_BTV, batch), abs=1e-6)


def test_soft_labels_without_coordinates_and_a_batch_without_answers_are_errors() -> None:
    with pytest.raises(UsageError, match="soft_labels needs a box tokenizer with coordinate tokens"):
        AnswerTokens(AnswerTokensConfig(soft_labels=1.0), BlockSite(address="train.stages.a.objectives.b"))
    logits_BTV, batch = text([[-100, -100]])
    with pytest.raises(UsageError, match="no answer tokens"):
        loss_of(answers(), logits_BTV, batch)


# ---------------------------------------------------------------------------------------------- patch objectives
def scene(*objects: SceneObject, regions: tuple[Box, ...] = (Box(0, 0, 40, 40),)) -> dict[str, Any]:
    return {"samples": [Sample(None, Size(40, 40), (), Provenance("scene", 7), objects)], "regions": [regions]}


def tokens(crops: int = 1, width: int = 3, frame: Frame | None = None) -> Tokens:
    x_BND = torch.randn(crops, 16, width, generator=torch.Generator().manual_seed(2))
    return Tokens(x_BND, Grid(4, 4), *([] if frame is None else [frame]))


def targets(given: Tokens, batch: dict[str, Any], least_cover: float) -> Any:
    return patch_targets(given.grid, given.frame, batch, least_cover)


RED = {"colour": "red"}
BLUE = {"colour": "blue"}


def test_a_token_belongs_to_the_object_that_covers_most_of_its_cell() -> None:
    left, right = SceneObject(Box(0, 0, 13, 10), RED), SceneObject(Box(13, 0, 30, 10), BLUE)
    truth = targets(tokens(), scene(left, right), 0.3)
    assert truth.on_object_CN[0].nonzero()[:, 0].tolist() == [0, 1, 2]
    assert truth.tokens_M.tolist() == [0, 1, 2]
    assert truth.objects_M == (left, right, right)  # the second cell is 30 % left, 70 % right
    assert truth.cells_M4[1].tolist() == [10, 0, 20, 10]


def test_a_cell_covered_too_little_is_background() -> None:
    small = SceneObject(Box(0, 0, 5, 5), RED)
    assert targets(tokens(), scene(small), 0.25).on_object_CN.sum() == 1
    assert targets(tokens(), scene(small), 0.26).on_object_CN.sum() == 0


def test_cells_follow_the_crop_and_the_frame() -> None:
    thing = SceneObject(Box(20, 20, 25, 25), RED)
    crops = (Box(0, 0, 20, 20), Box(20, 20, 40, 40))
    truth = targets(tokens(2), scene(thing, regions=crops), 0.9)
    assert (truth.crops_M.tolist(), truth.tokens_M.tolist()) == ([1], [0])
    framed = targets(tokens(frame=Frame(0.5, 0.5, 1.0, 1.0)), scene(thing), 0.9)
    assert framed.tokens_M.tolist() == [0]
    assert framed.cells_M4.tolist() == [[20, 20, 25, 25]]


def test_samples_without_objects_cannot_teach_patches() -> None:
    with pytest.raises(DataError, match="scene:7: patch objectives need samples with annotated objects"):
        targets(tokens(), scene(), 0.3)


def site(width: int) -> BlockSite:
    return BlockSite(inputs={"semantic": TokenSpec(Grid(4, 4), width)})


def patch_loss(objective: Any, given: Tokens, batch: dict[str, Any]) -> dict[str, float]:
    losses = objective(SimpleNamespace(streams={"semantic": given}), batch)
    return {name: loss.item() for name, loss in losses.items()}


def test_patch_labels_fall_to_zero_when_the_tokens_tell_the_labels() -> None:
    batch = scene(SceneObject(Box(0, 0, 10, 10), RED), SceneObject(Box(30, 30, 40, 40), BLUE))
    objective = PatchLabels(PatchLabelsConfig(stream="semantic", labels={"colour": ("red", "blue")}), site(3))
    x_BND = torch.zeros(1, 16, 3)
    x_BND[0, :, 0] = -1
    x_BND[0, 0] = torch.tensor([1.0, 1.0, -1.0])
    x_BND[0, 15] = torch.tensor([1.0, -1.0, 1.0])
    with torch.no_grad():
        objective.head.weight.copy_(30 * torch.eye(3))
        objective.head.bias.zero_()
    losses = patch_loss(objective, Tokens(x_BND, Grid(4, 4)), batch)
    assert losses == pytest.approx({"objectness": 0.0, "colour": 0.0}, abs=1e-6)
    wrong = patch_loss(objective, Tokens(-x_BND, Grid(4, 4)), batch)
    assert wrong["objectness"] > 10
    assert wrong["colour"] > 10


def test_a_label_the_recipe_does_not_list_is_named() -> None:
    objective = PatchLabels(PatchLabelsConfig(stream="semantic", labels={"colour": ("red",)}), site(3))
    with pytest.raises(DataError, match="colour is 'blue', expected one of red"):
        patch_loss(objective, tokens(), scene(SceneObject(Box(0, 0, 10, 10), BLUE)))


def test_patch_boxes_measure_edges_in_cells_from_the_centre_of_the_cell() -> None:
    batch = scene(SceneObject(Box(8, 10, 21, 20), RED))
    objective = PatchBoxes(PatchBoxesConfig(stream="semantic"), site(5))
    with torch.no_grad():
        objective.head.weight.copy_(torch.eye(5))
        objective.head.bias.zero_()
    x_BND = torch.full((1, 16, 5), -30.0)
    # The object covers cells 4 (20 %), 5 (all) and 6 (10 %) of the second row.
    x_BND[0, 5] = torch.tensor([30.0, (15 - 8) / 10, (15 - 10) / 10, (21 - 15) / 10, (20 - 15) / 10])
    losses = patch_loss(objective, Tokens(x_BND, Grid(4, 4)), batch)
    assert losses == pytest.approx({"objectness": 0.0, "edges": 0.0}, abs=1e-6)
    x_BND[0, 5, 1] += 1.0
    # Smooth L1 that is quadratic below a quarter: 1 - 0.25 / 2 for one edge of four.
    assert patch_loss(objective, Tokens(x_BND, Grid(4, 4)), batch)["edges"] == pytest.approx(0.875 / 4)


# ------------------------------------------------------------------------------------- orthogonality_penalty
def linear_sum_recipe(**stage: Any) -> dict[str, Any]:
    encoder = {"type": "small_vit", "image_size": 24, "patch": 4, "width": 8, "depth": 2, "heads": 2}
    stream = {"encoder": encoder, "select": {"type": "all"}, "steps": {"mix": {"type": "linear_sum", "init": "haar"}}}
    return {
        "schema": 1,
        "name": "free",
        "summary": "One stream with free matrices.",
        "streams": {"only": stream},
        "train": {
            "global_batch_size": 1,
            "stages": {
                "one": {
                    "trainable": ["streams.only.steps"],
                    "steps": 1,
                    "objectives": {"soft": {"type": "orthogonality_penalty", "mixer": "only.mix", **stage}},
                }
            },
            "data": [{"type": "synthetic_scenes"}],
        },
    }


def test_the_penalty_is_zero_for_orthogonal_matrices_and_counts_every_entry() -> None:
    from fusionkit.blocks.objectives.orthogonality_penalty import OrthogonalityPenalty
    from fusionkit.blocks.objectives.specs import OrthogonalityPenaltyConfig

    penalty = OrthogonalityPenalty(OrthogonalityPenaltyConfig(mixer="only.mix", weight=3.0), BlockSite(address="x"))
    (address,) = penalty.reads
    assert address == "streams.only.steps.mix"

    def of(*matrices: torch.Tensor) -> float:
        return float(penalty(None, {}, {address: SimpleNamespace(matrices=lambda: matrices)})["orthogonality"])

    assert of(torch.eye(4)[:, :2], torch.eye(4)[[1, 0]]) == 0
    w = torch.tensor([[1.0, 1.0], [0.0, 2.0]])  # WᵀW - I = [[0, 1], [1, 4]]
    assert of(w, torch.eye(2)) == pytest.approx(3 * (18 / 2 + 0) / 2)
    with pytest.raises(UsageError, match=r"streams\.only\.steps\.mix is a Linear without matrices; name a linear_sum"):
        penalty(None, {}, {address: torch.nn.Linear(2, 2)})


def test_the_penalty_pulls_free_matrices_back_to_orthogonal_ones() -> None:
    import fusionkit
    from fusionkit.ops.diagnostics import orthogonality
    from fusionkit.train.stage_model import StageModel

    torch.manual_seed(0)
    recipe = fusionkit.load_recipe(linear_sum_recipe())
    model = fusionkit.build(recipe)
    spec_config = recipe.train.stages["one"].objectives["soft"]
    from fusionkit.blocks.objectives.orthogonality_penalty import OrthogonalityPenalty

    wrapped = StageModel(model, {"soft": OrthogonalityPenalty(spec_config, BlockSite())})
    mixer: Any = model.streams["only"].steps["mix"]
    with torch.no_grad():
        for matrix in mixer.matrices():
            matrix += 0.2 * torch.randn_like(matrix)
    before = orthogonality(mixer.matrices()).deviation
    optimizer = torch.optim.SGD(mixer.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        losses = wrapped({"pixel_values_only": torch.zeros(1, 3, 24, 24)})
        assert list(losses) == ["soft.orthogonality"]
        losses["soft.orthogonality"].backward()
        optimizer.step()
    assert orthogonality(mixer.matrices()).deviation < 0.05 * before


@pytest.mark.parametrize(
    ("mixer", "message"),
    [
        ("only.mux", r"objectives\.soft\.mixer: stream `only` has no step `mux` \(did you mean `mix`\?"),
        ("onyl.mix", r"objectives\.soft\.mixer: no stream is called `onyl` \(did you mean `only`\?"),
    ],
)
def test_a_mixer_that_is_not_there_is_told_when_planning(mixer: str, message: str) -> None:
    import fusionkit
    from fusionkit.errors import PlanError

    with pytest.raises(PlanError, match=message):
        fusionkit.plan(fusionkit.load_recipe(linear_sum_recipe(mixer=mixer)))


def test_the_penalty_names_a_stream_and_a_step() -> None:
    from pydantic import ValidationError

    from fusionkit.blocks.objectives.specs import OrthogonalityPenaltyConfig

    with pytest.raises(ValidationError, match=r"name the stream and its step, for example only\.mix"):
        OrthogonalityPenaltyConfig(mixer="only")


def test_objectives_say_what_their_losses_are_means_over() -> None:
    """Halves weighed by it give the loss of the whole."""
    left, right = SceneObject(Box(0, 0, 13, 10), RED), SceneObject(Box(13, 0, 40, 20), BLUE)
    torch.manual_seed(0)
    labels = PatchLabels(PatchLabelsConfig(stream="semantic", labels={"colour": ("red", "blue")}), site(3))
    boxes = PatchBoxes(PatchBoxesConfig(stream="semantic"), site(3))
    halves = [scene(left), scene(left, right)]
    whole = {key: [*halves[0][key], *halves[1][key]] for key in ("samples", "regions")}
    given = tokens(2)
    for objective in (labels, boxes):
        counts = [objective.items_in(half) for half in halves]
        parts = [
            patch_loss(objective, given._replace(x_BND=given.x_BND[n : n + 1]), half) for n, half in enumerate(halves)
        ]
        for name, expected in patch_loss(objective, given, whole).items():
            total = sum(count[name] for count in counts)
            weighed = sum(part[name] * count[name] / total for part, count in zip(parts, counts, strict=True))
            assert weighed == pytest.approx(expected, rel=1e-6), name
    assert objective.items_in(whole) == {name: counts[0][name] + counts[1][name] for name in counts[0]}


def test_a_batch_without_a_token_on_an_object_has_no_label_loss() -> None:
    labels = PatchLabels(PatchLabelsConfig(stream="semantic", labels={"colour": ("red", "blue")}), site(3))
    found = patch_loss(labels, tokens(), scene(SceneObject(Box(0, 0, 1, 1), RED)))
    assert found["colour"] == 0.0
