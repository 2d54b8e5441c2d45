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
        self.head = nn.Linear(site.inputs[config.stream].width, 1 + sum(sizes))
        self._sizes = sizes

    def forward(self, outputs: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        tokens = outputs.streams[self.config.stream]
        truth = patch_targets(tokens, batch, self.config.least_cover)
        scores_CNK = self.head(tokens.x_BND)
        losses = {"objectness": F.binary_cross_entropy_with_logits(scores_CNK[..., 0], truth.on_object_CN.float())}
        on_MK = scores_CNK[truth.crops_M, truth.tokens_M, 1:]
        for (label, values), scores_MV in zip(self.config.labels.items(), on_MK.split(self._sizes, dim=1), strict=True):
            wanted = [self._value(item.labels, label, values) for item in truth.objects_M]
            losses[label] = F.cross_entropy(scores_MV, torch.tensor(wanted, device=scores_MV.device))
        return {name: self.config.weight * loss for name, loss in losses.items()}

    def _value(self, labels: Mapping[str, str], label: str, values: tuple[str, ...]) -> int:
        value = labels.get(label)
        if value not in values:
            raise DataError(
                f"an object's {label} is {value!r}, expected one of {', '.join(values)} (objectives.*.labels)"
            )
        return values.index(value)
