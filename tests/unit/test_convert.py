"""`fusionkit convert`: a synthetic checkpoint of the released CoME-VL, by its true names, becomes ours; strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import exit_code
from PIL import Image
from released_checkpoint import RELEASED, SMALL, checkpoint, fused, semantic_layers, shapes
from safetensors.torch import save_file
from torch import Tensor

import fusionkit
from fusionkit.errors import CheckpointError, UsageError
from fusionkit.model.checkpoint import load_checkpoint
from fusionkit.model.convert import convert, plan_conversion, usual_dtype
from fusionkit.model.convert_checkpoint import convert_checkpoint, convert_model
from fusionkit.model.convert_source import open_tensors
from fusionkit.model.convert_table import ConversionTable, Rule, load_table
from fusionkit.model.modeling import FusionVLM
from fusionkit.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[2]
NAME = "come_vl_released"
TABLE = load_table(NAME)
HALVES = [0.5, 0.5, 0.5]

SMALL_RECIPE: dict[str, Any] = {
    "extends": f"builtin:{NAME}",
    "name": "released_small",
    "cropper": {"size": 32, "patch": 4, "margin_patches": [2, 2]},
    "streams": {
        "semantic": {
            "encoder": {
                "model": None,
                "config": {
                    "model_type": "siglip_vision_model",
                    "hidden_size": SMALL.semantic,
                    "intermediate_size": SMALL.semantic_hidden,
                    "num_hidden_layers": 27,
                    "num_attention_heads": SMALL.semantic_heads,
                    "patch_size": SMALL.patch,
                    "image_size": 32,
                },
            },
            "steps": {"pool": {"heads": SMALL.pool_heads}},
        },
        "spatial": {
            "encoder": {
                "model": None,
                "image_size": 24,
                "config": {
                    "model_type": "dinov3_vit",
                    "hidden_size": SMALL.spatial,
                    "intermediate_size": SMALL.spatial_hidden,
                    "num_hidden_layers": 24,
                    "num_attention_heads": 2,
                    "num_register_tokens": 4,
                    "patch_size": SMALL.patch,
                },
            },
            "steps": {"pool": {"heads": SMALL.pool_heads}},
        },
    },
    "language_model": {
        "model": None,
        "tokenizer": "builtin:tiny",
        "config": {
            "model_type": "qwen2",
            "hidden_size": SMALL.model,
            "intermediate_size": SMALL.model_hidden,
            "num_hidden_layers": SMALL.blocks,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": SMALL.rows,
        },
    },
}


@pytest.fixture(scope="module")
def released() -> dict[str, Tensor]:
    return checkpoint(SMALL)


@pytest.fixture(scope="module")
def converted(released: dict[str, Tensor]) -> FusionVLM:
    model, _, _ = convert_model(load_recipe(SMALL_RECIPE), TABLE, released, dtype=torch.float64)
    return model.eval()


def test_the_converted_model_computes_what_the_released_code_computes(
    released: dict[str, Tensor], converted: Any
) -> None:
    """From pixels to fused tokens, in float64; the second encoder's layers are taken from ours, whose names are its own."""
    generator = torch.Generator().manual_seed(5)
    pixels = {
        "semantic": torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64),
        "spatial": torch.randn(2, 3, 24, 24, generator=generator, dtype=torch.float64),
    }
    with torch.no_grad():
        semantic = semantic_layers(released, pixels["semantic"], SMALL)
        for layer, x_BND in enumerate(converted.streams["semantic"].encoder(pixels["semantic"]), start=1):
            torch.testing.assert_close(x_BND, semantic[layer - 1], rtol=1e-9, atol=1e-9)
        encoder = converted.streams["spatial"].encoder
        spatial = [torch.zeros(())] * 9 + encoder.forward_layers(pixels["spatial"], tuple(range(10, 24)))
        expected = fused(released, semantic, spatial, ((8, 8), (6, 6)), SMALL)
        found = converted.fuse(converted.encode_streams(pixels)).x_BND
    error = (found - expected).abs().max() / expected.abs().max()
    assert error <= 1e-6  # positions are held in float32 tables


def test_the_second_encoder_is_filled_by_its_own_names(released: dict[str, Tensor], converted: Any) -> None:
    prefix = "vision_backbone.image_vit2.transformer."
    state = converted.streams["spatial"].encoder.model.state_dict()
    for name, value in released.items():
        own = (
            name.removeprefix(prefix).replace("layer.", "model.layer.", 1)
            if ".layer." in name
            else name.removeprefix(prefix)
        )
        if name.startswith(prefix) and own in state:
            assert torch.equal(state.pop(own), value), name
    assert not state


def test_the_decoder_has_every_matrix_where_it_belongs(released: dict[str, Tensor], converted: Any) -> None:
    state = converted.language_model.state_dict()
    joined = released["transformer.blocks.1.att_proj.weight"]
    assert torch.equal(state["model.layers.1.self_attn.q_proj.weight"], joined[:96])
    assert torch.equal(state["model.layers.1.self_attn.k_proj.weight"], joined[96:144])
    assert torch.equal(state["model.layers.1.self_attn.v_proj.weight"], joined[144:])
    # Molmo multiplies the first half with the silu of the second.
    assert torch.equal(state["model.layers.0.mlp.up_proj.weight"], released["transformer.blocks.0.ff_proj.weight"][:80])
    assert torch.equal(
        state["model.layers.0.mlp.gate_proj.weight"], released["transformer.blocks.0.ff_proj.weight"][80:]
    )
    assert torch.equal(state["lm_head.weight"], released["transformer.ff_out.weight"])


def test_added_tokens_keep_their_vectors(released: dict[str, Tensor]) -> None:
    model, processor, _ = convert_model(load_recipe(SMALL_RECIPE), TABLE, released)
    rows = model.get_input_embeddings().weight
    assert processor is not None
    for number, token in enumerate(("<im_start>", "<im_end>", "<image>", "<im_col>")):
        place = processor.tokenizer.convert_tokens_to_ids(token)
        assert torch.equal(rows[place], released["transformer.wte.new_embedding"][number].to(rows.dtype))
    assert model.config.image_token_id == processor.tokenizer.convert_tokens_to_ids("<image>")
    assert torch.equal(rows[5], released["transformer.wte.embedding"][5].to(rows.dtype))


def test_dead_tensors_are_reported_with_their_reason(released: dict[str, Tensor]) -> None:
    targets = fusionkit.build(load_recipe(SMALL_RECIPE), device="meta").state_dict()
    conversion = plan_conversion(TABLE, list(released), targets)
    assert conversion.used + len(conversion.dead) == len(released)
    for name, why in (
        ("vision_backbone.merger.proj1.weight", "built, never called"),
        ("vision_backbone.pad_embed2", "built, never added"),
        ("vision_backbone.image_vit2.transformer.layer.23.norm1.weight", "block 24 is run and never read"),
        ("vision_backbone.cross_rope.cross_sig_from_dino.rope.freqs.0", "not rotated"),
    ):
        assert why in conversion.dead[name]
    assert not any(".layer.22." in name for name in conversion.dead)


def test_the_whole_checkpoint_fits_at_its_full_size() -> None:
    """On meta tensors: every one of the released names, and the shapes of 8.4 billion parameters."""
    stored = {name: torch.empty(shape, device="meta", dtype=torch.bfloat16) for name, shape in shapes(RELEASED).items()}
    recipe = load_recipe(f"builtin:{NAME}")
    model = fusionkit.build(recipe, device="meta", dtype=torch.bfloat16)
    ids = {token: 151_646 + place for place, token in enumerate(model.plan.new_tokens)}
    state, conversion = convert(TABLE, stored, model.state_dict(), ids)
    assert set(state) == set(model.state_dict())
    assert conversion.used + len(conversion.dead) == len(stored)
    assert sum(value.numel() for name, value in state.items() if not name.endswith(".base")) == model.plan.parameters
    assert state["streams.semantic.steps.mix.first.skew"].dtype == torch.float32
    assert state["fusion.align.project_query.weight"].dtype == torch.bfloat16


# ------------------------------------------------------------------------------------------------------ strictness
def refused(stored: dict[str, Tensor], table: ConversionTable = TABLE) -> str:
    targets = fusionkit.build(load_recipe(SMALL_RECIPE), device="meta").state_dict()
    with pytest.raises(CheckpointError) as caught:
        convert(
            table,
            stored,
            targets,
            {token: place for place, token in enumerate(("<im_start>", "<im_end>", "<image>", "<im_col>"))},
        )
    return str(caught.value)


def test_whatever_does_not_fit_is_told_together(released: dict[str, Tensor]) -> None:
    stored = dict(released)
    stored["vision_backbone.something_new"] = torch.zeros(1)
    del stored["vision_backbone.pad_embed"]
    del stored["vision_backbone.pool1.fc1.parametrizations.weight.0.base"]
    del stored["vision_backbone.pool2.fc1.parametrizations.weight.original"]
    text = refused(stored)
    for part in (
        "vision_backbone.something_new: no rule of the table is for it",
        "streams.semantic.steps.padding.embedding: nothing in the checkpoint fills it",
        "vision_backbone.pool1.fc1.parametrizations.weight.0.base: not in the checkpoint, but",
        "vision_backbone.pool2.fc1.parametrizations.weight.0.base: no first part of its pair",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("vision_backbone.beta_logits", torch.zeros(13), r"beta_logits, the recipe's model has [14]"),
        ("vision_backbone.alpha_logits", torch.zeros(27), "expected one logit for each of 28 entries"),
        ("transformer.blocks.0.att_proj.weight", torch.zeros(7, 96), "has 7 rows, to be split into [96, 48, 48]"),
        ("transformer.wte.new_embedding", torch.zeros(3, 96), "has 3 rows for added tokens, 4 are named"),
        ("vision_backbone.pool1.fc1.parametrizations.weight.0.base", torch.zeros(3, 3), "must be 32x32, got 3x3"),
    ],
)
def test_shapes_that_do_not_fit_are_named(released: dict[str, Tensor], name: str, value: Tensor, message: str) -> None:
    assert message in refused({**released, name: value})


def test_what_is_given_twice_or_to_nobody_is_told(released: dict[str, Tensor]) -> None:
    more = Rule(take="vision_backbone.extra", give="streams.semantic.steps.padding.embedding")
    other = Rule(take="vision_backbone.lost", give="streams.semantic.steps.no_such")
    table = TABLE.model_copy(update={"rules": (*TABLE.rules, more, other)})
    text = refused(
        {**released, "vision_backbone.extra": torch.zeros(2, 32), "vision_backbone.lost": torch.zeros(1)}, table
    )
    assert "streams.semantic.steps.padding.embedding: given twice" in text
    assert "streams.semantic.steps.no_such: the recipe's model has no such tensor" in text


def test_wrappers_in_names_are_removed(released: dict[str, Tensor]) -> None:
    wrapped = {
        f"_fsdp_wrapped_module.{name.replace('image_vit.', 'image_vit._fsdp_wrapped_module.')}": value
        for name, value in released.items()
    }
    targets = fusionkit.build(load_recipe(SMALL_RECIPE), device="meta").state_dict()
    assert plan_conversion(TABLE, list(wrapped), targets).used == plan_conversion(TABLE, list(released), targets).used


def test_the_dtype_is_that_of_most_numbers() -> None:
    assert usual_dtype({"a": torch.zeros(9, dtype=torch.bfloat16), "b": torch.zeros(3)}) == torch.bfloat16
    assert usual_dtype({"a": torch.zeros(9, dtype=torch.int64)}) == torch.float32


# ------------------------------------------------------------------------------------------------ files and command
@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.json"
    path.write_text(json.dumps(SMALL_RECIPE))
    return path


@pytest.mark.parametrize("kind", ["safetensors", "folder", "pt"])
def test_the_command_writes_a_checkpoint_that_answers(
    tmp_path: Path, recipe_file: Path, released: dict[str, Tensor], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / ("model.pt" if kind == "pt" else "model.safetensors")
    single = {name: value.float() for name, value in released.items()}
    if kind == "pt":
        torch.save({"model": single, "step": torch.tensor(1)}, source)
    else:
        save_file(single, source)
    given = source.parent if kind == "folder" else source
    out = tmp_path / "out"
    table = str(ROOT / "recipes" / "conversions" / f"{NAME}.json")
    assert exit_code("convert", str(recipe_file), str(given), "--out", str(out), "--table", table) == 0
    text = capsys.readouterr().out
    assert "904 tensors used, 37 dead, none left over" in text
    assert "vision_backbone.merger.* (4 tensors)" in text
    assert exit_code("convert", str(recipe_file), str(given), "--out", str(out), "--table", table) == 2
    assert "is there already; give another --out" in capsys.readouterr().err
    report = json.loads((out / "conversion.json").read_text())
    assert len(report["used"]) + len(report["dead"]) == len(released)
    model, processor = load_checkpoint(out)
    inputs = processor(images=[Image.new("RGB", (40, 30), (200, 10, 10))], text=["<image> what?"], return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=2).shape[0] == 1
    direct = convert_model(load_recipe(SMALL_RECIPE), TABLE, single)[0].eval()
    pixels = {name: value for name, value in inputs.items() if name.startswith("pixel_values_")}
    with torch.no_grad():
        assert torch.equal(model.get_image_features(**pixels).x_BND, direct.get_image_features(**pixels).x_BND)


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path, released: dict[str, Tensor]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(CheckpointError, match=r"out: is there already; give another --out, or remove it"):
        convert_checkpoint(load_recipe(SMALL_RECIPE), TABLE, released, tmp_path / "out")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such checkpoint; expected a .safetensors or .pt file"),
        (lambda path: path.mkdir(), r"expected .safetensors files, or one .pt .* file; found none"),
        (lambda path: path.with_suffix(".txt").touch(), "no such checkpoint"),
    ],
)
def test_sources_that_are_none_are_named(tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path / "model")
    with pytest.raises(CheckpointError, match=message):
        open_tensors(tmp_path / "model")


def test_files_of_before_zip_archives_are_read(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(3.0)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert open_tensors(tmp_path / "old.pt")["a"].tolist() == [0, 1, 2]


def test_damaged_and_unsafe_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: damaged or incomplete"):
        open_tensors(tmp_path / "a.safetensors")
    (tmp_path / "b.pt").write_bytes(b"hello")
    with pytest.raises(
        CheckpointError, match=r"b\.pt: cannot be read as tensors only: it holds other objects, or is damaged"
    ):
        open_tensors(tmp_path / "b.pt")
    torch.save({"model": {"a": print}}, tmp_path / "c.pt")
    with pytest.raises(
        CheckpointError, match=r"c\.pt: cannot be read as tensors only: it holds other objects, or is damaged"
    ):
        open_tensors(tmp_path / "c.pt", "model")
    (tmp_path / "empty.pt").touch()
    with pytest.raises(CheckpointError, match=r"empty\.pt: cannot be read as tensors only: .+ \(convert it"):
        open_tensors(tmp_path / "empty.pt")
    torch.save({"model": [torch.zeros(1)]}, tmp_path / "d.pt")
    with pytest.raises(CheckpointError, match=r"d\.pt: expected a mapping from names to tensors, or one at 'model'"):
        open_tensors(tmp_path / "d.pt", "model")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"take": "a"}, "give exactly one of `give` and `dead`"),
        ({"take": "a", "give": "b", "dead": "c"}, "give exactly one of `give` and `dead`"),
        ({"take": "a", "give": "b", "how": "orthogonal"}, "how orthogonal takes 2 and gives 2 tensors"),
        ({"take": "a", "give": "b", "layers": [1]}, "`layers` belongs to how merge_logits"),
        ({"take": "a", "give": "b", "how": "melt"}, "Input should be"),
    ],
)
def test_tables_that_cannot_be_meant_are_refused(tmp_path: Path, rule: dict[str, Any], message: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"format": 1, "source": "x", "rules": [rule]}))
    with pytest.raises(UsageError, match=f"not a conversion table: rules.0: .*{message}|{message}"):
        load_table(path)


def test_recipes_without_a_table_say_which_have_one() -> None:
    with pytest.raises(UsageError, match=r"molmo: no conversion table; shipped are come_vl_released \(or give a file"):
        load_table("molmo")
