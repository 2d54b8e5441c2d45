"""Traps that others fell into, by number, and the test that keeps each shut.

`release N`: faults of the released CoME-VL code, as numbered in the notes this project was built from; `numerics N`:
pitfalls of its measurements. Each line says what is checked and where; what no other test checks is checked below.
All 31 faults and 14 pitfalls are here.
"""

from __future__ import annotations

import ast
import importlib
import json
import pickle
import pkgutil
from pathlib import Path

import numpy as np
import pytest
import torch
from model_recipe import recipe, sample
from PIL import Image

import fusionkit
from fusionkit import registry
from fusionkit.geometry import Grid, LayerStackSpec, Point, Size, TokenSpec
from fusionkit.model.processing import FusionProcessor
from fusionkit.ops.diagnostics import orthogonality
from fusionkit.ops.maps import OrthogonalMaps
from fusionkit.ops.tokens import Tokens
from fusionkit.plugin import BlockSite
from fusionkit.sample import Prediction, Provenance, Sample, Turn

TESTS = Path(__file__).parents[1]
HERE = "unit/test_traps.py"

TRAPS: dict[str, tuple[str, list[str]]] = {
    "release 1": (
        "crops, tokens and their order are of one count, the global crop first",
        [
            "unit/test_croppers.py::test_split_and_layout_agree",
            "parity/test_crop_plan.py::test_every_token_stands_where_it_was_recorded",
        ],
    ),
    "release 2": (
        "tiles cover the picture to its right and bottom edge",
        ["parity/test_crop_plan.py::test_tiling_and_regions", "unit/test_croppers.py::test_a_tile_shows_its_region"],
    ),
    "release 3": (
        "a crop's tokens are that crop's",
        ["unit/test_croppers.py::test_tokens_of_the_tiles_are_the_picture_in_raster_order"],
    ),
    "release 4": (
        "sizes come from the recipe, and are checked",
        ["unit/test_croppers.py::test_margins_must_be_whole_tokens"],
    ),
    "release 5": (
        "height and width keep their order, and crops need not be square",
        [
            f"{HERE}::test_crops_wider_than_high_are_read_row_by_row",
            "property/test_connectors.py::test_plan_is_what_comes_out",
        ],
    ),
    "release 6": (
        "every stream gets its own resize and statistics",
        ["unit/test_croppers.py::test_resize_gives_every_stream_its_own_size_and_statistics"],
    ),
    "release 7": (
        "writing points leaves them as they are, whole numbers too",
        [f"{HERE}::test_points_are_written_without_being_changed"],
    ),
    "release 8": (
        "no points is an answer in words",
        ["unit/test_pixmo.py::test_every_part_becomes_its_question"],
    ),
    "release 9": (
        "no grid, prefix or width is a constant",
        [
            "unit/test_plan.py::test_the_plan_is_the_model_address_by_address",
            "unit/test_timm_encoder.py::test_layers_equal_the_librarys",
        ],
    ),
    "release 10": (
        "one encoder is enough",
        ["unit/test_plan.py::test_one_layer_needs_no_mixer_and_one_stream_no_connector"],
    ),
    "release 11": ("no module is built that nothing uses", [f"{HERE}::test_every_parameter_of_a_model_is_used"]),
    "release 12": (
        "maps are evaluated once per forward, and never at inference",
        ["unit/test_mixers.py::test_maps_are_evaluated_once_per_forward_and_never_again_at_inference"],
    ),
    "release 13": (
        "bfloat16 gives no NaN, keeps maps orthogonal, and does not crash rotary attention",
        [
            "unit/test_mixers.py::test_bf16_is_close_and_keeps_its_maps_in_fp32",
            "unit/test_mixers.py::test_maps_are_orthogonal_in_fp32_under_autocast",
            "unit/test_rope.py::test_half_precision_is_rotated_in_float32",
            "property/test_connectors.py::test_a_gate_at_zero_is_the_identity",
        ],
    ),
    "release 14": (
        "weight decay leaves rectangular maps orthogonal",
        ["unit/test_orthogonal_step.py::test_orthogonal_after_100_steps"],
    ),
    "release 15": (
        "a query that may attend to nothing attends to nothing",
        [
            "unit/test_attention.py::test_a_query_that_sees_nothing_gets_exactly_zero",
            "unit/test_connectors.py::test_rgca_query_without_memory_in_radius_is_unchanged_bit_for_bit",
        ],
    ),
    "release 16": (
        "distances are exact and the rim belongs to the radius",
        [
            "unit/test_rope.py::test_distances_are_exact_beyond_25_points",
            "unit/test_rope.py::test_the_rim_is_inside_the_radius",
        ],
    ),
    "release 17": (
        "grids are told, never guessed from a token count",
        [
            "property/test_connectors.py::test_plan_is_what_comes_out",
            f"{HERE}::test_grids_that_are_not_square_keep_their_shape",
        ],
    ),
    "release 18": (
        "head widths that cannot be rotated are refused while planning",
        ["unit/test_connectors.py::test_rgca_plan_errors", "unit/test_connectors.py::test_released_plan_errors"],
    ),
    "release 19": ("no crop is encoded that no picture has", [f"{HERE}::test_padding_crops_do_not_exist"]),
    "release 20": (
        "an address that names nothing is an error",
        ["unit/test_addresses.py::test_an_address_that_holds_nothing_is_an_error_that_says_what_there_is"],
    ),
    "release 21": (
        "groups go by whole names, and norms, biases and skew do not decay",
        [
            "unit/test_addresses.py::test_an_address_ends_at_a_dot",
            "unit/test_audit.py::test_only_weights_of_maps_and_convolutions_decay",
        ],
    ),
    "release 22": (
        "everything can be built without storage and reset",
        [
            "unit/test_mixers.py::test_meta_construction_leaves_nothing_to_chance",
            "unit/test_mixers.py::test_reset_parameters_restores_a_meta_module",
            "unit/test_model.py::test_meta_build_counts_and_reads_nothing",
        ],
    ),
    "release 23": (
        "gradient checkpointing reaches the decoder, prefix tokens are declared",
        [
            "unit/test_layer_injectors.py::test_gradient_checkpointing_changes_nothing",
            "unit/test_timm_encoder.py::test_layers_equal_the_librarys",
        ],
    ),
    "release 24": (
        "no debugger, no print, no user's path",
        [
            f"{HERE}::test_no_debugger_no_print_no_home",
            "unit/test_torch_wall.py::test_import_fusionkit_imports_nothing",
        ],
    ),
    "release 25": (
        "every expression is a question of its own",
        ["unit/test_refcoco.py::test_a_sample_is_a_picture_with_all_its_expressions"],
    ),
    "release 26": ("a box that cannot be read scores nothing", ["unit/test_metrics.py::test_boxes"]),
    "release 27": ("`none` counts as zero", ["unit/test_metrics.py::test_none_is_the_right_count_for_zero"]),
    "release 28": (
        "true points and answers are in the same pixels: an answer that is the truth scores 1",
        [
            f"{HERE}::test_a_perfect_answer_about_pixmo_points_scores_one",
            "unit/test_answer_metrics.py::test_pointing_agrees_with_the_released_code",
        ],
    ),
    "release 29": (
        "points are found among words, on the very edge too, and none at all is a score of 0",
        [
            f"{HERE}::test_points_among_words_on_the_edge_and_out_of_range",
            "unit/test_box_formats.py::test_molmo_points_agree_with_the_released_parser",
        ],
    ),
    "release 30": (
        "every sample is scored once, in order, and no error is swallowed",
        [
            "unit/test_evaluate.py::test_scores_are_what_the_answers_deserve",
            f"{HERE}::test_no_error_is_swallowed",
        ],
    ),
    "release 31": (
        "every metric and every module of evaluation can be imported, and every metric is run",
        [f"{HERE}::test_evaluation_can_be_imported", "conformance/test_builtin.py::test_conformance"],
    ),
    "numerics 1": (
        "half precision never reaches a map",
        [
            "unit/test_mixers.py::test_built_under_a_half_default_dtype_the_maps_are_fp32",
            "unit/test_mixers.py::test_a_half_precision_checkpoint_is_computed_in_fp32",
        ],
    ),
    "numerics 2": (
        "training in bfloat16 does not drift",
        ["unit/test_mixers.py::test_bf16_is_close_and_keeps_its_maps_in_fp32"],
    ),
    "numerics 3": (
        "neither autocast nor TF32 reaches a map",
        [
            "unit/test_mixers.py::test_maps_are_orthogonal_in_fp32_under_autocast",
            "unit/test_orthogonal_step.py::test_reduced_matmul_precision_does_not_reach_the_maps",
        ],
    ),
    "numerics 4": (
        "far from the identity Cayley stays orthogonal; where it cannot, it says so",
        [f"{HERE}::test_cayley_of_large_skew_is_orthogonal", "unit/test_mixers.py::test_diverged_maps_say_so"],
    ),
    "numerics 5": ("only exact maps are offered", [f"{HERE}::test_no_map_is_approximate"]),
    "numerics 6": (
        "no batched LU on the CPU, and every inverse is checked",
        [
            "unit/test_orthogonal_step.py::test_inverses_are_never_batched_on_cpu",
            "unit/test_orthogonal_step.py::test_several_large_maps_on_two_threads",
            "unit/test_orthogonal_step.py::test_a_wrong_inverse_is_caught",
        ],
    ),
    "numerics 7": (
        "states are small, pickle and convert",
        [
            f"{HERE}::test_maps_pickle_and_hold_half_a_matrix",
            "parity/test_mixers_parity.py::test_released_maps_convert_both_ways",
            "unit/test_mixers.py::test_copies_and_files_compute_the_same",
        ],
    ),
    "numerics 8": (
        "skew gradients are averaged over ranks",
        ["unit/test_orthogonal_step.py::test_skew_gradients_are_averaged_over_ranks"],
    ),
    "numerics 9": (
        "mixers and steps compile in one graph",
        ["unit/test_mixers.py::test_compiles_as_one_graph", "unit/test_orthogonal_step.py::test_step_compiles"],
    ),
    "numerics 10": (
        "several backward passes share one evaluation",
        ["unit/test_orthogonal_step.py::test_step_gives_the_same_gradients_with_one_evaluation"],
    ),
    "numerics 11": (
        "folding survives inference mode",
        [
            "unit/test_mixers.py::test_fold_made_in_inference_mode_serves_outside_it",
            "unit/test_mixers.py::test_module_built_in_inference_mode_is_never_stale",
        ],
    ),
    "numerics 12": (
        "a crop of padding is the padding vector, exactly",
        [
            f"{HERE}::test_a_crop_of_padding_is_the_padding_vector",
            "unit/test_coverage.py::test_padding_of_a_picture_reaches_the_embeddings",
        ],
    ),
    "numerics 13": (
        "layers cannot be counted twice, and no_sync windows lose no gradient",
        [
            "unit/test_mixers.py::test_streaming_refuses_disorder",
            "unit/test_orthogonal_step.py::test_gradients_add_to_those_of_before",
        ],
    ),
    "numerics 14": (
        "checks run on modules away from their start",
        [f"{HERE}::test_the_kit_moves_parameters_off_their_start"],
    ),
}


def functions_of(path: str) -> set[str]:
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("trap", TRAPS)
def test_every_trap_has_tests_that_exist(trap: str) -> None:
    what, names = TRAPS[trap]
    assert what
    assert names
    for name in names:
        path, _, function = name.partition("::")
        assert function in functions_of(path), f"{trap}: {name} is gone; name the test that checks: {what}"


def test_the_list_is_whole() -> None:
    assert list(TRAPS) == [*(f"release {n}" for n in range(1, 32)), *(f"numerics {n}" for n in range(1, 15))]


def test_crops_wider_than_high_are_read_row_by_row() -> None:
    """Six grey levels in two rows of three, through a 8x12 input with a patch of 4: six tokens in that order."""
    level = torch.arange(6).reshape(2, 3, 1).expand(2, 3, 3) * 40
    picture = Image.fromarray(level.repeat_interleave(40, 0).repeat_interleave(40, 1).to(torch.uint8).numpy())
    encoders, croppers = registry.spec("encoders", "small_vit"), registry.spec("croppers", "resize")
    zero, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    config = encoders.config(image_size=(8, 12), patch=4, width=8, depth=1, heads=1, mean=zero, std=one)
    info = encoders.describe(config)
    encoder = registry.factory(encoders)(config, BlockSite(info=info, layers=(0,)))
    with torch.no_grad():
        encoder.patches.weight.fill_(1 / 48)  # a token is the mean of its patch
        encoder.patches.bias.zero_()
        encoder.positions.zero_()
        pixels = registry.factory(croppers)(croppers.config(), BlockSite()).split(picture, {"one": info}).pixels["one"]
        (tokens,) = encoder.forward_layers(torch.from_numpy(pixels), (0,))
    assert (tokens[0, :, 0] * 255 / 40).round().tolist() == [0, 1, 2, 3, 4, 5]


def test_points_are_written_without_being_changed() -> None:
    spec = registry.spec("box_tokenizers", "molmo_points")
    tokenizer = registry.factory(spec)(spec.config(), BlockSite())
    numbers = np.array([[320, 60], [16, 240]])  # whole numbers, as an array of integers gives them
    points = [Point(*row) for row in numbers]
    first = tokenizer.encode(points, Size(640, 480))
    assert tokenizer.encode(points, Size(640, 480)) == first
    assert [(point.x, point.y) for point in points] == [(320, 60), (16, 240)]
    assert numbers.tolist() == [[320, 60], [16, 240]]
    assert tokenizer.parse(first, Size(640, 480)).points == (Point(16, 240), Point(320, 60))


def pointing(prediction: Prediction, turn: Turn, size: Size, **settings: object) -> dict[str, float]:
    spec = registry.spec("metrics", "pointing")
    metric = registry.factory(spec)(spec.config(**settings), BlockSite())
    metric.update(prediction, turn, Sample(None, size, (turn,), Provenance("test", 0)))
    found: dict[str, float] = metric.compute()
    return found


def test_a_perfect_answer_about_pixmo_points_scores_one(tmp_path: Path) -> None:
    """From percent in the file to pixels, to text, back to pixels, to the score."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (200, 100)).save(tmp_path / "images" / "a.png")
    row = {"image": "images/a.png", "label": "cats", "points": [{"x": 50, "y": 25.5}, {"x": 100, "y": 0}]}
    (tmp_path / "points.jsonl").write_text(json.dumps(row) + "\n")
    data = registry.spec("datasets", "pixmo")
    sample = registry.factory(data)(data.config(root=str(tmp_path), parts=("points",)), BlockSite())[0]
    spec = registry.spec("box_tokenizers", "molmo_points")
    tokenizer = registry.factory(spec)(spec.config(), BlockSite())
    text = tokenizer.encode(sample.turns[0].points, sample.size)
    answer = Prediction(text, (), tokenizer.parse(text, sample.size).points)
    scores = pointing(answer, sample.turns[0], sample.size, within="pixels", tolerance=0.2)
    assert scores["pointing"] == scores["recall"] == scores["precision"] == 1


def test_points_among_words_on_the_edge_and_out_of_range() -> None:
    spec, size = registry.spec("box_tokenizers", "molmo_points"), Size(200, 100)
    tokenizer = registry.factory(spec)(spec.config(), BlockSite())
    turn = Turn("Point to it.", (Point(200, 100),), "point")
    said = 'Counting the <point x="100.0" y="100.0" alt="cat">cat</point> shows a total of 1.'
    found = tokenizer.parse(said, size)
    assert found.points == (Point(200, 100, "cat"),)
    assert pointing(Prediction(said, (), found.points), turn, size, within="pixels", tolerance=3)["pointing"] == 1
    beyond = tokenizer.parse('<point x="250.0" y="300.0" alt="cat">cat</point>', size)
    assert not beyond.points
    assert beyond.malformed
    assert pointing(Prediction("", (), beyond.points), turn, size)["pointing"] == 0


def test_no_error_is_swallowed() -> None:
    """No `except:` and no `except Exception:` whose body does nothing."""
    for path in (TESTS.parent / "fusionkit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                where = f"{path.name}:{node.lineno}"
                assert node.type is not None, where
                broad = isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
                assert not (broad and all(isinstance(each, ast.Pass) for each in node.body)), where


def test_evaluation_can_be_imported() -> None:
    import fusionkit.blocks.metrics
    import fusionkit.evaluate

    for package in (fusionkit.evaluate, fusionkit.blocks.metrics):
        names = [found.name for found in pkgutil.iter_modules(package.__path__)]
        assert names
        for name in names:
            importlib.import_module(f"{package.__name__}.{name}")


def test_every_parameter_of_a_model_is_used() -> None:
    torch.manual_seed(0)
    model = fusionkit.build(recipe()).train()
    with torch.no_grad():
        model.fusion["align"].gate.fill_(0.5)
    batch = FusionProcessor.from_plan(model.plan).batch([sample(1)])
    names = ("input_ids", "attention_mask", "labels", "visual_index", "pixel_values_")
    model(**{name: value for name, value in batch.items() if name.startswith(names)}).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_grids_that_are_not_square_keep_their_shape() -> None:
    """Two grids of 12 tokens: 2x6 and 3x4 pool to different windows."""
    spec = registry.spec("poolers", "average_pool")
    x_BND = torch.arange(12.0).reshape(1, 12, 1)
    found = {}
    for grid, window in ((Grid(2, 6), (2, 2)), (Grid(4, 3), (2, 3))):
        config, tokens = spec.config(window=window), TokenSpec(grid, 1)
        site = BlockSite(inputs={"input": tokens}, plan=spec.plan(config, {"input": tokens}, None))
        found[str(grid)] = registry.factory(spec)(config, site)(Tokens(x_BND, grid)).x_BND.flatten().tolist()
    assert found == {"2x6": [3.5, 5.5, 7.5], "4x3": [2.5, 8.5]}


def test_padding_crops_do_not_exist() -> None:
    """Pictures of unequal crop counts in one batch: as many crops as the pictures have."""
    tiles = {
        "type": "overlap_tiles",
        "size": 24,
        "patch": 4,
        "max_crops": 4,
        "margin_patches": [0, 0],
        "global_view": True,
    }
    plan = fusionkit.plan(fusionkit.load_recipe(recipe(cropper=tiles, sequence_length=512)))
    sizes = [(20, 20), (96, 24)]
    batch = FusionProcessor.from_plan(plan).batch([sample(1, size=sizes[0]), sample(2, size=sizes[1])])
    crops = [plan.layout(Size(*size)).crops for size in sizes]
    assert len(set(crops)) == 2
    assert batch["crop_counts"].tolist() == crops
    assert {len(batch[f"pixel_values_{name}"]) for name in plan.streams} == {sum(crops)}


def test_no_debugger_no_print_no_home() -> None:
    for path in (TESTS.parent / "fusionkit").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("print", "breakpoint"), f"{path.name}:{node.lineno}"
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {"pdb", "ipdb", "wandb", "boto3"} & set(names), f"{path.name}:{node.lineno}"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not node.value.startswith(("/home/", "/Users/")), f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("scale", [1.0, 4.0, 100.0])
def test_cayley_of_large_skew_is_orthogonal(scale: float) -> None:
    """cond(I - A/2) grows with A; Q loses digits with it, not orthogonality altogether."""
    torch.manual_seed(0)
    maps = OrthogonalMaps(2, 16, 16)
    with torch.no_grad():
        maps.skew.normal_(std=scale)
        assert orthogonality(maps.matrices()).holds(1e-5 * max(1.0, scale / 4))


def test_no_map_is_approximate() -> None:
    schema = registry.spec("mixers", "orthogonal").config.model_json_schema()
    assert schema["properties"]["map"]["enum"] == ["cayley", "exp"]


def test_maps_pickle_and_hold_half_a_matrix() -> None:
    spec = registry.spec("mixers", "orthogonal")
    stack = LayerStackSpec((1, 2), Grid(2, 2), 8)
    site = BlockSite(inputs={"input": stack}, plan=spec.plan(spec.config(), {"input": stack}, None))
    mixer = registry.factory(spec)(spec.config(), site).eval()
    layers = [torch.randn(1, 4, 8) for _ in range(2)]
    with torch.no_grad():
        again = pickle.loads(pickle.dumps(mixer))
        assert torch.equal(again(layers), mixer(layers))
    assert mixer.state_dict()["maps.skew"].shape == (2, 8 * 7 // 2)
    assert "maps.base" not in mixer.state_dict()


def test_a_crop_of_padding_is_the_padding_vector() -> None:
    spec, tokens = registry.spec("adapters", "padding_embedding"), TokenSpec(Grid(2, 2), 4)
    site = BlockSite(inputs={"input": tokens}, plan=spec.plan(spec.config(), {"input": tokens}, None))
    block = registry.factory(spec)(spec.config(), site)
    found = block(Tokens(torch.zeros(1, 4, 4), Grid(2, 2), coverage_BN=torch.zeros(1, 4))).x_BND
    assert torch.equal(found, block.embedding[0].expand(1, 4, 4))


def test_the_kit_moves_parameters_off_their_start() -> None:
    """At skew 0 the exponential takes a short cut, and a gate at 0 hides what is behind it."""
    from fusionkit.testing.subjects import StepSubject

    mixer = StepSubject(registry.spec("mixers", "orthogonal"), {"map": "exp"}).module
    assert mixer.maps.skew.abs().min() > 0
    options = {"query": "semantic", "memory": "spatial", "heads": 2}
    connector = StepSubject(registry.spec("connectors", "rope_cross_attention"), options).module
    assert connector.gate.item() == 0.5
