"""What the Trainer sees: the model and a stage's objectives as one module from batch to losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fusionkit.model.modeling import PIXELS, FusionVLM
from fusionkit.model.output import FusionOutput
from fusionkit.model.shared_prefix import forward_shared

TEXT = ("input_ids", "attention_mask", "visual_index")


class StageModel(nn.Module):
    """Runs only what the objectives need: some streams, or everything up to the logits.

    `forward(batch) -> {objective.loss: scalar}`.
    """

    def __init__(self, model: FusionVLM, objectives: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.model = model
        self.objectives = nn.ModuleDict(objectives)
        built: list[Any] = list(self.objectives.values())
        self.needs_text = any("language_model" in objective.needs for objective in built)
        self.streams = sorted({name for objective in built for name in getattr(objective, "streams", ())})

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        outputs = self.run(batch)
        losses: dict[str, Tensor] = {}
        for name, objective in self.objectives.items():
            losses.update({f"{name}.{part}": loss for part, loss in objective(outputs, batch).items()})
        return losses

    def run(self, batch: Mapping[str, Any]) -> FusionOutput:
        """The outputs the objectives read."""
        if self.needs_text:
            inputs = {name: value for name, value in batch.items() if name in TEXT or name.startswith(PIXELS)}
            return forward_shared(self.model, inputs)
        pixels = {name.removeprefix(PIXELS): value for name, value in batch.items() if name.startswith(PIXELS)}
        return FusionOutput(streams=self.model.encode_streams(pixels, self.streams))
