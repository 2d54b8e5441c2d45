"""The ways to execute the vision side that need a GPU: refused without one, as plain with one, and told in the bench."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from model_recipe import recipe
from vision_side import build, close, pixels, see

import fusionkit
from fusionkit.bench.cases import cases_from_recipe
from fusionkit.bench.run import run
from fusionkit.bench.variants import Setting
from fusionkit.errors import ShapeError, UsageError
from fusionkit.model.cuda_graph import CudaCapture
from fusionkit.model.lanes import CudaLanes
from fusionkit.model.runtime import Runtime


# ------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize("choice", ["cuda_graphs", "parallel_encoders"])
def test_a_machine_without_cuda_says_so_and_changes_nothing(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = build()
    with pytest.raises(UsageError) as refused:
        model.runtime = Runtime(**{choice: True})
    assert str(refused.value) == f"Runtime.{choice}: torch finds no CUDA device here; leave it off"
    assert model.runtime == Runtime()
    with torch.no_grad():
        model.fuse(model.encode_streams(pixels(1)))


def test_tensors_on_the_cpu_are_refused_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UsageError, match=r"Runtime.cuda_graphs: expected pixels on a CUDA device, got cpu"):
        CudaCapture()(dict, torch.device("cpu"))
    with pytest.raises(UsageError, match=r"Runtime.parallel_encoders: expected pixels on a CUDA device, got cpu"):
        CudaLanes().current(torch.device("cpu"))


def test_pixels_without_a_crop_are_refused_in_plain_words() -> None:
    model = fusionkit.build(recipe()).eval()
    none = {f"pixel_values_{name}": x for name, x in pixels(0).items()}
    expected = (
        r"streams.semantic: expected one crop at least, got pixels of shape \(0, 3, 24, 24\); "
        "for text without a picture leave pixel_values_semantic out"
    )
    with pytest.raises(ShapeError, match=expected), torch.no_grad():
        model(input_ids=torch.tensor([[5, 6]]), **none)
    with torch.no_grad():
        assert model(input_ids=torch.tensor([[5, 6]])).logits.isfinite().all()


def test_the_bench_has_rows_of_them_that_say_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def reasons(name: str, mode: str = "fwd") -> dict[str, str]:
        cases = cases_from_recipe(fusionkit.load_recipe(f"builtin:{name}"), 1, ["vision"])[0]
        rows = run(cases, Setting(mode), rounds=1, against=["none"], ceiling_scale=0.01)
        return {row["variant"]: row["reason"] for row in rows if row["status"] == "skip"}

    graphs = "Runtime.cuda_graphs: torch finds no CUDA device here; leave it off"
    lanes = "Runtime.parallel_encoders: torch finds no CUDA device here; leave it off"
    assert reasons("tiny") == {"fusionkit_cuda_graphs": graphs, "fusionkit_parallel_encoders": lanes}
    assert reasons("tiny_semantic") == {"fusionkit_cuda_graphs": graphs}, "one encoder has nobody beside it"


# --------------------------------------------------------------------------------------------------- on a GPU
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "runtime",
    [
        {"cuda_graphs": True, "crop_buckets": (1, 2, 4)},
        {"parallel_encoders": True},
        {"cuda_graphs": True, "layer_norm_sum": "triton"},
    ],
    ids=str,
)
def test_on_a_device_everything_is_as_plain(runtime: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # Convolutions take TF32 unless told not to, and with other numbers of crops other kernels.
    monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee")  # type: ignore[attr-defined]
    atol = 4e-5
    streams = recipe()["streams"]
    streams["semantic"]["steps"]["mix"] = {"type": "orthogonal", "share": "encoder"}
    model = build(streams=streams).to("cuda")
    given = {crops: {name: x.cuda() for name, x in pixels(crops).items()} for crops in (1, 2, 3, 4, 7)}
    with torch.no_grad():
        expected = {crops: see(model, each) for crops, each in given.items()}
        model.runtime = Runtime(**runtime)
        for _ in range(2):
            for crops, each in given.items():
                close(see(model, each), expected[crops], atol)
        model.streams["spatial"].encoder.positions.mul_(3)
        found = see(model, given[2])
        model.runtime = Runtime()
        close(found, see(model, given[2]), atol)
