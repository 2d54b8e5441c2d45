"""`fusionkit.build`: a recipe or plan becomes a model with the weights it names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from fusionkit.model.modeling import FusionVLM
from fusionkit.model.prepare import prepare_config, prepare_text
from fusionkit.recipe import Recipe, load_recipe
from fusionkit.recipe.plan import Plan
from fusionkit.recipe.plan import plan as plan_recipe


def build(
    source: Recipe | Plan | str | Mapping[str, Any], *, device: str = "cpu", dtype: torch.dtype | None = None
) -> FusionVLM:
    """Build the model a recipe describes, with the weights it names.

    `source` is a Recipe, a Plan, or whatever `load_recipe` takes. `device="meta"` builds shapes only and reads no
    weights. Raises RecipeError (the plan does not hold) or BuildError (a block fails; address and cause).

    Example: `model = fusionkit.build("builtin:tiny")`
    """
    recipe = (
        source.recipe if isinstance(source, Plan) else source if isinstance(source, Recipe) else load_recipe(source)
    )
    plan = source if isinstance(source, Plan) else plan_recipe(recipe)
    config = prepare_config(plan)
    with torch.device(device):
        model = FusionVLM(config, pretrained=device != "meta", decoder_dtype=dtype)
    if device != "meta":
        prepare_text(model, plan)
    return model if dtype is None else cast(FusionVLM, cast(nn.Module, model).to(dtype))
