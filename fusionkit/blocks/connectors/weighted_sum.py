"""A sum of inputs of one shape."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from fusionkit.blocks.connectors.joining import require_one_grid, validity
from fusionkit.blocks.connectors.specs import WeightedSumConfig
from fusionkit.ops.tokens import Tokens
from fusionkit.plugin import BlockSite, input_names


class WeightedSum(nn.Module):
    """Additive mixture.

    Shapes: k inputs x_BND -> x_BND. A token is valid where all its parts are.

    Equation: y = Σ_i w_i x^i; w fixed, free, or softmax(s) with s starting at log of the given weights.
    """

    parameter_roles: ClassVar[dict[str, str]] = {"factors": "logits"}

    def __init__(self, config: WeightedSumConfig, site: BlockSite) -> None:
        super().__init__()
        self.address = site.address
        self.names = tuple(input_names(config))
        self.widths = tuple(site.tokens(name).width for name in self.names)
        self.learn = config.learn
        self.start = config.weights or (1 / len(self.names),) * len(self.names)
        learned = nn.Parameter(torch.empty(len(self.names))) if config.learn != "no" else None
        self.register_parameter("factors", learned)
        self.factors: nn.Parameter | None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the learned weights to their start."""
        if self.factors is None:
            return
        start = torch.tensor(self.start, device=self.factors.device)
        with torch.no_grad():
            self.factors.copy_(start.log() if self.learn == "softmax" else start)

    def weights(self) -> tuple[float, ...] | Tensor:
        """One weight per input."""
        if self.factors is None:
            return self.start
        return torch.softmax(self.factors, dim=0) if self.learn == "softmax" else self.factors

    def forward(self, **inputs: Tokens) -> Tokens:
        parts = [inputs[name] for name in self.names]
        first = require_one_grid(parts, self.widths, self.address)
        weights, valid = self.weights(), validity(parts)
        x_BND = weights[0] * first.x_BND
        for weight, part in zip(weights[1:], parts[1:], strict=True):
            x_BND = x_BND + weight * part.x_BND
        together = None if valid is None else torch.stack(valid).all(0)
        return first._replace(x_BND=x_BND.to(first.x_BND.dtype), valid_BN=together)
