"""From a file of another project's tensors to a checkpoint folder of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fusionkit.errors import CheckpointError
from fusionkit.model.build import build
from fusionkit.model.checkpoint import save_checkpoint
from fusionkit.model.convert import Conversion, convert, usual_dtype
from fusionkit.model.convert_table import ConversionTable
from fusionkit.model.modeling import FusionVLM
from fusionkit.model.prepare import set_token_ids
from fusionkit.model.processing import FusionProcessor
from fusionkit.model.text import token_ids
from fusionkit.recipe import Recipe
from fusionkit.recipe.plan import Plan
from fusionkit.recipe.plan import plan as plan_recipe

REPORT = "conversion.json"


def convert_model(
    recipe: Recipe, table: ConversionTable, tensors: Mapping[str, Tensor], *, dtype: torch.dtype | None = None
) -> tuple[FusionVLM, FusionProcessor | None, Conversion]:
    """A model of `recipe` with the tensors of another project's checkpoint, and its processor.

    Numbers have `dtype`, or that of most of the checkpoint's; orthogonal maps stay in fp32 whatever it is. Nothing is
    initialised first: the model is filled as a whole or not at all.

    Raises CheckpointError when anything does not fit (see `convert`), BuildError when the tokenizer cannot be had.
    """
    plan = plan_recipe(recipe)
    processor = None if plan.language_model_node is None else FusionProcessor.from_plan(plan)
    model = build(plan, device="meta", dtype=dtype or usual_dtype(tensors))
    state, conversion = convert(table, tensors, model.state_dict(), _token_ids(plan, processor))
    cast(nn.Module, model).load_state_dict(state, strict=True, assign=True)
    _give_storage_to_buffers(model)
    if processor is not None:
        set_token_ids(model, plan, processor.tokenizer)
    return model, processor, conversion


def convert_checkpoint(
    recipe: Recipe,
    table: ConversionTable,
    tensors: Mapping[str, Tensor],
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
) -> Conversion:
    """`convert_model`, saved as a checkpoint folder with a report of what became of every tensor (`conversion.json`).

    Raises CheckpointError also when the folder is there already and not empty, before anything is read.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target}: is there already; give another --out, or remove it")
    model, processor, conversion = convert_model(recipe, table, tensors, dtype=dtype)
    save_checkpoint(target, model, processor, {REPORT: json.dumps(report(table, conversion), indent=1) + "\n"})
    return conversion


def report(table: ConversionTable, conversion: Conversion) -> dict[str, Any]:
    """What became of every tensor of the checkpoint, as JSON-able values."""
    return {
        "source": table.source,
        "used": {name: list(step.gives) for step in conversion.steps for name in step.takes},
        "dead": conversion.dead,
    }


def _give_storage_to_buffers(model: nn.Module) -> None:
    """Buffers that no checkpoint holds get room; the blocks compute them when they are first run."""
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                setattr(module, name, torch.empty_like(buffer, device="cpu"))


def _token_ids(plan: Plan, processor: FusionProcessor | None) -> dict[str, int]:
    if processor is None:
        return {}
    return dict(zip(plan.new_tokens, token_ids(processor.tokenizer, plan.new_tokens), strict=True))
