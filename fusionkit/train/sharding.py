"""Dividing a stage's model among processes (FSDP2), and putting weights and optimizer state together again.

Skew parameters stay whole in every process, at fp32: `fusionkit.step` averages their gradients itself, once per
optimizer step. Everything saved is whole, so a run may be continued with another number of processes, or without
sharding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from fusionkit.errors import CheckpointError, UsageError
from fusionkit.ops.maps import OrthogonalMaps
from fusionkit.recipe.train_schema import AdamW, Muon


def skew_names(model: nn.Module) -> list[str]:
    """The parameters that neither DDP nor FSDP may touch."""
    return [
        f"{name}.skew" if name else "skew" for name, each in model.named_modules() if isinstance(each, OrthogonalMaps)
    ]


def check_optimizer(optimizer: AdamW | Muon, where: str) -> None:
    """Raises UsageError for an optimizer that needs whole matrices."""
    if isinstance(optimizer, Muon):
        raise UsageError(
            f"{where}.optimizer: muon cannot run under FSDP2: it orthogonalises whole matrices, and each process holds "
            "a part of them (use `{type: adamw}`, or train without --shard fsdp2)"
        )


def shard(model: nn.Module, optimizer: AdamW | Muon, where: str) -> None:
    """Divide the parameters of a stage's model among the processes, in place: every block of a list, then the rest.

    Raises UsageError for an optimizer that needs whole matrices.
    """
    check_optimizer(optimizer, where)
    mesh = distributed.device_mesh.init_device_mesh(_device_type(), (distributed.get_world_size(),))
    kept = {model.get_parameter(name) for name in skew_names(model)}
    for block in _blocks(model):
        fully_shard(block, mesh=mesh, ignored_params=kept & set(block.parameters()))
    fully_shard(model, mesh=mesh, ignored_params=kept)


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def has_parts(model: nn.Module) -> bool:
    """Whether this process holds only a part of some parameters."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The repeated blocks of encoders and decoders: entries of a module list that hold parameters."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and (".encoder" in name or "language_model" in name):
            yield from (block for block in module if any(True for _ in block.parameters()))


def _device_type() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


# ------------------------------------------------------------------------------------------------- whole again
def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from all processes, which must all ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and saved buffers by name, each once. Every process must call it."""
    parameters = dict(model.named_parameters())
    shared = dict(model.named_parameters(remove_duplicate=False)).keys() - parameters.keys()
    buffers = {name: value for name, value in model.state_dict().items() if name not in parameters.keys() | shared}
    return {name: whole(value.detach()).contiguous().cpu() for name, value in {**parameters, **buffers}.items()}


def load_weights(model: nn.Module, path: str) -> None:
    """Fill a sharded model from a file of whole weights. Raises CheckpointError when they do not fit."""
    found = load_file(path)
    own = model.state_dict()
    shared: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        shared.setdefault(id(parameter), set()).add(name)
    twins = {name: names for names in shared.values() for name in names}
    missing = [name for name in own if not found.keys() & twins.get(name, {name})]
    if missing or found.keys() - own.keys():
        raise CheckpointError(
            f"{path}: does not fit the model (missing {missing[:3]}, too many {sorted(found.keys() - own.keys())[:3]})"
        )
    with torch.no_grad():
        for name, value in found.items():
            own[name].copy_(divided(value.to(own[name].device), own[name]))


def divided(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, divided as `like` is."""
    return distribute_tensor(value, like.device_mesh, like.placements) if isinstance(like, DTensor) else value


def whole_state(state: Any) -> Any:
    """An optimizer's state with every tensor whole, as an unsharded one would save it."""
    if isinstance(state, Tensor):
        return whole(state).cpu()
    if isinstance(state, dict):
        return {key: whole_state(value) for key, value in state.items()}
    if isinstance(state, list):
        return [whole_state(value) for value in state]
    return state


def divided_state(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A whole optimizer state, divided as the optimizer's parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    made = {
        number: {
            key: divided(value, parameters[number])
            if isinstance(value, Tensor) and value.shape == parameters[number].shape
            else value
            for key, value in entry.items()
        }
        for number, entry in state["state"].items()
    }
    return {**state, "state": made}


# --------------------------------------------------------------------------------------------------- gradients
def clip(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale all gradients down to `limit` together, divided ones and whole ones; returns their norm before that."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not grads:
        return torch.zeros(())
    parts = [each.to_local() for each in grads if isinstance(each, DTensor)]
    complete = [each for each in grads if not isinstance(each, DTensor)]
    device, dtype = grads[0].device, torch.promote_types(grads[0].dtype, torch.float32)
    total = torch.zeros((), device=device, dtype=dtype)
    for part in parts:
        total += part.to(dtype).square().sum()
    if distributed.is_initialized():
        distributed.all_reduce(total)
    for each in complete:
        total += each.to(dtype).square().sum()
    norm = total.sqrt()
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    for each in (*parts, *complete):
        each.mul_(factor.to(each.dtype))
    return norm


def keep_rows(weight: nn.Parameter, rows: Iterable[int]) -> None:
    """Zero the gradient of a divided embedding table in all rows but these."""
    if weight.grad is None:
        return
    keep_V1 = torch.zeros(weight.shape[0], 1, dtype=weight.dtype, device=weight.device)
    keep_V1[list(rows)] = 1
    weight.grad.mul_(divided(keep_V1, weight))
