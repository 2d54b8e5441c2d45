"""`fusionkit analyze gradcam`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusionkit.cli.analyze_output import (
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


def gradcam(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint folder, or `checkpoint:tiny`.", show_default=False)
    ],
    images: Annotated[
        Path, typer.Argument(metavar="IMAGES", help="A folder of pictures, or one picture.", show_default=False)
    ],
    output: OutputOption,
    question: Annotated[
        str, typer.Option("-q", "--question", help="What to ask about every picture.", show_default=False)
    ],
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, tokens.")] = 64,
    show: ShowOption = 12,
    device: DeviceOption = Device.auto,
    fresh: FreshOption = False,
    json: JsonOption = False,
    plugin: PluginOption = None,
) -> None:
    """Draw where a model's answers come from.

    Asks a fused model about pictures. The gradient of the answer's log-likelihood is taken at every layer that a stream reads and at the fused tokens.

    \b
    Examples:
      fusionkit analyze gradcam checkpoint:tiny photos/ -q "point to the red circle" -o report
      fusionkit analyze gradcam runs/mine photo.jpg -q "box the cat" -o report
    """
    load_plugins(plugin)
    from fusionkit.analysis.gradcam import analyse
    from fusionkit.analysis.photos import find_photos

    photos = find_photos(images)
    with interruptible() as progress:
        frame = make_frame(output, device, 1, fresh, progress)
        outcome = analyse(checkpoint, photos, question, frame, max_new_tokens=max_new_tokens, show=show)
    finish(outcome, output, json)
