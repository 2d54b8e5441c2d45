"""What every block that is a module must do: say its size, build without storage, save, copy, compile, repeat."""

from __future__ import annotations

import warnings

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from fusionkit.errors import UsageError
from fusionkit.ops.roles import parameter_roles
from fusionkit.testing.subjects import CheckFailed, ModuleSubject, relative_error, replace_tensors, require, tensors_of

BF16_TOLERANCE = 5e-3
FP32_TOLERANCE = 2e-6
AUTOCAST_TOLERANCE = 2e-2


def check_repeatable(subject: ModuleSubject) -> None:
    """The same seed builds the same module, and the same input gives the same output, bit for bit."""
    first, second = subject.awake(), subject.awake()
    require_same_state(first, second, "two builds with one seed")
    require_same(subject.run(first), subject.run(second), "two runs on one input")


def check_leaves_inputs_alone(subject: ModuleSubject) -> None:
    """forward() does not write into what it is given."""
    arguments = subject.arguments()
    before = [tensor.clone() for tensor in tensors_of(arguments)]
    with torch.no_grad():
        subject.call(subject.module, arguments)
    for number, (was, now) in enumerate(zip(before, tensors_of(arguments), strict=True)):
        require(torch.equal(was, now), f"input tensor {number} was changed in place")


def check_gradients_reach_everything(subject: ModuleSubject) -> None:
    """Every parameter that wants a gradient, and every input, gets one that is finite and not all zero."""
    module = subject.copy().train()
    arguments = replace_tensors(subject.arguments(), lambda x: x.clone().requires_grad_())
    outputs = subject.call(module, arguments)
    sum((random_projection(out, number) for number, out in enumerate(outputs.values())), torch.zeros(())).backward()
    wanting: dict[str, Tensor] = {name: p for name, p in module.named_parameters() if p.requires_grad}
    wanting.update({f"input {number}": tensor for number, tensor in enumerate(tensors_of(arguments))})
    for name, tensor in wanting.items():
        require(tensor.grad is not None, f"{name} gets no gradient")
        assert tensor.grad is not None
        require(tensor.grad.isfinite().all(), f"the gradient of {name} is not finite")
        require(tensor.grad.abs().max() > 0, f"the gradient of {name} is zero everywhere")


def check_gradients_match_differences(subject: ModuleSubject) -> None:
    """In float64, gradients equal finite differences along random directions."""
    module = subject.copy().double()
    wanting = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    arguments = replace_tensors(subject.arguments(batch=1), lambda x: x.double())
    inputs = tensors_of(arguments)

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        given = iter(values[: len(inputs)])
        swapped = replace_tensors(arguments, lambda _: next(given))
        holder = _Call(subject, module)
        parameters = {f"module.{name}": value for name, value in zip(wanting, values[len(inputs) :], strict=True)}
        found: tuple[Tensor, ...] = torch.func.functional_call(holder, parameters, (swapped,))
        return found

    values = [value.clone().requires_grad_() for value in (*inputs, *wanting.values())]
    try:
        torch.autograd.gradcheck(function, values, fast_mode=True, atol=1e-6, nondet_tol=0.0)
    except RuntimeError as error:
        raise CheckFailed(f"gradients differ from finite differences: {error}") from error


def check_deepcopy(subject: ModuleSubject) -> None:
    """A deep copy computes the same and shares no parameter."""
    twin = subject.copy()
    shared = {id(p) for p in subject.module.parameters()} & {id(p) for p in twin.parameters()}
    require(not shared, "the copy shares parameters with the original")
    require_same(subject.run(), subject.run(twin), "original and copy")


def check_safetensors_round_trip(subject: ModuleSubject) -> None:
    """state_dict goes through safetensors into a fresh module that computes the same."""
    state = load(save({name: tensor.contiguous() for name, tensor in subject.module.state_dict().items()}))
    fresh = subject.build(seed=1)
    fresh.load_state_dict(state)
    require_same(subject.run(), subject.run(fresh), "saved and loaded module")


def check_builds_without_storage(subject: ModuleSubject) -> None:
    """Built on meta, given storage by to_empty() and loaded, it computes the same: no state outside the state dict."""
    module = subject.build("meta")
    stray = [name for name, tensor in _named_tensors(module).items() if not tensor.is_meta]
    require(not stray, f"built on the meta device, yet with storage: {', '.join(stray)}")
    module.to_empty(device="cpu")
    with torch.no_grad():
        # What to_empty leaves is arbitrary; make it poison, so that a buffer nobody fills is noticed.
        for tensor in _named_tensors(module).values():
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)
    module.load_state_dict(subject.module.state_dict())
    require_same(subject.run(), subject.run(module), "module with storage and module built on meta, then loaded")


def check_compiles_for_training(subject: ModuleSubject) -> None:
    """torch.compile traces forward and backward in one graph and computes the same."""
    module = subject.copy().train()
    arguments = replace_tensors(subject.arguments(), lambda x: x.clone().requires_grad_())
    _compare_compiled(subject, module, arguments)


def check_compiles_for_inference(subject: ModuleSubject) -> None:
    """torch.compile traces the forward of a module that has run before (folded, tables kept) in one graph."""
    module = subject.copy()
    subject.run(module)
    with torch.no_grad():
        _compare_compiled(subject, module, subject.arguments())


def _compare_compiled(subject: ModuleSubject, module: nn.Module, arguments: dict[str, object]) -> None:
    expected = subject.call(module, arguments)
    torch._dynamo.reset()
    compiled = torch.compile(_Call(subject, module), fullgraph=True, backend="eager")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Guards may run slower on Python 3.13.0", RuntimeWarning)
            found = compiled(arguments)
    except torch._dynamo.exc.TorchDynamoException as error:
        raise CheckFailed(f"does not compile in one graph: {str(error).splitlines()[0]}") from error
    for (name, was), now in zip(expected.items(), found, strict=True):
        gap = relative_error(now, was)
        require(gap <= FP32_TOLERANCE, f"compiled output '{name}' differs by {gap:.1e}")


def check_exports(subject: ModuleSubject) -> None:
    """torch.export takes it, for inputs of these shapes, and the exported graph computes the same."""
    module, arguments = subject.copy(), subject.arguments()
    inputs = tuple(tensors_of(arguments))
    with torch.no_grad():
        exported = torch.export.export(_CallOnTensors(subject, module, arguments), inputs)
        found = dict(zip(subject.call(module, arguments), exported.module()(*inputs), strict=True))
    _require_close(found, subject.run(), FP32_TOLERANCE, "exported")


def check_bf16(subject: ModuleSubject) -> None:
    """In bfloat16 it is finite and close to float32 with the same (rounded) numbers."""
    require_bf16_within(subject, BF16_TOLERANCE)


def require_bf16_within(subject: ModuleSubject, tolerance: float) -> None:
    """Raise CheckFailed unless bfloat16 outputs are finite and within `tolerance` of float32, relative to the norm."""
    low = subject.copy().to(torch.bfloat16)
    high = _as_float32(subject, low)
    arguments = replace_tensors(subject.arguments(), lambda x: x.to(torch.bfloat16))
    with torch.no_grad():
        found = subject.call(low, arguments)
        expected = subject.call(high, replace_tensors(arguments, lambda x: x.float()))
    for name, value in found.items():
        require(value.dtype == torch.bfloat16, f"'{name}' of bfloat16 tokens is {value.dtype}")
    _require_close(found, expected, tolerance, "bfloat16")


def check_autocast(subject: ModuleSubject) -> None:
    """Under bfloat16 autocast it is finite and close to running without."""
    expected = subject.run()
    with torch.autocast("cpu", torch.bfloat16):
        found = subject.run()
    _require_close(found, expected, AUTOCAST_TOLERANCE, "autocast")


def check_float32_is_close_to_float64(subject: ModuleSubject) -> None:
    """float32 arithmetic loses no more than it must."""
    exact = subject.copy().double()
    with torch.no_grad():
        expected = subject.call(exact, replace_tensors(subject.arguments(), lambda x: x.double()))
    _require_close(subject.run(), expected, FP32_TOLERANCE, "float32")


def check_parameter_roles(subject: ModuleSubject) -> None:
    """What the module declares of its parameters for optimizers names parameters and roles that exist."""
    try:
        parameter_roles(subject.module)
    except UsageError as error:
        raise CheckFailed(str(error)) from error


MODULE_CHECKS = (
    check_repeatable,
    check_leaves_inputs_alone,
    check_gradients_reach_everything,
    check_gradients_match_differences,
    check_deepcopy,
    check_safetensors_round_trip,
    check_builds_without_storage,
    check_compiles_for_training,
    check_compiles_for_inference,
    check_exports,
    check_bf16,
    check_autocast,
    check_float32_is_close_to_float64,
    check_parameter_roles,
)


class _Call(nn.Module):
    """The subject's call as a module, so that torch can compile it and swap its parameters."""

    def __init__(self, subject: ModuleSubject, module: nn.Module) -> None:
        super().__init__()
        self.subject = subject
        self.module = module
        self.train(module.training)

    def forward(self, arguments: dict[str, object]) -> tuple[Tensor, ...]:
        return tuple(self.subject.call(self.module, arguments).values())


class _CallOnTensors(_Call):
    """The same with every float tensor of the arguments as an argument of its own, as torch.export wants them."""

    def __init__(self, subject: ModuleSubject, module: nn.Module, arguments: dict[str, object]) -> None:
        super().__init__(subject, module)
        self.arguments = arguments

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        given = iter(inputs)
        return super().forward(replace_tensors(self.arguments, lambda _: next(given)))


def require_same(found: dict[str, Tensor], expected: dict[str, Tensor], what: str) -> None:
    """Raise CheckFailed unless all outputs are equal, bit for bit."""
    require(list(found) == list(expected), f"{what}: outputs {list(found)} and {list(expected)}")
    for name, value in found.items():
        require(value.isfinite().all(), f"{what}: output '{name}' is not finite")
        gap = (value - expected[name]).abs().max().item() if value.shape == expected[name].shape else float("nan")
        require(torch.equal(value, expected[name]), f"{what}: output '{name}' differs by {gap:.1e}")


def require_same_state(one: nn.Module, other: nn.Module, what: str) -> None:
    """Raise CheckFailed unless both have the same state dict."""
    state, rival = one.state_dict(), other.state_dict()
    require(state.keys() == rival.keys(), f"{what}: state dicts have different keys")
    for name, tensor in state.items():
        require(torch.equal(tensor, rival[name]), f"{what}: '{name}' differs")


def random_projection(tensor: Tensor, seed: int) -> Tensor:
    """A scalar that depends on every entry."""
    weights = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(99 + seed))
    return (tensor * weights.to(tensor)).sum()


def _require_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float, what: str) -> None:
    for name, value in found.items():
        require(value.isfinite().all(), f"{what}: output '{name}' is not finite")
        error = relative_error(value, expected[name])
        require(
            error <= tolerance, f"{what}: output '{name}' is off by {error:.1e} of its norm, allowed {tolerance:.0e}"
        )


def _as_float32(subject: ModuleSubject, low: nn.Module) -> nn.Module:
    """A float32 module with the numbers of a half-precision one (some of which may have stayed float32)."""
    high = subject.copy()
    high.load_state_dict({name: tensor.float() for name, tensor in low.state_dict().items()})
    return high


def _named_tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
