"""What a person reads when blocks do not fit: every text names line, address, expected and got, and a way on."""

from __future__ import annotations

from pathlib import Path

import pytest
from plan_recipe import loaded

from fusionkit.errors import PlanError
from fusionkit.recipe import load_recipe
from fusionkit.recipe.plan import plan
from fusionkit.recipe.planning import suggestion

Change = tuple[str, str]


def problems(folder: Path, *changes: Change) -> list[str]:
    """The lines of the PlanError, without the folder."""
    recipe = loaded(folder, *changes)
    with pytest.raises(PlanError) as caught:
        plan(recipe)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


CASES: dict[str, tuple[list[Change], list[str]]] = {
    "layer outside the encoder": (
        [("select: {type: all}", "select: {type: range, first: 1, last: 7}")],
        ["pair.yaml:8:37: streams.semantic.select.last: layer 7 is outside the encoder, which has layers 0 to 3 "
            "(use at most 3)"],
    ),
    "heads that do not divide": (
        [("memory: spatial, heads: 2}", "memory: spatial, heads: 5}")],
        ["pair.yaml:18:73: fusion.align.heads: 5 heads do not divide the query width 24 (use 3 or 4 or 6)"],
    ),
    "window that does not tile": (
        [("window: [2, 2]", "window: [3, 3]")],
        [
            "pair.yaml:19:30: fusion.pool.window: window 3x3 does not tile the grid 8x8 "
            "(use a window whose rows divide 8 and columns divide 8)"
        ],
    ),
    "budget": (
        [("sequence_length: 512", "sequence_length: 64")],
        [
            "pair.yaml:3:1: sequence_length: the largest picture takes 74 tokens (5 crops of 16), which leaves no room "
            "for text in 64 (set at least `sequence_length: 128`, allow fewer crops, or pool more)"
        ],
    ),
    "context of the language model": (
        [("sequence_length: 512", "sequence_length: 2048")],
        [
            "pair.yaml:3:1: sequence_length: 2048 tokens are more than the 1024 the language model can read "
            "(set `sequence_length: 1024` or less)"
        ],
    ),
    "last step of another width": (
        [("  project: {type: mlp, hidden: 40}\n", "")],
        [
            "pair.yaml:19:3: fusion.pool: gives tokens of width 24, the language model takes 32 "
            "(add as last step under `fusion`: `project: {type: linear}`)"
        ],
    ),
    "last step of a number that is another width": (
        [("project: {type: mlp, hidden: 40}", "project: {type: mlp, hidden: 40, width: 48}")],
        [
            "pair.yaml:20:36: fusion.project.width: gives tokens of width 48, the language model takes 32 "
            "(set `width: 32`, or leave it out)"
        ],
    ),
    "unknown source": (
        [("memory: spatial", "memory: spatail")],
        [
            "pair.yaml:18:56: fusion.align.memory: unknown source `spatail` "
            "(did you mean `spatial`? there are: semantic, spatial)"
        ],
    ),
    "unknown source in a list": (
        [("align: {type: rope_cross_attention, query: semantic, memory: spatial, heads: 2}",
          "align: {type: concat, inputs: [semantic, depth]}")],
        ["pair.yaml:18:44: fusion.align.inputs.1: unknown source `depth` (there are: semantic, spatial)"],
    ),
    "source that comes later": (
        [("query: semantic", "query: pool")],
        ["pair.yaml:18:39: fusion.align.query: `pool` is not an earlier step (move it before this one)"],
    ),
    "output that a step does not have": (
        [("pool: {type: average_pool, window", "pool: {type: average_pool, input: align.memory, window")],
        ["pair.yaml:19:30: fusion.pool.input: `align` has no output `memory` (there are: align)"],
    ),
    "unused stream": (
        [("align: {type: rope_cross_attention, query: semantic, memory: spatial, heads: 2}",
          "align: {type: linear, input: semantic}")],
        [
            "pair.yaml:11:3: streams.spatial: nothing reads this stream "
            "(remove it, or name `spatial` as an input of a later step)"
        ],
    ),
    "unused step": (
        [("pool: {type: average_pool, window", "pool: {type: average_pool, input: semantic, window")],
        ["pair.yaml:18:3: fusion.align: nothing reads this step (remove it, or name `align` as an input of a later step)"],
    ),
    "unused step of a stream": (
        [("widen: {type: linear, width: {like: semantic}}",
          "side: {type: linear}\n      widen: {type: linear, input: mix, width: 24}")],
        [
            "pair.yaml:16:7: streams.spatial.steps.side: nothing reads this step "
            "(remove it, or name `side` as an input of a later step)"
        ],
    ),
    "widths in a circle": (
        [("mix: {type: orthogonal}", "mix: {type: orthogonal, width: {like: spatial}}")],
        [
            "pair.yaml:16:29: streams.spatial.steps.widen.width: widths go round in a circle: "
            "semantic -> spatial -> semantic (give one of them a number)"
        ],
    ),
    "width like itself": (
        [("{like: semantic}", "{like: spatial}")],
        [
            "pair.yaml:16:29: streams.spatial.steps.widen.width: widths go round in a circle: spatial -> spatial "
            "(give one of them a number)"
        ],
    ),
    "width like nothing": (
        [("{like: semantic}", "{like: semantics}")],
        [
            "pair.yaml:16:29: streams.spatial.steps.widen.width: no stream is called `semantics` "
            "(did you mean `semantic`? there are: semantic, spatial, language_model)"
        ],
    ),
    "several layers and no mixer": (
        [("      mix: {type: softmax_sum}\n", "")],
        [
            "pair.yaml:11:3: streams.spatial: 2 layers are selected and no mixer makes one of them "
            "(add as first step `mix: {type: softmax_sum}`, or read one layer: `select: {type: last}`)"
        ],
    ),
    "mixer that is not first": (
        [("      mix: {type: softmax_sum}\n", "      thin: {type: linear}\n      mix: {type: softmax_sum}\n")],
        [
            "pair.yaml:16:7: streams.spatial.steps.mix: a mixer reads the encoder's layers, so it must be the first step "
            "(move `mix` before `thin`)"
        ],
    ),
    "mixer under fusion": (
        [("project: {type: mlp, hidden: 40}", "project: {type: softmax_sum}")],
        [
            "pair.yaml:20:3: fusion.project: a mixer reads an encoder's layers (make it the first step of a stream)"
        ],
    ),
    "stream's step that reads another stream": (
        [("widen: {type: linear, ", "widen: {type: linear, input: semantic, ")],
        [
            "pair.yaml:16:29: streams.spatial.steps.widen.input: a step of a stream cannot read the stream `semantic` "
            "(combine streams under `fusion`)"
        ],
    ),
    "step that reads the encoder past the mixer": (
        [("widen: {type: linear, ", "more: {type: linear, input: mix}\n      widen: {type: linear, input: mic, ")],
        [
            "pair.yaml:17:29: streams.spatial.steps.widen.input: unknown source `mic` "
            "(did you mean `mix`? there are: mix, more)"
        ],
    ),
    "no connector": (
        [("  align: {type: rope_cross_attention, query: semantic, memory: spatial, heads: 2}\n", "")],
        [
            "pair.yaml:18:3: fusion.pool: there are 2 streams (semantic, spatial) and no connector joins them "
            "(begin `fusion` with `join: {type: concat, inputs: [semantic, spatial]}`)"
        ],
    ),
    "no injector": (
        [("injectors:\n  visual: {type: replace}\n", "")],
        [
            "pair.yaml:21:1: language_model: nothing brings the picture to it (add `injectors: {visual: {type: replace}}`)"
        ],
    ),
    "two injectors at the same places": (
        [("  visual: {type: replace}", "  visual: {type: replace}\n  more: {type: add}")],
        [
            "pair.yaml:23:3: injectors.more: `visual` already writes at the <image> tokens (keep one of replace and add)"
        ],
    ),
    "injectors that read different tokens": (
        [("  visual: {type: replace}", "  visual: {type: replace}\n  more: {type: add, input: pool}")],
        [
            "pair.yaml:21:1: injectors: they read different tokens: project, pool (let all read the same)",
            "pair.yaml:23:3: injectors.more: `visual` already writes at the <image> tokens (keep one of replace and add)",
        ],
    ),
    "no cropper": (
        [("cropper: {type: overlap_tiles, size: 48, patch: 6, max_crops: 4, margin_patches: [2, 2]}\n", "")],
        ["pair.yaml:1:1: cropper: missing: how does a picture become crops? (add `cropper: {type: resize}`)"],
    ),
    "inputs that do not share a grid": (
        [("align: {type: rope_cross_attention, query: semantic, memory: spatial, heads: 2}",
          "align: {type: concat, inputs: [semantic, spatial]}")],
        [
            "pair.yaml:18:25: fusion.align.inputs: inputs need one grid, got semantic 8x8, spatial 4x4 "
            "(pool or resize to one grid first)"
        ],
    ),
    "image that the patch does not divide": (
        [("image_size: 48, patch: 6", "image_size: 50, patch: 6")],
        [
            "pair.yaml:7:32: streams.semantic.encoder.image_size: image 50x50 is not a multiple of the patch of 6 px "
            "(use 48x48)"
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_text_of_an_error(case: str, tmp_path: Path) -> None:
    changes, expected = CASES[case]
    assert problems(tmp_path, *changes) == expected


def test_all_problems_are_reported_at_once_each_where_it_is(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        ("select: {type: all}", "select: {type: range, first: 1, last: 7}"),
        ("width: {like: semantic}", "width: {like: nobody}"),
        ("sequence_length: 512", "sequence_length: 2048"),
        ("project: {type: mlp, hidden: 40}", "project: {type: mlp, input: pol, hidden: 40}"),
    )
    assert [line.split(": ")[1] for line in found] == [
        "sequence_length",
        "streams.semantic.select.last",
        "streams.spatial.steps.widen.width",
        "fusion.project.input",
    ]


TRAIN = """\
train:
  learning_rates: {fusion: 1e-3, fusion.align.gate: 1e-2, objectives.what: 1e-3, fusion.algin: 1e-3}
  stages:
    first:
      trainable: [streams, streams.spatial.steps.mix, streams.spacial]
      objectives: {what: {type: patch_boxes, stream: spacial}}
  data: [{type: synthetic_scenes}]
"""


def test_training_names_parts_of_the_model(tmp_path: Path) -> None:
    found = problems(tmp_path, ("box_tokenizer:", TRAIN + "box_tokenizer:"))
    assert found == [
        "pair.yaml:29:82: train.learning_rates.fusion.algin: `fusion.algin` is no part of the model "
        "(did you mean `fusion.align`?)",
        "pair.yaml:32:55: train.stages.first.trainable.2: `streams.spacial` is no part of the model "
        "(did you mean `streams.spatial`?)",
        "pair.yaml:33:46: train.stages.first.objectives.what.stream: no stream is called `spacial` "
        "(did you mean `spatial`? there are: semantic, spatial)",
    ]


def test_of_many_names_the_first_are_listed() -> None:
    names = [f"name_{number}" for number in range(20)]
    assert suggestion("zzz", names) == f"there are: {', '.join(names[:8])}, ..."
    assert suggestion("name_77", names) == "did you mean `name_7`?"
    assert suggestion("zzz", []) == "there are none"


def test_what_needs_a_block_that_failed_is_not_reported_too(tmp_path: Path) -> None:
    """A stream that cannot be planned takes its readers with it, silently: their problem is the stream's."""
    assert len(problems(tmp_path, ("patch: 6, width: 24", "patch: 5, width: 24"))) == 1


def test_streams_in_a_circle_do_not_hide_the_others(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        ("mix: {type: orthogonal}", "mix: {type: orthogonal, width: {like: spatial}}"),
        ("window: [2, 2]", "window: [2, 2], input: nothing"),
    )
    assert len(found) == 2


def test_injectors_need_a_language_model() -> None:
    recipe = load_recipe(
        {
            "schema": 1,
            "name": "x",
            "streams": {"only": {"encoder": {"type": "small_vit"}, "select": {"type": "last"}}},
            "injectors": {"visual": {"type": "replace"}},
        }
    )
    with pytest.raises(PlanError, match="injectors: there is no language model to inject into"):
        plan(recipe)


def test_several_streams_need_fusion_even_without_a_language_model() -> None:
    stream = {"encoder": {"type": "small_vit"}, "select": {"type": "last"}}
    recipe = load_recipe({"schema": 1, "name": "x", "streams": {"join": stream, "other": stream}})
    with pytest.raises(PlanError, match=r"begin `fusion` with `join_2: \{type: concat, inputs: \[join, other\]\}`"):
        plan(recipe)


def test_the_fix_for_a_missing_connector_can_be_pasted(tmp_path: Path) -> None:
    align = "  align: {type: rope_cross_attention, query: semantic, memory: spatial, heads: 2}\n"
    same_grid = ("image_size: 32, widths", "image_size: 64, widths")
    recipe = loaded(tmp_path, (align, "  join: {type: concat, inputs: [semantic, spatial]}\n"), same_grid)
    assert plan(recipe).fusion[0].output.width == 48


def test_the_fix_for_a_width_can_be_pasted(tmp_path: Path) -> None:
    recipe = loaded(tmp_path, ("project: {type: mlp, hidden: 40}", "project: {type: linear}"))
    assert plan(recipe).visual.width == 32
