"""How verbs write result files: whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from fusionkit.cli.output import note
from fusionkit.errors import UsageError


def write_json(path: Path, data: Any) -> None:
    """Write JSON to a file, by way of a file beside it, so that a failure leaves what was there. Raises UsageError."""
    staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        staging.write_text(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        staging.replace(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        staging.unlink(missing_ok=True)
    note(f"wrote {path}")
