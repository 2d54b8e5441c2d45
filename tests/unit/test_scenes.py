"""Synthetic scenes: exact truth, determinism, held-out parts, settings that work and that do not."""

from __future__ import annotations

import itertools
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from fusionkit.blocks.datasets import scene_words as words
from fusionkit.blocks.datasets.scene_layout import Thing
from fusionkit.blocks.datasets.scene_picture import RGB, Scene, draw
from fusionkit.blocks.datasets.specs import SYNTHETIC_SCENES, SyntheticScenesConfig
from fusionkit.blocks.datasets.synthetic_scenes import SyntheticScenes
from fusionkit.errors import DataError
from fusionkit.sample import Sample, Turn

ALL_KINDS: Any = {"box": 1.0, "point": 1.0, "count": 1.0, "describe": 1.0}


def scenes(**settings: Any) -> list[Sample]:
    config = SyntheticScenesConfig(**({"samples": 60} | settings))
    dataset = SyntheticScenes(config)
    return [dataset[index] for index in range(len(dataset))]


def pixels(sample: Sample) -> np.ndarray[Any, Any]:
    assert sample.open_image is not None
    return np.asarray(sample.open_image())


def pairs_of(sample: Sample) -> list[words.Pair]:
    return [(thing.labels["colour"], thing.labels["shape"]) for thing in sample.objects]


# ----------------------------------------------------------------------------------------------------- the truth
def referred(turn: Turn, sample: Sample) -> list[int]:
    """The objects a question names, read from its words alone."""
    text = turn.question.replace("?", "").split()
    colours = [word for word in text if word in words.COLOURS]
    shapes = [shape for shape in words.SHAPES if {shape, words.PLURALS[shape]} & set(text)]
    assert len(colours) <= 1
    assert len(shapes) <= 1
    return [
        index
        for index, (colour, shape) in enumerate(pairs_of(sample))
        if (not colours or colour == colours[0]) and (not shapes or shape == shapes[0])
    ]


def test_every_answer_follows_from_the_objects() -> None:
    seen = set()
    for sample in scenes(kinds=ALL_KINDS, objects=(1, 6), phrasings="all", combinations="all", object_size=(0.17, 0.3)):
        for turn in sample.turns:
            seen.add(turn.kind)
            if turn.kind == "describe":
                order = sorted(sample.objects, key=lambda thing: (thing.box.centre.x, thing.box.centre.y))
                assert turn.answer == (", ".join(" ".join(thing.labels.values()) for thing in order),)
                continue
            objects = referred(turn, sample)
            if turn.kind == "count":
                assert turn.answer == (str(len(objects)),)
                continue
            assert len(objects) == 1, f"ambiguous: {turn.question} of {pairs_of(sample)}"
            box = sample.objects[objects[0]].box
            assert turn.answer == ((box,) if turn.kind == "box" else (box.centre,))
    assert seen == set(ALL_KINDS)


@pytest.mark.parametrize("shape", words.SHAPES)
@pytest.mark.parametrize("side", [8, 13, 18, 40])
def test_boxes_touch_what_is_drawn(shape: str, side: int) -> None:
    """With and without the object, the picture differs exactly up to the edges of the object's box."""
    thing = Thing("red", shape, 5, 7, side)
    with_it = np.asarray(draw(Scene(0, 0, 64, (thing,), noise=0)), np.int64)
    without = np.asarray(draw(Scene(0, 0, 64, (), noise=0)), np.int64)
    rows, columns = np.nonzero(np.abs(with_it - without).max(2) > 8)
    assert columns.min() == 5
    assert rows.min() in ((7, 8) if shape == "triangle" else (7,))  # a triangle's tip covers little of its first row
    assert (columns.max() + 1, rows.max() + 1) == (5 + side, 7 + side)


@pytest.mark.parametrize("fill", ["plain", "stripes", "dots", "checks"])
def test_objects_have_the_colour_of_their_name(fill: str) -> None:
    for colour in words.COLOURS:
        picture = np.asarray(draw(Scene(1, 2, 64, (Thing(colour, "square", 10, 10, 30, fill),), noise=0))) / 255
        mean = picture[11:39, 11:39].mean((0, 1))
        nearest = min(
            RGB, key=lambda name: float(np.square(mean / mean.max() - np.asarray(RGB[name]) / max(RGB[name])).sum())
        )
        assert nearest == colour


def test_objects_lie_inside_and_apart() -> None:
    for sample in scenes(objects=5, object_size=(0.2, 0.3)):
        assert sample.size is not None
        for thing in sample.objects:
            assert thing.box.x0 >= 0
            assert thing.box.y0 >= 0
            assert thing.box.x1 <= sample.size.width
            assert thing.box.y1 <= sample.size.height
        assert all(a.box.iou(b.box) == 0 for a, b in itertools.combinations(sample.objects, 2))


def test_overlap_hides_no_more_than_it_says() -> None:
    most = 0.0
    for sample in scenes(objects=6, overlap=0.3, object_size=(0.2, 0.4)):
        for number, thing in enumerate(sample.objects):
            covered = 0.0
            for later in sample.objects[number + 1 :]:
                width = min(thing.box.x1, later.box.x1) - max(thing.box.x0, later.box.x0)
                height = min(thing.box.y1, later.box.y1) - max(thing.box.y0, later.box.y0)
                covered += max(0, width) * max(0, height) / thing.box.area
            most = max(most, covered)
    assert 0.1 < most <= 0.3


def test_pictures_come_again_with_other_questions() -> None:
    once, again = scenes(samples=20), scenes(samples=60, pictures=20)
    assert [sample.turns for sample in again[:20]] == [sample.turns for sample in once]
    for first, second, third in zip(again[:20], again[20:40], again[40:], strict=True):
        assert (pixels(first) == pixels(second)).all()
        assert first.objects == second.objects == third.objects
    assert sum(first.turns == later.turns for first, later in itertools.pairwise(again[::20])) == 0


# --------------------------------------------------------------------------------------------------- determinism
def test_a_sample_is_a_function_of_seed_and_index() -> None:
    one, again, other = scenes(samples=5, seed=3), scenes(samples=5, seed=3), scenes(samples=5, seed=4)
    for a, b, c in zip(one, again, other, strict=True):
        assert (a.turns, a.objects) == (b.turns, b.objects)
        np.testing.assert_array_equal(pixels(a), pixels(b))
        assert a.objects != c.objects
        assert not np.array_equal(pixels(a), pixels(c))
    assert len({tuple(thing.box for thing in sample.objects) for sample in one}) == 5


def test_neighbouring_seeds_share_no_picture() -> None:
    """(seed, index) pairs must not collide, so that another seed is unseen data."""
    layouts = [tuple(thing.box for thing in s.objects) for seed in range(6) for s in scenes(samples=40, seed=seed)]
    assert len(set(layouts)) == len(layouts)


def test_samples_travel_to_workers() -> None:
    sample = scenes(samples=1)[0]
    copy = pickle.loads(pickle.dumps(sample))
    np.testing.assert_array_equal(pixels(copy), pixels(sample))
    assert copy.turns == sample.turns


def test_length_and_bounds() -> None:
    endless = SyntheticScenes(SyntheticScenesConfig())
    assert len(endless) == 2**31 - 1
    assert endless[10**9].turns
    with pytest.raises(IndexError, match=r"samples 0\.\.6, got 7"):
        SyntheticScenes(SyntheticScenesConfig(samples=7))[7]


# ------------------------------------------------------------------------------------------------------ held out
def test_training_scenes_never_show_a_held_out_pair_but_all_its_parts() -> None:
    samples = scenes(samples=300)
    shown = {pair for sample in samples for pair in pairs_of(sample)}
    assert shown == set(words.TRAINING_PAIRS)
    assert {colour for colour, _ in shown} == set(words.COLOURS)
    assert {shape for _, shape in shown} == set(words.SHAPES)
    text = " ".join(turn.question for sample in samples for turn in sample.turns)
    for colour, shape in words.HELD_OUT_PAIRS:
        assert f"{colour} {shape}" not in text
        assert f"{colour} {words.PLURALS[shape]}" not in text
    assert not any("held_out_combination" in turn.tags for sample in samples for turn in sample.turns)


def test_held_out_scenes_ask_only_about_held_out_pairs() -> None:
    asked = set()
    for sample in scenes(samples=100, combinations="held_out"):
        for turn in sample.turns:
            assert turn.kind in ("box", "point")
            assert "held_out_combination" in turn.tags
            (target,) = referred(turn, sample)
            asked.add(pairs_of(sample)[target])
    assert asked == set(words.HELD_OUT_PAIRS)


def test_tags_tell_held_out_from_seen() -> None:
    tags = {
        tag
        for sample in scenes(combinations="all", phrasings="all")
        for turn in sample.turns
        for tag in (turn.tags or ("",))
    }
    assert tags == {"", "held_out_combination", "held_out_phrasing"}


@pytest.mark.parametrize("which", ["training", "held_out"])
def test_phrasings_keep_apart(which: str) -> None:
    other = {"training": "held_out", "held_out": "training"}[which]
    forbidden = [
        re.compile(re.sub(r"\\{(one|many)\\}", r"(\\w+ )?\\w+", re.escape(wording)))
        for kind in words.WORDINGS
        for wording in words.wordings(kind, other)
    ]
    for sample in scenes(phrasings=which, kinds=ALL_KINDS):
        for turn in sample.turns:
            assert not any(pattern.fullmatch(turn.question) for pattern in forbidden)
            assert ("held_out_phrasing" in turn.tags) == (which == "held_out")


def test_held_out_wordings_use_known_words_of_the_same_kind() -> None:
    for kind, held_out in words.HELD_OUT_WORDINGS.items():
        known = set(" ".join(words.WORDINGS[kind]).replace("?", "").split())
        assert set(" ".join(held_out).replace("?", "").split()) <= known
        assert not set(held_out) & set(words.WORDINGS[kind])


def test_wordings_tell_the_kind_of_answer() -> None:
    every = [wording for kind in words.WORDINGS for wording in words.wordings(kind, "all")]
    assert len(set(every)) == len(every)


# ------------------------------------------------------------------------------------------------------ settings
def test_kinds_follow_their_weights() -> None:
    counts = dict.fromkeys(ALL_KINDS, 0)
    for sample in scenes(samples=200, kinds={"box": 3.0, "count": 1.0}):
        for turn in sample.turns:
            counts[turn.kind] += 1
    assert counts["point"] == counts["describe"] == 0
    assert 2.4 < counts["box"] / counts["count"] < 3.8


def test_half_of_the_references_are_single_attributes() -> None:
    single = total = 0
    for sample in scenes(samples=200, kinds={"box": 1.0}):
        for turn in sample.turns:
            total += 1
            single += turn.answer[0].label not in turn.question  # type: ignore[union-attr]
    assert 0.3 < single / total < 0.55  # asked at 0.5 where one attribute is enough


def test_counts_are_not_mostly_zero() -> None:
    answers = [turn.text for sample in scenes(samples=200, kinds={"count": 1.0}) for turn in sample.turns]
    assert 0.15 < answers.count("0") / len(answers) < 0.45
    assert {"1", "2", "3"} <= set(answers)


def test_textures_clutter_and_noise_change_the_picture_not_the_truth() -> None:
    plain, busy = scenes(samples=8), scenes(samples=8, clutter=12, noise=0.1)
    assert [s.turns for s in plain] == [s.turns for s in busy]
    assert all(not np.array_equal(pixels(a), pixels(b)) for a, b in zip(plain, busy, strict=True))
    assert all(pixels(s).shape == (112, 112, 3) for s in scenes(samples=2, size=112, textures=1.0))


def test_photographs_as_background(tmp_path: Path) -> None:
    Image.new("RGB", (80, 60), (250, 10, 10)).save(tmp_path / "a.png")
    Image.new("L", (200, 30), 0).save(tmp_path / "b.jpg")
    samples = scenes(samples=12, photographs=str(tmp_path), noise=0.0)
    reddish = [bool((pixels(sample)[..., 0] > 2 * pixels(sample)[..., 1]).mean() > 0.4) for sample in samples]
    assert set(reddish) == {True, False}
    assert pickle.loads(pickle.dumps(samples[0])).open_image().size == (48, 48)


def test_photographs_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"synthetic_scenes\.photographs: .*not a folder"):
        scenes(photographs=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="no pictures in this folder"):
        scenes(photographs=str(tmp_path))
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"broken\.png: not a picture that Pillow can read"):
        scenes(photographs=str(tmp_path))


@pytest.mark.parametrize("example", SYNTHETIC_SCENES.examples, ids=str)
def test_examples_work(example: dict[str, Any]) -> None:
    dataset = SyntheticScenes(SyntheticScenesConfig.model_validate_json(json.dumps(dict(example))))
    assert all(dataset[index].turns for index in range(len(dataset)))
    assert dataset.label_names == {"colour": words.COLOURS, "shape": words.SHAPES}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objects": [5, 2]}, r"objects must be \[least, most\], got \[5, 2\]"),
        ({"object_size": [0.4, 0.2]}, r"object_size must be \[least, most\]"),
        ({"object_size": [0.05, 0.2]}, "under 6 px, too small to tell shapes"),
        ({"object_size": [0.2, 0.9]}, "must stay under 0.6 of the picture"),
        ({"kinds": {"box": 0}}, "kinds needs at least one weight above 0"),
        ({"kinds": {"boxes": 1}}, "Input should be 'box', 'point', 'count' or 'describe'"),
        ({"combinations": "held_out", "kinds": {"count": 1}}, "held_out asks box and point questions only"),
        ({"objects": 12, "object_size": [0.4, 0.4]}, "12 objects of at least 0.4 of the side do not fit"),
        ({"colour": "red"}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SyntheticScenesConfig.model_validate_json(json.dumps(settings))


def test_objects_that_never_fit_beside_each_other_say_so() -> None:
    with pytest.raises(
        DataError, match=r"synthetic_scenes\(seed=0\):0: .* do not fit a picture with overlap 0\.0; lower objects"
    ):
        scenes(objects=2, object_size=(0.54, 0.54), samples=1)
