"""Where the first number that is not finite came from: the address of a block, and whether its parameters are to blame."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusionkit.errors import NumericsError


def require_finite(x: Tensor, where: str, module: nn.Module | None = None) -> None:
    """Raise NumericsError if `x`, what `where` gave, has NaN or infinity; `module` made it.

    The message counts them, places the first, and says whether the parameters of `module` are finite. Waits for the
    device: for looking into trouble, not for every step.
    """
    x = x.detach()
    finite = x.isfinite()
    if bool(finite.all()):
        return
    bad = finite.logical_not().nonzero()
    first = tuple(bad[0].tolist())
    hint = "" if module is None else f"; {_blame(where.split(':')[0], module, x)}"
    raise NumericsError(
        f"{where}: {len(bad)} of {x.numel()} numbers are not finite, the first is {float(x[first])} at "
        f"{list(first)} of {list(x.shape)}{hint}"
    )


def not_finite(module: nn.Module) -> list[str]:
    """The names of parameters and buffers of `module` that have NaN or infinity."""
    named = [*module.named_parameters(), *module.named_buffers()]
    real = [(name, tensor) for name, tensor in named if tensor.is_floating_point() and not tensor.is_meta]
    return [name for name, tensor in real if not bool(tensor.isfinite().all())]


def _blame(address: str, module: nn.Module, x: Tensor) -> str:
    if faulty := not_finite(module):
        return f"its weights are not finite ({', '.join(f'{address}.{name}' for name in faulty[:3])}): load others"
    dtype = str(x.dtype).removeprefix("torch.")
    way_out = "try float32" if x.dtype in (torch.float16, torch.bfloat16) else "its weights have grown too large"
    return f"its inputs and weights are finite, so {dtype} overflowed in it: {way_out}"
