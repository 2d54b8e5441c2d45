"""The transformers Trainer with our optimizer, data order, loss, gradient norm and saved states."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_file, save_model
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer

from fusionkit.errors import CheckpointError, DataError
from fusionkit.model.checkpoint import SAVE_ERRORS, failure
from fusionkit.ops.step import step
from fusionkit.sample import Sample
from fusionkit.train import sharding, world
from fusionkit.train.blame import blame, named
from fusionkit.train.partial import SAVING, drop_old_states
from fusionkit.train.schedule import make_scheduler
from fusionkit.train.sealed import seal
from fusionkit.train.stage_model import StageModel

WEIGHTS = "stage.safetensors"
OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"
"""As the Trainer calls them."""


class StageTrainer(Trainer):
    """Trains one stage. Accumulation, devices, resuming and logging are the Trainer's; the rest is the recipe's.

    `new_rows`: names of embedding tables of a sharded model of which only the rows given learn.
    """

    def __init__(
        self,
        *,
        model: StageModel,
        dataset: Any,
        collate: Callable[..., Any],
        make_optimizer: Callable[[], torch.optim.Optimizer],
        schedule: Any,
        new_rows: Mapping[str, Sequence[int]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=model, train_dataset=dataset, data_collator=collate, **kwargs)
        self.model_accepts_loss_kwargs = False
        self._stage = model
        self._collate = collate
        self._make_optimizer = make_optimizer
        self._schedule = schedule
        self._new_rows = dict(new_rows or {})
        self._once: Any = None
        self._saving = False
        self._samples: list[Sample] = []
        self._factors: Iterator[dict[str, float]] = iter(())
        self._seen, self._logged = [0, 0], [0, 0]
        self._sharded = sharding.is_sharded(model)
        if self._sharded:
            # Sharded already: accelerate must only add autocast, not wrap it in DDP.
            prepare = self.accelerator.prepare_model
            self.accelerator.prepare_model = lambda given, **_: prepare(
                given, device_placement=False, evaluation_mode=True
            )

    # -------------------------------------------------------------------------------------- optimizer and data
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

    # --------------------------------------------------------------------------------------------------- steps
    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        whole = len(batches) * world.size() == 1
        self._factors = iter(() if whole else factors([self._stage.items(batch) for batch in batches]))
        return batches, count

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        if self._once is None:
            self._once = step(self._stage)
            self._once.__enter__()
        mask_BT = inputs["attention_mask"]
        self._seen = [self._seen[0] + int(mask_BT.sum()), self._seen[1] + mask_BT.numel()]
        if self._sharded:
            model.set_requires_gradient_sync(self.accelerator.sync_gradients)  # type: ignore[operator]
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._tr_loss.dtype != loss.dtype:
            self._tr_loss = self._tr_loss.to(loss.dtype)  # or fp64 losses would be logged as fp32
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        # The maps' gradients are pulled back once per optimizer step, before they are clipped with the rest.
        if self._once is not None:
            self._once.__exit__(None, None, None)
            self._once = None
        for name, rows in self._new_rows.items():
            sharding.keep_rows(self._stage.get_parameter(name), rows)
        if self._sharded:
            norm = sharding.clip(self._stage.parameters(), self.args.max_grad_norm)
        else:
            norm = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        if not torch.isfinite(norm):
            # One step with it, and every weight is lost.
            raise DataError(
                f"the gradient is not finite at step {self.state.global_step + 1}, though the loss is; "
                f"the batch has {named(self._samples)}"
            )
        self._samples = []
        return norm

    def compute_loss(  # type: ignore[override]
        self, model: nn.Module, inputs: Mapping[str, Any], return_outputs: bool = False, **_: Any
    ) -> Any:
        self._samples += inputs["samples"]
        losses = model(inputs)
        share = next(self._factors, {})
        total = torch.stack([loss * share.get(name, 1.0) for name, loss in losses.items()]).sum()
        if not torch.isfinite(total):
            parts = ", ".join(f"{name} {loss.item():g}" for name, loss in losses.items())
            raise DataError(
                f"the loss is not finite at step {self.state.global_step + 1} ({parts}): {self._blame(inputs)}"
            )
        return (total, losses) if return_outputs else total

    def _blame(self, inputs: Mapping[str, Any]) -> str:
        samples = inputs["samples"]
        if self._sharded:  # a pass that the other processes do not make would wait for them
            return f"the batch has {named(samples)}"
        return blame(self._stage, lambda each: self._prepare_inputs(self._collate(each)), samples)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in transformers, with the tokens since the last entry and the share of the rows that they fill."""
        if "loss" in logs:
            new = [float(now - before) for now, before in zip(self._seen, self._logged, strict=True)]
            self._logged = list(self._seen)
            tokens, positions = world.sums(new)
            logs |= {"tokens": tokens, "filled": round(tokens / positions, 4)} if positions else {}
        super().log(logs, start_time)

    def filled(self) -> float:
        """The share of all rows of this run that tokens filled, over all processes, which must all ask."""
        tokens, positions = world.sums([float(count) for count in self._seen])
        return tokens / positions if positions else 1.0

    # -------------------------------------------------------------------------------------------- saved states
    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self.args.output_dir)  # type: ignore[arg-type]
        name = f"checkpoint-{self.state.global_step}"
        self._saving = True
        try:
            super()._save_checkpoint(model, trial)
            world.wait()
            if world.is_main():
                seal(folder / SAVING / name, folder / name)
                drop_old_states(folder)
        except SAVE_ERRORS as error:
            raise CheckpointError(
                f"{folder / name}: cannot save the state of training: {failure(error, folder)}"
            ) from error
        finally:
            self._saving = False
            if world.is_main():
                shutil.rmtree(folder / SAVING, ignore_errors=True)  # half a state is no use and takes room
        world.wait()

    def _get_output_dir(self, trial: Any) -> str:
        folder: str = super()._get_output_dir(trial)
        return str(Path(folder) / SAVING) if self._saving else folder

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The weights of the stage; every process must call it."""
        folder = Path(output_dir or self.args.output_dir)  # type: ignore[arg-type]
        weights = sharding.whole_weights(self._stage) if self._sharded else None
        if world.is_main():
            folder.mkdir(parents=True, exist_ok=True)
            if weights is None:
                save_model(self._stage, str(folder / WEIGHTS))
            else:
                save_file(weights, str(folder / WEIGHTS))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self._sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = sharding.whole_state(self.optimizer.state_dict())  # type: ignore[union-attr]
        if world.is_main():
            torch.save(state, Path(output_dir) / OPTIMIZER)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)  # type: ignore[union-attr]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        path = Path(resume_from_checkpoint) / WEIGHTS
        try:
            if self._sharded:
                sharding.load_weights(self._stage, str(path))
            else:
                load_model(self._stage, str(path))
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{path}: cannot resume from it: {error}") from error

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self._sharded or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        folder = Path(checkpoint)
        kept = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
        optimizer: Any = self.optimizer
        optimizer.load_state_dict(sharding.divided_state(kept, optimizer))
        scheduler: Any = self.lr_scheduler
        scheduler.load_state_dict(torch.load(folder / SCHEDULER, weights_only=True))


def factors(items: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """What to multiply each micro-batch's losses with, so that their mean over the step is that of its whole batch.

    `items` has what each loss of each micro-batch of this process is a mean over. The Trainer divides by the number of
    micro-batches, DDP and FSDP2 by the number of processes.
    """
    names = sorted({name for counted in items for name in counted})
    local = [sum(counted.get(name, 0.0) for counted in items) for name in names]
    totals = dict(zip(names, world.sums(local), strict=True)) if names else {}
    even = len(items) * world.size()
    return [
        {name: counted.get(name, 0.0) * even / totals[name] for name in names if totals[name] > 0} for counted in items
    ]
