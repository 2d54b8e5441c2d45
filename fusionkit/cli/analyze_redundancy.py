"""`fusionkit analyze redundancy`."""

from __future__ import annotations

from fusionkit.cli.analyze_output import (
    BatchOption,
    Device,
    DeviceOption,
    FreshOption,
    LayersOption,
    OutputOption,
    WordsArg,
    finish,
    interruptible,
    make_frame,
    split_words,
)
from fusionkit.cli.options import JsonOption, PluginOption, load_plugins


def redundancy(
    words: WordsArg,
    output: OutputOption,
    layers: LayersOption = None,
    batch: BatchOption = 8,
    device: DeviceOption = Device.auto,
    fresh: FreshOption = False,
    json: JsonOption = False,
    plugin: PluginOption = None,
) -> None:
    """Measure how alike layers are.

    Linear CKA and cosine between layers, and the rank of their mixture V beside its controls: V is mixed by a checkpoint's own maps, and by the identity, random rotations and free random matrices. Without
    --layers, all that end a block; where their sums would take over 1 GiB, fewer, evenly spaced.

    \b
    Examples:
      fusionkit analyze redundancy checkpoint:tiny photos/ -o report
      fusionkit analyze redundancy real.dinov2_small photos/ -o report
      fusionkit analyze redundancy runs/orthogonal runs/free_linear photos/ -o report
    """
    names, pictures = split_words(words, "fusionkit analyze redundancy checkpoint:tiny photos/ -o report")
    load_plugins(plugin)
    from fusionkit.analysis.photos import find_photos
    from fusionkit.analysis.redundancy import analyse
    from fusionkit.analysis.subjects import subjects

    photos = find_photos(pictures)
    found = subjects(names)
    with interruptible() as progress:
        outcome = analyse(found, photos, make_frame(output, device, batch, fresh, progress), layers=layers)
    finish(outcome, output, json)
