"""What the Trainer sees: the model and a stage's objectives as one module from batch to losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fusionkit.errors import UsageError
from fusionkit.model.modeling import PIXELS, VISION, FusionVLM, vision_inputs
from fusionkit.model.output import FusionOutput
from fusionkit.model.shared_prefix import forward_shared

TEXT = ("input_ids", "attention_mask", "visual_index", "packed")


class StageModel(nn.Module):
    """Runs only what the objectives need: some streams, or everything up to the logits.

    `forward(batch) -> {objective.loss: scalar}`. An objective that needs `modules` is also given the parts of the model
    at the addresses in its `reads`. With `uniform` every batch runs the same modules equally often, with or without
    pictures: processes that share parameters meet in each of them, and would wait for ever for one that stays away.

    Raises UsageError when the model has no part at such an address.
    """

    def __init__(self, model: FusionVLM, objectives: Mapping[str, nn.Module], *, uniform: bool = False) -> None:
        super().__init__()
        self.model = model
        self.objectives = nn.ModuleDict(objectives)
        self.uniform = uniform
        built: list[Any] = list(self.objectives.values())
        self.needs_text = any("language_model" in objective.needs for objective in built)
        addresses = {address for objective in built for address in getattr(objective, "reads", ())}
        known = {name for name, _ in model.named_modules()}
        if unknown := sorted(addresses - known):
            raise UsageError(f"objectives read {', '.join(unknown)}, which the model does not have")
        self.streams = sorted({name for objective in built for name in getattr(objective, "streams", ())})

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        outputs, absent = self.run(batch)
        losses: dict[str, Tensor] = {}
        for name, objective in self.objectives.items():
            found = objective(outputs, batch, *self._parts(objective))
            losses.update({f"{name}.{part}": loss for part, loss in found.items()})
        if absent is not None:
            first = next(iter(losses))
            losses[first] = losses[first] + absent
        return losses

    def items(self, batch: Mapping[str, Any]) -> dict[str, float]:
        """What each loss is a mean over in this batch, by the name of the loss; losses that say nothing are left out.

        With it, the mean over a step's micro-batches and processes is that over the step's whole batch.
        """
        counted: dict[str, float] = {}
        for name, objective in self.objectives.items():
            if hasattr(objective, "items_in"):
                counts: Any = objective.items_in
                found: Mapping[str, float] = counts(batch)
                counted.update({f"{name}.{part}": count for part, count in found.items()})
        return counted

    def _parts(self, objective: Any) -> tuple[dict[str, nn.Module], ...]:
        if "modules" not in objective.needs:
            return ()
        return ({address: self.model.get_submodule(address) for address in objective.reads},)

    def run(self, batch: Mapping[str, Any]) -> tuple[FusionOutput, Tensor | None]:
        """The outputs the objectives read; and, for a batch without pictures, a zero that hangs on the vision side."""
        if not self.needs_text:
            return FusionOutput(streams=self.model.encode_streams(**vision_inputs(batch), names=self.streams)), None
        inputs = {name: value for name, value in batch.items() if name in TEXT or name.startswith(VISION)}
        if not self.uniform and "packed" not in inputs:
            return forward_shared(self.model, inputs), None
        blank = self.uniform and not any(name.startswith(PIXELS) for name in inputs)
        absent = self._blank() if blank else None
        output: FusionOutput = self.model(**inputs, use_cache=False)
        return output, absent

    def _blank(self) -> Tensor:
        """Zero, by way of every part that sees pictures."""
        any_weight = next(self.model.parameters())
        pixels = {
            name: torch.zeros(1, 3, *stream.info.input_size, device=any_weight.device, dtype=any_weight.dtype)
            for name, stream in self.model.plan.streams.items()
        }
        encoded = self.model.fuse_all(self.model.encode_streams(pixels))
        return 0.0 * torch.stack([tokens.x_BND.sum() for tokens in encoded.values()]).sum()
