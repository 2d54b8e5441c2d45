"""Plans: wiring, shapes, widths, counts and layouts, without a weight in sight; and equal to what is built."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_recipe import loaded, written

from fusionkit import override, registry
from fusionkit.errors import PluginError, UsageError
from fusionkit.geometry import Grid, LayerStackSpec, Size, TokenSpec
from fusionkit.plugin import IMAGE_TOKEN, BlockConfig, BlockPlan, BlockSpec, TokenLayout
from fusionkit.recipe import load_recipe
from fusionkit.recipe.licences import licence_note
from fusionkit.recipe.plan import Plan, plan
from fusionkit.recipe.plan_budget import Layouts
from fusionkit.recipe.plan_table import COLUMNS, in_bytes, layer_ranges, parts, picture, rows, scaled


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return plan(loaded(tmp_path_factory.mktemp("recipe")))


def node(planned: Plan, address: str) -> Any:
    return next(each for each in planned.nodes if each.address == address)


# ---------------------------------------------------------------------------------------------------- shapes
def test_nodes_stand_in_the_order_they_run(pair: Plan) -> None:
    assert [each.address for each in pair.nodes] == [
        "streams.semantic.encoder",
        "streams.semantic.steps.mix",
        "streams.spatial.encoder",
        "streams.spatial.steps.mix",
        "streams.spatial.steps.widen",
        "fusion.align",
        "fusion.pool",
        "fusion.project",
        "injectors.visual",
        "language_model",
    ]


def test_shapes_follow_from_encoder_to_language_model(pair: Plan) -> None:
    shapes = {each.address: each.output for each in pair.nodes if each.plan.outputs}
    assert shapes == {
        "streams.semantic.encoder": TokenSpec(Grid(8, 8), 24),
        "streams.semantic.steps.mix": TokenSpec(Grid(8, 8), 24),
        "streams.spatial.encoder": TokenSpec(Grid(4, 4), 16),
        "streams.spatial.steps.mix": TokenSpec(Grid(4, 4), 16),
        "streams.spatial.steps.widen": TokenSpec(Grid(4, 4), 24),
        "fusion.align": TokenSpec(Grid(8, 8), 24),
        "fusion.pool": TokenSpec(Grid(4, 4), 24),
        "fusion.project": TokenSpec(Grid(4, 4), 32),
        "injectors.visual": TokenSpec(Grid(4, 4), 32),
    }
    assert pair.visual == TokenSpec(Grid(4, 4), 32)
    assert pair.visual_source == "project"


def test_only_mixers_get_the_stack_of_layers(pair: Plan) -> None:
    stream = pair.streams["spatial"]
    assert stream.layers == (1, 2)
    assert stream.stack == LayerStackSpec((1, 2), Grid(4, 4), 16)
    assert stream.steps[0].site.inputs == {"input": stream.stack}
    assert stream.steps[1].site.inputs == {"input": TokenSpec(Grid(4, 4), 16)}
    assert stream.encoder.site.layers == (1, 2)
    assert stream.encoder.site.info is stream.info


def test_a_step_reads_the_previous_one_unless_it_names_its_inputs(pair: Plan) -> None:
    sources = {each.address: dict(each.sources) for each in pair.nodes}
    assert sources["streams.semantic.steps.mix"] == {"input": "encoder"}
    assert sources["streams.spatial.steps.widen"] == {"input": "mix"}
    assert sources["fusion.align"] == {"query": "semantic", "memory": "spatial"}
    assert sources["fusion.pool"] == {"input": "align"}
    assert sources["injectors.visual"] == {"input": "project"}


def test_every_step_knows_its_site(pair: Plan) -> None:
    for each in pair.nodes:
        assert each.site.address == each.address
        assert each.site.plan is each.plan
        assert each.params == each.plan.params
        assert each.distribution[0] == "fusionkit"


def test_one_layer_needs_no_mixer_and_one_stream_no_connector(tmp_path: Path) -> None:
    recipe = load_recipe(
        {
            "schema": 1,
            "name": "one",
            "streams": {"only": {"encoder": {"type": "small_vit"}, "select": {"type": "last"}}},
        }
    )
    planned = plan(recipe)
    assert planned.visual == planned.streams["only"].output == planned.streams["only"].stack.tokens
    assert (planned.visual_source, planned.language_model, planned.embedding_rows) == ("only", None, 0)
    assert planned.parameters == planned.streams["only"].encoder.params
    with pytest.raises(UsageError, match="has no token layout"):
        planned.layout(Size(10, 10))


def test_the_first_fusion_step_reads_the_only_stream(tmp_path: Path) -> None:
    base = {"encoder": {"type": "small_vit"}, "select": {"type": "last"}}
    recipe = load_recipe(
        {"schema": 1, "name": "one", "streams": {"only": base}, "fusion": {"pool": {"type": "average_pool"}}}
    )
    assert dict(plan(recipe).fusion[0].sources) == {"input": "only"}


def test_extra_outputs_are_read_as_step_dot_output(tmp_path: Path) -> None:
    planned = plan(
        loaded(
            tmp_path,
            (
                "align: {type: rope_cross_attention, query: semantic, memory: spatial, heads: 2}",
                "both: {type: rope_cross_attention_released, query: semantic, memory: spatial, heads: 2, width: 24,"
                " bidirectional: true}\n"
                "  align: {type: rope_cross_attention, query: both, memory: both.memory, heads: 2}",
            ),
        )
    )
    assert node(planned, "fusion.align").site.inputs == {
        "query": TokenSpec(Grid(8, 8), 24),
        "memory": TokenSpec(Grid(4, 4), 24),
    }


def test_a_stream_may_be_read_twice_and_an_earlier_step_named(tmp_path: Path) -> None:
    planned = plan(
        loaded(
            tmp_path,
            (
                "  pool: {type: average_pool, window: [2, 2]}",
                "  again: {type: rope_cross_attention, query: align, memory: spatial, heads: 2}\n"
                "  both: {type: weighted_sum, inputs: [again, align]}\n"
                "  pool: {type: average_pool, window: [2, 2]}",
            ),
        )
    )
    assert dict(node(planned, "fusion.both").sources) == {"again": "again", "align": "align"}
    assert dict(node(planned, "fusion.pool").sources) == {"input": "both"}


# ---------------------------------------------------------------------------------------------------- widths
def test_like_takes_the_width_of_a_stream_that_stands_later(tmp_path: Path) -> None:
    planned = plan(
        loaded(
            tmp_path,
            ("mix: {type: orthogonal}", "mix: {type: orthogonal, width: {like: spatial}}"),
            ("width: {like: semantic}", "width: 16"),
        )
    )
    assert planned.streams["semantic"].output.width == 16
    assert list(planned.streams) == ["semantic", "spatial"]


def test_like_may_name_the_language_model(tmp_path: Path) -> None:
    planned = plan(loaded(tmp_path, ("width: {like: semantic}", "width: {like: language_model}")))
    assert planned.streams["spatial"].output.width == 32


def test_the_last_step_takes_the_language_models_width(tmp_path: Path) -> None:
    planned = plan(loaded(tmp_path, ("pool: {type: average_pool, window: [2, 2]}", "pool: {type: linear}")))
    assert node(planned, "fusion.pool").output.width == 24
    assert node(planned, "fusion.project").output.width == 32


def test_the_step_that_the_injector_names_takes_the_language_models_width(tmp_path: Path) -> None:
    planned = plan(loaded(tmp_path, ("visual: {type: replace}", "visual: {type: replace, input: project}")))
    assert planned.visual_source == "project"


# ---------------------------------------------------------------------------------------------------- counts
def test_the_plan_is_the_model_address_by_address(pair: Plan) -> None:
    from fusionkit.cli.plan_meta import compare_parameters
    from fusionkit.model.build import build

    comparison = compare_parameters(pair, build(pair, device="meta"))
    assert comparison.differences == ()
    assert comparison.built == pair.parameters == sum(each.params for each in pair.nodes)


def test_a_wrong_plan_differs_from_the_model_at_its_address(tmp_path: Path, pair: Plan) -> None:
    from fusionkit.cli.plan_meta import compare_parameters
    from fusionkit.model.build import build

    wider = plan(loaded(tmp_path, ("hidden: 40", "hidden: 41")))
    comparison = compare_parameters(wider, build(pair, device="meta"))
    assert comparison.differences == (
        ("fusion.project", node(wider, "fusion.project").params, node(pair, "fusion.project").params),
    )
    assert comparison.built == pair.parameters


def test_a_model_with_skips_and_extra_outputs_gives_the_planned_shapes() -> None:
    import torch

    from fusionkit.model.build import build

    encoder = {"type": "small_vit", "image_size": 24, "width": 16, "heads": 2}
    steps = {
        "mix": {"type": "softmax_sum"},
        "side": {"type": "linear"},
        "both": {"type": "weighted_sum", "inputs": ["mix", "side"]},
    }
    attention = {
        "type": "rope_cross_attention_released",
        "query": "a",
        "memory": "b",
        "heads": 2,
        "bidirectional": True,
    }
    recipe = load_recipe(
        {
            "schema": 1,
            "name": "skips",
            "streams": {
                "a": {"encoder": encoder, "select": {"type": "all"}, "steps": steps},
                "b": {"encoder": encoder, "select": {"type": "last"}},
            },
            "fusion": {
                "align": attention,
                "sum": {"type": "weighted_sum", "inputs": ["align", "align.memory", "a"]},
                "turns": {"type": "interleave", "inputs": ["sum", "b"]},
            },
        }
    )
    model = build(recipe)
    with torch.no_grad():
        streams = model.encode_streams({name: torch.zeros(2, 3, 24, 24) for name in ("a", "b")})
        fused = model.fuse(streams)
    assert {name: tokens.spec for name, tokens in streams.items()} == {
        name: stream.output for name, stream in model.plan.streams.items()
    }
    assert fused.spec == model.plan.visual == TokenSpec(Grid(4, 4), 16, copies=2, interleaved=True)


def test_new_tokens_are_the_croppers_then_the_box_tokenizers(pair: Plan) -> None:
    assert pair.new_tokens[0] == IMAGE_TOKEN
    assert len(pair.new_tokens) == len(set(pair.new_tokens))
    boxes = registry.factory(registry.spec("box_tokenizers", "coordinate_bins"))(pair.recipe.box_tokenizer, None)
    assert pair.new_tokens[-len(boxes.vocabulary()) :] == boxes.vocabulary()
    assert pair.language_model is not None
    assert pair.embedding_rows == pair.language_model.embedding_rows(len(pair.new_tokens))


def test_flops_are_per_crop_and_per_sequence(pair: Plan) -> None:
    one, none = pair.flops(1), pair.flops(0)
    assert none == 0
    assert one == sum(each.flops for each in pair.nodes if each.address != "language_model") > 0
    assert pair.flops(3) == 3 * one
    assert pair.language_model is not None
    assert pair.flops(3, 100) == 3 * one + pair.language_model.count_flops(100)
    assert node(pair, "language_model").flops == pair.language_model.count_flops(pair.largest_layout.tokens)


def test_an_encoder_writes_every_selected_layer(pair: Plan) -> None:
    encoder = node(pair, "streams.semantic.encoder")
    assert encoder.plan.activation_bytes == 4 * 3 * 64 * 24
    assert encoder.plan.min_bytes == 4 * (3 * 48 * 48 + encoder.params) + encoder.plan.activation_bytes


def test_a_shallow_selection_plans_the_pruned_encoder(tmp_path: Path, pair: Plan) -> None:
    shallow = plan(loaded(tmp_path, ("select: {type: all}", "select: {type: list, layers: [0, 1]}")))
    address = "streams.semantic.encoder"
    assert node(shallow, address).params < node(pair, address).params
    assert node(shallow, address).flops < node(pair, address).flops


# --------------------------------------------------------------------------------------------------- layouts
class _Cropper:
    """Two crops of which the second keeps its last token only."""

    def special_tokens(self) -> tuple[str, ...]:
        return (IMAGE_TOKEN, "<end>")

    def layout(self, size: Size, grid: Grid) -> TokenLayout:
        patches = (*range(grid.tokens), 2 * grid.tokens - 1)
        return TokenLayout(2, (*(IMAGE_TOKEN for _ in patches), "<end>"), patches)

    def largest_layout(self, grid: Grid) -> TokenLayout:
        return self.layout(Size(1, 1), grid)


def test_grids_in_a_row_are_laid_out_one_after_the_other() -> None:
    layouts = Layouts(_Cropper(), TokenSpec(Grid(1, 2), 8, copies=2))
    found = layouts.largest
    assert found.symbols == (IMAGE_TOKEN, IMAGE_TOKEN, IMAGE_TOKEN, "<end>") * 2
    # Crop 0 holds tokens 0 1 | 2 3, crop 1 holds 4 5 | 6 7: first copy, then second.
    assert found.patches == (0, 1, 5, 2, 3, 7)


def test_interleaved_grids_are_laid_out_cell_by_cell() -> None:
    layouts = Layouts(_Cropper(), TokenSpec(Grid(1, 2), 8, copies=2, interleaved=True))
    found = layouts.of(Size(5, 5))
    assert found.symbols == (*(IMAGE_TOKEN for _ in range(6)), "<end>")
    # Crop 0 holds cells 0 0 1 1, crop 1 holds 4 5 | 6 7: both copies of its cell 1.
    assert found.patches == (0, 1, 2, 3, 6, 7)


@given(
    copies=st.integers(1, 3),
    interleaved=st.booleans(),
    height=st.integers(1, 4),
    width=st.integers(1, 4),
)
def test_a_layout_never_shows_a_vector_twice(copies: int, interleaved: bool, height: int, width: int) -> None:
    visual = TokenSpec(Grid(height, width), 8, copies=copies, interleaved=interleaved)
    found = Layouts(_Cropper(), visual).largest
    assert len(set(found.patches)) == len(found.patches) == copies * (height * width + 1)
    assert all(0 <= patch < found.crops * visual.tokens for patch in found.patches)


def test_the_largest_layout_is_that_of_some_picture(pair: Plan) -> None:
    sizes = [Size(width, height) for width in range(8, 200, 24) for height in range(8, 200, 24)]
    assert max(pair.layout(size).tokens for size in sizes) == pair.largest_layout.tokens


# ----------------------------------------------------------------------------------------------------- output
def test_a_plan_is_json(pair: Plan) -> None:
    data = json.loads(json.dumps(pair.to_dict()))
    assert data["parameters"]["total"] == pair.parameters
    assert sum(count for part, count in data["parameters"].items() if part != "total") == pair.parameters
    align = next(each for each in data["nodes"] if each["address"] == "fusion.align")
    assert align["sources"] == {"query": "semantic", "memory": "spatial"}
    assert align["outputs"]["main"] == {"grid": [8, 8], "copies": 1, "tokens": 64, "width": 24}
    assert data["largest_picture"]["tokens"] + data["largest_picture"]["room"] == 512
    assert [each["licence"] for each in data["licences"]] == ["none: trained from scratch"] * 3


def test_rows_have_a_cell_for_every_column(pair: Plan) -> None:
    found = {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in rows(pair)}
    assert found["streams.spatial.encoder"]["reads"] == "layers 1-2"
    assert found["fusion.align"]["reads"] == "query=semantic memory=spatial"
    assert found["fusion.align"]["grid"] == "8x8"
    assert found["injectors.visual"]["parameters"] == "0"
    assert found["language_model"]["grid"] == ""
    assert sum(parts(pair).values()) == pair.parameters


def test_a_pictures_costs(pair: Plan) -> None:
    found = picture(pair, Size(48, 48))
    layout = pair.layout(Size(48, 48))
    assert (found.crops, found.tokens, found.visual_tokens) == (layout.crops, layout.tokens, len(layout.patches))
    assert found.room == 512 - layout.tokens
    assert found.flops == pair.flops(layout.crops, layout.tokens)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (7, "7"), (999, "999"), (1000, "1 k"), (1234, "1.23 k"), (999_600, "1 M"), (8_485_738_714, "8.49 G")],
)
def test_scaled_numbers(number: int, text: str) -> None:
    assert scaled(number) == text


def test_bytes_and_layers_as_text() -> None:
    assert [in_bytes(count) for count in (3, 1024, 1536, 2**20)] == ["3 B", "1.0 KiB", "1.5 KiB", "1.0 MiB"]
    assert layer_ranges((1, 2, 3, 5, 7, 8)) == "1-3, 5, 7-8"


@pytest.mark.parametrize(
    ("licence", "note"),
    [
        ("apache-2.0", ""),
        ("mit", ""),
        ("none: trained from scratch", ""),
        ("cc-by-4.0", ""),
        ("cc-by-nc-4.0", "NON-COMMERCIAL"),
        ("qwen-research", "NON-COMMERCIAL"),
        ("dinov3-license", "OWN TERMS: read them before use; the download may be gated"),
        ("", "unknown: look it up before use"),
        ("unknown: see its folder", "unknown: look it up before use"),
    ],
)
def test_licences_that_need_a_look_are_marked(licence: str, note: str) -> None:
    assert licence_note(licence) == note


# --------------------------------------------------------------------------------------------------- the wall
def test_planning_imports_no_library(tmp_path: Path) -> None:
    path = written(tmp_path)
    code = (
        "import sys\n"
        "from fusionkit.recipe import load_recipe\n"
        "from fusionkit.recipe.plan import plan\n"
        "from fusionkit.recipe.graph import graph_of, mermaid\n"
        "from fusionkit.recipe.graph_layout import place\n"
        "from fusionkit.recipe.graph_svg import svg\n"
        f"planned = plan(load_recipe({str(path)!r}))\n"
        "planned.to_dict(); svg(place(graph_of(planned)))\n"
        "heavy = {'torch', 'numpy', 'PIL', 'timm', 'transformers', 'matplotlib', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class BrokenConfig(BlockConfig):
    type: str = "average_pool"
    window: tuple[int, int] = (2, 2)


def test_a_planner_that_fails_is_named(tmp_path: Path) -> None:
    def broken(config: BrokenConfig, inputs: object, target: int | None) -> BlockPlan:
        raise ZeroDivisionError("division by zero")

    spec = BlockSpec(api=1, family="poolers", config=BrokenConfig, factory="nowhere:Nothing", summary="x", plan=broken)
    with (
        override(spec),
        pytest.raises(PluginError, match=r"fusion.pool: poolers/average_pool could not be planned \(ZeroDivisionError"),
    ):
        plan(loaded(tmp_path))


def test_plans_do_not_change(pair: Plan) -> None:
    assert isinstance(pair.streams, MappingProxyType)
    with pytest.raises(AttributeError):
        pair.fusion = ()  # type: ignore[misc]
