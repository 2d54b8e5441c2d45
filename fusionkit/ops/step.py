"""`fusionkit.step(model)`: one evaluation of every orthogonal map per optimizer step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fusionkit.ops.maps import OrthogonalMaps


@contextmanager
def step(model: nn.Module) -> Iterator[None]:
    """Evaluate the orthogonal maps of `model` once for all the micro-batches of an optimizer step.

    Inside, gradients gather on the finished maps; leaving the context takes them back to the skew parameters in one
    pass, so clip and call the optimizer after it. With torch.distributed initialised, the skew gradients are averaged
    over the ranks there, so keep the skew parameters out of DDP and FSDP. After an exception nothing is taken back.

    Raises:
        UsageError: already inside `step` for this model, or skew changed inside it.

    Example:
        >>> with step(model):
        ...     for batch in micro_batches:
        ...         model(batch).loss.backward()
        >>> optimizer.step()
    """
    found = [module for module in model.modules() if isinstance(module, OrthogonalMaps)]
    held: list[OrthogonalMaps] = []
    try:
        for maps in found:
            maps.hold()
            held.append(maps)
        yield
        pairs = [pair for maps in held if (pair := maps.collect()) is not None]
        if pairs:
            torch.autograd.backward([result for result, _ in pairs], [grad for _, grad in pairs])
        _average_over_ranks(held)
    finally:
        for maps in held:
            maps.release()


def _average_over_ranks(found: list[OrthogonalMaps]) -> None:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    for maps in found:
        if maps.skew.requires_grad:
            # A rank that did not use the mixer must take part all the same, or the others wait for ever.
            if maps.skew.grad is None:
                maps.skew.grad = torch.zeros_like(maps.skew)
            torch.distributed.all_reduce(maps.skew.grad)
            maps.skew.grad /= torch.distributed.get_world_size()
