"""`fusionkit analyze`: look at encoders and models over pictures."""

from __future__ import annotations

import typer

from fusionkit.cli.analyze_correspond import correspond
from fusionkit.cli.analyze_entropy import entropy
from fusionkit.cli.analyze_gates import gates
from fusionkit.cli.analyze_gradcam import gradcam
from fusionkit.cli.analyze_pca import pca
from fusionkit.cli.analyze_probe import probe
from fusionkit.cli.analyze_redundancy import redundancy
from fusionkit.cli.analyze_rollout import rollout

app = typer.Typer(
    name="analyze",
    help="See what encoders see, and which of their layers to read.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

for verb in (entropy, rollout, pca, gradcam, redundancy, probe, gates, correspond):
    app.command(no_args_is_help=True)(verb)


@app.callback()
def _group() -> None:
    """See what encoders see, and which of their layers to read."""
