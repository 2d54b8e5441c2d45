"""The `train` and `evaluate` parts of a recipe: how the model learns and how it is scored.

Learning rates and trainable parts are given by address, the same string as in `state_dict`; the longest prefix wins.
"""

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, ConfigDict, Field, NonNegativeInt, PositiveInt

from fusionkit.plugin import BlockConfig
from fusionkit.recipe.names import Name
from fusionkit.recipe.section import BlockOf, Section

Dataset = Annotated[BlockConfig, BlockOf("datasets")]
Datasets = Annotated[tuple[Dataset, ...], Field(min_length=1)]
Objective = Annotated[BlockConfig, BlockOf("objectives")]
Metric = Annotated[BlockConfig, BlockOf("metrics", short=True)]

Beta = Annotated[float, Field(ge=0, lt=1)]
LearningRate = Annotated[float, Field(ge=0)]


# ------------------------------------------------------------------------------------------------- optimizers
class AdamW(Section):
    """AdamW for every parameter; the learning rates come from `learning_rates`."""

    type: Literal["adamw"] = "adamw"
    betas: tuple[Beta, Beta] = Field((0.9, 0.95), description="Decay of the running mean and of the running square.")
    eps: float = Field(1e-8, gt=0, description="Added to the root of the running square.")
    weight_decay: float = Field(0.01, ge=0, description="Decoupled decay of matrices; never of skew, gates or norms.")


class Muon(Section):
    """Muon for parameters of role `matrix`, AdamW (betas, eps, `learning_rates`) for the rest."""

    type: Literal["muon"] = "muon"
    learning_rate: float = Field(0.02, ge=0, description="Learning rate of the matrices.")
    momentum: float = Field(0.95, ge=0, lt=1, description="Momentum of the matrices.")
    weight_decay: float = Field(0.01, ge=0, description="Decoupled decay of matrices; never of skew, gates or norms.")
    betas: tuple[Beta, Beta] = Field((0.9, 0.95), description="Of AdamW, for the parameters that are no matrices.")
    eps: float = Field(1e-8, gt=0, description="Of AdamW, for the parameters that are no matrices.")


Optimizer = Annotated[AdamW | Muon, Field(discriminator="type")]


# -------------------------------------------------------------------------------------------------- schedules
class _Warmup(Section):
    warmup_steps: NonNegativeInt = Field(0, description="Optimizer steps over which the rate rises from 0.")


class Cosine(_Warmup):
    """Warm-up, then half a cosine down to 0."""

    type: Literal["cosine"] = "cosine"


class Linear(_Warmup):
    """Warm-up, then a straight line down to 0."""

    type: Literal["linear"] = "linear"


class Constant(_Warmup):
    """Warm-up, then no change."""

    type: Literal["constant"] = "constant"


class FlatThenLinear(_Warmup):
    """Warm-up, then flat, then a straight line down to 0."""

    type: Literal["flat_then_linear"] = "flat_then_linear"
    flat_fraction: float = Field(0.5, ge=0, le=1, description="Share of all steps before the line goes down.")


Schedule = Annotated[Cosine | Linear | Constant | FlatThenLinear, Field(discriminator="type")]


# ----------------------------------------------------------------------------------------------------- stages
def _answers() -> Any:
    """The default objectives, as a recipe would write them: pydantic validates defaults."""
    return {"answers": {"type": "answer_tokens"}}


class Stage(Section):
    """One part of the training: what learns, from which losses, for how long. What is None is taken from `train`."""

    steps: PositiveInt | None = Field(None, description="Optimizer steps; one pass over the data if not given.")
    trainable: tuple[str, ...] = Field(description="Addresses whose parameters learn; all others are frozen.")
    objectives: dict[Name, Objective] = Field(
        default_factory=_answers,
        min_length=1,
        description="Losses by name; they are summed with their weights. The answer's tokens if not given.",
    )
    learning_rates: dict[str, LearningRate] | None = Field(None, description="In place of train.learning_rates.")
    optimizer: Optimizer | None = Field(None, description="In place of train.optimizer.")
    schedule: Schedule | None = Field(None, description="In place of train.schedule.")
    global_batch_size: PositiveInt | None = Field(None, description="In place of train.global_batch_size.")
    turns_per_sample: PositiveInt | None = Field(None, description="In place of train.turns_per_sample.")
    data: Annotated[tuple[Dataset, ...], Field(min_length=1)] | None = Field(
        None, description="In place of train.data."
    )


class Lora(Section):
    """Low-rank updates: `language_model` learns through them alone, and the checkpoint holds the sums. Needs PEFT."""

    rank: PositiveInt = Field(16, description="Width of every update.")
    alpha: float = Field(32.0, gt=0, description="An update counts alpha / rank times.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of an update's inputs that is dropped in training.")
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None,
        description="Last names of the decoder's linear layers to update, as q_proj; all of its blocks' if not given.",
    )


class Train(Section):
    """How a recipe learns. How it is executed (device, sharding, compilation) is said at run time, not here."""

    seed: NonNegativeInt = Field(0, description="Seed of initial weights and data order.")
    precision: Literal["fp32", "bf16", "fp64"] = Field(
        "fp32", description="Number format of the forward and backward pass; parameters are fp32, or fp64 with fp64."
    )
    global_batch_size: PositiveInt = Field(32, description="Pictures per optimizer step, over all devices.")
    micro_batch_size: PositiveInt | None = Field(
        None, description="Pictures per forward pass and device; as many as the step leaves to a device if not given."
    )
    turns_per_sample: PositiveInt | None = Field(
        None, description="Questions asked about each picture in a step; all of them if not given."
    )
    packing: bool = Field(
        False,
        description="Lay several samples of a forward pass into one row of at most `sequence_length` tokens, apart from "
        "each other: the same losses and gradients from fewer padding tokens. Pays where lengths differ.",
    )
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this norm together.")
    optimizer: Optimizer = Field(default_factory=AdamW, description="AdamW, or Muon with AdamW.")
    schedule: Schedule = Field(default_factory=Cosine, description="How learning rates change over a stage.")
    learning_rates: dict[str, LearningRate] = Field(
        default_factory=dict, description="Learning rate by address; the longest prefix wins."
    )
    lora: Lora | None = Field(
        None,
        description="Wherever a stage trains `language_model`, train low-rank updates of it (and new rows) instead.",
    )
    log_every: PositiveInt = Field(10, description="Optimizer steps between lines of the log.")
    save_every: PositiveInt = Field(500, description="Optimizer steps between saved states.")
    bad_samples: Literal["stop", "skip"] = Field(
        "stop",
        description="stop: a row or picture that cannot be read ends the run; skip: it is listed and another is used.",
    )
    workers: NonNegativeInt = Field(0, description="Processes that load data; 0 loads in the main process.")
    stages: dict[Name, Stage] = Field(min_length=1, description="Parts of the training by name, in order.")
    data: Datasets = Field(description="Datasets, mixed by their `weight`.")


# ------------------------------------------------------------------------------------------------- evaluation
def _listed(value: object) -> tuple[object, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


Metrics = Annotated[
    tuple[Metric, ...],
    Field(min_length=1),
    BeforeValidator(_listed, json_schema_input_type=Metric | tuple[Metric, ...]),
]


def _one_or_several(schema: dict[str, Any]) -> None:
    """Say in the JSON schema that `metric` may stand for `metrics`."""
    schema["properties"]["metric"] = schema["properties"]["metrics"]
    schema["required"].remove("metrics")
    schema["oneOf"] = [{"required": ["metrics"]}, {"required": ["metric"]}]


class Evaluate(Section):
    """One set of scores: metrics over a dataset. `metric` takes one, `metrics` several; by name or as a block."""

    model_config = ConfigDict(json_schema_extra=_one_or_several)

    name: str | None = Field(None, min_length=1, description="Label of the results; made from the data if not given.")
    metrics: Metrics = Field(
        validation_alias=AliasChoices("metrics", "metric"), description="What is computed from the answers."
    )
    data: Dataset = Field(description="What is asked and what is true.")
