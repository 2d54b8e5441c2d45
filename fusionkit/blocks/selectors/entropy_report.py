"""The layer-entropy report: one number per layer of an encoder, measured once and kept as JSON.

    {
      "kind": "layer_entropy", "version": 1, "encoder": "timm/vit_large_patch16_dinov3.lvd1689m", "depth": 24,
      "layers": [{"layer": 1, "entropy": 4.91}, {"layer": 2, "entropy": 4.87}, ...]
    }

`layers` rises; any of 0..depth may be missing and are then never chosen. All entropies of a report are of one kind and
unit, whichever that is: selectors only compare them. Other keys may stand in a file and are not read. Torch-free.
"""

import json
import stat
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

MAX_BYTES = 2**20
"""The largest report that is read, as of recipes; one of a hundred layers is under a tenth of it."""


class LayerEntropy(BaseModel):
    """The entropy of one layer's tokens."""

    model_config = ConfigDict(strict=True, frozen=True)

    layer: NonNegativeInt
    entropy: FiniteFloat


class EntropyReport(BaseModel):
    """Entropies of an encoder's layers, lowest layer first."""

    model_config = ConfigDict(strict=True, frozen=True)

    kind: Literal["layer_entropy"] = "layer_entropy"
    version: Literal[1] = 1
    encoder: str = ""
    depth: PositiveInt
    layers: tuple[LayerEntropy, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _layers_rise(self) -> Self:
        numbers = [entry.layer for entry in self.layers]
        if any(low >= high for low, high in pairwise(numbers)) or numbers[-1] > self.depth:
            raise ValueError(f"layers must rise, each once, and end at {self.depth} at most, got {numbers}")
        return self


def read_report(source: Any) -> Any:
    """A report from the path of its file, or from its content; raises ValueError that names the file."""
    if isinstance(source, EntropyReport):
        return source
    name = f"report '{source}'" if isinstance(source, str) else "report"
    try:
        text = _read_file(source) if isinstance(source, str) else json.dumps(source)
        return EntropyReport.model_validate_json(text)
    except OSError as error:
        place = "" if str(source).startswith(("/", "~")) else f" from {Path.cwd()}, where the command runs"
        raise ValueError(f"{name}: cannot be read{place} ({error.strerror or error})") from error
    except RuntimeError as error:  # '~' of a user that there is not
        raise ValueError(f"{name}: cannot be read ({error})") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{name}: {place + ': ' if place else ''}{first['msg']}") from error
    except (TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{name}: {error}") from error


def _read_file(path: str) -> str:
    """The text of a report; a recipe may name any path, so devices, pipes and what is too large are refused unread."""
    file = Path(path).expanduser()
    if not stat.S_ISREG(file.stat().st_mode):
        raise ValueError(f"report '{path}': not a regular file; name the JSON file that `analyze entropy` wrote")
    with file.open("rb") as opened:
        data = opened.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"report '{path}': larger than {MAX_BYTES} bytes; is it a layer-entropy report?")
    return data.decode("utf-8")


Report = Annotated[EntropyReport, BeforeValidator(read_report, json_schema_input_type=str | EntropyReport)]
"""A config field: a path is read when the recipe is, so that the numbers are in the recipe and its lock."""
