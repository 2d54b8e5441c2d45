"""Blocks made up for tests of recipes, so that the texts tested do not change with the options of real blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from fusionkit import registry
from fusionkit.plugin import BlockConfig, BlockSpec, DatasetConfig, InputName, StepConfig, Width


class See(BlockConfig):
    type: Literal["acme.see"] = "acme.see"
    depth: PositiveInt = Field(2, description="Blocks.")


class Pick(BlockConfig):
    type: Literal["acme.pick"] = "acme.pick"
    layers: tuple[int, ...] = Field((1,), min_length=1, description="Layers.")


class Mix(StepConfig):
    type: Literal["acme.mix"] = "acme.mix"
    width: Width | None = Field(None, description="Output width.")
    share: Literal["layer", "encoder"] = Field("layer", description="What shares a map.")
    scale: float = Field(1.0, gt=0, description="A factor.")


class Widen(StepConfig):
    type: Literal["acme.widen"] = "acme.widen"
    hidden: PositiveInt = Field(description="Inner width.")
    norm: bool = Field(False, description="LayerNorm first.")


class Rope(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")
    longest: float = Field(2.0, description="Longest wavelength.")


class Join(BlockConfig):
    type: Literal["acme.join"] = "acme.join"
    inputs: tuple[InputName, ...] = Field(min_length=2, description="What to join.")
    rope: Rope | None = Field(Rope(), description="Rotary positions; null for none.")
    heads: PositiveInt = Field(4, description="Heads.")

    @model_validator(mode="after")
    def _lucky(self) -> Join:
        if self.heads == 13:
            raise ValueError("13 heads bring bad luck")
        if self.heads == 666:
            raise KeyError("a mistake of the block's author")
        return self


class Put(StepConfig):
    type: Literal["acme.put"] = "acme.put"


class Speak(BlockConfig):
    type: Literal["acme.speak"] = "acme.speak"
    settings: dict[str, int] = Field(default_factory=dict, description="Sizes.")


class Loss(BlockConfig):
    type: Literal["answer_tokens"] = "answer_tokens"
    weight: float = Field(1.0, description="Weight.")


class Data(DatasetConfig):
    type: Literal["acme.data"] = "acme.data"
    path: str = Field("", description="A file.")


class Score(BlockConfig):
    type: Literal["acme.score"] = "acme.score"
    threshold: float = Field(0.5, description="Least overlap.")


def _unused(*arguments: Any) -> Any:
    raise AssertionError("recipes are read without planning or describing a block")


CONFIGS: Mapping[str, tuple[type[BlockConfig], ...]] = {
    "encoders": (See,),
    "selectors": (Pick,),
    "mixers": (Mix,),
    "adapters": (Widen,),
    "connectors": (Join,),
    "injectors": (Put,),
    "language_models": (Speak,),
    "objectives": (Loss,),
    "datasets": (Data,),
    "metrics": (Score,),
}


@contextmanager
def fake_blocks() -> Iterator[None]:
    """Make the blocks above known, and nothing of them importable."""
    with ExitStack() as stack:
        for family, configs in CONFIGS.items():
            for config in configs:
                spec = BlockSpec(
                    api=1,
                    family=family,
                    config=config,
                    factory="acme_blocks_that_do_not_exist:Block",
                    summary="For tests.",
                    plan=_unused,
                    describe=_unused,
                )
                stack.enter_context(registry.override(spec))
        yield


TEXT = """\
schema: 1
name: pair
streams:
  semantic:
    encoder: {type: acme.see}
    select: {type: acme.pick, layers: [1, 2]}
    steps:
      mix: {type: acme.mix}
      widen: {type: acme.widen, hidden: 8}
  spatial:
    encoder: {type: acme.see, depth: 3}
    select: {type: acme.pick}
    steps:
      mix:
        type: acme.mix
        width: {like: semantic}
fusion:
  join: {type: acme.join, inputs: [semantic, spatial]}
injectors:
  visual: {type: acme.put}
language_model: {type: acme.speak, settings: {width: 8}}
train:
  learning_rates: {fusion: 1e-4, streams.semantic.encoder: 1e-5}
  optimizer: {type: adamw, betas: [0.9, 0.95]}
  stages:
    joint: {trainable: [fusion, streams]}
  data:
    - {type: acme.data, weight: 0.8}
    - {type: acme.data, weight: 0.2}
evaluate:
  - {metric: acme.score, data: {type: acme.data}}
"""
"""A recipe of these blocks that is right."""
