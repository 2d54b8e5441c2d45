"""The learned mixer of a checkpoint's stream, for analyses that look at what it makes of the layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fusionkit.analysis.subjects import Subject
from fusionkit.model.checkpoint import SHIPPED, load_checkpoint


@dataclass(frozen=True, slots=True)
class Mixer:
    """A mixer in eval mode: `module(list of x_BND of layers) -> x_BNM`; `kind` is its name in a recipe."""

    layers: tuple[int, ...]
    kind: str
    module: nn.Module

    def gains(self) -> Iterator[Tensor]:
        """Each layer's weight times its norm's gain, [D]; equal weights and no gains where it has none."""
        count = len(self.layers)
        weights = getattr(self.module, "weights", None)
        weight_L = torch.as_tensor(weights()).detach() if callable(weights) else torch.full((count,), 1 / count)
        gain = getattr(getattr(self.module, "norm", None), "weight", None)
        for place in range(count):
            one = torch.ones(()) if gain is None else gain.detach()[place].cpu()
            yield weight_L[place].cpu() * one


def mixer_of(subject: Subject, device: str = "cpu") -> Mixer | None:
    """The mixer that a checkpoint's stream begins with; None for encoders that come from elsewhere."""
    source, _, stream = subject.source.rpartition(":")
    if not subject.stream or stream != subject.stream:
        return None
    if not source.startswith(SHIPPED) and not (Path(source) / "config.json").is_file():
        return None
    model, _ = load_checkpoint(source)
    planned = model.plan.streams[stream]
    if not planned.steps or planned.steps[0].family != "mixers":
        return None
    first = planned.steps[0]
    module = model.get_submodule(first.address)
    return Mixer(planned.layers, first.config.type, module.to(device))
