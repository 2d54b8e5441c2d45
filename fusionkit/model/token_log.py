"""log p of every token that greedy generation writes, without keeping the logits of all steps.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from fusionkit.errors import ShapeError
from fusionkit.model.modeling import FusionVLM


class TokenLog(LogitsProcessor):
    """Give it to `generate` as a logits processor, inside `watching(model)`; it changes nothing.

    It reads the logits as the model gives them, before penalties and constraints of the generation, and learns at each
    step which token was chosen at the one before: two rows of logits are held, not T. Greedy decoding and sampling
    only: beams change places.

    Example:
        log = TokenLog()
        with log.watching(model):
            ids_BT = model.generate(**inputs, logits_processor=[log])
        log_p_BT = log.of(ids_BT[:, prompt:])
    """

    def __init__(self) -> None:
        self._chosen: list[Tensor] = []
        self._raw_BV: Tensor | None = None
        self._waiting_BV: Tensor | None = None

    @contextmanager
    def watching(self, model: FusionVLM) -> Iterator[None]:
        """Notes what the model gives, until the end of the block."""

        def note(_module: Any, _inputs: Any, output: Any) -> None:
            self._raw_BV = output.logits[:, -1]

        handle = model.register_forward_hook(note)
        try:
            yield
        finally:
            handle.remove()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._raw_BV is None:
            raise ShapeError("a TokenLog saw no logits: call generate inside `with log.watching(model)`")
        if self._waiting_BV is not None:
            self._chosen.append(self._waiting_BV.gather(1, input_ids[:, -1:]))
        self._waiting_BV = self._raw_BV.float().log_softmax(-1)
        return scores

    def of(self, ids_BT: Tensor) -> Tensor:
        """log p of the generated tokens, fp32 [B, T]; raises ShapeError when they are not those of the steps seen."""
        steps = len(self._chosen) + (self._waiting_BV is not None)
        if self._waiting_BV is None or ids_BT.shape[1] != steps:
            raise ShapeError(f"{ids_BT.shape[1]} tokens, but {steps} steps were seen; pass what generate returned")
        return torch.cat([*self._chosen, self._waiting_BV.gather(1, ids_BT[:, -1:])], 1)
