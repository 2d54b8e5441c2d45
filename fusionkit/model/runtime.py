"""How a model is executed, as opposed to what it is (the recipe). Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Runtime(BaseModel):
    """Execution choices; none of them changes what the model computes beyond its dtype's rounding.

    Example: `model.runtime = Runtime(crop_chunk=4)` encodes at most four crops at a time.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    crop_chunk: int | None = Field(None, ge=1, description="Most crops encoded at once at inference; all if not given.")
    stream_layers: bool = Field(
        True,
        description="At inference, hand each selected layer to the mixer as it is computed instead of keeping all.",
    )
    mix_chunk: int = Field(
        1,
        ge=1,
        description="With stream_layers: how many layers are added at a time. More is faster where passes over the sum "
        "are slow, and holds that many more layers; the mixer's `begin` must take it.",
    )
    attention: Literal["sdpa", "eager", "xformers", "flex"] = Field(
        "sdpa", description="Backend of the attention inside fusion blocks; an unusable one is an error."
    )
    check_finite: bool = Field(
        False,
        description="Stop with the address of the first stream, step or injector that gives NaN or infinity. Waits for "
        "the device after every block: for finding a fault, not for every day.",
    )
