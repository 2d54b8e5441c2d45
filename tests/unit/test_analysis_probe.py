"""Linear probes: exact where the token says it, honest where it does not, the same however pictures are grouped."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusionkit.analysis import linear
from fusionkit.analysis.annotated import centres, open_data, scene
from fusionkit.analysis.probe_maths import (
    FOUND,
    ON,
    Probe,
    box_targets,
    compare,
    constant_boxes,
    equations,
    label_targets,
    on_objects,
)
from fusionkit.errors import RecipeValidationError, UsageError
from fusionkit.geometry import Box, Grid, Size
from fusionkit.sample import Provenance, Sample, SceneObject, Turn

GRID = Grid(4, 4)
LABELS = (("colour", "red"), ("colour", "blue"), ("shape", "circle"))


def sample_of(*objects: SceneObject, turns: tuple[Turn, ...] = ()) -> Sample:
    return Sample(lambda: None, Size(80, 40), turns, Provenance("test", 0), objects)  # type: ignore[arg-type, return-value]


def test_patches_belong_to_the_smallest_object_and_every_object_has_one() -> None:
    whole = SceneObject(Box(0, 0, 80, 40), {"colour": "red"})
    corner = SceneObject(Box(40, 20, 80, 40), {"colour": "blue", "shape": "circle"})
    speck = SceneObject(Box(1, 1, 3, 2), {"colour": "blue", "shape": "circle", "size": "of no label here"})
    outside = SceneObject(Box(90, 0, 99, 9), {})
    found = scene(sample_of(whole, corner, speck, outside), GRID, LABELS)
    assert found is not None
    assert found.owner.view(4, 4).tolist() == [[2, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert found.columns == ((0,), (1, 2), (1, 2))
    assert found.unique == (True, False, False), "two things of one name cannot be asked for"
    assert found.boxes[1].tolist() == [0.5, 0.5, 1, 1]
    assert label_targets(found, 3)[15].tolist() == [0, 1, 1]


def test_boxes_of_answers_serve_where_objects_are_not_annotated() -> None:
    turn = Turn("where?", (Box(0, 0, 20, 40), "and", Box(-5, 0, 40, 99)), "box")
    found = scene(sample_of(turns=(turn,)), GRID, LABELS)
    assert found is not None
    assert found.boxes.tolist() == [[0, 0, 0.25, 1], [0, 0, 0.5, 1]], "cut at the picture's edge"
    assert found.unique == (False, False)
    assert scene(sample_of(), GRID, LABELS) is None


@given(st.integers(0, 10**6), st.integers(2, 8))
def test_ridge_is_least_squares_and_does_not_shrink_the_offset(seed: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = linear.with_one(torch.randn(60, width, generator=generator, dtype=torch.float64))
    y = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    exact = torch.linalg.lstsq(x, y).solution
    assert torch.allclose(linear.ridge(x.T @ x, x.T @ y, 1e-12), exact, atol=1e-8)
    shrunk = linear.ridge(x.T @ x, x.T @ y, 1e9)
    assert torch.allclose(shrunk[:-1], torch.zeros(width, 3, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(shrunk[-1], y.mean(0), atol=1e-6)


def test_comparison_of_boxes() -> None:
    truth = torch.tensor([[0.0, 0.0, 0.4, 0.4]] * 3)
    boxes = torch.tensor([[0.0, 0.0, 0.4, 0.4], [0.0, 0.0, 0.4, 0.2], [0.4, 0.4, 0.0, 0.0]])
    found = compare(boxes, truth)
    assert found[0].tolist() == [1, 1, 0]
    assert found[1].tolist() == pytest.approx([1, 0.5, 0.1])
    assert found[2, :2].tolist() == [0, 0], "inside out"
    for left, right in zip(boxes[:2], truth[:2], strict=True):
        expected = Box(*left.tolist()).iou(Box(*right.tolist()))
        assert float(compare(left[None], right[None])[0, 1]) == pytest.approx(expected)


def tokens_that_say(scenes: list, words: torch.Tensor) -> torch.Tensor:
    """Tokens that hold box and labels linearly, turned by a fixed map; LayerNorm must not hide them."""
    rows = []
    for each in scenes:
        on = (each.owner >= 0)[:, None]
        said = torch.cat([box_targets(each, centres(GRID)) * on, label_targets(each, 3), on.double()], dim=-1)
        rows.append(said @ words)
    x = torch.stack(rows).float()
    # The last channels make every token's mean and length the same, so that normalising is one constant scale.
    x = torch.cat([x, -x], dim=-1)
    rest = (100.0 - x.square().sum(-1, keepdim=True)).sqrt() / 2**0.5
    return torch.cat([x, rest, -rest], dim=-1)


def scenes_of(count: int) -> list:
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        x, y = (torch.rand(2, generator=generator) * torch.tensor([50.0, 20.0])).tolist()
        first = SceneObject(Box(x, y, x + 12, y + 9), {"colour": "red", "shape": "circle"})
        x, y = (torch.rand(2, generator=generator) * torch.tensor([40.0, 10.0])).tolist()
        second = SceneObject(Box(x, y, x + 35, y + 25), {"colour": "blue"})
        made.append(scene(sample_of(first, second), GRID, LABELS))
    return made


def test_tokens_that_hold_the_answer_are_read_exactly_and_noise_is_not() -> None:
    scenes, middles = scenes_of(80), centres(GRID)
    words = torch.randn(8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    told = tokens_that_say(scenes, words)
    noise = torch.randn(told.shape, generator=torch.Generator().manual_seed(2))
    scores = {}
    for name, x_BND in (("told", told), ("noise", noise)):
        sums: dict[str, torch.Tensor] = {}
        for first in range(0, 60, 7):  # however they are grouped
            group = slice(first, min(first + 7, 60))
            for key, value in equations(x_BND[group], scenes[group], middles, 3).items():
                sums[key] = sums.get(key, 0) + value.double()
        probe = Probe.solve(sums, 1e-9)
        rows = [probe.measure(x_BND[place], scenes[place], middles) for place in range(60, 80)]
        scores[name] = {task: torch.tensor([row[task] for row in rows]).mean(0).tolist() for task in (ON, FOUND)}
        blind = torch.tensor([on_objects(constant_boxes(sums, middles), each) for each in scenes[60:]]).mean(0)
    assert scores["told"][ON] == pytest.approx([1, 1, 0], abs=1e-2)
    assert scores["told"][FOUND] == pytest.approx([1, 1, 0], abs=1e-2)
    assert scores["noise"][FOUND][0] < 0.4
    assert scores["noise"][ON][1] < float(blind[1]) + 0.1, "noise knows no more than no token"


def test_data_is_named_like_an_encoder() -> None:
    data = open_data("synthetic_scenes,seed=3,samples=5")
    items = data.items(100)
    assert [item.name for item in items] == [f"synthetic_scenes,seed=3,samples=5[{index}]" for index in range(5)]
    assert data.sample(items[4]).provenance.row == 4
    assert [item.bytes for item in items] == [item.bytes for item in data.items(5)]
    changed = open_data("synthetic_scenes,seed=4,samples=5").items(5)
    assert {item.bytes for item in items}.isdisjoint(item.bytes for item in changed), "other boxes, other checksum"
    assert ("colour", "red") in data.labels
    with pytest.raises(RecipeValidationError, match="synthetic_scens: type: no dataset called 'synthetic_scens'"):
        open_data("synthetic_scens")
    with pytest.raises(RecipeValidationError, match="synthetic_scenes,seed=x: seed: must be"):
        open_data("synthetic_scenes,seed=x")
    with pytest.raises(UsageError, match="'seed' is not KEY=VALUE; for example synthetic_scenes,seed=3"):
        open_data("synthetic_scenes,seed")
