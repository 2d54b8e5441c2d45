"""Selectors: the layers they choose, and what they refuse."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from fusionkit import registry
from fusionkit.errors import RecipeValidationError
from fusionkit.plugin import BlockSite, EncoderInfo, ShapeError


def encoder(depth: int) -> EncoderInfo:
    statistics = (0.5, 0.5, 0.5)
    return EncoderInfo(depth, 8, (4, 4), (16, 16), 0, statistics, statistics, "mit", lambda _: 0, lambda *_: 0)


def chosen(name: str, depth: int, **fields: Any) -> tuple[int, ...]:
    spec = registry.spec("selectors", name)
    return tuple(registry.factory(spec)(spec.config(**fields), BlockSite()).layers(encoder(depth)))


@pytest.mark.parametrize(
    ("name", "fields", "depth", "expected"),
    [
        ("all", {}, 3, (1, 2, 3)),
        ("last", {}, 12, (12,)),
        ("last", {"count": 3}, 12, (10, 11, 12)),
        ("last", {"count": 2}, 2, (1, 2)),
        ("range", {"first": 11, "last": 14}, 24, (11, 12, 13, 14)),
        ("range", {"first": 0, "last": 0}, 1, (0,)),
        ("range", {"last": 2}, 2, (1, 2)),
        ("list", {"layers": (0, 3, 7)}, 7, (0, 3, 7)),
        ("evenly_spaced", {"count": 4}, 12, (3, 6, 9, 12)),
        ("evenly_spaced", {"count": 3}, 7, (2, 4, 7)),
        ("evenly_spaced", {"count": 1}, 5, (5,)),
        ("evenly_spaced", {"count": 5}, 5, (1, 2, 3, 4, 5)),
        ("relative", {"first": 0.5, "last": 1.0}, 12, (6, 7, 8, 9, 10, 11, 12)),
        ("relative", {"first": 0.5, "last": 1.0}, 4, (2, 3, 4)),
        ("relative", {"first": 0.0, "last": 0.0}, 4, (0,)),
        ("relative", {"fractions": (0.25, 0.5, 1.0)}, 24, (6, 12, 24)),
        ("relative", {"fractions": (0.25, 0.5, 1.0)}, 12, (3, 6, 12)),
    ],
)
def test_chooses(name: str, fields: dict[str, Any], depth: int, expected: tuple[int, ...]) -> None:
    assert chosen(name, depth, **fields) == expected


def test_random_is_fixed_by_its_seed_on_every_python() -> None:
    # Recorded: a different draw for the same seed would silently be another experiment.
    assert chosen("random", 24, count=5, seed=0) == (6, 10, 13, 18, 21)
    assert chosen("random", 24, count=5, seed=1) == (4, 7, 12, 18, 21)


def test_random_draws_every_layer_about_equally_often() -> None:
    counts = dict.fromkeys(range(1, 7), 0)
    for seed in range(600):
        layers = chosen("random", 6, count=2, seed=seed)
        assert len(set(layers)) == 2
        for layer in layers:
            counts[layer] += 1
    assert set(counts) == {1, 2, 3, 4, 5, 6}
    assert max(counts.values()) - min(counts.values()) < 80  # 200 expected of each, standard deviation about 12


@pytest.mark.parametrize(
    ("name", "fields", "field", "message"),
    [
        ("range", {"first": 1, "last": 13}, "last", "layer 13 is outside the encoder, which has layers 0 to 12"),
        ("list", {"layers": (3, 14)}, "layers", r"layers \[14\] are outside the encoder"),
        ("last", {"count": 13}, "count", "cannot select 13 layers of an encoder with 12"),
        ("evenly_spaced", {"count": 13}, "count", "use at most 12"),
        ("random", {"count": 13}, "count", "use at most 12"),
        ("relative", {"fractions": (0.5, 0.51)}, "fractions", r"give layers \[6, 6\]"),
    ],
)
def test_refuses_what_the_encoder_does_not_have(name: str, fields: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(ShapeError, match=message) as caught:
        chosen(name, 12, **fields)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("range", {"first": 3, "last": 2}, "must be at least first"),
        ("range", {"first": -1, "last": 2}, "greater than or equal to 0"),
        ("list", {"layers": ()}, "at least 1 item"),
        ("list", {"layers": (2, 1)}, r"must rise, each layer once, got \[2, 1\]; use \[1, 2\]"),
        ("list", {"layers": (1, 1)}, "must rise"),
        ("last", {"count": 0}, "greater than 0"),
        ("relative", {}, "give either first and last, or fractions"),
        ("relative", {"first": 0.1, "last": 0.2, "fractions": (0.5,)}, "give either"),
        ("relative", {"first": 0.1}, "must both be given"),
        ("relative", {"first": 0.5, "last": 0.2}, "first <= last"),
        ("relative", {"first": 0.5, "last": 1.2}, "less than or equal to 1"),
        ("relative", {"fractions": (0.5, 0.5)}, "must rise"),
    ],
)
def test_refuses_a_config_that_cannot_be_meant(name: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        registry.spec("selectors", name).config(**fields)


def test_selectors_need_no_torch() -> None:
    code = (
        "import sys\nfrom fusionkit import registry\n"
        "for name in registry.names('selectors'): registry.factory(registry.spec('selectors', name))\n"
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# ------------------------------------------------------------------------------------------------- entropy
CURVE = [5.0, 4.9, 4.8, 4.7, 3.0, 2.9, 2.9, 2.8]


def entropy(info=None, values=CURVE, depth=None, first=1, **options) -> tuple[int, ...]:
    """The layers chosen for a report of `values`, given inline."""
    import json

    spec = registry.spec("selectors", "entropy")
    layers = [{"layer": layer, "entropy": value} for layer, value in enumerate(values, first)]
    report = {"kind": "layer_entropy", "version": 1, "depth": depth or len(values), "layers": layers}
    config = spec.config.model_validate_json(json.dumps({"report": report, **options}))
    return registry.factory(spec)(config, BlockSite()).layers(info or encoder(len(values)))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"threshold": 2.9}, (6, 7, 8)),
        ({"threshold": 4.8, "direction": "high"}, (1, 2, 3)),
        ({"top_k": 2}, (7, 8)),  # 6 and 7 are equally low: the deeper one
        ({"top_k": 3, "direction": "high"}, (1, 2, 3)),
        ({"knee": True}, (5, 6, 7, 8)),
        ({"knee": True, "direction": "high"}, (1, 2, 3, 4, 5)),
    ],
)
def test_entropy_rules(options, expected):
    assert entropy(**options) == expected


def test_entropy_never_chooses_what_was_not_measured():
    assert entropy(info=encoder(12), values=[3.0, 2.0, 1.0], first=4, depth=12, threshold=2.5) == (5, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.0}, r"no layer passes: entropies are 2\.8 to 5, low than 1 is wanted"),
        ({"top_k": 9}, "cannot select 9 layers of the 8 in the report"),
        ({"knee": True, "values": [3.0, 2.0, 1.0]}, "the entropies of 3 layers have no knee"),
        ({"knee": True, "values": [2.0, 2.0, 2.0]}, "no knee"),
        ({"top_k": 1, "depth": 24}, r"encoder with 24 blocks \(not named\), this one has 8"),
    ],
)
def test_entropy_refuses(options, message):
    with pytest.raises(ShapeError, match=message):
        entropy(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of threshold, top_k and knee"),
        ({"knee": True, "top_k": 2}, "exactly one of threshold, top_k and knee"),
        ({"top_k": 1, "values": [float("1e400")]}, "finite"),
        ({"top_k": 1, "depth": 2}, "must rise, each once, and end at 2 at most"),
    ],
)
def test_entropy_config_refuses(options, message):
    with pytest.raises(ValidationError, match=message):
        entropy(**options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/dev/zero", "not a regular file"),
        ("pipe", "not a regular file"),
        (".", "not a regular file"),
        ("large", "larger than 1048576 bytes"),
        ("latin", "codec can't decode byte 0xe9"),
        ("~nobody-of-that-name/x", "home directory"),
    ],
)
@pytest.mark.timeout(60)
def test_a_report_that_is_none_is_refused_without_reading_it_all(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    (tmp_path / "large").write_bytes(b" " * (2**20 + 1))
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(ValidationError, match=rf"report '{name}'.*{message}"):
        registry.spec("selectors", "entropy").config(report=name, top_k=1)


def test_an_entropy_report_is_read_with_the_recipe_and_stays_in_it(tmp_path):
    """The file may go: the recipe, its lock and its checkpoint hold the numbers."""
    import json

    import fusionkit

    path = tmp_path / "entropy.json"
    layers = [{"layer": 1, "entropy": 2.0, "samples": 64}, {"layer": 2, "entropy": 1.0}]
    path.write_text(json.dumps({"kind": "layer_entropy", "version": 1, "depth": 2, "layers": layers, "made_by": "me"}))
    small = {"type": "small_vit", "image_size": 24, "patch": 4, "width": 16, "depth": 2, "heads": 2}
    source = {
        "schema": 1,
        "name": "one",
        "summary": "One stream.",
        "streams": {"only": {"encoder": small, "select": {"type": "entropy", "report": str(path), "top_k": 1}}},
    }
    recipe = fusionkit.load_recipe(source)
    path.unlink()
    assert fusionkit.plan(recipe).streams["only"].layers == (2,)
    again = fusionkit.load_recipe(json.loads(json.dumps(recipe.canonical())))
    assert again.canonical() == recipe.canonical()
    assert fusionkit.plan(again).streams["only"].layers == (2,)
    with pytest.raises(RecipeValidationError, match=r"streams\.only\.select\.report: .*cannot be read \(No such file"):
        fusionkit.load_recipe(source)
    source["streams"]["only"]["select"]["report"] = "nowhere.json"
    with pytest.raises(RecipeValidationError, match=r"cannot be read from /.*, where the command runs \(No such file"):
        fusionkit.load_recipe(source)
    source["streams"]["only"]["select"]["report"] = str(path)
    path.write_text('{"kind": "layer_entropy", "version": 1, "depth": 2, "layers": [{"layer": 1}]}')
    with pytest.raises(RecipeValidationError, match=r"entropy\.json': layers\.0\.entropy: Field required"):
        fusionkit.load_recipe(source)
