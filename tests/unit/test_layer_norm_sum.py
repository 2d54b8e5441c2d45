"""The sum of LayerNorms: both ways against float64 and each other, what is refused, and where the choice is made.

The kernel runs here on the CPU, interpreted, in a process of its own; on a GPU in the test marked `gpu`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import fusionkit
from fusionkit.bench.cases import cases_from_names
from fusionkit.bench.run import run
from fusionkit.bench.shape import Shape
from fusionkit.bench.variants import Setting
from fusionkit.errors import ShapeError, UsageError
from fusionkit.geometry import Grid
from fusionkit.model.runtime import Runtime
from fusionkit.ops import layer_norm_sum as ops
from fusionkit.ops.layer_norm_sum import layer_norm_sum, use_layer_norm_sum

TOLERANCE = 1e-6
"""Of Σ_k (|gain_k| (1 + |LN_k|) + |shift_k|), as the docstring of `layer_norm_sum` promises."""

with_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def in_another_process(code: list[str], **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=280
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def interpreted() -> Any:
    """What the kernels gave, run by Triton's interpreter."""
    script = Path(__file__).with_name("layer_norm_sum_cases.py")
    return json.loads(in_another_process([str(script)], TRITON_INTERPRET="1"))


# --------------------------------------------------------------------------------------------------- the kernel
@with_triton
def test_kernel_eager_and_float64_agree_within_the_rounding_of_one_sum(interpreted: Any) -> None:
    assert len(interpreted["cases"]) == 30
    for name, case in interpreted["cases"].items():
        assert case["triton to eager"] <= TOLERANCE, name
        assert case["triton to float64"] <= TOLERANCE, name
        assert case["eager to float64"] <= TOLERANCE, name
        assert case["untouched"], name
        assert case["finite"], name
    assert any(case["triton to eager"] > 0 for case in interpreted["cases"].values()), "the same code ran twice"


@with_triton
def test_a_sum_can_be_continued_in_place(interpreted: Any) -> None:
    parts = interpreted["parts"]
    assert parts["gap"] <= 4e-6
    assert parts["in place"]
    assert parts["no crops"] == [0, 3, 24]
    assert parts["wrong"] > 1e-2, "a layer more or less goes unseen, so this proves nothing"


@with_triton
def test_models_give_the_same_streamed_in_chunks_and_from_a_list(interpreted: Any) -> None:
    for name, found in interpreted["mixers"].items():
        assert max(found["gaps"]) <= 2e-6, name
        assert found["uses"] == "triton"
        assert found["sums"] == (name != "per_layer")


@with_triton
def test_with_grad_the_eager_way_is_taken(interpreted: Any) -> None:
    assert interpreted["grad"]["same"]


@with_triton
def test_numbers_the_kernel_does_not_take_are_refused(interpreted: Any) -> None:
    assert interpreted["refused"] == [
        f"layer_norm_sum 'triton' takes float32, bfloat16 or float16 alike, got {got} (use eager)"
        for got in ("float64", "float16, float32")
    ]


@with_triton
def test_all_kernels_compile_for_a_gpu_and_the_widths_in_use_spill_no_registers() -> None:
    """Compiled with the arguments they are called with, not run: for compute capability 9.0."""
    spec = importlib.util.find_spec("triton")
    folders = [] if spec is None else spec.submodule_search_locations or []
    if not any((Path(folder) / "backends" / "nvidia" / "bin" / "cuobjdump").exists() for folder in folders):
        pytest.skip("this triton is not built for CUDA")
    report = json.loads(in_another_process(["-c", _COMPILE], TRITON_DEFAULT_FP_FUSION="1"))
    in_use = ["27 of 1152 bf16", "14 of 1024 bf16", "27 of 1152 fp32", "1 of 1152 fp16"]
    assert list(report) == [*in_use, "plain", "addresses", "wide"]
    for name in in_use:
        assert "STACK:0 " in report[name], f"{name}: {report[name]}"


_COMPILE = """
import json, pathlib, subprocess, tempfile, torch, triton
from triton.backends.compiler import GPUTarget
from fusionkit.ops import layer_norm_sum_triton as kernels

class NoDevice:
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device=0: 0)
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))

triton.runtime.driver.set_active(NoDevice())
tool = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
report = {}

def compile(name, kernel, *arguments, **fixed):
    made = kernel.warmup(*arguments, **fixed, grid=(1,))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        done = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    report[name] = next(line for line in (done.stdout + done.stderr).splitlines() if "REG:" in line)

def add(name, count, width, dtype, gain, shift, fresh):
    layers = tuple(torch.zeros(2, 5, width, dtype=dtype) for _ in range(count))
    table, total = torch.zeros(count, dtype=torch.int64), torch.zeros(2, 5, width)
    compile(
        name, kernels._add_layers, total, layers[0], table, gain, shift, 5, 5 * width, width, *gain.stride(), 1e-5,
        COUNT=count, ALIGNED=True, FRESH=fresh, SHIFTED=shift is not None, **kernels.blocks(width),
    )
    return table, layers

for count, width, name in ((27, 1152, "bf16"), (14, 1024, "bf16"), (27, 1152, "fp32"), (1, 1152, "fp16")):
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]
    add(f"{count} of {width} {name}", count, width, dtype, torch.zeros(count, width), torch.zeros(width), True)
table, layers = add("plain", 3, 40, torch.float16, torch.zeros(3, 1).expand(3, 40), None, False)
compile("addresses", kernels._write_addresses, table, layers, COUNT=3, num_warps=1)
wide = torch.zeros(2, 5, 9001)
compile(
    "wide", kernels._add_wide_layer, wide, wide, wide[0, 0], None, 5, 5 * 9001, 9001, 1, 1e-5,
    WIDTH=9001, BLOCK=kernels.BLOCK, FRESH=True, SHIFTED=False, num_warps=8,
)
print(json.dumps(report))
"""


@pytest.mark.gpu
@with_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("count", "tokens", "width"), [(27, 576, 1152), (14, 196, 1024), (1, 49, 1408), (3, 5, 9001)])
def test_the_kernel_on_a_device(dtype: torch.dtype, count: int, tokens: int, width: int) -> None:
    torch.manual_seed(0)
    layers = [(torch.randn(2, tokens + 1, width, device="cuda") * 2 + 1).to(dtype)[:, 1:] for _ in range(count)]
    gain, shift = torch.randn(count, width, device="cuda"), torch.randn(count, width, device="cuda")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Triton's own, about defaults that will change
        found = layer_norm_sum(layers, gain, shift, backend="triton")
        eager = layer_norm_sum(layers, gain, shift)
        exact = layer_norm_sum([layer.double() for layer in layers], gain.double(), shift.double())
    scale = torch.zeros_like(exact)
    for k, layer in enumerate(layers):
        normed = torch.nn.functional.layer_norm(layer.double(), (width,))
        scale += gain[k].double().abs() * (1 + normed.abs()) + shift[k].double().abs()
    for other in (eager.double(), exact):
        assert float(((found.double() - other).abs() / scale).max()) <= TOLERANCE


# ---------------------------------------------------------------------------------------------------- eager
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_eager_computes_in_fp32_whatever_the_layers_are(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layers = [torch.randn(2, 3, 24).to(dtype) for _ in range(6)]
    gain, shift = torch.randn(6, 24), torch.randn(6, 24)
    with torch.no_grad():
        found = layer_norm_sum(layers, gain, shift)
        exact = layer_norm_sum([layer.double() for layer in layers], gain.double(), shift.double())
    expected = sum(
        gain[k].double() * torch.nn.functional.layer_norm(layer.double(), (24,)) + shift[k].double()
        for k, layer in enumerate(layers)
    )
    torch.testing.assert_close(exact, expected, rtol=0, atol=1e-13)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact.float(), rtol=0, atol=8e-6)


@pytest.mark.parametrize(
    ("layers", "gain", "shift", "total", "message"),
    [
        ([], (1, 4), None, None, r"expected one or more layers of one shape \[B, N, D\], got \[\]"),
        ([(2, 3, 4), (2, 3, 5)], (2, 4), None, None, r"of one shape \[B, N, D\], got \[\[2, 3, 4\], \[2, 3, 5\]\]"),
        ([(3, 4)], (1, 4), None, None, r"of one shape \[B, N, D\], got \[\[3, 4\]\]"),
        ([(2, 3, 4)], (4,), None, None, r"expected a gain \[1, 4\] or \[1, 1\], got \[4\]"),
        ([(2, 3, 4)], (1, 4), (1, 1), None, r"expected a shift \[1, 4\], got \[1, 1\]"),
        ([(2, 3, 4)], (1, 4), None, (2, 4, 4), r"expected a total \[2, 3, 4\], got \[2, 4, 4\]"),
    ],
)
def test_wrong_shapes_are_refused(layers: Any, gain: Any, shift: Any, total: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=f"layer_norm_sum: .*{message}"):
        layer_norm_sum(
            [torch.zeros(shape) for shape in layers],
            torch.ones(gain),
            None if shift is None else torch.zeros(shift),
            None if total is None else torch.zeros(total),
        )


# --------------------------------------------------------------------------------------------------- the choice
NO_CUDA = "layer_norm_sum 'triton' cannot be used: Triton runs on CUDA devices only and there is none (use eager)"


def shared_model() -> Any:
    encoder = {"type": "small_vit", "image_size": 16, "patch": 8, "width": 16, "depth": 2, "heads": 1}
    steps = {"mix": {"type": "orthogonal", "share": "encoder"}}
    stream = {"encoder": encoder, "select": {"type": "all"}, "steps": steps}
    return fusionkit.build({"schema": 1, "name": "one", "summary": "One.", "streams": {"only": stream}}).eval()


@with_triton
def test_a_choice_that_cannot_run_is_an_error_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    model = shared_model()
    with pytest.raises(UsageError) as refused:
        model.runtime = Runtime(layer_norm_sum="triton")
    assert str(refused.value) == NO_CUDA
    assert model.runtime == Runtime()
    assert model.streams["only"].steps["mix"].layer_norm_sum_backend == "eager"
    with pytest.raises(UsageError) as refused, torch.no_grad():
        layer_norm_sum([torch.zeros(1, 2, 4)], torch.ones(1, 1), backend="triton")
    assert str(refused.value) == NO_CUDA


def test_a_machine_without_triton_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"the package triton is not installed \(torch for Linux with CUDA brings it"):
        use_layer_norm_sum(torch.nn.Identity(), "triton")


def test_unknown_names_are_errors() -> None:
    with pytest.raises(UsageError, match="unknown layer_norm_sum 'fast'; expected one of eager, triton"):
        layer_norm_sum([torch.zeros(1, 2, 4)], torch.ones(1, 1), backend="fast")
    with pytest.raises(UsageError, match="'fast' cannot be used: it is unknown; expected one of eager, triton"):
        use_layer_norm_sum(torch.nn.Identity(), "fast")


@with_triton
def test_cpu_tensors_are_refused_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UsageError, match=r"'triton' needs CUDA tensors, got cpu \(use eager\)"), torch.no_grad():
        layer_norm_sum([torch.zeros(1, 2, 4)], torch.ones(1, 1), backend="triton")


def test_triton_is_imported_only_when_chosen() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import fusionkit.blocks.mixers.orthogonal; "
        "print([name for name in set(sys.modules) - before if 'triton' in name])"
    )
    assert in_another_process(["-c", code]).strip() == "[]"


def test_what_is_chosen_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    Runtime.auto(fusionkit.load_recipe("builtin:tiny"))
    assert "runtime: layer_norm_sum=eager: " in capsys.readouterr().err


def test_the_bench_has_a_row_of_it_or_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    shape = Shape(layers=2, grid=Grid(2, 2), width=8)

    def row(name: str, mode: str = "fwd", **options: Any) -> Any:
        cases = cases_from_names([name], shape, options)[0]
        rows = run(cases, Setting(mode), rounds=1, against=["none"], backends=["triton"], ceiling_scale=0.01)
        return next(row for row in rows if row["variant"] == "fusionkit[triton]")

    shared = row("mixers/orthogonal", share="encoder")
    expected = NO_CUDA if importlib.util.find_spec("triton") else "the package triton is not installed"
    assert shared["status"] == "skip"
    assert expected in shared["reason"]
    assert row("mixers/orthogonal")["reason"] == "backend triton: the block has no sum of LayerNorms"
    training = row("mixers/orthogonal", "fwdbwd", share="encoder")
    assert training["reason"] == "backend triton: its kernel has no backward (--mode fwd)"
