"""How a model is executed, as opposed to what it is (the recipe). Torch-free."""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fusionkit.errors import UsageError

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
    cuda_graphs: bool = Field(
        False,
        description="At inference on a CUDA device: capture encoders, mixers and fusion once for each bucket of crops and "
        "replay them without launches from Python. Captured anew when weights have changed.",
    )
    crop_buckets: tuple[int, ...] | None = Field(
        None,
        description="With cuda_graphs: numbers of crops to capture for, rising. Fewer crops are padded up to the next and "
        "the padding cut off; more are run in parts. If not given: 1, 2, 4, ... and the most crops of a picture.",
    )
    parallel_encoders: bool = Field(
        False,
        description="At inference on a CUDA device: run the encoders side by side, each on a queue of the device of its "
        "own. Can help where one encoder leaves the device idle, as with few crops.",
    )
    check_finite: bool = Field(
        False,
        description="Stop with the address of the first stream, step or injector that gives NaN or infinity. Waits for "
        "the device after every block: for finding a fault, not for every day.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """Raises UsageError for choices that exclude each other, and for buckets that are none."""
        if self.crop_buckets is not None:
            if not self.crop_buckets or any(low >= high for low, high in pairwise((0, *self.crop_buckets))):
                got = list(self.crop_buckets)
                raise UsageError(f"Runtime.crop_buckets: expected rising numbers of crops from 1 up, got {got}")
            if not self.cuda_graphs:
                raise UsageError("Runtime.crop_buckets is used with cuda_graphs=True only; leave it out")
        for name in ("check_finite", "parallel_encoders"):
            if self.cuda_graphs and getattr(self, name):
                raise UsageError(f"Runtime: cuda_graphs and {name} exclude each other; choose one")
        return self

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
