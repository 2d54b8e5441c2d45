"""`patch_labels`: a stream learns what stands where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionkit.blocks.objectives.patch_targets import patch_targets
from fusionkit.blocks.objectives.specs import PatchLabelsConfig
from fusionkit.errors import DataError
from fusionkit.plugin import BlockSite


class PatchLabels(nn.Module):
    """One linear head per token: is there an object, and which value does each of its labels have.

    Shapes: reads x_CND of one stream. Losses: `objectness` (binary) and one cross-entropy per label.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"streams"})

    def __init__(self, config: PatchLabelsConfig, site: BlockSite) -> None:
        super().__init__()
        self.config = config
        self.streams = (config.stream,)
        sizes = [len(values) for values in config.labels.values()]
        self.spec = site.tokens(config.stream)
        self.head = nn.Linear(self.spec.width, 1 + sum(sizes))
        self._sizes = sizes

    def forward(self, outputs: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        tokens = outputs.streams[self.config.stream]
        truth = patch_targets(tokens.grid, tokens.frame, batch, self.config.least_cover, tokens.x_BND.device)
        scores_CNK = self.head(tokens.x_BND)
        on_object_CN = truth.on_object_CN.to(scores_CNK.dtype)
        losses = {"objectness": F.binary_cross_entropy_with_logits(scores_CNK[..., 0], on_object_CN)}
        on_MK = scores_CNK[truth.crops_M, truth.tokens_M, 1:]
        for (label, values), scores_MV in zip(self.config.labels.items(), on_MK.split(self._sizes, dim=1), strict=True):
            wanted = [self._value(item.labels, label, values) for item in truth.objects_M]
            truth_M = torch.tensor(wanted, dtype=torch.long, device=scores_MV.device)
            # A sum over the number, which is 0 where the mean of nothing would be NaN.
            losses[label] = F.cross_entropy(scores_MV, truth_M, reduction="sum") / max(1, len(wanted))
        return {name: self.config.weight * loss for name, loss in losses.items()}

    def items_in(self, batch: Mapping[str, Any]) -> dict[str, float]:
        """What the losses are means over: all tokens, and the tokens on objects."""
        truth = patch_targets(self.spec.grid, self.spec.frame, batch, self.config.least_cover)
        on_objects = float(len(truth.objects_M))
        return {"objectness": float(truth.on_object_CN.numel()), **dict.fromkeys(self.config.labels, on_objects)}

    def _value(self, labels: Mapping[str, str], label: str, values: tuple[str, ...]) -> int:
        value = labels.get(label)
        if value not in values:
            raise DataError(
                f"an object's {label} is {value!r}, expected one of {', '.join(values)} (objectives.*.labels)"
            )
        return values.index(value)
