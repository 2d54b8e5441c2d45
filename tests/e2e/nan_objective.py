"""An objective for tests: the loss of some samples is no number, or has a gradient that is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from fusionkit.blocks.objectives.answer_tokens import AnswerTokens
from fusionkit.blocks.objectives.specs import AnswerTokensConfig
from fusionkit.plugin import API_VERSION, BlockSpec


class BadConfig(AnswerTokensConfig):
    """Which samples are bad, by their row, and what is."""

    type: Literal["test.bad"] = "test.bad"  # type: ignore[assignment]
    rows: tuple[int, ...] = ()
    what: Literal["loss", "gradient"] = "loss"


class Bad(AnswerTokens):
    def __init__(self, config: BadConfig, site: Any) -> None:
        super().__init__(config, site)
        self.config = config

    def forward(self, outputs: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        (loss,) = super().forward(outputs, batch).values()
        if any(sample.provenance.row in self.config.rows for sample in batch["samples"]):
            # The root of 0 is 0, and its slope is none.
            loss = loss + torch.sqrt(loss * 0) if self.config.what == "gradient" else loss * float("nan")
        return {"tokens": loss}


BAD = BlockSpec(api=API_VERSION, family="objectives", config=BadConfig, factory="nan_objective:Bad", summary="Bad.")
