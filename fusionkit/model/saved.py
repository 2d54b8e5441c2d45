"""What saving and loading a fused model adds to transformers' way: strict weights, lock, model card, few bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from fusionkit.blocks.language_models.quantized import quantize_decoder
from fusionkit.errors import CheckpointError, UsageError
from fusionkit.model.card import write_card
from fusionkit.model.folder import LOCK_FILE
from fusionkit.ops.precision import tables_kept
from fusionkit.recipe.plan import Plan


class SavedModel(PreTrainedModel):
    """A PreTrainedModel whose folders say what they are, and that takes no weights but its own."""

    plan: Plan

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Self:
        """As in transformers, but a tensor that is missing, unexpected or of another shape is a CheckpointError."""
        wants_info = kwargs.pop("output_loading_info", False)
        parent: Any = super()
        # Without ignore_mismatched_sizes, transformers ends with a table and an error that names nothing.
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = parent.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        faults = [
            f"{name} is {list(saved)}, expected {list(wanted)}" for name, saved, wanted in info["mismatched_keys"]
        ]
        faults += [f"{name} is missing" for name in info["missing_keys"]]
        faults += [f"{name} is not in the recipe" for name in info["unexpected_keys"]]
        if faults:
            rest = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
            raise CheckpointError(
                f"{pretrained_model_name_or_path}: weights do not fit the recipe in its config.json: {min(faults)}{rest}"
                " (keep the files of one checkpoint together)"
            )
        _require_streams_in_memory(model)
        _hold_in_few_bits(model)
        return cast(Self, (model, info) if wants_info else model)

    def save_pretrained(  # type: ignore[override]
        self, save_directory: Any, is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """As in transformers, with the recipe's lock (lock.json) and a model card (README.md) beside the weights."""
        parent: Any = super()
        parent.save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            self._describe(Path(save_directory))

    def _upload_modified_files(self, working_dir: Any, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """Before an upload; transformers has put a card without content there."""
        self._describe(Path(working_dir), repo_id)
        parent: Any = super()
        return parent._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def _describe(self, folder: Path, where: str | None = None) -> None:
        text = json.dumps(cast(Any, self.config).lock, indent=2, sort_keys=True) + "\n"
        (folder / LOCK_FILE).write_text(text, encoding="utf-8")
        write_card(folder, self.plan, where)


def tell_few_bits(model: Any) -> None:
    """PEFT asks the whole model, not its decoder, whether layers are in few bits."""
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        if getattr(model.language_model, name, False):
            setattr(model, name, True)


def _require_streams_in_memory(model: Any) -> None:
    """Encoders and mixers are read layer by layer, past the hooks that bring offloaded weights back."""
    if any(weight.device.type == "meta" for weight in model.streams.parameters()) and hasattr(model, "hf_device_map"):
        raise UsageError(
            "device_map: streams cannot be offloaded; keep them on a device, for example device_map="
            '{"streams": 0, "fusion": 0, "injectors": 0, "language_model": "disk"}'
        )


def _hold_in_few_bits(model: Any) -> None:
    """Checkpoints hold plain weights; a recipe with `quantize` has its decoder in few bits once they are read."""
    node = model.plan.language_model_node
    bits = None if node is None else getattr(node.config, "quantize", None)
    if bits is None:
        return
    if len(set(getattr(model, "hf_device_map", {"": 0}).values())) > 1:
        raise UsageError(f"language_model.quantize: {bits} needs the model on one device; leave device_map out")
    decoder: nn.Module = model.language_model
    with tables_kept(decoder):
        decoder.to(torch.bfloat16)
    quantize_decoder(decoder, bits)
    tell_few_bits(model)
