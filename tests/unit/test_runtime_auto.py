"""`Runtime.auto` chooses by facts and says why."""

from __future__ import annotations

import pytest
import torch

import fusionkit
from fusionkit.errors import UsageError
from fusionkit.model import runtime_choice
from fusionkit.model.runtime import Runtime
from fusionkit.model.runtime_choice import choose_runtime


def test_crops_are_chunked_when_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = fusionkit.load_recipe("builtin:come_vl")
    state = 4 * 24 * 24 * 1152 * runtime_choice.STATES
    for free, chunk in ((2**40, None), (2 * 5 * state, 5), (1, 1), (None, None)):
        monkeypatch.setattr(runtime_choice, "_free_bytes", lambda kind, free=free: free)
        found = choose_runtime(recipe, "cpu")
        assert found.runtime == Runtime(crop_chunk=chunk)
        assert found.reasons[0].startswith(f"crop_chunk={chunk}: ")


def test_every_field_that_is_chosen_has_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    found = Runtime.auto(fusionkit.load_recipe("builtin:tiny"))
    assert found == Runtime()
    told = capsys.readouterr().err
    for name in (
        *("crop_chunk", "stream_layers", "mix_chunk", "attention"),
        *("layer_norm_sum", "cuda_graphs", "parallel_encoders"),
    ):
        assert f"runtime: {name}={getattr(found, name)}: " in told
    assert "a picture is one crop" in told
    assert "runtime: cuda_graphs=False: off, not measured (needs a CUDA device)" in told
    assert set(Runtime.model_fields) - {"crop_buckets", "check_finite"} == {
        line.removeprefix("runtime: ").partition("=")[0] for line in told.splitlines() if "=" in line.split(": ")[1]
    }
    Runtime.auto(fusionkit.load_recipe("builtin:tiny"), quiet=True)
    assert capsys.readouterr().err == ""


def test_devices_that_are_not_here_are_errors() -> None:
    recipe = fusionkit.load_recipe("builtin:tiny")
    with pytest.raises(UsageError, match="device 'tpu' is unknown here; expected cpu or cuda"):
        Runtime.auto(recipe, "tpu")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="torch finds no CUDA device for 'cuda'; use cpu"):
            Runtime.auto(recipe, "cuda")


def test_the_memory_of_the_device_that_is_named_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = fusionkit.load_recipe("builtin:come_vl")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    free = {None: 2**40, 0: 2**40, 1: 1}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device.index], 2**41))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2**30)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2**30)
    assert [choose_runtime(recipe, name).runtime.crop_chunk for name in ("cuda", "cuda:0", "cuda:1")] == [None, None, 1]
    for name in ("cuda:2", "cuda:x"):
        with pytest.raises(UsageError, match=rf"expected cuda, or one from cuda:0 to cuda:1, got '{name}'"):
            choose_runtime(recipe, name)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2**41)
    assert choose_runtime(recipe, "cuda:1").runtime.crop_chunk is None, "what torch holds back can be had"
