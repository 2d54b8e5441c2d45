"""Mixers: plans against built modules, streaming, folding, dtypes, checkpoints, compilation, refusals."""

from __future__ import annotations

import copy
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fusionkit import registry
from fusionkit.blocks.mixers.layer_sum import LayerSum
from fusionkit.errors import NumericsError, UsageError
from fusionkit.geometry import Grid, LayerStackSpec, TokenSpec
from fusionkit.ops.maps import OrthogonalMaps
from fusionkit.ops.roles import parameter_roles
from fusionkit.plugin import BlockSite, ShapeError

SMALL = Grid(2, 3)
CASES: list[tuple[str, dict[str, Any]]] = [
    (name, dict(example)) for name in registry.names("mixers") for example in registry.spec("mixers", name).examples
]
SUMS = [case for case in CASES if case[0] != "channel_concat"]
FOLDED = [case for case in SUMS if case[0] != "group_mean"]
MAPPED = [case for case in CASES if case[0].startswith("orthogonal")]

each_case = pytest.mark.parametrize(("name", "fields"), CASES, ids=str)
each_sum = pytest.mark.parametrize(("name", "fields"), SUMS, ids=str)
each_folded = pytest.mark.parametrize(("name", "fields"), FOLDED, ids=str)
each_mapped = pytest.mark.parametrize(("name", "fields"), MAPPED, ids=str)


def build(name: str, fields: dict[str, Any], layers: int = 4, width: int = 12, grid: Grid = SMALL) -> nn.Module:
    spec = registry.spec("mixers", name)
    config = spec.config(**fields)
    stack = LayerStackSpec(tuple(range(1, layers + 1)), grid, width)
    assert spec.plan is not None
    plan = spec.plan(config, {"input": stack}, None)
    module: nn.Module = registry.factory(spec)(config, BlockSite("streams.a.steps.mix", {"input": stack}, plan))
    return module


def trained(name: str, fields: dict[str, Any], **shape: Any) -> nn.Module:
    """A mixer with no parameter at its starting value."""
    torch.manual_seed(0)
    module = build(name, fields, **shape)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def inputs(layers: int = 4, width: int = 12, tokens: int = 6, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, tokens, width, dtype=torch.float64).to(dtype) for _ in range(layers)]


class MapCounter(TorchDispatchMode):
    """Counts evaluations of orthogonal maps, one per operator call, and the largest tensor anyone made."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = 0
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.maps += func in (torch.ops.fusionkit.cayley.default, torch.ops.fusionkit.exponential.default)
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not func.is_view:
            self.largest = max(self.largest, result.numel())
        return result


# ---------------------------------------------------------------------------------------------------- plans
@each_case
def test_plan_equals_what_is_built(name: str, fields: dict[str, Any]) -> None:
    spec = registry.spec("mixers", name)
    stack = LayerStackSpec((1, 2, 3, 4), Grid(2, 3), 12)
    assert spec.plan is not None
    plan = spec.plan(spec.config(**fields), {"input": stack}, None)
    module = build(name, fields).eval()
    layers = [x[:1] for x in inputs()]  # plans count one crop
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = module(layers)
    assert out.shape == (1, plan.main.tokens, plan.main.width)
    assert sum(parameter.numel() for parameter in module.parameters()) == plan.params
    assert counter.get_total_flops() == plan.flops
    with FlopCounterMode(display=False) as counter:
        module.train()(layers)
    assert counter.get_total_flops() == plan.flops


@each_case
def test_meta_construction_leaves_nothing_to_chance(name: str, fields: dict[str, Any]) -> None:
    real = trained(name, fields).eval()
    with torch.device("meta"):
        empty = build(name, fields)
    assert all(tensor.is_meta for tensor in [*empty.parameters(), *empty.buffers()])
    empty = empty.to_empty(device="cpu").eval()
    # Whatever to_empty left uninitialised must be in the checkpoint.
    assert empty.load_state_dict(real.state_dict(), strict=True)
    assert len(real.state_dict()) == len([*real.parameters(), *real.buffers()])
    assert torch.equal(empty(inputs()), real(inputs()))


@each_case
def test_reset_parameters_restores_a_meta_module(name: str, fields: dict[str, Any]) -> None:
    with torch.device("meta"):
        module = build(name, fields)
    module.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.fill_(float("nan"))
    if isinstance(module, LayerSum) and any(True for _ in module.parameters()):
        module.reset_parameters()
    assert module(inputs()).isfinite().all()


@pytest.mark.parametrize(
    ("name", "fields"), [("orthogonal", {}), ("orthogonal", {"share": "encoder", "map": "exp"}), ("linear_sum", {})]
)
def test_starts_as_the_mean_of_the_normalised_layers(name: str, fields: dict[str, Any]) -> None:
    layers = inputs()
    expected = sum(nn.functional.layer_norm(x, (12,)) for x in layers) / len(layers)
    torch.testing.assert_close(build(name, fields)(layers), expected)


def test_logit_init_sets_the_weights() -> None:
    module: Any = build("orthogonal", {"logit_init": (0.0, 1.0, 2.0, 3.0)})
    torch.testing.assert_close(module.weights(), torch.arange(4.0).softmax(0))


def test_group_mean_groups() -> None:
    layers = inputs()
    halves = build("group_mean", {"groups": 2})(layers)
    torch.testing.assert_close(halves, torch.cat([(layers[0] + layers[1]) / 2, (layers[2] + layers[3]) / 2], -1))
    uneven = build("group_mean", {"groups": ((1, 2, 3), (3, 4))})(layers)
    mean = (layers[0] + layers[1] + layers[2]) / 3
    torch.testing.assert_close(uneven, torch.cat([mean, (layers[2] + layers[3]) / 2], -1))
    three: Any = build("group_mean", {"groups": 3})
    assert three.groups == ((0,), (1,), (2, 3))


# ------------------------------------------------------------------------------------------------ streaming
@each_sum
@pytest.mark.parametrize("chunk", [1, 3, 9])
@pytest.mark.parametrize("grad", [False, True])
def test_streaming_equals_stored(name: str, fields: dict[str, Any], chunk: int, grad: bool) -> None:
    module: Any = trained(name, fields).eval()
    layers = inputs()
    kept = [x.clone() for x in layers]
    with torch.set_grad_enabled(grad):
        stored = module(layers)
        state = module.begin(chunk)
        for index, x in enumerate(layers):
            state = module.accumulate(state, index, x)
        torch.testing.assert_close(module.finish(state), stored, rtol=0, atol=2e-6)
    assert all(torch.equal(x, y) for x, y in zip(layers, kept, strict=True)), "the encoder's states were written to"


@each_sum
@pytest.mark.parametrize("chunk", [1, 2])
def test_streaming_holds_no_more_than_a_chunk(name: str, fields: dict[str, Any], chunk: int) -> None:
    module: Any = trained(name, fields, layers=6).eval()
    alive: list[weakref.ref[Tensor]] = []
    most = 0
    with torch.no_grad():
        state = module.begin(chunk)
        for index in range(6):
            x = torch.randn(1, 6, 12)
            alive.append(weakref.ref(x))
            most = max(most, sum(ref() is not None for ref in alive))
            state = module.accumulate(state, index, x)
            del x
        module.finish(state)
    assert most <= chunk + 1


@each_sum
def test_inference_makes_no_stack_of_layers(name: str, fields: dict[str, Any]) -> None:
    layers, tokens, width = 6, 100, 12
    module = trained(name, fields, layers=layers, grid=Grid(10, 10)).eval()
    with torch.no_grad():
        module(inputs(layers, width, tokens))
        with MapCounter() as counter:
            out = module(inputs(layers, width, tokens))
    assert counter.largest < layers * out.shape[0] * tokens * width


@each_sum
def test_streaming_refuses_disorder(name: str, fields: dict[str, Any]) -> None:
    module: Any = build(name, fields)
    layers = inputs()
    state = module.accumulate(module.begin(), 0, layers[0])
    with pytest.raises(UsageError, match=r"streams.a.steps.mix: expected layer 1 of 4, got layer 0"):
        module.accumulate(state, 0, layers[0])  # a block that ran twice must not be counted twice
    with pytest.raises(UsageError, match="expected 4 layers before finish, got 1"):
        module.finish(state)
    for index in (1, 2, 3):
        state = module.accumulate(state, index, layers[index])
    with pytest.raises(UsageError, match="expected no more layers of 4, got layer 4"):
        module.accumulate(state, 4, layers[0])
    with pytest.raises(UsageError, match="chunk must be at least 1"):
        module.begin(0)


# -------------------------------------------------------------------------------------------------- folding
@each_mapped
def test_maps_are_evaluated_once_per_forward_and_never_again_at_inference(name: str, fields: dict[str, Any]) -> None:
    module = trained(name, fields)
    maps = sum(isinstance(part, OrthogonalMaps) for part in module.modules())
    with MapCounter() as counter:
        module(inputs())
        module(inputs()).sum().backward()
    assert counter.maps == 2 * maps
    module.eval()
    with torch.no_grad(), MapCounter() as counter:
        module(inputs())
        assert counter.maps == maps
        for _ in range(3):
            module(inputs())
    assert counter.maps == maps
    with MapCounter() as counter:
        module(inputs())
    assert counter.maps == maps, "with grad on, the fold must not be used: its parameters would get no gradient"
    with torch.inference_mode(), MapCounter() as counter:
        module(inputs())
    assert counter.maps == 0


@each_folded
def test_folded_equals_unfolded(name: str, fields: dict[str, Any]) -> None:
    module: Any = trained(name, fields)
    unfolded = module(inputs())
    assert unfolded.requires_grad
    module.eval()
    with torch.no_grad():
        module.fold()
        assert module._folded is not None
        torch.testing.assert_close(module(inputs()), unfolded.detach(), rtol=0, atol=2e-6)


@each_folded
def test_every_change_drops_the_fold(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    module: Any = trained(name, fields).eval()
    other = {key: value + 0.5 for key, value in module.state_dict().items()}

    def fresh() -> Tensor:
        """What a copy without any fold computes."""
        return copy.deepcopy(module)(inputs())

    with torch.no_grad():
        before = module(inputs())
        next(module.parameters())[0] += 0.5
        assert not torch.equal(module(inputs()), before)
        torch.testing.assert_close(module(inputs()), fresh())

        module.load_state_dict(other)
        torch.testing.assert_close(module(inputs()), fresh())
        module.load_state_dict({key: value * 0.5 for key, value in other.items()}, assign=True)
        torch.testing.assert_close(module(inputs()), fresh())

        holder = nn.ModuleDict({"mix": module})
        holder.load_state_dict({f"mix.{key}": value for key, value in other.items()})
        torch.testing.assert_close(module(inputs()), fresh())

        for change in (module.train, lambda: module.to(torch.float64), module.unfold):
            module.eval()
            module(inputs(dtype=next(module.parameters()).dtype))
            assert module._folded is not None
            change()
            assert module._folded is None

        module.float().eval()
        module(inputs())
        for parameter in module.parameters():
            parameter.data.mul_(2)  # uncounted: the writer must say so
        module.unfold()
        torch.testing.assert_close(module(inputs()), fresh())


def test_fold_is_for_inference() -> None:
    module: Any = build("orthogonal", {})
    with pytest.raises(UsageError, match=r"call eval\(\) first"):
        module.fold()


def test_fold_made_in_inference_mode_serves_outside_it() -> None:
    module: Any = trained("orthogonal", {}).eval()
    with torch.inference_mode():
        inside = module(inputs())
    assert not any(matrix.is_inference() for matrix in module._folded.matrices)
    with torch.no_grad():
        assert torch.equal(module(inputs()), inside)
    x = [layer.requires_grad_() for layer in inputs()]
    module(x).sum().backward()
    assert module.maps.skew.grad is not None


def test_module_built_in_inference_mode_is_never_stale() -> None:
    with torch.inference_mode():
        module: Any = trained("orthogonal", {}).eval()
        before = module(inputs())
        module.maps.skew.mul_(2)
        assert not torch.equal(module(inputs()), before)


# --------------------------------------------------------------------------------------------------- dtypes
@each_case
def test_bf16_is_close_and_keeps_its_maps_in_fp32(name: str, fields: dict[str, Any]) -> None:
    shape = {"layers": 8, "width": 64}
    module = trained(name, fields, **shape).to(torch.bfloat16)
    for key, tensor in module.state_dict().items():
        kept = key.rpartition(".")[2] in ("skew", "base", "logits", "scale")
        assert tensor.dtype == (torch.float32 if kept else torch.bfloat16), key
    layers = inputs(**shape, dtype=torch.bfloat16)
    expected = copy.deepcopy(module).double()([x.double() for x in layers])
    for mode in (module.train, module.eval):
        with torch.no_grad():
            out = mode()(layers)
        assert out.dtype == torch.bfloat16
        assert (out.double() - expected).norm() / expected.norm() < 5e-3


@each_case
def test_autocast_agrees(name: str, fields: dict[str, Any]) -> None:
    shape = {"layers": 8, "width": 64}
    module = trained(name, fields, **shape)
    expected = module(inputs(**shape))
    # Autocast also rounds the fp32 weights, and two products in a row round twice.
    limit = 7e-3 if name == "orthogonal_two_stage" else 5e-3
    for mode in (module.train, module.eval):
        mode()
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            out = module(inputs(**shape))
        assert out.dtype == torch.float32
        assert (out - expected).norm() / expected.norm() < limit


@each_mapped
def test_maps_are_orthogonal_in_fp32_under_autocast(name: str, fields: dict[str, Any]) -> None:
    module = trained(name, fields, width=64).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for maps in (part for part in module.modules() if isinstance(part, OrthogonalMaps)):
            q = maps.matrices()
            assert q.dtype == torch.float32
            narrow = (q if q.shape[1] <= q.shape[2] else q.mT).double()
            assert (narrow @ narrow.mT - torch.eye(narrow.shape[1])).abs().max() < 1e-5


def test_built_under_a_half_default_dtype_the_maps_are_fp32() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        module: Any = build("orthogonal", {"init": "haar"})
    finally:
        torch.set_default_dtype(torch.float32)
    assert module.maps.skew.dtype == module.maps.base.dtype == module.logits.dtype == torch.float32
    assert module.norm.weight.dtype == torch.bfloat16


def test_a_half_precision_checkpoint_is_computed_in_fp32() -> None:
    module: Any = trained("orthogonal", {}).eval()
    rounded = {key: value.to(torch.bfloat16) for key, value in module.state_dict().items()}
    module.load_state_dict(rounded, assign=True)
    out = module(inputs(dtype=torch.bfloat16))
    assert out.isfinite().all()
    q = module.matrices()
    assert (q @ q.mT - torch.eye(12)).abs().max() < 1e-5


# ------------------------------------------------------------------------------- copies, files, compilation
@each_case
def test_copies_and_files_compute_the_same(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    module = trained(name, fields).eval()
    with torch.no_grad():
        expected = module(inputs())
        assert torch.equal(copy.deepcopy(module)(inputs()), expected)
        save_file({"unused": torch.zeros(1), **module.state_dict()}, tmp_path / "mix.safetensors")
        other = build(name, fields).eval()
        loaded = load_file(tmp_path / "mix.safetensors")
        del loaded["unused"]
        other.load_state_dict(loaded, strict=True)
        assert torch.equal(other(inputs()), expected)


@each_case
def test_compiles_as_one_graph(name: str, fields: dict[str, Any]) -> None:
    torch._dynamo.reset()
    module = trained(name, fields)
    layers = [x.requires_grad_() for x in inputs()]
    module(layers).square().sum().backward()
    expected = [x.grad for x in (*layers, *module.parameters())]
    for tensor in (*layers, *module.parameters()):
        tensor.grad = None
    graphs: list[torch.fx.GraphModule] = []

    def eager(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(module, fullgraph=True, backend=eager)
    compiled(layers).square().sum().backward()
    for tensor, grad in zip((*layers, *module.parameters()), expected, strict=True):
        torch.testing.assert_close(tensor.grad, grad)
    assert ("fusionkit" in graphs[-1].code) == name.startswith("orthogonal")

    module.eval()
    with torch.no_grad():
        folded = module(inputs())
        torch.testing.assert_close(compiled(inputs()), folded)
        assert "fusionkit" not in graphs[-1].code, "a folded graph has no maps in it"
        next(iter(module.parameters()), torch.zeros(1))[0] += 1
        module.train().eval()  # drops the fold, as a load or a move would
        torch.testing.assert_close(compiled(inputs()), module(inputs()))


# ---------------------------------------------------------------------------------------------------- roles
def test_roles() -> None:
    model = nn.ModuleDict(
        {"a": build("orthogonal", {}), "b": build("lln_layerscale", {}), "c": build("group_mean", {})}
    )
    roles = parameter_roles(model)
    assert roles.keys() == dict(model.named_parameters()).keys()
    assert roles["a.maps.skew"] == "skew"
    assert roles["a.logits"] == "logits"
    assert roles["a.norm.weight"] == roles["a.norm.bias"] == "norm"
    assert roles["b.scale"] == "gate"
    assert roles["b.projections.3.weight"] == "matrix"
    assert roles["b.projections.3.bias"] == "bias"


def test_roles_follow_from_module_types() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.zeros(1, 4, 8))
            self.table = nn.Embedding(4, 8)
            self.norm = nn.RMSNorm(8)
            self.conv = nn.Conv2d(3, 8, 2)
            self.mid = nn.Linear(8, 8)
            self.head = nn.Linear(8, 4, bias=False)
            self.again = self.mid

        def get_output_embeddings(self) -> nn.Module:
            return self.head

    model = Scaled()
    assert parameter_roles(model) == {
        "position": "vector",
        "table.weight": "embedding",
        "norm.weight": "norm",
        "conv.weight": "conv",
        "conv.bias": "bias",
        "mid.weight": "matrix",
        "mid.bias": "bias",
        "head.weight": "head",
    }
    model.head.weight = model.table.weight
    tied = parameter_roles(model)
    assert tied["table.weight"] == "embedding"
    assert "head.weight" not in tied


def test_wrong_role_declarations_are_refused() -> None:
    module = nn.Linear(2, 2)
    module.parameter_roles = {"wieght": "matrix"}  # type: ignore[assignment]
    with pytest.raises(UsageError, match=r"m \(Linear\).parameter_roles: 'wieght: matrix' must name one of \['bias'"):
        parameter_roles(nn.ModuleDict({"m": module}))
    module.parameter_roles = {"weight": "matrices"}  # type: ignore[assignment]
    with pytest.raises(UsageError, match="and one of matrix, conv"):
        parameter_roles(module)


# ------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("name", "fields", "field", "message"),
    [
        ("orthogonal", {"logit_init": (0.0, 1.0)}, "logit_init", "4 layers are selected, got 2 logits"),
        ("softmax_sum", {"logit_init": (0.0,) * 5}, "logit_init", "got 5 logits"),
        ("group_mean", {"groups": 5}, "groups", "5 groups of 4 layers: one would be empty"),
        ("group_mean", {"groups": ((1, 2), (3,))}, "groups", r"layers \[4\] are in the groups or in the selection"),
        ("group_mean", {"groups": ((1, 2), (3, 4, 9))}, "groups", r"layers \[9\]"),
        ("group_mean", {"groups": ((1, 2, 3, 4), ())}, "groups", "at least one layer"),
        ("group_mean", {"groups": ((1, 1, 2, 3, 4),)}, "groups", "each once"),
    ],
)
def test_planner_names_the_field(name: str, fields: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(ShapeError, match=message) as caught:
        build(name, fields)
    assert caught.value.field == field


@each_case
def test_mixers_come_first_in_their_stream(name: str, fields: dict[str, Any]) -> None:
    spec = registry.spec("mixers", name)
    assert spec.plan is not None
    with pytest.raises(ShapeError, match="reads the selected layers of an encoder, got 2x2 tokens of width 8"):
        spec.plan(spec.config(**fields), {"input": TokenSpec(Grid(2, 2), 8)}, None)


@each_case
def test_forward_refuses_wrong_layers(name: str, fields: dict[str, Any]) -> None:
    module = build(name, fields)
    with pytest.raises(ShapeError, match=r"streams.a.steps.mix: expected 4 layers"):
        module(inputs(layers=3))
    with pytest.raises(ShapeError, match=r"streams.a.steps.mix: expected .*width.* 12.*10"):
        module(inputs(width=10))


@each_sum
def test_forward_refuses_mixed_grids(name: str, fields: dict[str, Any]) -> None:
    layers = inputs()
    layers[2] = layers[2][:, :1]  # would broadcast
    with pytest.raises(ShapeError, match=r"expected \[2, 6, 12\] of layer 2, got \[2, 1, 12\]"):
        build(name, fields)(layers)


@pytest.mark.parametrize("map", ["cayley", "exp"])
def test_diverged_maps_say_so(map: str) -> None:
    module: Any = build("orthogonal", {"map": map})
    with torch.no_grad():
        module.maps.skew[2, 5] = float("nan")
    with pytest.raises(
        NumericsError, match=r"orthogonal map 2 of 4 \(12x12\): residual nan .*lower their learning rate"
    ):
        module(inputs())
