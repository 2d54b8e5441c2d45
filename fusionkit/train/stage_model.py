"""What the Trainer sees: the model and a stage's objectives as one module from batch to losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fusionkit.errors import UsageError
from fusionkit.model.modeling import VISION, FusionVLM, vision_inputs
from fusionkit.model.output import FusionOutput
from fusionkit.model.shared_prefix import forward_shared

TEXT = ("input_ids", "attention_mask", "visual_index")


class StageModel(nn.Module):
    """Runs only what the objectives need: some streams, or everything up to the logits.

    `forward(batch) -> {objective.loss: scalar}`. An objective that needs `modules` is also given the parts of the model
    at the addresses in its `reads`.

    Raises UsageError when the model has no part at such an address.
    """

    def __init__(self, model: FusionVLM, objectives: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.model = model
        self.objectives = nn.ModuleDict(objectives)
        built: list[Any] = list(self.objectives.values())
        self.needs_text = any("language_model" in objective.needs for objective in built)
        addresses = {address for objective in built for address in getattr(objective, "reads", ())}
        known = {name for name, _ in model.named_modules()}
        if unknown := sorted(addresses - known):
            raise UsageError(f"objectives read {', '.join(unknown)}, which the model does not have")
        self.streams = sorted({name for objective in built for name in getattr(objective, "streams", ())})

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        outputs = self.run(batch)
        losses: dict[str, Tensor] = {}
        for name, objective in self.objectives.items():
            found = objective(outputs, batch, *self._parts(objective))
            losses.update({f"{name}.{part}": loss for part, loss in found.items()})
        return losses

    def _parts(self, objective: Any) -> tuple[dict[str, nn.Module], ...]:
        if "modules" not in objective.needs:
            return ()
        return ({address: self.model.get_submodule(address) for address in objective.reads},)

    def run(self, batch: Mapping[str, Any]) -> FusionOutput:
        """The outputs the objectives read."""
        if self.needs_text:
            inputs = {name: value for name, value in batch.items() if name in TEXT or name.startswith(VISION)}
            return forward_shared(self.model, inputs)
        return FusionOutput(streams=self.model.encode_streams(**vision_inputs(batch), names=self.streams))
