"""Frozen features of a recipe's training pictures, computed before training.

Training does the same by itself the first time it sees a picture; done before, it shows how far it is, and the training
that follows has an even speed. Pictures that are kept already are skipped, so an interrupted run goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from fusionkit import load_recipe, plan, registry
from fusionkit.errors import UsageError
from fusionkit.model.pictures import prepare_pictures
from fusionkit.plugin import ENDLESS, BlockSite
from fusionkit.recipe.plan import Plan
from fusionkit_real_small.dinov2 import Dinov2Small
from fusionkit_real_small.features import FeatureStore
from fusionkit_real_small.specs import Dinov2SmallConfig

BATCH = 16


def cache_features(recipe: str, changes: Sequence[str], report: Callable[[str, int, int], None]) -> list[FeatureStore]:
    """Compute what training the recipe would read from disk; returns where it is kept.

    Raises UsageError when the recipe has no training data that ends, or no stream that keeps features.
    """
    planned = plan(load_recipe(recipe, set=changes))
    encoders = dict(_encoders(planned))
    if not encoders:
        raise UsageError(f"{recipe}: no stream has `encoder: {{type: real.dinov2_small, cache: float16}}`")
    if planned.recipe.cropper is None:
        raise UsageError(f"{recipe}: has no cropper, so it takes no pictures")
    cropper = _object("croppers", planned.recipe.cropper)
    datasets = [_object("datasets", config) for config in _datasets(planned)]
    if not datasets or any(_pictures(dataset) >= ENDLESS for dataset in datasets):
        raise UsageError(f"{recipe}: its training data does not end; give it an end, for example `pictures: 2048`")
    total, done = sum(_pictures(dataset) for dataset in datasets), 0
    report("pictures", 0, total)
    places = ((dataset, index) for dataset in datasets for index in range(_pictures(dataset)))
    for some in _batched(places, BATCH):
        samples = [dataset[index] for dataset, index in some]
        images = [sample.open_image() for sample in samples if sample.open_image is not None]
        pixels = prepare_pictures(planned, cropper, images).pixels if images else {}
        for name, encoder in encoders.items():
            if name in pixels:
                with torch.no_grad():
                    encoder(pixels[name])
        done += len(some)
        report("pictures", done, total)
    return [encoder.store(encoder.layers) for encoder in encoders.values()]


def _encoders(planned: Plan) -> Iterator[tuple[str, Dinov2Small]]:
    for name, stream in planned.streams.items():
        config = stream.encoder.config
        if isinstance(config, Dinov2SmallConfig) and config.cache != "none":
            # In training mode, as when it trains: only then are features kept.
            yield name, Dinov2Small(config, stream.encoder.site).train()


def _datasets(planned: Plan) -> list[Any]:
    """The datasets of every stage, each once."""
    train = planned.recipe.train
    if train is None:
        return []
    found = [config for stage in train.stages.values() for config in stage.data or train.data]
    return list({config.model_dump_json(): config for config in found}.values())


def _pictures(dataset: Any) -> int:
    """How many samples show every picture once: a dataset may ask about its first ones again."""
    pictures = getattr(getattr(dataset, "config", None), "pictures", None)
    return min(len(dataset), pictures or ENDLESS)


def _object(family: str, config: Any) -> Any:
    return registry.factory(registry.spec(family, config.type))(config, BlockSite())


def _batched(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while some := [item for _, item in zip(range(size), items, strict=False)]:
        yield some
