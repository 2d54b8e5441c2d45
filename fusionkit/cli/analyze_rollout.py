"""`fusionkit analyze rollout`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from fusionkit.cli.analyze_output import (
    BatchOption,
    Device,
    DeviceOption,
    FreshOption,
    LayersOption,
    OutputOption,
    ShowOption,
    WordsArg,
    finish,
    interruptible,
    make_frame,
    split_words,
)
from fusionkit.cli.options import JsonOption, PluginOption, load_plugins


class Fusion(StrEnum):
    """How heads become one."""

    mean = "mean"
    max = "max"
    min = "min"


def rollout(
    words: WordsArg,
    output: OutputOption,
    layers: LayersOption = None,
    query: Annotated[
        str | None,
        typer.Option(
            "--query",
            metavar="class|mean|X,Y",
            help="Whose attention: the class token, the mean over patches, or the patch at a point in 0..1.",
            show_default=False,
        ),
    ] = None,
    heads: Annotated[Fusion, typer.Option("--heads", help="How the heads are fused.")] = Fusion.mean,
    discard: Annotated[
        float,
        typer.Option("--discard", min=0, max=0.999, help="Share of the weakest links to drop; the class token's stay."),
    ] = 0.9,
    show: ShowOption = 12,
    batch: BatchOption = 8,
    device: DeviceOption = Device.auto,
    fresh: FreshOption = False,
    json: JsonOption = False,
    plugin: PluginOption = None,
) -> None:
    """Draw where layers look, over the pictures.

    Attention of each layer, rolled out over all layers up to it, and its strongest 30 % outlined. One sheet per picture, a row per encoder and kind, a column per layer: four layers, or those of --layers. Without
    --query, the class token where there is one, else the mean over patches. The same command goes on after Ctrl-C.

    \b
    Examples:
      fusionkit analyze rollout tiny:semantic checkpoint:tiny:spatial photos/ -o report
      fusionkit analyze rollout timm,model=NAME photos/ -o report --layers 18-24 --discard 0.9
      fusionkit analyze rollout acme.sam photo.jpg -o report --query 0.5,0.25 --plugin ./my_encoder.py
    """
    names, pictures = split_words(words, "fusionkit analyze rollout tiny:spatial photos/ -o report")
    load_plugins(plugin)
    from fusionkit.analysis.photos import find_photos
    from fusionkit.analysis.rollout import analyse
    from fusionkit.analysis.subjects import subjects

    photos = find_photos(pictures)
    found = subjects(names)
    with interruptible() as progress:
        frame = make_frame(output, device, batch, fresh, progress)
        outcome = analyse(
            found, photos, frame, layers=layers, query=query, fusion=heads.value, discard=discard, show=show
        )
    finish(outcome, output, json)
