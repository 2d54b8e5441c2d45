"""Peers from other libraries and other ways to fuse: checked where they compute the block's function, marked where not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import exit_code

from fusionkit.bench.cases import cases_from_names
from fusionkit.bench.peers.library import library
from fusionkit.bench.peers.peer import UnsuitableError
from fusionkit.bench.run import Row, run
from fusionkit.bench.shape import Shape
from fusionkit.bench.variants import Setting, prepare, variants_of
from fusionkit.geometry import Grid
from fusionkit.recipe import load_recipe
from fusionkit.recipe.plan import plan

SHAPE = Shape(layers=2, grid=Grid(4, 6), width=16, crops=2, memory_grid=Grid(3, 2), memory_width=8)
ATTENTION = "connectors/rope_cross_attention"
NEEDS = {"x_transformers": "x_transformers", "vit_pytorch": "vit_pytorch", "geotorch": "geotorch"}


def rows_of(name: str, setting: Setting, **options: Any) -> dict[str, Row]:
    (case,) = cases_from_names([name], SHAPE, options)[0]
    found = run([case], setting, rounds=1, ceiling_scale=0.01)
    return {row["variant"]: row for row in found if row["block"] != "ceiling"}


def require(*variants: str) -> None:
    for name in variants:
        if name in NEEDS:
            pytest.importorskip(NEEDS[name])


def same(row: Row) -> bool:
    return bool(row["computes"] == row["block"])


@pytest.mark.parametrize(("mode", "dtype"), [("fwd", "fp32"), ("fwdbwd", "fp32"), ("fwdbwd", "bf16")])
def test_without_rotation_they_compute_the_same(mode: str, dtype: str) -> None:
    names = ("x_transformers", "vit_pytorch", "gated_cross_attention")
    require(*names)
    rows = rows_of(ATTENTION, Setting(mode, dtype), heads=2, rope=None)
    for name in names:
        assert (rows[name]["status"], same(rows[name])) == ("ok", True), rows[name]["reason"]
        assert rows[name]["err"]["rel"] < (2e-5 if dtype == "fp32" else 0.1)
        assert rows[name]["roofline_frac"] is not None
    assert not same(rows["concat_linear"])


def test_with_rotation_only_those_that_rotate_are_checked() -> None:
    require("x_transformers", "vit_pytorch")
    rows = rows_of(ATTENTION, Setting(), heads=2)
    assert rows["x_transformers"]["err"]["rel"] < 1e-6
    for name in ("vit_pytorch", "gated_cross_attention", "concat_linear"):
        row = rows[name]
        assert (row["status"], same(row), row["err"]) == ("ok", False, None)
        # The formula of the block says nothing of another function.
        assert (row["flops"], row["roofline_frac"]) == (None, None)


def test_what_they_lack_is_a_reason() -> None:
    require("x_transformers", "vit_pytorch")
    rows = rows_of(ATTENTION, Setting(), heads=2, radius=0.5)
    for name in ("x_transformers", "vit_pytorch", "gated_cross_attention"):
        assert rows[name]["status"] == "skip"
        assert "has no radius" in rows[name]["reason"]
    rows = rows_of(ATTENTION, Setting(), heads=4, kv_heads=2, rope=None)
    assert rows["gated_cross_attention"]["err"]["rel"] < 1e-6
    for name in ("x_transformers", "vit_pytorch"):
        assert "groups them in another order" in rows[name]["reason"]


def test_other_fusions_keep_the_number_of_tokens() -> None:
    (case,) = cases_from_names([ATTENTION], SHAPE, {"heads": 2})[0]
    chosen = {each.name: each for each in variants_of(case, Setting(), ["gated_cross_attention", "concat_linear"])}
    expected = prepare(chosen["fusionkit"], Setting()).call()["main"].shape  # type: ignore[union-attr,index]
    for name in ("gated_cross_attention", "concat_linear"):
        assert prepare(chosen[name], Setting()).call()["main"].shape == expected  # type: ignore[union-attr,index]


def test_resamplers_reach_the_same_number_of_tokens() -> None:
    names = ("vit_pytorch_resampler", "x_transformers_resampler", "timm_attention_pool")
    require("x_transformers", "vit_pytorch")
    rows = rows_of("poolers/attention_pool", Setting("fwdbwd"), heads=2)
    assert all((rows[name]["status"], same(rows[name])) == ("ok", False) for name in names)
    assert rows["x_transformers"]["err"]["rel"] < 2e-5
    (case,) = cases_from_names(["poolers/attention_pool"], SHAPE, {"heads": 2})[0]
    chosen = {each.name: each for each in variants_of(case, Setting(), names)}
    shapes = {name: prepare(each, Setting()).call()["main"].shape for name, each in chosen.items()}  # type: ignore[union-attr,index]
    assert len(set(shapes.values())) == 1, shapes


def test_geotorch_is_at_a_trained_size_too() -> None:
    require("geotorch")
    (case,) = cases_from_names(["mixers/orthogonal"], SHAPE)[0]
    variant = next(each for each in variants_of(case, Setting(), ["geotorch"]) if each.name == "geotorch")
    module: Any = prepare(variant, Setting()).module  # type: ignore[union-attr]
    for projection in module.projections:
        assert projection.parametrizations["weight"].original.abs().max() > 0.01
    row = rows_of("mixers/orthogonal", Setting("fwdbwd"))["geotorch"]
    assert (row["status"], row["maps"]) == ("ok", 4)


def test_a_library_that_breaks_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_peer.py").write_text(
        "import warnings\nwarnings.warn('old')\nraise RuntimeError('needs torch 1')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnsuitableError, match="broken_peer does not import here: RuntimeError: needs torch 1"):
        library("broken_peer")
    with pytest.raises(UnsuitableError, match=r"no-such-peer is not installed \(pip install no-such-peer\)"):
        library("no_such_peer.part")


def test_null_is_a_value_for_a_block_alone(capsys: pytest.CaptureFixture[str]) -> None:
    shape = "grid=4x4,width=16,memory_grid=2x2"
    words = ("bench", ATTENTION, "--set", "heads=2", "--set", "rope=null", "--shape", shape, "--rounds", "1")
    assert exit_code(*words, "--against", "gated_cross_attention") == 0
    assert "another function" not in capsys.readouterr().out


def test_a_block_turned_to_float64_and_back_is_as_before() -> None:
    from fusionkit.bench.subject import build_awake, make_arguments
    from fusionkit.bench.work import exact

    (case,) = cases_from_names(["encoders/small_vit"], SHAPE)[0]
    module, data = build_awake(case), make_arguments(case, torch.float32, torch.device("cpu"))
    before = {name: (tensor.clone(), tensor.dtype) for name, tensor in module.state_dict().items()}
    wanted = exact(module, data, "fwdbwd")
    found = exact(module, data, "fwdbwd", in_place=True)
    assert all(torch.equal(found[name], tensor) and tensor.dtype == torch.float64 for name, tensor in wanted.items())
    for name, tensor in module.state_dict().items():
        assert tensor.dtype == before[name][1]
        assert torch.equal(tensor, before[name][0])
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("name", ["single", "come_vl_released", "comm_channel", "comm_token"])
def test_the_small_recipes_of_the_comparison_have_one_decoder_and_crop(repository: Path, name: str) -> None:
    found, reference = (
        plan(load_recipe(str(repository / "benchmarks" / "recipes" / f"{name}.yaml"))),
        plan(load_recipe("builtin:come_vl_small")),
    )
    assert found.language_model is not None
    assert reference.language_model is not None
    assert found.language_model.count_flops(100) == reference.language_model.count_flops(100)
    assert found.largest_layout.crops == reference.largest_layout.crops
    assert found.visual.tokens == (2 if name == "comm_token" else 1) * reference.visual.tokens


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--answers", "2", "--plot", "x.png", "--mode", "step"),
            "--answers times whole models from pixels to words: leave out --mode, --plot",
        ),
        (("tiny.mix", "--json", "nowhere/out.jsonl"), "--json nowhere/out.jsonl: there is no folder nowhere"),
        (("tiny.mix", "--plot", "nowhere/out.png"), "--plot nowhere/out.png: there is no folder nowhere"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_timed(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("bench", "--recipe", "tiny", *words) == 2
    assert message in capsys.readouterr().err


def test_a_compiled_forward_uses_what_is_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[bool] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module._folded is not None))
    (case,) = cases_from_names(["mixers/orthogonal"], SHAPE)[0]
    variant = next(each for each in variants_of(case, Setting(), ["none"], ["compile"]) if each.backend == "compile")
    prepare(variant, Setting())
    prepare(variant, Setting("fwdbwd"))
    assert compiled == [True, False]
