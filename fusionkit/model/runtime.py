"""How a model is executed, as opposed to what it is (the recipe). Torch-free."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from fusionkit.recipe import Recipe


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
    layer_norm_sum: Literal["eager", "triton"] = Field(
        "eager",
        description="How mixers with one map (or none) sum normalised layers at inference: a LayerNorm and an addition a "
        "layer, or one kernel that reads every layer once. The same fp32 sum; triton is an error where it cannot run. "
        "With grad, and inside torch.compile, always eager.",
    )
    check_finite: bool = Field(
        False,
        description="Stop with the address of the first stream, step or injector that gives NaN or infinity. Waits for "
        "the device after every block: for finding a fault, not for every day.",
    )

    @classmethod
    def auto(cls, recipe: Recipe, device: str = "cpu", *, quiet: bool = False) -> Self:
        """The runtime for a recipe on a device, from what is measured; every choice is told on stderr, with its reason.

        Raises: UsageError for a device that is not here, RecipeError for a recipe that does not plan.

        Example: `model.runtime = Runtime.auto(model.plan.recipe, "cuda")`
        """
        from fusionkit.model.runtime_choice import choose_runtime

        found, reasons = choose_runtime(recipe, device)
        if not quiet:
            sys.stderr.writelines(f"runtime: {reason}\n" for reason in reasons)
        return cls.model_validate(found.model_dump())
