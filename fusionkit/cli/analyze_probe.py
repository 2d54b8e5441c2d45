"""`fusionkit analyze probe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusionkit.cli.analyze_output import (
    BatchOption,
    Device,
    DeviceOption,
    FreshOption,
    LayersOption,
    OutputOption,
    PasteOption,
    finish,
    interruptible,
    make_frame,
    split_words,
)
from fusionkit.cli.options import JsonOption, PluginOption, load_plugins

WORDS_HELP = (
    "Encoders (as for `analyze entropy`), then a dataset with boxes: a registered one with options, for example "
    "`synthetic_scenes,size=96` or `coco_boxes,annotations=...` (`fusionkit list datasets`)."
)


def probe(
    words: Annotated[list[str], typer.Argument(metavar="ENCODER... DATA", help=WORDS_HELP, show_default=False)],
    output: OutputOption,
    layers: LayersOption = None,
    samples: Annotated[
        int, typer.Option("--samples", min=4, help="So many samples, or all there are; every fourth is held out.")
    ] = 400,
    ridge: Annotated[
        float, typer.Option("--ridge", min=1e-9, help="How much the probes are shrunk, as a share of the tokens' size.")
    ] = 1e-3,
    entropy: Annotated[
        list[Path] | None,
        typer.Option(
            "--entropy", metavar="REPORT.json", help="Draw this entropy report beside it.", show_default=False
        ),
    ] = None,
    batch: BatchOption = 8,
    device: DeviceOption = Device.auto,
    fresh: FreshOption = False,
    paste: PasteOption = False,
    json: JsonOption = False,
    plugin: PluginOption = None,
) -> None:
    """Measure which layers find objects.

    Linear probes for box and point read frozen tokens and are measured on held-out pictures. They are solved in closed form, so the numbers depend on no training run. Where the data names its objects,
    the object is found by its labels first; else the probe is told a patch on it.

    \b
    Examples:
      fusionkit analyze probe checkpoint:tiny synthetic_scenes,seed=2 -o report
      fusionkit analyze probe real.dinov2_small synthetic_scenes,size=112 -o report --entropy report/entropy.json
      fusionkit analyze probe acme.sam coco_boxes,annotations=instances.json -o report --plugin ./my_encoder.py --paste
    """
    names, data = split_words(words, "fusionkit analyze probe checkpoint:tiny synthetic_scenes -o report")
    load_plugins(plugin)
    from fusionkit.analysis.annotated import open_data
    from fusionkit.analysis.probe import analyse
    from fusionkit.analysis.subjects import subjects

    annotated = open_data(data)
    found = subjects(names)
    with interruptible() as progress:
        outcome = analyse(
            found,
            annotated,
            make_frame(output, device, batch, fresh, progress),
            layers=layers,
            samples=samples,
            strength=ridge,
            entropy=entropy or (),
        )
    finish(outcome, output, json, paste)
