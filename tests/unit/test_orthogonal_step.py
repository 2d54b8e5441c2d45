"""One map evaluation per optimizer step, the same gradients; orthogonality through training."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from model_recipe import recipe, sample
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fusionkit
from fusionkit.errors import NumericsError, ShapeError, UsageError
from fusionkit.model.processing import FusionProcessor
from fusionkit.ops.maps import OrthogonalMaps
from fusionkit.ops.orthogonal import cayley, exponential, haar, orthogonal_matrices, skew_count
from fusionkit.ops.precision import full_matmul
from fusionkit.ops.step import step

SHAPES = [(6, 6), (6, 4), (4, 6)]


class Rotated(nn.Module):
    """Two sets of maps, one of them frozen on request, and an ordinary layer."""

    def __init__(self, map: Any = "cayley", init: Any = "identity") -> None:
        super().__init__()
        self.first = OrthogonalMaps(3, 6, 5, map, init)
        self.second = OrthogonalMaps(1, 5, 7, map, init)
        self.linear = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("lmd,nd->nm", self.first.matrices(), x)
        return self.linear(y.tanh() @ self.second.matrices()[0].mT).square().mean()


class MapCounter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.maps = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.maps += func in (torch.ops.fusionkit.cayley.default, torch.ops.fusionkit.exponential.default)
        return func(*args, **(kwargs or {}))


def model(**fields: Any) -> Rotated:
    torch.manual_seed(0)
    module = Rotated(**fields)
    with torch.no_grad():
        module.first.skew.normal_()
        module.second.skew.normal_()
    return module.double()


def batches(count: int = 3) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(4, 6, dtype=torch.float64) for _ in range(count)]


def orthogonality_error(q_LMD: Tensor) -> float:
    narrow = (q_LMD if q_LMD.shape[1] <= q_LMD.shape[2] else q_LMD.mT).detach().double()
    return float((narrow @ narrow.mT - torch.eye(narrow.shape[1])).abs().max())


# ----------------------------------------------------------------------------------------------------- step
@pytest.mark.parametrize("map", ["cayley", "exp"])
@pytest.mark.parametrize("init", ["identity", "haar"])
def test_step_gives_the_same_gradients_with_one_evaluation(map: str, init: str) -> None:
    plain = model(map=map, init=init)
    held = copy.deepcopy(plain)
    with MapCounter() as counter:
        for batch in batches():
            plain(batch).backward()
    assert counter.maps == 2 * 3
    with MapCounter() as counter, step(held):
        for batch in batches():
            held(batch).backward()
        assert held.first.skew.grad is None
    assert counter.maps == 2
    for (name, expected), parameter in zip(plain.named_parameters(), held.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, msg=name)


def test_gradients_add_to_those_of_before() -> None:
    module = model()
    with step(module):
        module(batches()[0]).backward()
    once = module.first.skew.grad
    assert once is not None
    once = once.clone()
    with step(module):
        module(batches()[0]).backward()
    torch.testing.assert_close(module.first.skew.grad, 2 * once)


def test_frozen_and_unused_maps_get_no_gradient() -> None:
    module = model()
    module.first.skew.requires_grad_(False)
    with step(module):
        module(batches()[0]).backward()
    assert module.first.skew.grad is None
    assert module.second.skew.grad is not None
    module.zero_grad()
    with step(module):
        module.linear.weight.sum().backward()
    assert module.second.skew.grad is None


def test_step_works_around_a_whole_model_in_eval_and_under_autocast() -> None:
    module = model().float().eval()
    with step(nn.Sequential(module)), torch.autocast("cpu", dtype=torch.bfloat16):
        module(batches()[0].float()).backward()
    assert module.first.skew.grad is not None
    assert module.first.skew.grad.dtype == torch.float32


def test_after_an_exception_the_maps_are_free_again() -> None:
    module = model()

    def interrupted() -> None:
        with step(module):
            module(batches()[0]).backward()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert module.first.skew.grad is None
    with step(module):
        module(batches()[0]).backward()
    assert module.first.skew.grad is not None


def test_nesting_is_refused_and_leaves_the_outer_step_whole() -> None:
    module = model()
    with step(module):
        module(batches()[0]).backward()
        with pytest.raises(UsageError, match="already open"), step(module):
            pass
        module(batches()[0]).backward()
    assert module.first.skew.grad is not None


@pytest.mark.parametrize("forward_again", [False, True])
def test_optimizer_step_inside_is_refused(forward_again: bool) -> None:
    module = model()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)

    def misused() -> None:
        with step(module):
            module(batches()[0]).backward()
            module.first.skew.grad = torch.ones_like(module.first.skew)
            optimizer.step()
            if forward_again:
                module(batches()[0])

    with pytest.raises(UsageError, match=r"leave it before optimizer.step\(\)"):
        misused()
    module(batches()[0]).backward()  # and the maps are free again


def test_a_copy_made_inside_is_outside() -> None:
    module = model()
    with step(module):
        module(batches()[0]).backward()
        other = copy.deepcopy(module)
        other(batches()[0]).backward()
        assert other.first.skew.grad is not None


def test_step_compiles() -> None:
    torch._dynamo.reset()
    plain = model()
    plain(batches()[0]).backward()
    module = model()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    for _ in range(2):
        module.zero_grad()
        with step(compiled):
            compiled(batches()[0]).backward()
        torch.testing.assert_close(module.first.skew.grad, plain.first.skew.grad)


WORKER = """
import sys, torch, torch.distributed as dist
from fusionkit.ops.maps import OrthogonalMaps
from fusionkit.ops.step import step
torch.set_num_threads(1)
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
maps = torch.nn.ModuleList([OrthogonalMaps(2, 3, 3).double(), OrthogonalMaps(1, 3, 3).double()])
torch.nn.init.normal_(maps[0].skew)
weights = torch.arange(18.0, dtype=torch.float64).reshape(2, 3, 3)
with step(maps):
    (maps[0].matrices() * weights * (rank + 1)).sum().backward()
    if rank == 0:  # the other rank does not use the second mixer
        maps[1].matrices().sum().backward()
        (maps[1].matrices() * weights[:1]).sum().backward()
averaged = [m.skew.grad.clone() for m in maps]
dist.destroy_process_group()
for m in maps:
    m.zero_grad()
(maps[0].matrices() * weights * 1.5).sum().backward()
(maps[1].matrices().sum() / 2 + (maps[1].matrices() * weights[:1]).sum() / 2).backward()
for m, grad in zip(maps, averaged):
    torch.testing.assert_close(grad, m.skew.grad)
print("same")
"""


def test_skew_gradients_are_averaged_over_ranks(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    results = [process.communicate(timeout=120) for process in ranks]
    for out, err in results:
        assert out == "same\n", err


def test_maps_of_a_whole_model_are_counted() -> None:
    """From pixels to the loss: one evaluation per forward, one per step, and after the first answer none."""
    torch.manual_seed(0)
    built = fusionkit.build(recipe())  # one stream of its two mixes layers
    batch = FusionProcessor.from_plan(built.plan).batch([sample(1)])
    names = ("input_ids", "attention_mask", "labels", "visual_index", "pixel_values_")
    inputs = {name: value for name, value in batch.items() if name.startswith(names)}
    built.train()
    with MapCounter() as counter:
        built(**inputs).loss.backward()
        built(**inputs).loss.backward()
    assert counter.maps == 2
    with MapCounter() as counter, fusionkit.step(built):
        for _ in range(3):
            built(**inputs).loss.backward()
    assert counter.maps == 1
    built.eval()
    with torch.no_grad(), MapCounter() as counter:
        built(**inputs)
        assert counter.maps == 1
        for _ in range(3):
            built(**inputs)
    assert counter.maps == 1


# ------------------------------------------------------------------------------------------------- training
@pytest.mark.parametrize("map", ["cayley", "exp"])
@pytest.mark.parametrize("init", ["identity", "haar"])
@pytest.mark.parametrize(("width_in", "width_out"), SHAPES)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_orthogonal_after_100_steps(map: Any, init: Any, width_in: int, width_out: int, optimizer: str) -> None:
    torch.manual_seed(0)
    maps = OrthogonalMaps(2, width_in, width_out, map, init)
    # Weight decay drives torch's own rectangular parametrisation to zero in one step; here it must be harmless.
    chosen = (
        torch.optim.AdamW(maps.parameters(), lr=0.05, weight_decay=0.5)
        if optimizer == "adamw"
        else torch.optim.SGD(maps.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    )
    target = torch.randn(2, width_out, width_in)
    start = maps.matrices().detach().clone()
    for _ in range(100):
        chosen.zero_grad()
        (maps.matrices() - target).square().sum().backward()
        chosen.step()
    q = maps.matrices().detach()
    assert orthogonality_error(q) < 1e-5
    assert (q - target).square().sum() < (start - target).square().sum(), "nothing was learned"


@pytest.mark.parametrize("map", ["cayley", "exp"])
def test_orthogonal_at_full_size(map: Any) -> None:
    torch.manual_seed(0)
    q = orthogonal_matrices(torch.randn(1, skew_count(1152)) * 0.03, 1152, 1152, map)
    assert orthogonality_error(q) < 1e-5


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("map", ["cayley", "exp"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_orthogonal_after_100_steps_at_full_size(map: Any, optimizer: str) -> None:
    """At the flagship's width, in fp32, within 1e-5 all the way.

    `exp` is trained by Cayley's gradients, which cost a thirtieth: whether Q is orthogonal depends on where the skew
    parameters are, not on what took them there.
    """
    torch.manual_seed(0)
    maps = OrthogonalMaps(1, 1152, 1152, map)
    with torch.no_grad():
        maps.skew.normal_(std=0.02)
    chosen = (
        torch.optim.AdamW(maps.parameters(), lr=1e-3, weight_decay=0.1)
        if optimizer == "adamw"
        else torch.optim.SGD(maps.parameters(), lr=1e-2, momentum=0.9, weight_decay=1e-2)
    )
    target, start = haar(1, 1152, 1152).float(), maps.skew.detach().clone()
    for number in range(100):
        chosen.zero_grad()
        (orthogonal_matrices(maps.skew, 1152, 1152, "cayley") - target).square().sum().backward()
        chosen.step()
        if number % 25 == 24:
            assert orthogonality_error(maps.matrices()) < 1e-5
    assert (maps.skew - start).norm() > 0.1 * start.norm(), "the parameters hardly moved"


def test_the_exponential_is_taken_in_fp64(monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp32 it is off by 3e-5 at width 1152."""
    seen: list[torch.dtype] = []
    real = torch.linalg.matrix_exp

    def spy(matrix: Tensor) -> Tensor:
        seen.append(matrix.dtype)
        return real(matrix)

    monkeypatch.setattr(torch.linalg, "matrix_exp", spy)
    maps = OrthogonalMaps(2, 6, 6, "exp")
    q = maps.matrices()
    q.sum().backward()
    assert q.dtype == torch.float32
    assert maps.skew.grad is not None
    assert seen == [torch.float64] * 4


# ---------------------------------------------------------------------------------------------------- traps
def test_inverses_are_never_batched_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    dimensions: list[int] = []
    real = torch.linalg.inv_ex

    def spy(matrix: Tensor) -> Any:
        dimensions.append(matrix.ndim)
        return real(matrix)

    monkeypatch.setattr(torch.linalg, "inv_ex", spy)
    cayley(torch.randn(3, skew_count(4)), 4)
    assert dimensions == [2, 2, 2]


def test_several_large_maps_on_two_threads() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.manual_seed(0)
        assert orthogonality_error(cayley(torch.randn(2, skew_count(256)) * 0.1, 256)) < 1e-5
    finally:
        torch.set_num_threads(threads)


def test_a_wrong_inverse_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.linalg.inv_ex

    def broken(matrix: Tensor) -> Any:
        result = real(matrix)
        result.inverse[0, 1] += 0.1
        return result

    monkeypatch.setattr(torch.linalg, "inv_ex", broken)
    with pytest.raises(NumericsError, match=r"orthogonal map 0 of 1 \(8x8\): residual"):
        cayley(torch.randn(1, skew_count(8)), 8)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_reduced_matmul_precision_does_not_reach_the_maps(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    real = torch.linalg.inv_ex

    def spy(matrix: Tensor) -> Any:
        seen.extend((torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision))
        return real(matrix)

    monkeypatch.setattr(torch.linalg, "inv_ex", spy)
    torch.manual_seed(0)
    maps = OrthogonalMaps(1, 64, 48, "cayley", "haar")
    with torch.no_grad():
        maps.skew.normal_(std=0.05)
    torch.set_float32_matmul_precision(precision)
    try:
        assert orthogonality_error(maps.matrices()) < 1e-5
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == ["ieee", "ieee"]  # most CPUs have no reduced mode whose effect could be seen


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # opcheck itself looks at non-leaf tensors
@pytest.mark.parametrize("op", [cayley, exponential])
def test_operators_are_registered_correctly(op: Any) -> None:
    torch.library.opcheck(op, (torch.randn(2, skew_count(5), dtype=torch.float64, requires_grad=True), 5))
    pair = (torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 4, 5, requires_grad=True))
    torch.library.opcheck(full_matmul, pair)


def test_wrong_skew_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"skew of 5x5 matrices must be \[L, 10\], got \[2, 9\]"):
        orthogonal_matrices(torch.zeros(2, 9), 5, 3)
