"""The command `fusionkit`: a table of verbs, each imported only when it is used.

A verb's module has `command`, a function typed for typer, or `app`, a typer app with verbs of its own. Errors raised on
purpose end as `error: ...` on stderr with exit code 2, without a traceback; Ctrl-C ends with 130.
"""

from __future__ import annotations

import errno
import inspect
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from fusionkit.cli.output import emit, note
from fusionkit.errors import FusionkitError, RecipeError


class Verb(NamedTuple):
    """Where a verb lives, and the line that `fusionkit --help` shows for it without importing it."""

    module: str
    help: str


VERBS = {
    "list": Verb("fusionkit.cli.list_blocks", "List the installed blocks and recipes."),
    "show": Verb("fusionkit.cli.show", "Explain one block or recipe, with an example."),
    "doctor": Verb("fusionkit.cli.doctor", "Check this installation and every block in it."),
    "validate": Verb("fusionkit.cli.validate", "Check that a recipe is well formed, without building it."),
    "plan": Verb("fusionkit.cli.plan", "Show shapes, tokens, parameters and costs."),
    "inspect": Verb("fusionkit.cli.inspect", "Show what a recipe makes of one picture."),
    "graph": Verb("fusionkit.cli.graph", "Draw a recipe as a picture or as Mermaid text."),
    "schema": Verb("fusionkit.cli.schema", "Print the JSON schema of recipes, for editors."),
    "lock": Verb("fusionkit.cli.lock", "Write down exactly what a recipe means here and now."),
    "diff": Verb("fusionkit.cli.diff", "Compare two recipes by what they build."),
    "export": Verb("fusionkit.cli.export", "Print a recipe with everything filled in, as YAML."),
    "train": Verb("fusionkit.cli.train", "Train a recipe, or resume, or use your own data."),
    "evaluate": Verb("fusionkit.cli.evaluate", "Score a checkpoint on held-out data."),
    "ask": Verb("fusionkit.cli.ask", "Ask a checkpoint about a picture; draws boxes."),
    "data": Verb("fusionkit.cli.data", "Check your own training data."),
}

EPILOG = """Start here:

\b
  fusionkit list                          what is installed
  fusionkit plan tiny                     what a recipe will build
  fusionkit ask checkpoint:tiny photo.jpg "point to the red circle" -o out.png

Every verb explains itself: fusionkit VERB --help"""


class _LazyGroup(TyperGroup):
    """Holds a stub per verb, enough for help and completion; the module is imported when the verb is called.

    Arguments are typed Any because typer has moved the classes they belong to between versions.
    """

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, stub, rest = super().resolve_command(ctx, args)
        return name, stub and load_verb(str(name)), rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            note("interrupted")
            raise typer.Exit(130) from None
        except FusionkitError as error:
            if ctx.params["traceback"]:
                raise
            note(describe(error))
            raise typer.Exit(2) from error
        except OSError as error:
            # A closed pipe is handled by typer; any other is a missing file, a missing permission or a full disk,
            # which the operating system's own words explain better than a traceback does.
            if error.errno in (None, errno.EPIPE) or ctx.params["traceback"]:
                raise
            place = f"{error.filename}: " if error.filename else ""
            note(f"error: {place}{error.strerror}")
            raise typer.Exit(2) from error


def load_verb(name: str) -> Any:
    """Import a verb's module and return its typer command or group."""
    module = import_module(VERBS[name].module)
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(name, no_args_is_help=_has_required_argument(module.command))(module.command)
    command = typer.main.get_command(app)
    command.name = name
    return command


def _has_required_argument(function: Any) -> bool:
    return any(parameter.default is parameter.empty for parameter in inspect.signature(function).parameters.values())


def describe(error: FusionkitError) -> str:
    """The lines printed for an error: one for each problem of a recipe, else its message."""
    if isinstance(error, RecipeError):
        return "\n".join(f"error: {problem}" for problem in error.problems)
    return f"error: {error}"


def _print_version(wanted: bool) -> None:
    if wanted:
        from fusionkit import __version__

        emit(f"fusionkit {__version__}")
        raise typer.Exit


def _main(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error was raised.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Compose vision-language models from blocks: plan them, train them, ask them, measure them."""


def make_app() -> Any:
    """The command group with a stub for every verb."""
    # Plain help: rich markup would swallow the square brackets of recipes and usage lines, and costs start-up time.
    app = typer.Typer(
        name="fusionkit", cls=_LazyGroup, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
    )
    app.callback(epilog=EPILOG)(_main)
    group: Any = typer.main.get_command(app)
    for name, verb in VERBS.items():
        group.add_command(TyperCommand(name, help=verb.help, rich_markup_mode=None), name)
    return group


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    make_app().main(args=None if arguments is None else list(arguments), prog_name="fusionkit")
