"""Several rows about one picture run the picture through the decoder once.

A picture takes most of a row, and training asks several questions about each: what precedes the question is the same in
all its rows, so its keys and values are computed once and handed to every row. Values and gradients are those of the
plain forward pass, at a fraction of its cost.

Shapes: B rows, T tokens, P of them in the shared prefix, G different prefixes, E width, V visual tokens per row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusionkit.model.modeling import FusionVLM, vision_inputs
from fusionkit.model.output import FusionOutput


@dataclass(frozen=True, slots=True)
class Prefix:
    """What rows share: the first `length` tokens. `group_B` is each row's prefix, `first_G` one row that has it."""

    length: int
    group_B: Tensor
    first_G: Tensor


def find_prefix(input_ids_BT: Tensor, attention_mask_BT: Tensor, visual_index: Tensor, image_id: int) -> Prefix | None:
    """The prefix up to the last image token, if all rows have the same ids there and some the same picture; else None.

    Rows must be padded on the right.
    """
    rows = len(input_ids_BT)
    mask_BT = input_ids_BT == image_id
    per_row_B = mask_BT.sum(1)
    if rows < 2 or int(per_row_B[0]) == 0 or bool((per_row_B != per_row_B[0]).any()):
        return None
    length = int(mask_BT[0].nonzero()[-1]) + 1
    same = bool((input_ids_BT[:, :length] == input_ids_BT[0, :length]).all())
    if not same or not bool(attention_mask_BT[:, : length + 1].all()) or length == input_ids_BT.shape[1]:
        return None
    shown, group_B = torch.unique(visual_index.reshape(rows, -1), dim=0, return_inverse=True)
    if len(shown) == rows:
        return None
    first_G = torch.full((len(shown),), rows, dtype=torch.long, device=group_B.device)
    first_G.scatter_reduce_(0, group_B, torch.arange(rows, device=group_B.device), "amin")
    return Prefix(length, group_B, first_G)


def forward_shared(model: FusionVLM, batch: Mapping[str, Any]) -> FusionOutput:
    """`model(**batch)` for training, computing what rows share once.

    Logits at positions inside the prefix, where no answer is, are zeros. Rows that share nothing, gradient
    checkpointing (which keeps no keys and values) and injectors inside the decoder take the plain forward pass.
    """
    decoder: Any = model.language_model
    prefix = None
    checkpointing = any(getattr(module, "gradient_checkpointing", False) for module in decoder.modules())
    if "visual_index" in batch and not checkpointing and not model.layer_injectors():
        prefix = find_prefix(
            batch["input_ids"], batch["attention_mask"], batch["visual_index"], model.config.image_token_id
        )
    if prefix is None:
        output: FusionOutput = model(**batch, use_cache=False)
        return output
    streams = model.encode_streams(**vision_inputs(batch))
    visual = model.fuse(streams)
    ids_BT, first_G = batch["input_ids"], prefix.first_G
    index_GV = batch["visual_index"].reshape(len(ids_BT), -1)[first_G]
    prefix_GPE = model.embed(ids_BT[first_G, : prefix.length], visual, index_GV.flatten())
    head = decoder(inputs_embeds=prefix_GPE, use_cache=True, logits_to_keep=1)
    cache = head.past_key_values
    cache.reorder_cache(prefix.group_B)
    # An embedding that looks back sees the end of the prefix. Padding is on the right, where the causal mask keeps it
    # from every real token.
    back = min(prefix.length, getattr(model.get_input_embeddings(), "context", 0))
    tail_BTE = model.get_input_embeddings()(ids_BT[:, prefix.length - back :])[:, back:]
    tail = decoder(inputs_embeds=tail_BTE, past_key_values=cache, use_cache=True)
    empty_BPV = tail.logits.new_zeros(len(ids_BT), prefix.length - 1, tail.logits.shape[-1])
    logits_BTV = torch.cat([empty_BPV, head.logits[prefix.group_B], tail.logits], dim=1)
    return FusionOutput(logits=logits_BTV, streams=streams, visual=visual)
