"""`fusionkit analyze`: look at encoders and models over pictures."""

from __future__ import annotations

import typer

from fusionkit.cli.analyze_entropy import entropy

app = typer.Typer(
    name="analyze",
    help="See what encoders see, and which of their layers to read.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

app.command(no_args_is_help=True)(entropy)


@app.callback()
def _group() -> None:
    """See what encoders see, and which of their layers to read."""
