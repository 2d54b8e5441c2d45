"""Building a stage's objectives: losses, and heads that are trained but not saved with the model."""

from __future__ import annotations

import torch
from torch import nn

from fusionkit.model.modeling import FusionVLM
from fusionkit.model.parts import build_object
from fusionkit.model.processing import FusionProcessor
from fusionkit.plugin import BlockSite
from fusionkit.recipe.train_schema import Stage


def build_objectives(
    stage: Stage, name: str, model: FusionVLM, processor: FusionProcessor, seed: int
) -> dict[str, nn.Module]:
    """The objectives of a stage; their heads start from `seed` alone, so that a resumed run builds the same."""
    shapes = {stream: plan.output for stream, plan in model.plan.streams.items()}
    built = {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for key, config in stage.objectives.items():
            site = BlockSite(
                address=f"train.stages.{name}.objectives.{key}", inputs=shapes, coordinate_ids=processor.coordinate_ids
            )
            built[key] = build_object("objectives", config, site)
    return built
