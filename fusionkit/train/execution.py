"""How a training is executed, as opposed to what is learnt (the recipe): nothing here changes the result."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fusionkit.errors import UsageError

Sharding = Literal["none", "fsdp2"]


@dataclass(frozen=True, slots=True)
class Execution:
    """Choices of the machine.

    `shard`: with several processes, keep parameters, gradients and optimizer whole in each (DDP) or divided among them
    (FSDP2). `gradient_checkpointing`: compute activations of the decoder again in the backward pass instead of keeping
    them. `report_to`: experiment trackers that the transformers Trainer knows, by name. `features`: folder in which the
    layers of frozen encoders are kept, so that every picture is encoded once.
    """

    shard: Sharding = "none"
    gradient_checkpointing: bool = False
    report_to: tuple[str, ...] = ()
    features: Path | None = None


def sharding_asked(environment: Mapping[str, str] = os.environ) -> Sharding:
    """What `accelerate launch` was told about sharding.

    Raises UsageError for what this training does not do: the first version of FSDP, offloading.
    """
    if environment.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise UsageError(
            "accelerate asks for DeepSpeed; fusionkit trains with DDP or FSDP2 (--use_fsdp --fsdp_version 2)"
        )
    if environment.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return "none"
    if environment.get("FSDP_VERSION", "1") != "2":
        raise UsageError("accelerate asks for FSDP 1; add `--fsdp_version 2`")
    if environment.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        raise UsageError("accelerate asks for parameters offloaded to the CPU, which is not supported; leave it out")
    return "fsdp2"


def check_precision(precision: str, environment: Mapping[str, str] = os.environ) -> None:
    """Raises UsageError when `accelerate launch` asks for another number format than the recipe.

    The Trainer would follow it, and the model would learn in another way than the recipe says.
    """
    asked = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", precision):
        cure = f"say train.precision={asked} in the recipe, or " if asked == "bf16" else ""
        raise UsageError(
            f"accelerate asks for mixed precision {asked}, the recipe for {precision}; {cure}launch with --mixed_precision no"
        )


def take_over_sharding() -> None:
    """Let accelerate see a plain group of processes: fusionkit shards by itself, which leaves the skew parameters out."""
    os.environ.pop("ACCELERATE_USE_FSDP", None)
