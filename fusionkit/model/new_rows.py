"""Rows of the embedding table for tokens that fusionkit adds: how they start, and how only they train.

A coordinate token's row starts as a sine and cosine code of its value (`ordinal`), so that neighbouring bins are
neighbours from the first step; other new rows, and all of them under `mean`, start near the mean of the old rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def initialise_new_rows(
    language_model: nn.Module, new_ids: Sequence[int], coordinate_ids: Sequence[int], *, init: str, std: float | None
) -> None:
    """Fill the rows `new_ids` of the input and (if untied) output embeddings in place.

    `std` is the spread of the new rows; that of the old rows if not given.
    """
    tables = [language_model.get_input_embeddings()]  # type: ignore[operator]
    output = language_model.get_output_embeddings()  # type: ignore[operator]
    if output is not None and output.weight is not tables[0].weight:
        tables.append(output)
    for table in tables:
        weight_VE: Tensor = table.weight
        if weight_VE.is_meta or not new_ids:
            continue
        with torch.no_grad():
            old_VE = weight_VE[: min(new_ids)] if min(new_ids) > 0 else weight_VE
            spread = float(old_VE.float().std()) if std is None else std
            fresh_VE = torch.randn(len(new_ids), weight_VE.shape[1]) * spread
            if init == "mean":
                # the mean itself would make all new tokens the same; a tenth of the spread tells them apart
                fresh_VE = old_VE.float().mean(0).cpu() + 0.1 * fresh_VE
            rows = torch.as_tensor(list(new_ids), device=weight_VE.device)
            weight_VE[rows] = fresh_VE.to(weight_VE)
            if init == "ordinal" and coordinate_ids:
                code_BE = ordinal_code(len(coordinate_ids), weight_VE.shape[1]) * spread
                weight_VE[torch.as_tensor(list(coordinate_ids), device=weight_VE.device)] = code_BE.to(weight_VE)


def ordinal_code(bins: int, width: int) -> Tensor:
    """Sine and cosine code of B ordered values: [B, width], unit root mean square per row.

    Frequencies are geometric from half a turn over the whole range to one turn per four bins.
    """
    value_B1 = torch.linspace(0, 1, bins, dtype=torch.float64)[:, None]
    pairs = -(-width // 2)
    highest = max(1.0, (bins - 1) / 4)
    turns_1P = 0.5 * (highest / 0.5) ** torch.linspace(0, 1, pairs, dtype=torch.float64)[None]
    angle_BP = 2 * math.pi * value_B1 * turns_1P
    return (math.sqrt(2) * torch.cat([angle_BP.sin(), angle_BP.cos()], dim=1)[:, :width]).float()


def train_only_rows(language_model: nn.Module, new_ids: Sequence[int]) -> list[RemovableHandle]:
    """Let the embedding tables train, but only in the rows `new_ids`: other rows get a zero gradient.

    With an optimizer that does not decay embeddings, the old rows stay bit-identical. Call `remove()` on the
    handles to undo.
    """
    handles = []
    seen: set[int] = set()
    for table in (language_model.get_input_embeddings(), language_model.get_output_embeddings()):  # type: ignore[operator]
        if table is None or id(table.weight) in seen:
            continue
        seen.add(id(table.weight))
        table.weight.requires_grad_(True)
        keep_V1 = torch.zeros(table.weight.shape[0], 1, device=table.weight.device)
        keep_V1[list(new_ids)] = 1
        handles.append(table.weight.register_hook(lambda grad, keep=keep_V1: grad * keep.to(grad)))
    return handles
