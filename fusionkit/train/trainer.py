"""The transformers Trainer with our optimizer, data order and loss."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer

from fusionkit.errors import CheckpointError, DataError
from fusionkit.model.checkpoint import SAVE_ERRORS, failure
from fusionkit.ops.step import step
from fusionkit.train.schedule import make_scheduler
from fusionkit.train.stage_model import StageModel

WEIGHTS = "stage.safetensors"


class StageTrainer(Trainer):
    """Trains one stage. Accumulation, devices, resuming and logging are the Trainer's; the rest is the recipe's."""

    def __init__(
        self,
        *,
        model: StageModel,
        dataset: Any,
        collate: Callable[..., Any],
        make_optimizer: Callable[[], torch.optim.Optimizer],
        schedule: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=model, train_dataset=dataset, data_collator=collate, **kwargs)
        self.model_accepts_loss_kwargs = False
        self._stage = model
        self._make_optimizer = make_optimizer
        self._schedule = schedule
        self._once: Any = None

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        self.optimizer = self._make_optimizer()
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        chosen = optimizer or self.optimizer or self.create_optimizer()
        self.lr_scheduler = make_scheduler(chosen, self._schedule, num_training_steps)
        return self.lr_scheduler

    def get_train_dataloader(self) -> DataLoader[Any]:
        # The dataset is already in the order of the seed: resuming only skips positions.
        loader: DataLoader[Any] = DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_size=self.args.per_device_train_batch_size,
            shuffle=False,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        if self._once is None:
            self._once = step(self._stage)
            self._once.__enter__()
        return super().training_step(model, inputs, num_items_in_batch)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        # The maps' gradients are pulled back once per optimizer step, before they are clipped with the rest.
        if self._once is not None:
            self._once.__exit__(None, None, None)
            self._once = None
        return super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]

    def compute_loss(  # type: ignore[override]
        self, model: nn.Module, inputs: Mapping[str, Any], return_outputs: bool = False, **_: Any
    ) -> Any:
        losses = model(inputs)
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            rows = ", ".join(str(sample.provenance) for sample in inputs["samples"][:4])
            parts = ", ".join(f"{name} {loss.item():g}" for name, loss in losses.items())
            raise DataError(
                f"the loss is not finite at step {self.state.global_step + 1} ({parts}); the batch begins with {rows}"
            )
        return (total, losses) if return_outputs else total

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self.args.output_dir)  # type: ignore[arg-type]
        latest = folder / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
        except SAVE_ERRORS as error:
            why = failure(error, folder)
            shutil.rmtree(latest, ignore_errors=True)  # half a state is no use and takes room
            raise CheckpointError(f"{latest}: cannot save the state of training: {why}") from error

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)  # type: ignore[arg-type]
        folder.mkdir(parents=True, exist_ok=True)
        save_model(self._stage, str(folder / WEIGHTS))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        path = Path(resume_from_checkpoint) / WEIGHTS
        try:
            load_model(self._stage, str(path))
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{path}: cannot resume from it: {error}") from error
