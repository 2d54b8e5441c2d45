"""`fusionkit analyze entropy`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusionkit.cli.analyze_output import (
    BatchOption,
    Device,
    DeviceOption,
    FreshOption,
    LayersOption,
    OutputOption,
    PasteOption,
    WordsArg,
    finish,
    interruptible,
    make_frame,
    split_words,
)
from fusionkit.cli.options import JsonOption, PluginOption, load_plugins
from fusionkit.errors import UsageError

if TYPE_CHECKING:
    from fusionkit.analysis.suggest import Rule


class Measure(StrEnum):
    """What the suggestion goes by."""

    patch_to_patch = "patch_to_patch"
    prefix_to_patch = "prefix_to_patch"
    feature_energy = "feature_energy"


def entropy(
    words: WordsArg,
    output: OutputOption,
    layers: LayersOption = None,
    measure: Annotated[
        Measure | None,
        typer.Option(
            "--measure",
            help="What to choose layers by; patch_to_patch, or feature_energy where there is no attention.",
            show_default=False,
        ),
    ] = None,
    direction: Annotated[
        list[str] | None,
        typer.Option(
            "--direction",
            metavar="high|low|LABEL=high",
            help="Which layers are wanted. By default low for one encoder; of several, high for the highest.",
            show_default=False,
        ),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Rule: layers at least this high, or at most this low, nats.")
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", min=1, help="Rule: so many layers.")] = None,
    knee: Annotated[
        bool,
        typer.Option(
            "--knee",
            help="Rule: up to where the curve bends most. The default, where that says something.",
            show_default=False,
        ),
    ] = False,
    batch: BatchOption = 8,
    device: DeviceOption = Device.auto,
    fresh: FreshOption = False,
    paste: PasteOption = False,
    json: JsonOption = False,
    plugin: PluginOption = None,
) -> None:
    """Suggest which layers to read, by entropy.

    Measures how spread out each layer looks, and writes the report that the `entropy` selector reads. Entropies are in nats, 0 (one patch) to log N (all alike): of patch-to-patch and prefix-to-patch attention, and of
    the energy of the features, which encoders without attention have too. The same command goes on after Ctrl-C.

    \b
    Examples:
      fusionkit analyze entropy tiny:semantic tiny:spatial photos/ -o report
      fusionkit analyze entropy checkpoint:tiny photos/ -o report --top-k 1
      fusionkit analyze entropy acme.sam photos/ -o report --plugin ./my_encoder.py --paste
      fusionkit analyze entropy timm,model=vit_small_patch16_224.dino,weights=random photos/ -o report --layers 6-12
    """
    rule = _rule(threshold, top_k, knee)
    names, pictures = split_words(words, "fusionkit analyze entropy tiny:spatial photos/ -o report")
    load_plugins(plugin)
    from fusionkit.analysis.entropy import analyse
    from fusionkit.analysis.photos import find_photos
    from fusionkit.analysis.subjects import subjects

    photos = find_photos(pictures)
    found = subjects(names)
    with interruptible() as progress:
        outcome = analyse(
            found,
            photos,
            make_frame(output, device, batch, fresh, progress),
            layers=layers,
            measure=None if measure is None else measure.value,
            direction=direction or (),
            rule=rule,
        )
    finish(outcome, output, json, paste)


def _rule(threshold: float | None, top_k: int | None, knee: bool) -> Rule | None:
    rules: list[dict[str, Any]] = []
    if threshold is not None:
        rules.append({"threshold": threshold})
    if top_k is not None:
        rules.append({"top_k": top_k})
    if knee:
        rules.append({"knee": True})
    if len(rules) > 1:
        raise UsageError("give one of --threshold, --top-k and --knee")
    return rules[0] if rules else None
