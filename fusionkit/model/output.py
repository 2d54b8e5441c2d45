"""What FusionVLM returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils.generic import ModelOutput

from fusionkit.ops.tokens import Tokens


@dataclass
class FusionOutput(ModelOutput):
    """Loss and logits as any causal model gives them, and what the vision side produced.

    Shapes: logits_BTV; streams name -> Tokens of C crops; visual is the fused Tokens. `streams` and `visual` are
    None when the call encoded no picture.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Any = None
    hidden_states: Any = None
    attentions: Any = None
    streams: Mapping[str, Tokens] | None = None
    visual: Tokens | None = None
