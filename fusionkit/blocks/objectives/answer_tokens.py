"""`answer_tokens`: the loss of a language model on the answers it should have given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionkit.blocks.objectives.specs import AnswerTokensConfig
from fusionkit.errors import UsageError
from fusionkit.ops.precision import at_least_fp32
from fusionkit.plugin import BlockSite

IGNORED = -100


class AnswerTokens(nn.Module):
    """Mean cross-entropy over answer tokens.

    With soft labels, the label of coordinate bin k is a Gaussian over all coordinate bins around k (standard deviation
    `soft_labels` bins, normalised), so that a near miss costs less than a far one.

    Shapes: logits_BTV; labels_BT with -100 outside answers.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"streams", "language_model"})

    def __init__(self, config: AnswerTokensConfig, site: BlockSite) -> None:
        super().__init__()
        self.weight = config.weight
        self.soft_labels = config.soft_labels
        self.coordinate_ids = site.coordinate_ids
        if self.soft_labels and not self.coordinate_ids:
            raise UsageError(f"{site.address}: soft_labels needs a box tokenizer with coordinate tokens")

    def forward(self, outputs: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        logits_BTV, labels_BT = outputs.logits, batch["labels"]
        targets_BT = labels_BT[:, 1:]
        kept_BT = targets_BT != IGNORED
        if not kept_BT.any():
            raise UsageError("a batch has no answer tokens: check that the samples have answers")
        targets_M = targets_BT[kept_BT]
        log_p_MV = F.log_softmax(at_least_fp32(logits_BTV[:, :-1][kept_BT]), dim=-1)
        loss_M = -log_p_MV.gather(1, targets_M[:, None])[:, 0]
        if self.soft_labels:
            loss_M = torch.where(*self._soft(log_p_MV, targets_M), loss_M)
        return {"tokens": self.weight * loss_M.mean()}

    def items_in(self, batch: Mapping[str, Any]) -> dict[str, float]:
        """The answer tokens of a batch, which the loss is a mean over."""
        return {"tokens": float((batch["labels"][:, 1:] != IGNORED).sum())}

    def _soft(self, log_p_MV: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor]:
        """Which targets are coordinates, and the loss of each as if it were one."""
        ids_K = torch.tensor(self.coordinate_ids, device=targets_M.device)
        bin_of_V = torch.full((log_p_MV.shape[1],), -1, device=targets_M.device)
        bin_of_V[ids_K] = torch.arange(len(ids_K), device=targets_M.device)
        bin_M = bin_of_V[targets_M]
        distance_MK = torch.arange(len(ids_K), device=targets_M.device)[None] - bin_M[:, None]
        label_MK = F.softmax(-0.5 * (distance_MK / self.soft_labels) ** 2, dim=-1)
        return bin_M >= 0, -(label_MK * log_p_MV[:, ids_K]).sum(-1)
