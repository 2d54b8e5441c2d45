"""Traps that others fell into, by number, and the test that keeps each shut.

`release N`: faults of the released CoME-VL code, as numbered in the notes this project was built from; `numerics N`:
pitfalls of its measurements. Each line says what is checked and where; what no other test checks is checked below.
Numbers that are missing concern code that has no counterpart here (dead branches, private data, its own launchers).
"""

from __future__ import annotations

import ast
import pickle
import sys
from pathlib import Path

import pytest
import torch

import fusionkit
from fusionkit import registry
from fusionkit.geometry import Grid, LayerStackSpec, Size, TokenSpec
from fusionkit.model.processing import FusionProcessor
from fusionkit.ops.diagnostics import orthogonality
from fusionkit.ops.maps import OrthogonalMaps
from fusionkit.ops.tokens import Tokens
from fusionkit.plugin import BlockSite

sys.path.insert(0, str(Path(__file__).parent))
from model_recipe import recipe, sample

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
    "release 6": (
        "every stream gets its own resize and statistics",
        ["unit/test_croppers.py::test_resize_gives_every_stream_its_own_size_and_statistics"],
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
        [f"{HERE}::test_a_crop_of_padding_is_the_padding_vector"],
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
