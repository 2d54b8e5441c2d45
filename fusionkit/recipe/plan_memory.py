"""Memory of one process of a training, by stage, for DDP and FSDP2. Torch-free.

Parameters, gradients and optimizer state are counted; activations are estimated from widths and depths (within a
third of what is measured, see tests). Weights and optimizer are fp32; with `precision: bf16` the activations
are taken at 2 bytes. Not counted: the libraries themselves, temporary buffers, fragmentation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fusionkit.errors import UsageError
from fusionkit.plugin import EncoderInfo
from fusionkit.recipe.plan_types import Node, Plan
from fusionkit.recipe.train_schema import Muon, Stage, Train

Layout = Literal["ddp", "fsdp2"]
FULL, HALF, DOUBLE = 4, 2, 8
STEP_COPIES = 6
"""Tensors of a fusion step's output size that its backward pass keeps: inputs, norms, projections."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a process works on at a time: pictures, rows of text, and tokens before and in each row's own part."""

    pictures: int
    rows: int
    prefix: int
    tail: int


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Bytes in one process. `gathered` is what FSDP2 puts together of the others' parts while it computes."""

    stage: str
    layout: Layout
    parameters: int
    gradients: int
    optimizer: int
    activations: int
    gathered: int = 0

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.activations + self.gathered


@dataclass(frozen=True, slots=True)
class WorldPlan:
    """The memory of every stage and layout, and what does not work out, in words."""

    world: int
    rows: tuple[RankMemory, ...]
    problems: tuple[str, ...]


def plan_world(plan: Plan, world: int, *, checkpointing: bool = False) -> WorldPlan:
    """Plan a training on `world` processes with the largest pictures and the longest text.

    Raises UsageError when the recipe has no training.
    """
    train = plan.recipe.train
    if train is None:
        raise UsageError(f"recipe '{plan.recipe.name}' has no `train` section, so there is nothing to distribute")
    rows: list[RankMemory] = []
    problems: list[str] = []
    for name, stage in train.stages.items():
        batch = stage.global_batch_size or train.global_batch_size
        problems += [f"stage '{name}': {text}" for text in _division(batch, train.micro_batch_size, world)]
        load = largest_load(plan, train, stage, max(1, train.micro_batch_size or batch // world))
        layouts: tuple[Layout, ...] = ("ddp", "fsdp2") if world > 1 else ("ddp",)
        for layout in layouts:
            rows.append(rank_memory(plan, name, stage, world, layout, load, checkpointing=checkpointing))
        if world > 1 and isinstance(stage.optimizer or train.optimizer, Muon):
            problems.append(f"stage '{name}': muon cannot run under FSDP2, which divides its matrices")
    return WorldPlan(world, tuple(rows), tuple(dict.fromkeys(problems)))


def _division(batch: int, micro: int | None, world: int) -> Iterator[str]:
    if batch % world:
        fewer = max(count for count in range(1, min(batch, world) + 1) if batch % count == 0)
        more = -(-batch // world) * world
        yield (
            f"global_batch_size {batch} does not divide by {world} processes; "
            f"use {fewer} processes, or global_batch_size {more} (memory below is for one picture at a time)"
        )
    elif micro is not None and batch % (micro * world):
        yield f"global_batch_size {batch} is not a multiple of micro_batch_size {micro} x {world} processes"


def largest_load(plan: Plan, train: Train, stage: Stage, pictures: int) -> Load:
    """The heaviest a process may meet: the largest picture, and rows as long as the sequence allows."""
    turns = stage.turns_per_sample or train.turns_per_sample or 1
    prefix = plan.largest_layout.tokens if plan.layouts is not None else 0
    return Load(pictures, pictures * turns, prefix, max(0, plan.recipe.sequence_length - prefix))


def rank_memory(
    plan: Plan, name: str, stage: Stage, world: int, layout: Layout, load: Load, *, checkpointing: bool = False
) -> RankMemory:
    """The memory of one process in one stage."""
    train = plan.recipe.train
    if train is None:
        raise UsageError(f"recipe '{plan.recipe.name}' has no `train` section")
    size = DOUBLE if train.precision == "fp64" else FULL
    # Under FSDP2 mixers stay whole for their skew, and what lies outside the blocks is gathered during the step.
    divided = layout == "fsdp2" and world > 1
    whole = [node for node in plan.nodes if node.family == "mixers"]
    learning = {node.address: _learning(plan, node, stage) for node in plan.nodes}
    counts = {node.address: node.params for node in plan.nodes}
    kept = {node.address for node in whole} if divided else set(counts)
    share = world if divided else 1
    parameters = sum(count if address in kept else -(-count // share) for address, count in counts.items())
    trainable = sum(count if address in kept else -(-count // share) for address, count in learning.items())
    gradients, gathered = trainable, 0
    if divided:
        blocks = [_block(plan, node) for node in plan.nodes]
        outside = sum(counts.values()) - sum(node.params for node in whole) - sum(_blocks(plan, n) for n in plan.nodes)
        gathered = max(0, outside) + max(blocks, default=0)
        gathered += max((_block(plan, node) for node in plan.nodes if learning[node.address]), default=0)
    elif world > 1:
        gradients *= 2  # DDP's buckets are a copy
    settings = stage.optimizer or train.optimizer
    states = 2 * trainable
    if isinstance(settings, Muon):
        # Muon keeps one number per weight of a matrix, which nearly all weights are; embeddings and skew keep two.
        single = sum(count for address, count in learning.items() if address not in {node.address for node in whole})
        states -= max(0, single - _embedding(plan) * (learning.get("language_model", 0) > 0))
    # Rows about one picture share its pass, but not where blocks run together or again.
    shared = not (divided or checkpointing or train.precision == "fp64")
    activations = _activations(plan, stage, learning, load, shared=shared, checkpointing=checkpointing)
    number = HALF if train.precision == "bf16" else size
    return RankMemory(
        name, layout, parameters * size, gradients * size, states * size, activations * number, gathered * size
    )


# ------------------------------------------------------------------------------------------------------- counts
def _learning(plan: Plan, node: Node, stage: Stage) -> int:
    """Parameters of a node that learn in a stage; all of them where an address lies inside it."""
    for address in stage.trainable:
        if f"{node.address}.".startswith(f"{address}.") or f"{address}.".startswith(f"{node.address}."):
            return node.params
    if node is plan.language_model_node and plan.new_tokens and _reads_text(stage):
        return _embedding(plan)  # only the new rows learn, but the gradient is that of the whole table
    return 0


def _reads_text(stage: Stage) -> bool:
    return any(config.type == "answer_tokens" for config in stage.objectives.values())


def _embedding(plan: Plan) -> int:
    return 0 if plan.language_model is None else plan.embedding_rows * plan.language_model.width


def _blocks(plan: Plan, node: Node) -> int:
    """Parameters in the repeated blocks of an encoder or the decoder."""
    if node is plan.language_model_node and plan.language_model is not None:
        tables = _embedding(plan) * (1 if plan.language_model.tied else 2)
        return max(0, node.params - tables)
    return node.params if isinstance(node.site.info, EncoderInfo) else 0


def _block(plan: Plan, node: Node) -> int:
    """Parameters of one such block."""
    return _blocks(plan, node) // max(1, _depth(plan, node))


def _depth(plan: Plan, node: Node) -> int:
    if node is plan.language_model_node and plan.language_model is not None:
        return plan.language_model.depth
    return max(node.site.layers, default=0)


# -------------------------------------------------------------------------------------------------- activations
def _activations(
    plan: Plan, stage: Stage, learning: dict[str, int], load: Load, *, shared: bool, checkpointing: bool
) -> int:
    """Numbers kept for the backward pass."""
    crops = load.pictures * (plan.largest_layout.crops if plan.layouts is not None else 1)
    total, upstream = 0, False
    for stream in plan.streams.values():
        learns = learning[stream.encoder.address] > 0
        upstream |= learns
        tokens = crops * stream.stack.grid.tokens
        if learns:
            total += tokens * _encoder_numbers(plan, stream.encoder, stream.info.width)
        elif stream.steps:
            total += tokens * stream.info.width * len(stream.layers)
        total += _steps(stream.steps, crops)
    if not _reads_text(stage) or plan.language_model is None or plan.language_model_node is None:
        return total
    total += _steps(plan.fusion, crops)
    width, depth = plan.language_model.width, plan.language_model.depth
    prefixes = load.pictures if shared else load.rows
    tokens = prefixes * load.prefix + load.rows * load.tail
    per_layer = 11 * width + 4 * _inner(_block(plan, plan.language_model_node), width, 3)
    kept = depth * width + per_layer if checkpointing else depth * per_layer
    head = load.rows * load.tail + (0 if shared else load.rows * load.prefix)
    return total + tokens * kept + 2 * head * plan.embedding_rows


def _encoder_numbers(plan: Plan, node: Node, width: int) -> int:
    """Per token of a trained encoder: two norms, attention and the inner layer of every block."""
    return _depth(plan, node) * (9 * width + 2 * _inner(_block(plan, node), width, 2))


def _inner(block: int, width: int, matrices: int) -> int:
    """The inner width of a block's feed-forward part, from its parameters."""
    return max(width, (block - 4 * width * width) // (matrices * width))


def _steps(nodes: tuple[Node, ...], crops: int) -> int:
    return sum(STEP_COPIES * crops * node.output.tokens * node.output.width for node in nodes)
