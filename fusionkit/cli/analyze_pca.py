"""`fusionkit analyze pca`."""

from __future__ import annotations

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


def pca(
    words: WordsArg,
    output: OutputOption,
    layers: LayersOption = None,
    fit_on: Annotated[
        int, typer.Option("--fit-on", min=1, help="Fit the components on at most so many pictures, evenly chosen.")
    ] = 64,
    show: ShowOption = 12,
    batch: BatchOption = 8,
    device: DeviceOption = Device.auto,
    fresh: FreshOption = False,
    json: JsonOption = False,
    plugin: PluginOption = None,
) -> None:
    """Draw patch tokens as colours.

    Their three main directions of variance are red, green and blue. Works for every encoder, with or without attention. One sheet per picture, a row per encoder, a column per layer.

    \b
    Examples:
      fusionkit analyze pca tiny:semantic checkpoint:tiny photos/ -o report
      fusionkit analyze pca acme.sam photos/ -o report --layers 3,6,9,12 --plugin ./my_encoder.py
    """
    names, pictures = split_words(words, "fusionkit analyze pca tiny:spatial photos/ -o report")
    load_plugins(plugin)
    from fusionkit.analysis.pca import analyse
    from fusionkit.analysis.photos import find_photos
    from fusionkit.analysis.subjects import subjects

    photos = find_photos(pictures)
    found = subjects(names)
    with interruptible() as progress:
        frame = make_frame(output, device, batch, fresh, progress)
        outcome = analyse(found, photos, frame, layers=layers, fit_on=fit_on, show=show)
    finish(outcome, output, json)
