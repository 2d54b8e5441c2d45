"""Every error fusionkit raises on purpose.

FusionkitError
├── RecipeError              a recipe is wrong; carries every problem found, not only the first
│   ├── RecipeSyntaxError    not in the YAML subset, or over its limits
│   ├── RecipeValidationError  unknown key, wrong type, value out of range
│   ├── PlanError            blocks do not fit each other
│   └── LockMismatchError    the checkpoint was made by another recipe
├── PluginError
│   ├── UnknownBlockError    no block of that name is installed
│   ├── AmbiguousBlockError  two distributions claim the name
│   ├── PluginLoadError      the entry point does not import, or is not a BlockSpec
│   └── PluginApiError       made for another plugin API version
├── BuildError               a planned block failed to construct
├── ShapeError               a tensor does not have the planned shape
├── NumericsError            a computation gave NaN or lost the precision it promises
├── CheckpointError          missing, incomplete or damaged checkpoint
├── BoxDecodeError           text is not a well-formed box or point (strict parsing only)
├── DataError                a sample, file or picture cannot be used
└── UsageError               a command or call was given something it cannot use

Each message says what failed, where, what was expected and what to do next. The command line prints it on
stderr, without a traceback, and exits with code 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class FusionkitError(Exception):
    """Base of everything raised on purpose."""


class UsageError(FusionkitError):
    """A command or call was given something it cannot use."""


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One fault in a recipe: where it stands, which address it is at, what is wrong and how to go on.

    `line` and `column` start at 1; 0 means the source has no lines (a dict), and then `byte` may say where.
    """

    source: str
    line: int
    column: int
    address: str
    message: str
    hint: str = ""
    byte: int | None = None

    def __str__(self) -> str:
        where = self.source
        if self.line:
            where += f":{self.line}:{self.column}"
        elif self.byte is not None:
            where += f": byte {self.byte}"
        parts = [where] if where else []
        if self.address:
            parts.append(self.address)
        parts.append(self.message + (f" ({self.hint})" if self.hint else ""))
        return ": ".join(parts)


class RecipeError(FusionkitError):
    """A recipe is wrong. `problems` holds all that was found, sorted by place."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(sorted(problems, key=_by_place))
        super().__init__("\n".join(str(problem) for problem in self.problems))


def _by_place(problem: Problem) -> tuple[str, int, int, str, str]:
    return (problem.source, problem.line, problem.column, problem.address, problem.message)


class RecipeSyntaxError(RecipeError):
    """The text is not in the YAML subset that recipes are written in, or is over its limits."""


class RecipeValidationError(RecipeError):
    """The recipe has an unknown key, a wrong type or a value out of range."""


class PlanError(RecipeError):
    """The blocks of the recipe do not fit each other or the budget."""


class LockMismatchError(RecipeError):
    """The checkpoint was made by another recipe; the problems name the first differences."""


class PluginError(FusionkitError):
    """A block, or the distribution that brings it, cannot be used."""


class UnknownBlockError(PluginError):
    """No installed block has that family and name."""


class AmbiguousBlockError(PluginError):
    """Two distributions claim the same family and name, so neither can be used."""


class PluginLoadError(PluginError):
    """The entry point does not import, or what it names is not a BlockSpec."""


class PluginApiError(PluginError):
    """The block was made for a plugin API version this fusionkit does not accept."""


class BuildError(FusionkitError):
    """A planned block failed to construct; the message gives its address and the cause."""


class ShapeError(FusionkitError):
    """Shapes do not fit: a tensor against its plan, or a block against its inputs.

    A planner names the config `field` at fault and a `hint`, so that the plan can point at the recipe's line.
    """

    def __init__(self, message: str, *, field: str = "", hint: str = "") -> None:
        super().__init__(message + (f" ({hint})" if hint else ""))
        self.message = message
        self.field = field
        self.hint = hint


class NumericsError(FusionkitError):
    """A computation gave NaN, or lost the precision it promises."""


class CheckpointError(FusionkitError):
    """A checkpoint is missing, incomplete, damaged or cannot be written."""


class BoxDecodeError(FusionkitError):
    """Text or token ids are not a well-formed box or point."""


class DataError(FusionkitError):
    """A sample, data file or picture cannot be used; the message gives file and row."""
