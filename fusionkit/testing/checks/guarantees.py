"""One check for each guarantee a step may claim (see `fusionkit.plugin.GUARANTEES`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fusionkit.geometry import FULL, Frame, TokenSpec
from fusionkit.ops.roles import parameter_roles
from fusionkit.ops.tokens import Tokens
from fusionkit.testing.checks.modules import require_same
from fusionkit.testing.subjects import CheckFailed, StepSubject, relative_error, replace_tensors, require

FP32_TOLERANCE = 2e-6


def check_token_count(subject: StepSubject) -> None:
    """As many tokens come out as go in, in the same order: a change of token n shows most at output n."""
    name, spec = _leading(subject)
    main = subject.plan.main
    require(main.tokens == spec.tokens, f"{spec.tokens} tokens go in, {main.tokens} are planned to come out")
    place = 2 * spec.tokens // 3
    arguments, changed = subject.arguments(), subject.arguments()
    changed[name] = replace_tensors(changed[name], lambda x: _with_token(x, place, x[:, place] + 3))
    with torch.no_grad():
        before, after = (subject.call(subject.module, given)["main"] for given in (arguments, changed))
    moved = int((after - before).norm(dim=-1).sum(0).argmax())
    require(moved == place, f"a change of token {place} of '{name}' shows most at output token {moved}")


def check_grid(subject: StepSubject) -> None:
    """The output lies on the grid and frame of the (leading) input."""
    _, spec = _leading(subject)
    main = subject.plan.main
    require(
        (main.grid, main.frame) == (spec.grid, spec.frame), f"the input's grid is {spec.grid}, the output's {main.grid}"
    )


def check_permutation_equivariant(subject: StepSubject) -> None:
    """Permuting the tokens of all inputs permutes the output."""
    arguments = subject.arguments()
    order = torch.randperm(subject.plan.main.tokens, generator=torch.Generator().manual_seed(0))
    shuffled = replace_tensors(arguments, lambda x: x[:, order])
    with torch.no_grad():
        expected = subject.call(subject.module, arguments)["main"][:, order]
        found = subject.call(subject.module, shuffled)["main"]
    _require_close(found, expected, "output of permuted tokens")


def check_orthogonal(subject: StepSubject) -> None:
    """`matrices()` of the module, or of parts of it, gives maps with orthonormal columns (or rows, where they narrow), also after training steps."""
    module = subject.copy().train()
    _require_orthogonal(module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.05, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        subject.call(module, subject.arguments())["main"].square().mean().backward()
        optimizer.step()
    _require_orthogonal(module)


def _require_orthogonal(module: nn.Module) -> None:
    owners = [part for part in module.modules() if callable(getattr(part, "matrices", None))]
    require(bool(owners), "neither the module nor a part of it has matrices() to look at the maps")
    with torch.no_grad():
        found = [matrix for owner in owners for matrix in owner.matrices()]  # type: ignore[operator]
    for number, q in enumerate(found):
        gram = (q.mT @ q if q.shape[0] >= q.shape[1] else q @ q.mT).double()
        error = (gram - torch.eye(len(gram), dtype=torch.float64)).abs().max().item()
        require(error <= 1e-5, f"map {number} of shape {tuple(q.shape)} is off orthogonality by {error:.1e}")


def check_simplex_weights(subject: StepSubject) -> None:
    """`weights()` gives one positive weight per layer, sum 1."""
    weights: Tensor = subject.module.weights().detach()  # type: ignore[operator]
    require(bool((weights > 0).all()), f"weights must be positive, got {weights.tolist()}")
    require(abs(float(weights.sum()) - 1) <= 1e-6, f"weights must sum to 1, got {float(weights.sum())}")


def check_identity_at_zero_gate(subject: StepSubject) -> None:
    """With every gate at zero the leading input comes back unchanged, bit for bit."""
    name, _ = _leading(subject)
    module = subject.copy()
    gates = [key for key, role in parameter_roles(module).items() if role == "gate"]
    require(bool(gates), "no parameter has the role 'gate' (declare it in parameter_roles)")
    with torch.no_grad():
        for gate in gates:
            module.get_parameter(gate).zero_()
    arguments = subject.arguments()
    with torch.no_grad():
        found = subject.call(module, arguments)["main"]
    require(torch.equal(found, arguments[name].x_BND), f"with gates at zero the output is not '{name}'")
    require(not torch.equal(subject.run()["main"], arguments[name].x_BND), "open gates change nothing either")


def check_shift_invariant(subject: StepSubject) -> None:
    """Moving the frames of all inputs by the same offset changes nothing."""
    arguments = subject.arguments()
    moved = {name: _moved(value, 0.37, 0.21) for name, value in arguments.items()}
    with torch.no_grad():
        expected, found = (subject.call(subject.module, given)["main"] for given in (arguments, moved))
    _require_close(found, expected, "output of shifted frames")


def check_padding_ignored(subject: StepSubject) -> None:
    """What invalid tokens hold, be it NaN, changes no valid output; marking all as valid changes nothing at all."""
    arguments = subject.arguments()
    valid = {name: _some_invalid(value, name != _leading(subject)[0]) for name, value in arguments.items()}
    with torch.no_grad():
        plain = subject.outputs(subject.module, arguments)
        marked = subject.outputs(
            subject.module, {n: _marked(v, torch.ones_like(valid[n])) for n, v in arguments.items()}
        )
        for name, tokens in plain.items():
            _require_close(marked[name].x_BND, tokens.x_BND, f"'{name}' with all tokens marked valid")
        runs = [
            subject.outputs(subject.module, {n: _spoiled(v, valid[n], junk) for n, v in arguments.items()})
            for junk in (0.0, 1e4, torch.nan)
        ]
    for name, first in runs[0].items():
        for other in runs[1:]:
            keep = first.valid_BN if first.valid_BN is not None else torch.ones_like(first.x_BND[..., 0]).bool()
            require_same(
                {name: other[name].x_BND[keep]}, {name: first.x_BND[keep]}, "runs that differ in invalid tokens only"
            )


def check_foldable(subject: StepSubject) -> None:
    """`fold()` changes nothing but the work, and follows later changes of the parameters."""
    module = subject.copy()
    with torch.enable_grad():
        expected = subject.call(module, subject.arguments())["main"].detach()
    module.fold()  # type: ignore[operator]
    _require_close(subject.run(module)["main"], expected, "folded output")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
        changed = subject.call(module, subject.arguments())["main"]
    with torch.enable_grad():
        expected = subject.call(module, subject.arguments())["main"].detach()
    _require_close(changed, expected, "output after parameters changed under a fold")


def check_streaming(subject: StepSubject) -> None:
    """begin / accumulate / finish over the layers equals forward on all of them, one layer or several at a time."""
    module, layers = subject.module, subject.arguments()["input"]
    expected = subject.run()["main"]
    for chunk in ((), (2,)):
        with torch.no_grad():
            try:
                state: Any = module.begin(*chunk)  # type: ignore[operator]
            except TypeError as error:
                raise CheckFailed(f"begin() must take how many layers to add at a time: {error}") from error
            for index, x_BND in enumerate(layers):
                state = module.accumulate(state, index, x_BND)  # type: ignore[operator]
            found: Tensor = module.finish(state)  # type: ignore[operator]
        _require_close(found, expected, f"streamed output, {chunk[0] if chunk else 1} at a time,")


STEP_GUARANTEES: dict[str, Callable[[StepSubject], None]] = {
    "token_count": check_token_count,
    "grid": check_grid,
    "permutation_equivariant": check_permutation_equivariant,
    "orthogonal": check_orthogonal,
    "simplex_weights": check_simplex_weights,
    "identity_at_zero_gate": check_identity_at_zero_gate,
    "shift_invariant": check_shift_invariant,
    "padding_ignored": check_padding_ignored,
    "foldable": check_foldable,
    "streaming": check_streaming,
}


def _leading(subject: StepSubject) -> tuple[str, TokenSpec]:
    """The input whose grid an output keeps: `query` if there is one, else the first."""
    name = "query" if "query" in subject.inputs else next(iter(subject.inputs))
    spec = subject.inputs[name]
    return name, spec if isinstance(spec, TokenSpec) else spec.tokens


def _with_token(x_BND: Tensor, place: int, value: Tensor) -> Tensor:
    changed = x_BND.clone()
    changed[:, place] = value
    return changed


def _moved(tokens: Tokens, down: float, right: float) -> Tokens:
    frame = Frame(FULL.x0 + right, FULL.y0 + down, FULL.x1 + right, FULL.y1 + down)
    return tokens._replace(frame=replace(tokens.frame, x0=frame.x0, y0=frame.y0, x1=frame.x1, y1=frame.y1))


def _some_invalid(tokens: Tokens, last_crop: bool) -> Tensor:
    """A quarter of the tokens invalid, and the first token's window; if `last_crop`, all of the last crop."""
    valid_BN = torch.rand(tokens.x_BND.shape[:2], generator=torch.Generator().manual_seed(int(last_crop))) > 0.25
    valid_BN[:, [0, 1, tokens.grid.width, tokens.grid.width + 1]] = False
    if last_crop:
        valid_BN[-1] = False
    return valid_BN


def _marked(tokens: Tokens, valid_BN: Tensor) -> Tokens:
    return tokens._replace(valid_BN=valid_BN)


def _spoiled(tokens: Tokens, valid_BN: Tensor, junk: float) -> Tokens:
    x_BND = torch.where(valid_BN[..., None], tokens.x_BND, torch.full_like(tokens.x_BND, junk))
    return tokens._replace(x_BND=x_BND, valid_BN=valid_BN)


def _require_close(found: Tensor, expected: Tensor, what: str) -> None:
    error = relative_error(found, expected)
    require(error <= FP32_TOLERANCE, f"{what} differs by {error:.1e} of its norm, allowed {FP32_TOLERANCE:.0e}")
