"""`fusionkit.build`: a recipe or plan becomes a model with the weights it names."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from fusionkit.architectures import asking_libraries
from fusionkit.model.modeling import FusionVLM
from fusionkit.model.prepare import prepare_config, prepare_text
from fusionkit.recipe import Recipe, load_recipe
from fusionkit.recipe.plan import Plan
from fusionkit.recipe.plan import plan as plan_recipe
from fusionkit.recipe.plan_table import licences

_LOG = logging.getLogger(__name__)


def build(
    source: Recipe | Plan | str | Mapping[str, Any], *, device: str = "cpu", dtype: torch.dtype | None = None
) -> FusionVLM:
    """Build the model a recipe describes, with the weights it names.

    `source` is a Recipe, a Plan, or whatever `load_recipe` takes. `device="meta"` builds shapes only and reads no
    weights. Parts whose licence has terms to look out for are named first, as a warning of the log
    `fusionkit.model.build`. Raises RecipeError (the plan does not hold) or BuildError (a block fails; address and cause).

    Example: `model = fusionkit.build("builtin:tiny")`
    """
    recipe = (
        source.recipe if isinstance(source, Plan) else source if isinstance(source, Recipe) else load_recipe(source)
    )
    with asking_libraries():  # torch is here, so what only the libraries know costs no more
        plan = source if isinstance(source, Plan) else plan_recipe(recipe)
    config = prepare_config(plan)
    if device != "meta":
        _tell_licences(plan)
    with torch.device(device):
        model = FusionVLM(config, pretrained=device != "meta", decoder_dtype=dtype)
    if device != "meta":
        prepare_text(model, plan)
    return model if dtype is None else cast(FusionVLM, cast(nn.Module, model).to(dtype))


def _tell_licences(plan: Plan) -> None:
    """Before anything is downloaded: what should be known of the licences of weights that are not random."""
    random = {node.address for node in plan.nodes if getattr(node.config, "weights", None) == "random"}
    for part in licences(plan):
        if part.note and part.address not in random:
            _LOG.warning("%s: %s has the licence %s: %s", part.address, part.name, part.licence, part.note)
