"""The recipes of the flagship and its controls: they plan, build on meta as planned, and say what they should."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import fusionkit
from fusionkit.cli.plan_meta import compare
from fusionkit.errors import BuildError
from fusionkit.geometry import Size
from fusionkit.recipe import load_recipe
from fusionkit.recipe.plan import plan
from fusionkit.recipe.plan_table import licences

ROOT = Path(__file__).resolve().parents[2]
DOCS = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
CASES = json.loads((ROOT / "tests/parity/goldens/crop_plan.json").read_text(encoding="utf-8"))["cases"]

FULL_SIZE = (
    "come_vl",
    "come_vl_dinov1",
    "come_vl_dinov2",
    "come_vl_dinov3",
    "come_vl_lora",
    "come_vl_pooled_first",
    "come_vl_released",
    "come_vl_small",
    "comm_channel",
    "comm_token",
    "molmo",
    "molmo_siglip2",
)
SMALL_DECODER = {
    "model": None,
    "quantize": None,
    "tokenizer": "builtin:tiny",
    "config": {
        "model_type": "qwen2",
        "hidden_size": 96,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "vocab_size": 512,
    },
}


def with_small_decoder(name: str) -> Mapping[str, Any]:
    """The vision side at full size; 7 B parameters more would test transformers."""
    return {"extends": f"builtin:{name}", "name": f"{name}_checked", "language_model": SMALL_DECODER}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_it_builds_on_meta_exactly_as_planned(name: str) -> None:
    planned, comparison = compare(load_recipe(with_small_decoder(name)))
    assert comparison.equal, comparison.differences
    assert comparison.built == planned.parameters


def test_the_flagship_as_released_has_all_its_parameters() -> None:
    planned, comparison = compare(load_recipe("builtin:come_vl_released"))
    assert comparison.equal, comparison.differences
    params = {node.address: node.params for node in planned.nodes}
    assert params["streams.semantic.encoder"] == 413_016_048
    # 59.2 M as in the released code, less the frequencies of time and the weight of a distance, which nothing depends on.
    assert params["fusion.align"] == 59_214_997
    assert comparison.built == 8_402_862_638


@pytest.mark.parametrize("name", ["come_vl", "come_vl_released"])
def test_the_vision_side_costs_what_it_plans(name: str) -> None:
    """Every product of one crop, counted on the meta device at full size."""
    parts = ("language_model", "box_tokenizer", "injectors", "train", "evaluate")
    recipe = {"extends": f"builtin:{name}", "name": "vision", **dict.fromkeys(parts)}
    model: Any = fusionkit.build(recipe, device="meta").eval()
    pixels = {
        name: torch.empty(1, 3, *stream.info.input_size, device="meta") for name, stream in model.plan.streams.items()
    }
    with torch.no_grad():
        model.fuse(model.encode_streams(pixels))  # what is made once is no cost of a crop
        with FlopCounterMode(display=False) as counter:
            model.fuse(model.encode_streams(pixels))
    assert counter.get_total_flops() == pytest.approx(sum(node.flops for node in model.plan.nodes), rel=0.01)


def test_planning_needs_no_library() -> None:
    script = (
        "import sys\n"
        "from fusionkit.recipe import load_recipe\n"
        "from fusionkit.recipe.plan import plan\n"
        f"for name in {FULL_SIZE!r}:\n"
        "    plan(load_recipe('builtin:' + name)).to_dict()\n"
        "heavy = {'torch', 'timm', 'transformers', 'numpy', 'PIL'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# -------------------------------------------------------------------------------------------------------- tokens
@pytest.mark.parametrize("name", ["come_vl", "come_vl_released", "come_vl_lora"])
def test_token_counts_are_the_recorded_ones(name: str) -> None:
    planned = plan(load_recipe(f"builtin:{name}"))
    recorded = [case for case in CASES if (case["base"], case["max_crops"], case["resize"]) == (384, 12, "siglip")]
    assert len(recorded) >= 5
    for case in recorded:
        height, width = case["image_hw"]
        assert planned.layout(Size(width, height)).tokens == case["n_image_tokens"], case["image_hw"]
    assert planned.layout(Size(1152, 896)).tokens == 1196  # 3 rows of 4 tiles
    assert planned.largest_layout is not None
    assert planned.largest_layout.tokens == 1460


def test_the_order_of_pooling_and_fusing() -> None:
    grids = {
        name: [str(node.plan.main.grid) for node in plan(load_recipe(f"builtin:{name}")).fusion]
        for name in ("come_vl", "come_vl_pooled_first", "come_vl_released")
    }
    assert grids == {
        "come_vl": ["24x24", "12x12", "12x12"],
        "come_vl_pooled_first": ["12x12", "12x12"],
        "come_vl_released": ["12x12"],
    }


# ------------------------------------------------------------------------------------------------------ licences
@pytest.mark.parametrize("name", FULL_SIZE)
def test_the_licence_of_dinov3_is_told_wherever_it_is(name: str) -> None:
    found = {part.name: (part.licence, part.note) for part in licences(plan(load_recipe(f"builtin:{name}")))}
    for model, (licence, note) in found.items():
        if "dinov3" in model:
            assert licence == "dinov3-license"
            assert note.startswith("OWN TERMS: read them before use; the download may be gated")
        else:
            assert not note, model


def test_building_tells_it_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        assert "has the licence dinov3-license: OWN TERMS" in caplog.text
        raise BuildError("stop here")

    monkeypatch.setattr("fusionkit.model.build.FusionVLM", refuse)
    with caplog.at_level(logging.WARNING, logger="fusionkit"), pytest.raises(BuildError, match="stop here"):
        fusionkit.build("builtin:come_vl")
    assert [record.message.split(":")[0] for record in caplog.records] == ["streams.spatial.encoder"]


def test_building_from_scratch_has_nothing_to_tell(caplog: pytest.LogCaptureFixture) -> None:
    recipe = {**with_small_decoder("come_vl"), "streams": {"spatial": {"encoder": {"weights": "random"}}}}
    with caplog.at_level(logging.WARNING, logger="fusionkit"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "fusionkit.model.build.FusionVLM", lambda *arguments, **options: (_ for _ in ()).throw(BuildError("stop"))
        )
        with pytest.raises(BuildError, match="stop"):
            fusionkit.build(recipe)
    assert not caplog.records


# --------------------------------------------------------------------------------- tables of the paper, as documented
def rows_of(title: str) -> list[list[str]]:
    """The cells of the table under a heading of docs/recipes.md."""
    text = DOCS.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("row", rows_of("Layer ranges of Table 4"), ids=lambda row: row[0])
def test_the_overrides_of_table_4_select_what_the_table_says(row: list[str]) -> None:
    _, semantic, spatial, command = row
    changes = re.findall(r"--set ([^ `]+)", command)
    planned = plan(load_recipe("builtin:come_vl", set=changes))
    for name, stated in (("semantic", semantic), ("spatial", spatial)):
        first, last = map(int, re.findall(r"\d+", stated))
        assert planned.streams[name].layers == tuple(range(first, last + 1))


@pytest.mark.parametrize("row", rows_of("Encoders of Table 5"), ids=lambda row: row[0])
def test_the_encoders_of_table_5(row: list[str]) -> None:
    _, recipe, model, layers, grid = (cell.strip("`") for cell in row)
    stream = plan(load_recipe(f"builtin:{recipe}")).streams["spatial"]
    first, last = map(int, re.findall(r"\d+", layers))
    assert (stream.info.name, stream.layers, str(stream.stack.grid)) == (model, tuple(range(first, last + 1)), grid)


def test_every_recipe_is_documented() -> None:
    shipped = {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
    assert {name for name in shipped if f"`{name}`" not in DOCS} == set()
