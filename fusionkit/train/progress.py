"""What a person sees while training: a bar with the loss on stderr, a JSON line per logged step in the run folder."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fusionkit.errors import CheckpointError
from fusionkit.ops.learned import learned_numbers
from fusionkit.train import world
from fusionkit.train.stage_model import StageModel


class Progress(TrainerCallback):
    """A rich progress bar for one stage; on a dumb terminal a line now and then."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._bar: Any = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True)
        self._plain = not console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]}"),
            TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=self._plain,
        )  # fmt: skip
        self._console = console
        self._task = self._bar.add_task(self.title, total=state.max_steps, completed=state.global_step, loss="-")
        self._bar.start()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if self._bar is None or not logs or "loss" not in logs:
            return
        self._bar.update(self._task, completed=state.global_step, loss=f"{float(logs['loss']):.3f}")
        if self._plain and (state.global_step % max(1, state.max_steps // 10) < args.logging_steps):
            self._console.print(
                f"{self.title}: step {state.global_step}/{state.max_steps}, loss {float(logs['loss']):.3f}"
            )

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)
            self._bar.stop()


class JsonLog(TrainerCallback):
    """Appends every log entry of a stage to a JSONL file, with the seconds since the stage began.

    The last step of a stage always has one, be it on the beat of `log_every` or not.

    `learned` holds the gates and layer weights of the model at that step, where they are not sharded.
    """

    def __init__(self, path: Path, stage: str) -> None:
        self.path = path
        self.stage = stage
        self.started = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        model: nn.Module | None = None,
        **_: Any,
    ) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            row = {
                "stage": self.stage,
                "step": state.global_step,
                "seconds": round(time.monotonic() - self.started, 2),
                **logs,
            }
            if isinstance(model, StageModel) and (learned := learned_numbers(model.model)):
                row["learned"] = learned
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            except OSError as error:
                raise CheckpointError(f"{self.path}: cannot write the log: {error.strerror or error}") from error


class Stopping(TrainerCallback):
    """Saves and stops after the step at which `due` says so."""

    def due(self, step: int) -> bool:
        raise NotImplementedError

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.due(state.global_step):
            control.should_save = True
            control.should_training_stop = True


class StopAfter(Stopping):
    """A planned interruption after a number of optimizer steps of the stage."""

    def __init__(self, step: int) -> None:
        self.step = step

    def due(self, step: int) -> bool:
        return step >= self.step


class StopOnSignal(Stopping):
    """Ctrl-C and SIGTERM end the current step, save, and stop; a second signal stops at once.

    Processes that train together stop at the same step, whichever of them got the signal.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number

    def due(self, step: int) -> bool:
        return world.any_of(self.received is not None)
