"""The typer group behind `fusionkit`: a stub per verb, and the verb's module imported when it is called."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from fusionkit.cli.main import TRACEBACK, VERBS, explained
from fusionkit.cli.output import emit

EPILOG = """Start here:

\b
  fusionkit list                          what is installed
  fusionkit plan tiny                     what a recipe will build
  fusionkit ask checkpoint:tiny photo.jpg "point to the red circle" -o out.png

Every verb explains itself: fusionkit VERB --help"""


class _LazyGroup(TyperGroup):
    """Holds a stub per verb, enough for help and completion.

    Arguments are typed Any because typer has moved the classes they belong to between versions.
    """

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, stub, rest = super().resolve_command(ctx, args)
        return name, stub and load_verb(str(name)), rest

    def invoke(self, ctx: Any) -> Any:
        try:
            with explained(ctx.params["traceback"]):
                return super().invoke(ctx)
        except typer.BadParameter as error:
            # Bounds of options are pydantic's to check; recipes say it in these words.
            error.message = error.message.replace("Input should be", "must be", 1)
            raise


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


def load_verb(name: str) -> Any:
    """Import a verb's module and return its typer command or group."""
    module = import_module(VERBS[name].module)
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        if hasattr(module, "main"):
            settings = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
            app.command(name, context_settings=settings)(_passing_words_to(module.main))
        else:
            app.command(name, no_args_is_help=_has_required_argument(module.command))(module.command)
    command = typer.main.get_command(app)
    command.name = name
    return command


def _passing_words_to(main: Any) -> Any:
    def command(context: typer.Context) -> None:
        main(context.args)

    return command


def _has_required_argument(function: Any) -> bool:
    return any(parameter.default is parameter.empty for parameter in inspect.signature(function).parameters.values())


def _print_version(wanted: bool) -> None:
    if wanted:
        from fusionkit import __version__

        emit(f"fusionkit {__version__}")
        raise typer.Exit


def _main(
    traceback: Annotated[bool, typer.Option(TRACEBACK, help="Show where an error was raised.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Compose vision-language models from blocks: plan them, train them, ask them, measure them."""
