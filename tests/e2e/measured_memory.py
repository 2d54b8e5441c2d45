"""Run by torchrun in a test: the bytes that one process of a stage holds after a step, as JSON on stdout."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import yaml
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import fusionkit
from fusionkit.data.collate import Collate
from fusionkit.model.parts import build_object
from fusionkit.model.processing import FusionProcessor
from fusionkit.ops.step import step
from fusionkit.train import sharding, world
from fusionkit.train.addresses import set_trainable
from fusionkit.train.groups import assign
from fusionkit.train.objectives import build_objectives
from fusionkit.train.optimizer import make_optimizer
from fusionkit.train.stage_model import StageModel

sys.path.insert(0, str(Path(__file__).parent))
from kept_memory import kept_for_backward


def held(tensor: torch.Tensor | None) -> int:
    if tensor is None:
        return 0
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.numel() * local.element_size()


def buckets(model: object) -> int:
    """What DDP allocates beside the gradients."""
    if not isinstance(model, DistributedDataParallel):
        return 0
    return sum(int(size) for size in model._get_ddp_logging_data()["bucket_sizes"].split(","))


def main(layout: str, text: str) -> None:
    world.join()
    recipe = fusionkit.load_recipe(yaml.safe_load(text))
    assert recipe.train is not None
    stage = recipe.train.stages["answers"]
    model = fusionkit.build(recipe)
    processor = FusionProcessor.from_plan(model.plan)
    set_trainable(model, stage.trainable, "test")
    wrapped = StageModel(model, build_objectives(stage, "answers", model, processor, 0), uniform=layout == "fsdp2")
    together: torch.nn.Module = wrapped
    if layout == "fsdp2":
        sharding.shard(wrapped, recipe.train.optimizer, "test")
    else:
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(wrapped, sharding.skew_names(wrapped))
        together = DistributedDataParallel(wrapped, find_unused_parameters=True)
    optimizer = make_optimizer(
        recipe.train.optimizer, assign(model, wrapped.objectives, recipe.train.optimizer, recipe.train.learning_rates)
    )
    data = build_object("datasets", recipe.train.data[0])
    batch = Collate(processor, 2)([data[0], data[1]])
    with step(wrapped):
        activations, loss = kept_for_backward(wrapped, batch, together)
        loss.backward()
    gradients = sum(held(parameter.grad) for parameter in wrapped.parameters()) + buckets(together)
    optimizer.step()
    states = sum(held(value) for state in optimizer.state.values() for value in state.values() if value.ndim)
    parameters = sum(held(parameter) for parameter in wrapped.parameters())
    if world.is_main():
        sizes = {"parameters": parameters, "gradients": gradients, "optimizer": states, "activations": activations}
        print(json.dumps({"sizes": sizes, "batch": list(batch["input_ids"].shape)}))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
