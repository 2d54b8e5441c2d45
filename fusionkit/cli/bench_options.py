"""What `fusionkit bench` can be told, as closed sets."""

from __future__ import annotations

from enum import StrEnum


class Mode(StrEnum):
    """What is timed."""

    fwd = "fwd"
    fwdbwd = "fwdbwd"
    step = "step"


class Dtype(StrEnum):
    """What it is timed in."""

    fp32 = "fp32"
    bf16 = "bf16"


class Device(StrEnum):
    """Where."""

    cpu = "cpu"
    cuda = "cuda"
