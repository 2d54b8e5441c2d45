"""Conversion tables: how the tensors of another project's checkpoint become those of a recipe. Data, not code. Torch-free.

A rule takes one tensor (or several) by name and gives one (or several). A name may hold places: `{N}` stands for a whole
number, any other `{word}` for the rest of the name or a part of it; what a place stood for is put into the given names.
The first rule whose first name fits is the one that counts.
"""

from __future__ import annotations

import re
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, model_validator

from fusionkit.errors import UsageError

FOLDER = "conversions"
How = Literal["copy", "reshape", "patches", "split", "orthogonal", "merge_logits", "rows"]

_NUMBERS: dict[How, tuple[int, int]] = {"orthogonal": (2, 2), "rows": (2, 1)}
"""How many tensors a rule of a kind takes and gives, where that is not one and one."""


def _names(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else value


class Rule(BaseModel):
    """One line of a table."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    take: str | tuple[str, ...] = Field(description="Name of the tensor taken, with places; or several names.")
    give: str | tuple[str, ...] | None = Field(None, description="Name of the tensor given, or several.")
    how: How = Field("copy", description="What is done to it.")
    dead: str | None = Field(None, min_length=1, description="Instead of `give`: why the tensor is not used.")
    layers: tuple[NonNegativeInt, ...] | None = Field(
        None, description="merge_logits: the layer that each logit stands for, some named more than once."
    )
    tokens: tuple[str, ...] | None = Field(
        None, description="rows: the tokens that the first rows of the second tensor belong to."
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.give is None) == (self.dead is None):
            raise ValueError("give exactly one of `give` and `dead`")
        if self.dead is not None:
            return self
        takes, gives = _NUMBERS.get(self.how, (1, len(self.gives) if self.how == "split" else 1))
        if (len(self.takes), len(self.gives)) != (takes, gives):
            raise ValueError(f"how {self.how} takes {takes} and gives {gives} tensors")
        if (self.how == "merge_logits") != (self.layers is not None) or (self.how == "rows") != (
            self.tokens is not None
        ):
            raise ValueError("`layers` belongs to how merge_logits, `tokens` to how rows")
        return self

    @property
    def takes(self) -> tuple[str, ...]:
        return _names(self.take)

    @property
    def gives(self) -> tuple[str, ...]:
        return _names(self.give)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        parts = re.split(r"\{(\w+)\}", self.takes[0])
        text = "".join(
            re.escape(part) if number % 2 == 0 else rf"(?P<{part}>{r'[0-9]+' if part == 'N' else '.+'})"
            for number, part in enumerate(parts)
        )
        return re.compile(text)

    def places(self, name: str) -> dict[str, str] | None:
        """What the places stand for if the rule is about a tensor of this name; None if it is not."""
        found = self._pattern.fullmatch(name)
        return None if found is None else found.groupdict()


class ConversionTable(BaseModel):
    """All rules of one kind of checkpoint."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    format: Literal[1] = Field(description="Version of this format.")
    source: str = Field(min_length=1, description="Which checkpoints it is for.")
    key: str | None = Field(None, description="Where in a pickled file the state dict is, if it is not the whole.")
    strip: tuple[str, ...] = Field((), description="What wrappers put into names, removed wherever it stands.")
    rules: tuple[Rule, ...] = Field(min_length=1, description="The rules; the first that fits counts.")

    def plain(self, name: str) -> str:
        """A tensor's name without what wrappers put into it."""
        for part in self.strip:
            name = name.replace(part, "")
        return name


def load_table(source: str | Path) -> ConversionTable:
    """A table from a file, or a shipped one by the name of its recipe.

    Raises UsageError when there is none, or it is no table.
    """
    path = Path(source)
    shipped = {
        Path(str(entry)).stem: entry
        for entry in resources.files("fusionkit.builtin_recipes").joinpath(FOLDER).iterdir()
        if str(entry).endswith(".json")
    }
    entry = shipped.get(str(source))
    if entry is None and not path.is_file():
        raise UsageError(
            f"{source}: no conversion table; shipped are {', '.join(sorted(shipped))} (or give a file with --table)"
        )
    try:
        text = entry.read_text(encoding="utf-8") if entry is not None else path.read_text(encoding="utf-8")
        return ConversionTable.model_validate_json(text)
    except (ValidationError, ValueError) as error:
        fault = error.errors()[0] if isinstance(error, ValidationError) else None
        where = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" if fault else str(error)
        raise UsageError(f"{source}: not a conversion table: {where}") from error
