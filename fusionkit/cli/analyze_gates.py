"""`fusionkit analyze gates`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusionkit.cli.analyze_output import (
    Device,
    DeviceOption,
    FreshOption,
    OutputOption,
    finish,
    interruptible,
    make_frame,
)
from fusionkit.cli.options import JsonOption, PluginOption, load_plugins


def gates(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT|RUN", help="A checkpoint, `checkpoint:tiny`, or a run under way.", show_default=False
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Argument(metavar="[IMAGES]", help="A folder of pictures, or one picture.", show_default=False),
    ] = None,
    *,
    output: OutputOption,
    device: DeviceOption = Device.auto,
    fresh: FreshOption = False,
    json: JsonOption = False,
    plugin: PluginOption = None,
) -> None:
    """Read layer weights and gates of a model.

    Warns where a part has died. With pictures also how far connectors look (against even attention), and how much the fused tokens change without
    each gate and each stream. With a training log, gates and weights over training.

    \b
    Examples:
      fusionkit analyze gates checkpoint:tiny -o report
      fusionkit analyze gates runs/mine photos/ -o report
    """
    load_plugins(plugin)
    from fusionkit.analysis.gates import analyse
    from fusionkit.analysis.photos import find_photos

    photos = [] if images is None else find_photos(images)
    with interruptible() as progress:
        outcome = analyse(checkpoint, photos, make_frame(output, device, 1, fresh, progress))
    finish(outcome, output, json)
