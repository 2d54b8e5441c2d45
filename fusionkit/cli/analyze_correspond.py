"""`fusionkit analyze correspond`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusionkit.cli.analyze_output import (
    BatchOption,
    Device,
    DeviceOption,
    FreshOption,
    OutputOption,
    ShowOption,
    finish,
    interruptible,
    make_frame,
)
from fusionkit.cli.options import JsonOption, PluginOption, load_plugins

_ENCODER = "An encoder, as for `analyze entropy`: a registered one, RECIPE:STREAM or CHECKPOINT:STREAM."


def correspond(
    a: Annotated[str, typer.Argument(metavar="A", help=_ENCODER, show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one.", show_default=False)],
    images: Annotated[
        Path, typer.Argument(metavar="IMAGES", help="A folder with at least four pictures.", show_default=False)
    ],
    output: OutputOption,
    layers_a: Annotated[
        str | None, typer.Option("--layers-a", metavar="1,4,8-12", help="Layers of A.", show_default=False)
    ] = None,
    layers_b: Annotated[
        str | None, typer.Option("--layers-b", metavar="1,4,8-12", help="Layers of B.", show_default=False)
    ] = None,
    ridge: Annotated[
        float, typer.Option("--ridge", min=1e-9, help="How much the map is shrunk, as a share of the tokens' size.")
    ] = 1e-2,
    show: ShowOption = 12,
    batch: BatchOption = 8,
    device: DeviceOption = Device.auto,
    fresh: FreshOption = False,
    json: JsonOption = False,
    plugin: PluginOption = None,
) -> None:
    """Match tokens of two encoders by position.

    Nearest neighbours after a linear map. The map is fitted on half of the pictures and measured on the other, against guessing and against the tokens of
    another picture. Four layers of each, or those asked for.

    \b
    Examples:
      fusionkit analyze correspond checkpoint:tiny:semantic checkpoint:tiny:spatial photos/ -o report
      fusionkit analyze correspond real.dinov2_small acme.sam photos/ -o report --plugin ./my_encoder.py
    """
    load_plugins(plugin)
    from fusionkit.analysis.correspond import analyse
    from fusionkit.analysis.photos import find_photos
    from fusionkit.analysis.subjects import subjects

    photos = find_photos(images)
    found = subjects([a, b])
    with interruptible() as progress:
        outcome = analyse(
            found,
            photos,
            make_frame(output, device, batch, fresh, progress),
            layers=(layers_a, layers_b),
            strength=ridge,
            show=show,
        )
    finish(outcome, output, json)
