"""What a person reads when a recipe is wrong: place, address, what was expected, what was found, how to go on.

Texts of merging, `extends`, `requires` and `--set` are tested in test_recipe_merge.py, of locks in test_recipe_lock.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from recipe_blocks import TEXT, fake_blocks

from fusionkit.errors import (
    LockMismatchError,
    PlanError,
    Problem,
    RecipeError,
    RecipeSyntaxError,
    RecipeValidationError,
)
from fusionkit.recipe import load_recipe, yaml_subset
from fusionkit.recipe.source import decode
from fusionkit.recipe.yaml_subset import parse_yaml


def lines(folder: Path, text: str) -> list[str]:
    """The lines of the error that a recipe gives, without the folder."""
    path = folder / "r.yaml"
    path.write_text(text, encoding="utf-8")
    with fake_blocks(), pytest.raises(RecipeValidationError) as caught:
        load_recipe(path)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def test_the_recipe_these_texts_are_made_from_is_right(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(TEXT)
    with fake_blocks():
        assert load_recipe(path).name == "pair"


# (what is replaced in the recipe, by what, the lines that come out)
WRONG: list[tuple[str, str, list[str]]] = [
    (
        "name: pair\n",
        "",
        ["r.yaml:1:1: name: missing (Name of the recipe, in lower-case letters, digits and underscores)"],
    ),
    ("schema: 1", "schema: 2", ["r.yaml:1:1: schema: must be 1, got 2 (a later schema needs a later fusionkit)"]),
    ("schema: 1\n", "", ["r.yaml:1:1: schema: missing (Version of this format: `schema: 1`)"]),
    (
        "name: pair",
        "name: Pair",
        [
            "r.yaml:2:1: name: must match ^[a-z][a-z0-9_]*$, got 'Pair' (Name of the recipe, in lower-case letters, digits and underscores)"
        ],
    ),
    ("name: pair", "name: 8", ["r.yaml:2:1: name: must be a string, got 8 (quote it)"]),
    (
        "name: pair",
        "nmae: pair",
        [
            "r.yaml:1:1: name: missing (Name of the recipe, in lower-case letters, digits and underscores)",
            "r.yaml:2:1: nmae: unknown key (did you mean 'name'?)",
        ],
    ),
    ("name: pair", "name: pair\nfushion: {}", ["r.yaml:3:1: fushion: unknown key ('fusion' is given already)"]),
    (
        "name: pair",
        "name: pair\nzzzz: {}",
        [
            "r.yaml:3:1: zzzz: unknown key (known: schema, name, summary, requires, sequence_length, cropper, streams, fusion, injectors, language_model, box_tokenizer, train, evaluate)"
        ],
    ),
    ("width: {like: semantic}", "width: 0", ["r.yaml:16:9: streams.spatial.steps.mix.width: must be >= 1, got 0"]),
    (
        "width: {like: semantic}",
        "width: wide",
        ["r.yaml:16:9: streams.spatial.steps.mix.width: must be an integer or a mapping with `like`, got 'wide'"],
    ),
    (
        "width: {like: semantic}",
        "width: {lik: semantic}",
        [
            "r.yaml:16:9: streams.spatial.steps.mix.width.like: missing (Stream whose output width to take, or `language_model`)",
            "r.yaml:16:17: streams.spatial.steps.mix.width.lik: unknown key (did you mean 'like'?)",
        ],
    ),
    (
        "width: {like: semantic}",
        "width: [1]",
        ["r.yaml:16:9: streams.spatial.steps.mix.width: must be an integer or a mapping with `like`, got a list"],
    ),
    (
        "width: {like: semantic}",
        "width: 1.5",
        ["r.yaml:16:9: streams.spatial.steps.mix.width: must be an integer or a mapping with `like`, got 1.5"],
    ),
    (
        "width: {like: semantic}",
        "width: {like: 3}",
        ["r.yaml:16:17: streams.spatial.steps.mix.width.like: must be a string, got 3 (quote it)"],
    ),
    (
        "type: acme.join",
        "type: acme.jion",
        [
            "r.yaml:18:10: fusion.join.type: no step called 'acme.jion' is installed; did you mean 'acme.join' or 'acme.widen' or 'acme.mix'? (`fusionkit list` shows all)"
        ],
    ),
    (
        "type: acme.join, ",
        "",
        ["r.yaml:18:3: fusion.join.type: missing: which step is it? (`fusionkit list` shows the steps)"],
    ),
    (
        "type: acme.join",
        "type: 3",
        ["r.yaml:18:10: fusion.join.type: must be the name of a block, got 3 (`fusionkit list` shows the steps)"],
    ),
    (
        "type: acme.join",
        "type: torch.nn.Linear",
        [
            "r.yaml:18:10: fusion.join.type: 'torch.nn.Linear' is not the name of a block (`fusionkit list` shows the steps)"
        ],
    ),
    (
        "type: acme.join",
        "type: os:system",
        ["r.yaml:18:10: fusion.join.type: 'os:system' is not the name of a block (`fusionkit list` shows the steps)"],
    ),
    (
        "type: acme.join",
        "type: acme.see",
        [
            "r.yaml:18:10: fusion.join.type: no step called 'acme.see' is installed; did you mean 'acme.widen' or 'acme.mix'? (`fusionkit list` shows all)"
        ],
    ),
    (
        "join: {type: acme.join, inputs: [semantic, spatial]}",
        "join: acme.join",
        [
            "r.yaml:18:3: fusion.join: must be a step: a mapping with a `type`, got 'acme.join' (write {type: acme.join})"
        ],
    ),
    (
        "join: {type: acme.join, inputs: [semantic, spatial]}",
        "join: [1]",
        ["r.yaml:18:3: fusion.join: must be a step: a mapping with a `type`, got a list"],
    ),
    (
        "join: {type: acme.join, inputs: [semantic, spatial]}",
        "join: null",
        ["r.yaml:18:3: fusion.join: must be a step: a mapping with a `type`, got null"],
    ),
    (
        "inputs: [semantic, spatial]",
        "inputs: semantic",
        ["r.yaml:18:27: fusion.join.inputs: must be a list, got 'semantic' (write [semantic])"],
    ),
    (
        "inputs: [semantic, spatial]",
        "inputs: [semantic]",
        ["r.yaml:18:27: fusion.join.inputs: must have at least 2 items, got 1"],
    ),
    (
        "inputs: [semantic, spatial]",
        "inputs: [semantic, 'a b']",
        ["r.yaml:18:46: fusion.join.inputs.1: must match ^[a-z][a-z0-9_]*(\\.[a-z][a-z0-9_]*)?$, got 'a b'"],
    ),
    (
        "inputs: [semantic, spatial]",
        "inputs: [semantic, spatial], heads: 13",
        ["r.yaml:18:3: fusion.join: 13 heads bring bad luck"],
    ),
    (
        "inputs: [semantic, spatial]",
        "inputs: [semantic, spatial], heads: 8.0",
        ["r.yaml:18:56: fusion.join.heads: must be an integer, got 8.0 (write 8)"],
    ),
    (
        "inputs: [semantic, spatial]",
        "inputs: [semantic, spatial], heads: '8'",
        ["r.yaml:18:56: fusion.join.heads: must be an integer, got '8'"],
    ),
    (
        "inputs: [semantic, spatial]",
        "inputs: [semantic, spatial], heads: true",
        ["r.yaml:18:56: fusion.join.heads: must be an integer, got true"],
    ),
    (
        "inputs: [semantic, spatial]",
        "inputs: [semantic, spatial], heads: null",
        ["r.yaml:18:56: fusion.join.heads: must be an integer, got null"],
    ),
    (
        "inputs: [semantic, spatial]",
        "inputs: [semantic, spatial], rope: {longst: 1}",
        ["r.yaml:18:63: fusion.join.rope.longst: unknown key (did you mean 'longest'?)"],
    ),
    (
        "inputs: [semantic, spatial]",
        "inputs: [semantic, spatial], rope: 3",
        ["r.yaml:18:56: fusion.join.rope: must be a mapping, got 3"],
    ),
    (
        "mix: {type: acme.mix}",
        "mix: {type: acme.mix, share: layers, scale: 0}",
        [
            "r.yaml:8:29: streams.semantic.steps.mix.share: must be 'layer' or 'encoder', got 'layers' (did you mean 'layer'?)",
            "r.yaml:8:44: streams.semantic.steps.mix.scale: must be > 0, got 0",
        ],
    ),
    (
        "mix: {type: acme.mix}",
        "mix: {type: acme.mix, shared: layer}",
        ["r.yaml:8:29: streams.semantic.steps.mix.shared: unknown key (did you mean 'share'?)"],
    ),
    ("hidden: 8", "", ["r.yaml:9:7: streams.semantic.steps.widen.hidden: missing (Inner width)"]),
    (
        "hidden: 8",
        "hidden: 8, norm: 1",
        ["r.yaml:9:44: streams.semantic.steps.widen.norm: must be true or false, got 1"],
    ),
    (
        "    select: {type: acme.pick}\n",
        "",
        [
            "r.yaml:10:3: streams.spatial.select: missing (Which of the encoder's layers are read, for example {type: last})"
        ],
    ),
    (
        "select: {type: acme.pick}",
        "select: acme.pick",
        [
            "r.yaml:12:5: streams.spatial.select: must be a selector: a mapping with a `type`, got 'acme.pick' (write {type: acme.pick})"
        ],
    ),
    ("betas: [0.9, 0.95]", "betas: [0.9]", ["r.yaml:24:28: train.optimizer.betas: has too few items, got 1"]),
    ("betas: [0.9, 0.95]", "betas: [0.9, 1.5]", ["r.yaml:24:41: train.optimizer.betas.1: must be < 1, got 1.5"]),
    (
        "type: adamw",
        "type: adamv",
        ["r.yaml:24:15: train.optimizer.type: must be 'adamw' or 'muon', got 'adamv' (did you mean 'adamw'?)"],
    ),
    ("{type: adamw, betas: [0.9, 0.95]}", "{betas: [0.9, 0.95]}", ["r.yaml:24:3: train.optimizer.type: missing"]),
    ("{type: adamw, betas: [0.9, 0.95]}", "adamw", ["r.yaml:24:3: train.optimizer: must be a mapping, got 'adamw'"]),
    ("betas: [0.9, 0.95]", "bettas: 1", ["r.yaml:24:28: train.optimizer.bettas: unknown key (did you mean 'betas'?)"]),
    (
        "  data:\n    - {type: acme.data, weight: 0.8}\n    - {type: acme.data, weight: 0.2}\n",
        "  data: []\n",
        ["r.yaml:27:3: train.data: must have at least 1 item, got 0"],
    ),
    ("weight: 0.2", "weight: 0", ["r.yaml:29:25: train.data.1.weight: must be > 0, got 0"]),
    ("weight: 0.2", "weight: x", ["r.yaml:29:25: train.data.1.weight: must be a number, got 'x'"]),
    ("fusion: 1e-4", "fusion: -1", ["r.yaml:23:20: train.learning_rates.fusion: must be >= 0, got -1"]),
    (
        "joint: {trainable: [fusion, streams]}",
        "joint: {trainable: fusion}",
        ["r.yaml:26:13: train.stages.joint.trainable: must be a list, got 'fusion' (write [fusion])"],
    ),
    (
        "    joint: {trainable: [fusion, streams]}\n",
        "    {}\n",
        ["r.yaml:25:3: train.stages: must have at least 1 entry, got 0"],
    ),
    (
        "metric: acme.score",
        "metric: acme.scor",
        [
            "r.yaml:31:6: evaluate.0.metric: no metric called 'acme.scor' is installed; did you mean 'acme.score'? (`fusionkit list metrics` shows all)"
        ],
    ),
    ("metric: acme.score, ", "", ["r.yaml:31:5: evaluate.0.metrics: missing (What is computed from the answers)"]),
    ("metric: acme.score", "metric: []", ["r.yaml:31:6: evaluate.0.metric: must have at least 1 item, got 0"]),
    (
        "metric: acme.score",
        "metrics: [acme.score], metric: acme.score",
        ["r.yaml:31:29: evaluate.0.metric: unknown key ('metrics' is given already)"],
    ),
    (
        "train:\n",
        "train:\n  precision: fp16\n",
        ["r.yaml:23:3: train.precision: must be 'fp32', 'bf16' or 'fp64', got 'fp16' (did you mean 'fp64'?)"],
    ),
    (
        "fusion:\n  join",
        "fusion:\n  semantic: {type: acme.widen, hidden: 1}\n  join",
        ["r.yaml:18:3: fusion.semantic: the name 'semantic' is taken by streams.semantic (rename the step)"],
    ),
    (
        "streams:\n",
        "streams:\n  forward: {encoder: {type: acme.see}, select: {type: acme.pick}}\n",
        ["r.yaml:4:3: streams.forward: 'forward' is already an attribute of every module (choose another name)"],
    ),
    (
        "settings: {width: 8}",
        "settings: {width: 8.5}",
        ["r.yaml:21:47: language_model.settings.width: must be an integer, got 8.5"],
    ),
    ("evaluate:\n  - ", "evaluate:\n  ", ["r.yaml:30:1: evaluate: must be a list, got a mapping"]),
    ("name: pair", "name: pair\nsummary: 2024", ["r.yaml:3:1: summary: must be a string, got 2024 (quote it)"]),
    (
        "name: pair",
        "name: pair\nsequence_length: 1e3",
        ["r.yaml:3:1: sequence_length: must be an integer, got 1000.0 (write 1000)"],
    ),
    (
        "name: pair",
        "name: pair\ncropper: {type: overlap_tile}",
        [
            "r.yaml:3:11: cropper.type: no cropper called 'overlap_tile' is installed; did you mean 'overlap_tiles'? (`fusionkit list croppers` shows all)"
        ],
    ),
]


@pytest.mark.parametrize(("old", "new", "said"), WRONG)
def test_each_mistake_has_its_text(tmp_path: Path, old: str, new: str, said: list[str]) -> None:
    assert old in TEXT
    assert lines(tmp_path, TEXT.replace(old, new, 1)) == said


def test_all_mistakes_are_reported_at_once_in_the_order_of_their_places(tmp_path: Path) -> None:
    text = TEXT
    for old, new in (
        ("name: pair", "name: Pair"),
        ("mix: {type: acme.mix}", "mix: {type: acme.mux, share: 1}"),
        ("hidden: 8", "hidden: 0"),
        ("{type: acme.join, inputs: [semantic, spatial]}", "{type: acme.join, heads: x, input: [semantic]}"),
        ("visual: {type: acme.put}", "type: {type: acme.put}"),
        ("weight: 0.2", "weight: -1"),
        ("metric: acme.score", "metrics: [acme.score, 3]"),
    ):
        assert old in text
        text = text.replace(old, new, 1)
    assert lines(tmp_path, text) == [
        "r.yaml:2:1: name: must match ^[a-z][a-z0-9_]*$, got 'Pair' "
        "(Name of the recipe, in lower-case letters, digits and underscores)",
        "r.yaml:8:13: streams.semantic.steps.mix.type: no step called 'acme.mux' is installed; "
        "did you mean 'acme.mix'? (`fusionkit list` shows all)",
        "r.yaml:9:33: streams.semantic.steps.widen.hidden: must be >= 1, got 0",
        "r.yaml:18:3: fusion.join.inputs: missing (What to join)",
        "r.yaml:18:27: fusion.join.heads: must be an integer, got 'x'",
        "r.yaml:18:37: fusion.join.input: unknown key (did you mean 'inputs'?)",
        "r.yaml:20:3: injectors.type: 'type' is already an attribute of every module (choose another name)",
        "r.yaml:29:25: train.data.1.weight: must be > 0, got -1",
        "r.yaml:31:28: evaluate.0.metrics.1: must be a metric: a mapping with a `type`, got 3",
    ]


def test_a_dict_has_no_lines_but_the_same_texts() -> None:
    with pytest.raises(RecipeValidationError) as caught:
        load_recipe({"schema": 1, "name": "x", "streams": {"a": {"encoder": {"type": "timm", "modle": "vit"}}}})
    assert str(caught.value).splitlines() == [
        "<dict>: streams.a.encoder.model: missing (timm name with its weight tag, for example "
        "vit_small_patch14_dinov2.lvd142m)",
        "<dict>: streams.a.encoder.modle: unknown key (did you mean 'model'?)",
        "<dict>: streams.a.select: missing (Which of the encoder's layers are read, for example {type: last})",
    ]


def test_long_values_are_cut_in_messages(tmp_path: Path) -> None:
    [line] = lines(tmp_path, TEXT.replace("hidden: 8", f"hidden: {'x' * 500}"))
    assert line.endswith(f"must be an integer, got '{'x' * 59}…'")


def test_a_default_that_does_not_load_is_reported_at_its_address(tmp_path: Path, site: Any) -> None:
    site.install(
        "acme-broken",
        entry_points={"fusionkit.metrics": {"acme.broken": "acme_broken:SPEC"}},
        modules={"acme_broken.py": "raise RuntimeError('out of order')"},
    )
    [line] = lines(tmp_path, TEXT.replace("metric: acme.score", "metric: acme.broken"))
    assert line.startswith("r.yaml:31:6: evaluate.0.metric: metrics/acme.broken of acme-broken 1.0 does not load: ")
    assert "RuntimeError: out of order" in line


def test_a_config_that_fails_by_mistake_names_its_block(tmp_path: Path) -> None:
    assert lines(tmp_path, TEXT.replace("spatial]}", "spatial], heads: 666}")) == [
        "r.yaml:18:10: fusion.join.type: the config of connectors/acme.join fails "
        '(KeyError: "a mistake of the block\'s author") (report it to its author)'
    ]


# ------------------------------------------------------------------------------------------------------- syntax
SYNTAX = [
    ("a:\n\tb: 1\n", "2:1: a tab cannot indent (use spaces)"),
    ("a: @b\n", "1:4: a value cannot start with @ (quote it)"),
    ("a: b: c\n", "1:5: a colon is not allowed here (check the indentation, or quote the value)"),
    ("a: 'b\n", "2:1: the text ends inside quotes (close them)"),
    ("a: &b 1\n", "1:4: anchors (&b) are not allowed (write the value out)"),
    ("a: *b\n", "1:4: aliases (*b) are not allowed (write the value out)"),
    ("a: !!python/name:os.system\n", "1:4: tags (tag:yaml.org,2002:python/name:os.system) are not allowed (remove it)"),
    ("<<: {a: 1}\n", "1:1: merge keys (<<) are not allowed (write the values out, or use `extends`)"),
    ("a: 1\nb: 2\na: 3\n", "3:1: key 'a' again; the first is on line 1"),
    ("1: a\n", "1:1: key 1 is not a string (quote it)"),
    ("null: a\n", "1:1: key null is not a string (quote it)"),
    ("? [a]\n: b\n", "1:3: a key must be a string, not a list or mapping"),
    ("a: 010\n", "1:4: 010 starts with a zero, which reads differently to different people (drop it, or quote it)"),
    ("a: .inf\n", "1:4: .inf is no number a recipe can hold"),
    ("a: 1e999\n", "1:4: 1e999 is too large for a number (quote it if it is text)"),
    ("a: 99999999999999999999\n", "1:4: 99999999999999999999 does not fit in 64 bits (quote it if it is text)"),
    (f"a: {'9' * 99}\n", "1:4: a number of 99 characters is too long, at most 40 (quote it if it is text)"),
    ('a: "\\0"\n', "1:4: text holds the control character U+0000 (remove it)"),
    ("a: 1\n---\nb: 2\n", "2:1: a second document starts here; a recipe is one document"),
    ("%YAML 1.2\n---\na: 1\n", "1:1: directives (%YAML, %TAG) are not allowed (remove the line)"),
    ("- a\n", "1:1: a recipe is a mapping of keys to values; found something else"),
    ("", "1:1: a recipe is a mapping of keys to values; it is empty"),
]


@pytest.mark.parametrize(("text", "said"), SYNTAX)
@pytest.mark.parametrize("loader", [loader for loader in ("CSafeLoader", "SafeLoader") if hasattr(yaml, loader)])
def test_each_syntax_error_has_its_text(text: str, said: str, loader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_subset, "LOADER", getattr(yaml, loader))
    with pytest.raises(RecipeSyntaxError) as caught:
        parse_yaml(text, "r.yaml")
    # The parsers agree on the text; on the end of an unfinished quote they do not agree on the place.
    assert str(caught.value).splitlines() in (
        [f"r.yaml:{said}"],
        [f"r.yaml:{said.replace('2:1: the text', '1:6: the text')}"],
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"a: \xff\n", "r.yaml: byte 3: not UTF-8 text: byte 0xff at offset 3 (save it as UTF-8)"),
        ("a: é".encode("utf-16"), "r.yaml: byte 0: not UTF-8 text: byte 0xff at offset 0 (save it as UTF-8)"),
        (b"a: 1\nb: \0\n", "r.yaml:2:4: control character U+0000 is not allowed (remove it)"),
        (b"a" * (2**20 + 1), "r.yaml: byte 1048576: larger than 1048576 bytes (is it a recipe?)"),
    ],
)
def test_what_is_no_text_is_said_with_its_byte(data: bytes, said: str) -> None:
    with pytest.raises(RecipeSyntaxError) as caught:
        decode(data, "r.yaml")
    assert str(caught.value) == said


# ------------------------------------------------------------------------------------------------------- errors
def test_problems_are_sorted_by_place_and_read_the_same_everywhere() -> None:
    early = Problem("a.yaml", 2, 9, "x.y", "must be 1", "write 1")
    late = Problem("a.yaml", 10, 1, "", "is wrong")
    nowhere = Problem("", 0, 0, "x", "is wrong")
    for kind in (RecipeError, RecipeSyntaxError, RecipeValidationError, PlanError, LockMismatchError):
        error = kind([late, early, nowhere])
        assert error.problems == (nowhere, early, late)
        assert str(error) == "x: is wrong\na.yaml:2:9: x.y: must be 1 (write 1)\na.yaml:10:1: is wrong"
        assert isinstance(error, RecipeError)
