"""What the command line may name, how partial results are kept, and which layers a curve suggests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import fusionkit
from fusionkit.analysis.outcome import Frame
from fusionkit.analysis.partial import Partial
from fusionkit.analysis.photos import Photo, Reader, batches, find_photos
from fusionkit.analysis.stream import parse_layers, run
from fusionkit.analysis.subjects import Subject, subjects, weights_digest
from fusionkit.analysis.suggest import directions, fragment, spans, suggest
from fusionkit.errors import DataError, FusionkitError, UsageError


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        Image.effect_noise((40 + number, 30), 60).convert("RGB").save(folder / f"{number}.png")
    return folder


# ----------------------------------------------------------------------------------------------------------- grammar
def test_every_way_to_name_an_encoder() -> None:
    found = subjects(
        ["small_vit,depth=3,image_size=[24, 36]", "tiny:semantic", "builtin:tiny:spatial", "checkpoint:tiny"]
    )
    assert [(subject.label, subject.kept, subject.stream) for subject in found] == [
        ("small_vit-depth=3-image_size=-24-36", 3, ""),
        ("builtin-tiny-semantic", 2, "semantic"),
        ("builtin-tiny-spatial", 2, "spatial"),
        ("checkpoint-tiny-semantic", 2, "semantic"),
        ("checkpoint-tiny-spatial", 2, "spatial"),
    ]
    assert found[0].info.input_size == (24, 36)
    assert found[0].config == {"type": "small_vit", "depth": 3, "image_size": [24, 36]}
    assert [subject.label for subject in subjects(["tiny"])] == ["builtin-tiny-semantic", "builtin-tiny-spatial"]


def test_long_words_become_short_labels_that_stay_apart() -> None:
    words = [
        f"small_conv,widths=[{', '.join(['4'] * 60)}],strides=[{', '.join(['1'] * 60)}],heads={heads}"
        for heads in (2, 4)
    ]
    labels = [subject.label for subject in subjects(words)]
    assert [len(label) for label in labels] == [80, 80]
    assert labels[0] != labels[1]


def test_a_recipe_file_names_its_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text("schema: 1\nextends: builtin:tiny\nname: mine\n")
    monkeypatch.chdir(tmp_path)
    assert [subject.stream for subject in subjects(["mine.yaml"])] == ["semantic", "spatial"]
    assert [subject.label for subject in subjects(["./mine.yaml:spatial"])] == ["mine.yaml-spatial"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["small_vti"],
            "'small_vti' names nothing to analyse: no encoder called 'small_vti' is installed; did you mean",
        ),
        (["small_vit,depht=3"], "small_vit,depht=3: depht: unknown key (did you mean 'depth'?)"),
        (["small_vit,depth"], "small_vit,depth: 'depth' is not KEY=VALUE; for example small_vit,image_size=224"),
        (["small_vit,,depth=3"], "expected NAME or NAME,KEY=VALUE,..."),
        (["small_vit,image_size=50"], "image 50x50 is not a multiple of the patch"),
        (["tiny:nowhere"], "tiny:nowhere: no stream 'nowhere'; there are semantic, spatial"),
        (["tiny,depth=3"], "options are for registered encoders"),
        (["checkpoint:huge"], "no checkpoint 'checkpoint:huge' is shipped"),
        (["small_vit", "small_vit"], "small_vit: named twice"),
        (["no/such.yaml"], "no/such.yaml"),
        (["timm"], "timm: model: missing (timm name with its weight tag"),
    ],
)
def test_what_names_nothing_is_explained(words: list[str], message: str) -> None:
    with pytest.raises(FusionkitError, match=re.escape(message)):
        subjects(words)


def test_random_weights_are_the_same_each_time_and_trained_ones_are_those_of_the_checkpoint() -> None:
    before = torch.get_rng_state()
    first, second = (subjects(["small_vit"])[0].open() for _ in range(2))
    assert weights_digest(first) == weights_digest(second)
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers are left alone"
    trained = subjects(["checkpoint:tiny:spatial"])[0].open()
    fresh = subjects(["tiny:spatial"])[0].open()
    assert weights_digest(trained) != weights_digest(fresh)
    assert not trained.training


def test_layers_as_text() -> None:
    (subject,) = subjects(["small_vit,depth=6"])
    assert parse_layers(None, subject) == parse_layers("all", subject) == (1, 2, 3, 4, 5, 6)
    assert parse_layers("0,2-4,6", subject) == (0, 2, 3, 4, 6)
    for text, message in (("7", r"has layers 0..6, not 7"), ("1,x", "'x' is no layer"), ("3-", "'3-' is no layer")):
        with pytest.raises(UsageError, match=message):
            parse_layers(text, subject)


# ---------------------------------------------------------------------------------------------------------- pictures
def test_pictures_are_stretched_and_normalised_as_training_does(pictures: Path) -> None:
    (subject,) = subjects(["small_vit"])
    photos = find_photos(pictures)
    x_BCHW = Reader(subject.info).pixels([photo.open() for photo in photos[:2]])
    assert x_BCHW.shape == (2, 3, 48, 48)
    white = Reader(subject.info).pixels([Image.new("RGB", (9, 5), "white")])
    assert torch.allclose(white, torch.ones(1, 3, 48, 48))
    assert [len(group) for group in batches(photos, 2)] == [2, 2, 1]


def test_pictures_that_are_not_there_or_broken(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        find_photos(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures in this folder"):
        find_photos(tmp_path / "empty")
    (pictures / "2.png").write_bytes((pictures / "2.png").read_bytes()[:200])
    broken = find_photos(pictures)[2]
    with pytest.raises(DataError, match=r"2\.png: damaged or truncated.*the same command again: it goes on from here"):
        broken.open()
    assert [photo.name for photo in find_photos(pictures / "1.png")] == ["1.png"]


# ------------------------------------------------------------------------------------------------------------ resume
def count_work(seen: list[int], stop_at: int = 10**9) -> Any:
    def work(encoder: Any, pixels: torch.Tensor) -> list[dict[str, Any]]:
        if sum(seen) >= stop_at:
            raise KeyboardInterrupt
        seen.append(len(pixels))
        return [{"mean": float(picture.mean())} for picture in pixels]

    return work


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path, pictures: Path) -> None:
    (subject,) = subjects(["small_vit"])
    encoder, photos, frame = subject.open(), find_photos(pictures), Frame(tmp_path / "out", batch=2)
    first: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        run("test", subject, encoder, photos, {"layers": [1]}, count_work(first, stop_at=2), frame)
    second: list[int] = []
    partial = run("test", subject, encoder, photos, {"layers": [1]}, count_work(second), frame)
    assert (first, second) == ([2], [2, 1])
    whole = run("test", subject, encoder, photos, {"layers": [1]}, count_work([]), Frame(tmp_path / "whole"))
    assert list(partial.values(photos)) == list(whole.values(photos))
    assert list(partial.values(photos[3:])) == list(whole.values(photos))[3:]


def test_a_torn_line_is_done_again_and_a_changed_picture_too(tmp_path: Path, pictures: Path) -> None:
    (subject,) = subjects(["small_vit"])
    encoder, photos, frame = subject.open(), find_photos(pictures), Frame(tmp_path / "out")
    partial = run("test", subject, encoder, photos, {}, count_work([]), frame)
    partial.path.write_bytes(partial.path.read_bytes()[:-9])
    Image.new("RGB", (64, 64), "red").save(pictures / "0.png")
    changed = find_photos(pictures)
    seen: list[int] = []
    again = run("test", subject, encoder, changed, {}, count_work(seen), frame)
    assert seen == [2]
    assert len(list(again.values(changed))) == 5


def test_results_of_other_settings_are_never_mixed_in(tmp_path: Path, pictures: Path) -> None:
    path, photo = tmp_path / "p.jsonl", find_photos(pictures)[0]
    Partial(path, {"layers": [1], "weights": "a"}).add(photo, {"x": 1})
    with pytest.raises(UsageError, match=r"other settings \(layers differ\); choose another -o, or say --fresh"):
        Partial(path, {"layers": [2], "weights": "a"})
    assert not Partial(path, {"layers": [2], "weights": "a"}, fresh=True).has(photo)
    path.write_text("not ours\n")
    with pytest.raises(UsageError, match="not partial results of an analysis"):
        Partial(path, {})
    Partial(path, {}, fresh=True).add(photo, {"x": 1})
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(UsageError, match=r"p\.jsonl:3: damaged; choose another -o, or say --fresh"):
        Partial(path, {})
    path.write_text("torn header without an end")
    assert not Partial(path, {}).has(photo)


def test_a_picture_stored_twice_counts_once_with_its_newer_result(tmp_path: Path) -> None:
    photo = Photo(Path("x.png"), "x.png", 3)
    partial = Partial(tmp_path / "p.jsonl", {})
    partial.add(photo, {"x": 1})
    partial.add(photo, {"x": 2})
    assert [values["x"] for values in Partial(tmp_path / "p.jsonl", {}).values([photo])] == [2]


# -------------------------------------------------------------------------------------------------------- suggestion
def make_report(values: list[float], first: int = 1) -> dict[str, Any]:
    return {
        "kind": "layer_entropy",
        "version": 1,
        "encoder": "x",
        "depth": len(values) + first - 1,
        "measure": "patch_to_patch",
        "largest": 5.0,
        "layers": [{"layer": layer, "entropy": value} for layer, value in enumerate(values, start=first)],
    }


def subject_of_depth(depth: int) -> Subject:
    return subjects([f"small_vit,depth={depth}"])[0]


FALLING = [4.9, 4.85, 4.8, 4.75, 4.7, 3.0, 2.9, 2.8]


def test_low_entropy_late_as_in_the_papers_dinov3() -> None:
    suggestion = suggest(subject_of_depth(8), make_report(FALLING), "low")
    assert suggestion.rule == {"knee": True}
    assert spans(suggestion.layers) == "5-8"
    assert "lower than or at the knee of the curve, 4.7 nats" in suggestion.words
    assert "over the depth it falls from 4.9 to 2.8" in suggestion.words


def test_without_a_useful_knee_it_is_the_half_and_says_so() -> None:
    straight = suggest(subject_of_depth(4), make_report([4.0, 3.0, 2.0, 1.0]), "low")
    assert straight.rule == {"top_k": 2}
    assert straight.layers == (3, 4)
    assert "have no knee" in straight.words
    early = suggest(subject_of_depth(8), make_report(FALLING[::-1]), "low")
    assert "low entropy stands early, in the paper's encoders late" in early.words


def test_rules_asked_for_are_kept_or_refused() -> None:
    subject, report = subject_of_depth(8), make_report(FALLING)
    assert suggest(subject, report, "high", {"threshold": 4.8}).layers == (1, 2, 3)
    assert suggest(subject, report, "low", {"top_k": 2}).layers == (7, 8)
    with pytest.raises(UsageError, match="no layer passes"):
        suggest(subject, report, "high", {"threshold": 9.0})
    with pytest.raises(UsageError, match="have no knee"):
        suggest(subject_of_depth(2), make_report([1.0, 2.0]), "low", {"knee": True})


def test_directions_follow_the_paper_unless_asked_otherwise() -> None:
    means = {"siglip": 0.9, "dino": 0.7}
    assert directions(means, []) == {"siglip": "high", "dino": "low"}
    assert directions({"dino": 0.7}, []) == {"dino": "low"}
    assert directions(means, ["high"]) == {"siglip": "high", "dino": "high"}
    assert directions(means, ["dino=high"])["dino"] == "high"
    for wrong in ("up", "nobody=high"):
        with pytest.raises(UsageError, match="expected high, low or LABEL=high, with LABEL one of siglip, dino"):
            directions(means, [wrong])


@pytest.mark.parametrize("word", ["small_vit,depth=8", "tiny:spatial"])
def test_the_fragment_is_part_of_a_recipe_that_selects_these_layers(word: str, tmp_path: Path) -> None:
    (subject,) = subjects([word])
    report = make_report(FALLING if subject.info.depth == 8 else [4.0, 3.0])
    suggestion = suggest(subject, report, "low")
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report))
    lines = yaml.safe_load(fragment(subject, suggestion, str(file)))
    base = (
        {"schema": 1, "name": "mine"}
        if not subject.stream
        else {"schema": 1, "extends": "builtin:tiny", "name": "mine"}
    )
    plan = fusionkit.plan(fusionkit.load_recipe({**base, **lines}))
    (name,) = lines["streams"]
    assert plan.streams[name].layers == suggestion.layers
    assert suggestion.words.split(";")[0] in fragment(subject, suggestion, str(file))
