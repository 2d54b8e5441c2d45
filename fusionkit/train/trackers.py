"""Files of experiment trackers: in the folder of the unfinished run while it lasts, in the checkpoint afterwards.

A tracker is transformers' own and writes where it likes. TensorBoard's event files go to `trackers/STAGE`; what another
leaves beside the saved states of a stage is brought there when the stage is done, before its states are removed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fusionkit.errors import UsageError

FOLDER = "trackers"
LOGGING_DIR = "TENSORBOARD_LOGGING_DIR"
"""Where TensorBoard's callback writes, if the person says so."""


def check_trackers(names: tuple[str, ...]) -> None:
    """Raises UsageError for a tracker that transformers does not know, or whose package is not installed."""
    from transformers.integrations import integration_utils

    known = integration_utils.INTEGRATION_TO_CALLBACK
    for name in names:
        if name not in known:
            raise UsageError(
                f"--report-to {name}: no such tracker; transformers knows {', '.join(sorted(known))} (one per --report-to)"
            )
        installed = getattr(integration_utils, f"is_{name}_available", None)
        if installed is not None and not installed():
            raise UsageError(f"--report-to {name}: it is not installed (try `pip install {name}`)")
        try:
            known[name]()
        except (RuntimeError, ImportError) as error:
            raise UsageError(f"--report-to {name}: {str(error).splitlines()[0]}") from error


@contextmanager
def writing_to(partial: Path, stage: str) -> Iterator[None]:
    """Inside, TensorBoard writes to the run's folder, or where the person said; stages apart, their steps start anew."""
    before = os.environ.get(LOGGING_DIR)
    os.environ[LOGGING_DIR] = str((Path(before) if before else partial / FOLDER) / stage)
    try:
        yield
    finally:
        os.environ.pop(LOGGING_DIR)
        if before is not None:
            os.environ[LOGGING_DIR] = before


def keep_files(states: Path, partial: Path, stage: str) -> None:
    """Copy what trackers wrote beside the states of a stage."""
    for path in states.iterdir() if states.exists() else ():
        target = partial / FOLDER / stage / path.name
        if path.name.startswith("checkpoint-"):
            continue
        if path.is_dir():
            shutil.copytree(path, target, dirs_exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
