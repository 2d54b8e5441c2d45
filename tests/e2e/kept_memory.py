"""What a forward pass keeps for its backward pass, counted where autograd is told of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def kept_for_backward(
    wrapped: nn.Module, batch: dict[str, Any], forward: Callable[[dict[str, Any]], Any] | None = None
) -> tuple[int, torch.Tensor]:
    """Bytes of the distinct storages that autograd keeps, parameters of `wrapped` aside; and the loss.

    `forward` is called in its place where something is wrapped around it.
    """
    whole = [parameter for parameter in wrapped.parameters() if not isinstance(parameter, DTensor)]
    own = {parameter.untyped_storage().data_ptr() for parameter in whole}
    found: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        origin = tensor if tensor._base is None else tensor._base
        if isinstance(origin, nn.Parameter):  # put together by FSDP2 for this block
            return tensor
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = torch.stack(list((forward or wrapped)(batch).values())).sum()
    return sum(found.values()), loss
