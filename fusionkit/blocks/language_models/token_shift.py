"""`token_shift`: a small decoder whose word embeddings carry the words before them.

A decoder that starts from nothing spends most of its training learning to copy the previous words to the place where
it answers. Here that is given: the embedding of token i is e_i + sum_k s_k * e_(i-k) for k = 1..shift, with one learned
weight per channel. Only text is shifted: visual tokens are put in place afterwards.

Shapes: B rows, T tokens, E width.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from fusionkit.blocks.language_models.causal import build_causal
from fusionkit.blocks.language_models.specs import TokenShiftConfig
from fusionkit.plugin import BlockSite


class ShiftedEmbedding(nn.Embedding):
    """An embedding table that adds the embeddings of the tokens before; padding adds nothing.

    `context` is how many earlier ids a position needs: generation passes them along with the newest one. In rows of
    several samples `previous_BT` says where the token before each one stands, -1 for none.
    """

    parameter_roles: ClassVar[dict[str, str]] = {"shift": "vector"}

    def __init__(self, rows: int, width: int, padding: int | None, context: int) -> None:
        super().__init__(rows, width)
        self.context = context
        self.padding = padding
        self.shift = nn.Parameter(torch.full((context, width), 0.7))

    def forward(self, ids_BT: Tensor, previous_BT: Tensor | None = None) -> Tensor:
        own_BTE = super().forward(ids_BT)
        before_BTE = own_BTE
        if self.padding is not None:
            before_BTE = own_BTE * (ids_BT != self.padding)[..., None].to(own_BTE)
        shifted_BTE = own_BTE
        for distance, weight_E in enumerate(self.shift, start=1):
            if previous_BT is None:
                earlier_BTE = F.pad(before_BTE, (0, 0, distance, 0))[:, : ids_BT.shape[1]]
            else:
                earlier_BTE = _at(before_BTE, _steps_back(previous_BT, distance))
            shifted_BTE = shifted_BTE + weight_E * earlier_BTE
        return shifted_BTE


def _steps_back(previous_BT: Tensor, distance: int) -> Tensor:
    """Where the token so many steps before each one stands; -1 for none."""
    place_BT = previous_BT
    for _ in range(distance - 1):
        place_BT = torch.where(place_BT < 0, place_BT, previous_BT.gather(1, place_BT.clamp(min=0)))
    return place_BT


def _at(x_BTE: Tensor, place_BT: Tensor) -> Tensor:
    """The vectors at these places, zeros where there is none."""
    index_BTE = place_BT.clamp(min=0)[..., None].expand(-1, -1, x_BTE.shape[-1])
    return x_BTE.gather(1, index_BTE) * (place_BT >= 0)[..., None].to(x_BTE)


def build_token_shift(config: TokenShiftConfig, site: BlockSite) -> PreTrainedModel:
    """The decoder of `causal` with a shifted embedding in place of its own, tied to the head as that one was."""
    model: Any = build_causal(config, site)
    plain = model.get_input_embeddings()
    embedding = ShiftedEmbedding(plain.num_embeddings, plain.embedding_dim, plain.padding_idx, config.shift)
    with torch.no_grad():
        if not plain.weight.is_meta:
            embedding.weight.copy_(plain.weight)
    model.set_input_embeddings(embedding)
    model.tie_weights()
    decoder: PreTrainedModel = model
    return decoder
