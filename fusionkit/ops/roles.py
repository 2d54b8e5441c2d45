"""What each parameter is for, so that optimizers treat it right: by declared role, never by a name that looks alike.

| role | parameters | Muon | weight decay |
|---|---|---|---|
| matrix | weights of linear maps | yes | yes |
| conv | weights of convolutions | no | yes |
| head | the output layer of a language model | no | yes |
| vector | everything else (class tokens, position tables, scales) | no | no |
| embedding, norm, bias, skew, logits, gate | as named | no | no |
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from fusionkit.errors import UsageError

ROLES = ("matrix", "conv", "head", "vector", "embedding", "norm", "bias", "skew", "logits", "gate")
DECAYING_ROLES = frozenset({"matrix", "conv", "head"})


def parameter_roles(model: nn.Module) -> dict[str, str]:
    """The role of every parameter, by its name in `named_parameters()`; a shared parameter appears once.

    A module says what its own parameters are in `parameter_roles: ClassVar[Mapping[str, str]]`; the rest follows
    from the module's type. A tied output layer is an embedding.

    Raises:
        UsageError: a module declares an unknown role, or one for a parameter it does not have.
    """
    heads = _output_layers(model)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))}
    roles: dict[str, str] = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        declared = _declared(prefix, module)
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if id(parameter) in embeddings:
                role = "embedding"
            elif name in declared:
                role = declared[name]
            elif id(module) in heads and name == "weight":
                role = "head"
            else:
                role = _inferred(module, name, parameter)
            roles[f"{prefix}.{name}" if prefix else name] = role
    return roles


def _declared(prefix: str, module: nn.Module) -> dict[str, str]:
    declared: dict[str, str] = dict(getattr(module, "parameter_roles", {}))
    owned = set(module._parameters)  # with those that are switched off, such as `bias=False`
    for name, role in declared.items():
        if role not in ROLES or name not in owned:
            where = f"{prefix or 'the model'} ({type(module).__name__}).parameter_roles"
            raise UsageError(
                f"{where}: '{name}: {role}' must name one of {sorted(owned)} and one of {', '.join(ROLES)}"
            )
    return declared


def _inferred(module: nn.Module, name: str, parameter: nn.Parameter) -> str:
    if name == "bias" or name.endswith("_bias"):
        return "bias"
    if isinstance(module, (nn.Linear, nn.Bilinear, nn.MultiheadAttention)) and parameter.ndim == 2:
        return "matrix"
    if isinstance(module, _ConvNd):
        return "conv"
    # Norms outside torch.nn (LlamaRMSNorm and its many siblings) share nothing but the word in their name.
    if "norm" in type(module).__name__.lower() and parameter.ndim <= 1:
        return "norm"
    return "vector"


def _output_layers(model: nn.Module) -> set[int]:
    return {id(head) for module in model.modules() for head in _output_layer(module) if head is not None}


def _output_layer(module: nn.Module) -> Iterator[Any]:
    getter = getattr(module, "get_output_embeddings", None)
    if callable(getter):
        yield getter()
