"""What can be analysed: encoders named on a command line, of the registry, a recipe or a checkpoint.

    small_vit                          a registered encoder, also one loaded with --plugin
    timm,model=vit_small_patch16_224.dino    the same with options: NAME,KEY=VALUE,...
    tiny:semantic                      a stream of a shipped recipe, with the weights the recipe names
    recipes/mine.yaml:spatial          a stream of a recipe file
    checkpoint:tiny:spatial            a stream of a checkpoint, with its trained weights; also a folder, `runs/mine`

Without `:STREAM` a recipe or checkpoint stands for all its streams. A bare name is an encoder if one of that name is
installed, else a shipped recipe; `builtin:NAME` is always a recipe. Encoders without pretrained weights start from
seed 0, so the same words mean the same numbers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fusionkit import discovery, registry
from fusionkit.errors import (
    BuildError,
    FusionkitError,
    RecipeError,
    RecipeValidationError,
    ShapeError,
    UnknownBlockError,
    UsageError,
)
from fusionkit.model.checkpoint import SHIPPED, find_checkpoint, load_checkpoint
from fusionkit.plugin import BlockConfig, BlockSite, EncoderInfo
from fusionkit.recipe import load_recipe
from fusionkit.recipe.overrides import override
from fusionkit.recipe.plan import StreamPlan
from fusionkit.recipe.plan import plan as plan_recipe
from fusionkit.recipe.tree import Table, plain

SEED = 0
"""Of random weights."""

LONGEST_LABEL = 80
"""Of what names files and stands in legends."""

_STREAM = re.compile(r"[a-z][a-z0-9_]*")
_BARE = re.compile(r"[a-z0-9_]+")
_ADDRESS = "streams.analysed.encoder"


@dataclass(frozen=True, slots=True)
class Subject:
    """An encoder to look at, not built yet.

    `label` names it in files and pictures; `layers` 0..`kept` can be read (a checkpoint holds no deeper block than its
    recipe selects); `stream` is its name in the recipe it comes from, empty for a registered encoder; `config` is its
    block as a recipe writes it; `code` the distribution and version it comes from (a plugin file's hash); `weights` what
    is known of its weights: `trained`, `random`, `pretrained`, a path, or None.
    """

    label: str
    source: str
    info: EncoderInfo
    kept: int
    config: Mapping[str, Any]
    stream: str
    make: Callable[[], nn.Module]
    code: str
    weights: str | None

    def open(self, device: str = "cpu", *, seed: int = SEED) -> nn.Module:
        """Build it, in eval mode. Raises BuildError."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make().eval().to(device)

    def starts_random(self, encoder: nn.Module) -> bool:
        """Whether `encoder`, opened before, has random weights; asks a second build where the config does not say."""
        if self.weights is not None:
            return self.weights == "random"
        return weights_digest(self.open(seed=SEED + 1)) != weights_digest(encoder)


def subjects(words: Sequence[str]) -> list[Subject]:
    """What the words name, in their order.

    Raises: UsageError (nothing of that name, or twice the same), and what loading a recipe or checkpoint raises.
    """
    found = [subject for word in words for subject in _resolve(word)]
    labels = [subject.label for subject in found]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise UsageError(f"{', '.join(twice)}: named twice; name each encoder once")
    return found


def weights_digest(encoder: nn.Module) -> str:
    """A short name for the weights of an encoder: another training run is another name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


# ------------------------------------------------------------------------------------------------------- resolving
def _resolve(word: str) -> list[Subject]:
    name, *options = split_options(word)
    if name in registry.names("encoders"):
        return [_registered(word, name, options)]
    if options:
        raise UsageError(
            f"{word}: options are for registered encoders, and there is none called '{name}' "
            "(`fusionkit list encoders` shows them; change a recipe in its file)"
        )
    source, stream = _stream_of(name)
    if _is_checkpoint(source):
        return _of_checkpoint(name, source, stream)
    if source.startswith(SHIPPED):
        find_checkpoint(source)
    return _of_recipe(name, _recipe_source(name, source), stream)


def split_options(word: str) -> list[str]:
    """`NAME,K=V,K=V` at the commas that stand in no brackets; raises UsageError for an empty part."""
    parts, depth = [""], 0
    for letter in word:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    if not all(part.strip() for part in parts):
        raise UsageError(f"'{word}': expected NAME or NAME,KEY=VALUE,..., for example small_vit,depth=4")
    return parts


def _stream_of(name: str) -> tuple[str, str]:
    """(recipe or checkpoint, stream or nothing)."""
    before, _, last = name.rpartition(":")
    prefix_only = before in ("", "checkpoint", "builtin") or any(
        entry.address == name for entry in discovery.recipes(registry.scan())
    )
    return (before, last) if not prefix_only and _STREAM.fullmatch(last) else (name, "")


def _is_checkpoint(source: str) -> bool:
    return source.startswith(SHIPPED) or (Path(source) / "config.json").is_file()


def _recipe_source(word: str, source: str) -> str:
    """What `load_recipe` takes; raises UsageError for a bare name that is neither encoder nor recipe."""
    if not _BARE.fullmatch(source) and (":" in source or "/" in source or Path(source).exists()):
        return source
    recipes = [entry.name for entry in discovery.recipes(registry.scan()) if entry.prefix == "builtin"]
    if source in recipes:
        return f"builtin:{source}"
    try:
        registry.spec("encoders", source)
    except UnknownBlockError as error:
        raise UsageError(
            f"'{word}' names nothing to analyse: {error}; shipped recipes: {', '.join(recipes)}; "
            "or name a recipe file, a checkpoint folder or checkpoint:tiny"
        ) from error
    raise UsageError(f"'{word}': expected an encoder, RECIPE:STREAM or CHECKPOINT:STREAM")


def _registered(word: str, name: str, options: Sequence[str]) -> Subject:
    if wrong := [option for option in options if "=" not in option]:
        raise UsageError(f"{word}: '{wrong[0]}' is not KEY=VALUE; for example {name},image_size=224")
    config = _config(word, name, options)
    return _subject(word, word, config, _describe(word, config), stream="")


def _config(word: str, name: str, options: Sequence[str]) -> BlockConfig:
    """The checked config of a registered encoder; its errors read as those of a recipe do, at the option's name."""
    try:
        values = plain(override(Table({}), options))
        recipe = load_recipe(
            {
                "schema": 1,
                "name": "analyze",
                "streams": {"analysed": {"encoder": {"type": name, **values}, "select": {"type": "all"}}},
            }
        )
    except RecipeError as error:
        raise RecipeValidationError(
            replace(
                problem,
                source=word,
                address=problem.address.removeprefix(_ADDRESS).lstrip("."),
            )
            for problem in error.problems
        ) from error
    return recipe.streams["analysed"].encoder


def _describe(word: str, config: BlockConfig) -> EncoderInfo:
    describe = registry.spec("encoders", config.type).describe
    try:
        info = None if describe is None else describe(config)
    except ShapeError as error:
        raise UsageError(f"{word}: {error.field + ': ' if error.field else ''}{error}") from error
    if not isinstance(info, EncoderInfo):
        raise BuildError(f"{word}: describe(config) of encoders/{config.type} did not return an EncoderInfo")
    return info


def _of_recipe(word: str, source: str, stream: str) -> list[Subject]:
    plan = plan_recipe(load_recipe(source))
    return [
        _subject(f"{source}:{name}", f"{source}:{name}", found.encoder.config, found.info, stream=name)
        for name, found in _chosen(word, plan.streams, stream).items()
    ]


def _of_checkpoint(word: str, source: str, stream: str) -> list[Subject]:
    model, _ = load_checkpoint(source)
    return [
        Subject(
            label=file_label(f"{source}:{name}"),
            source=f"{source}:{name}",
            info=found.info,
            kept=max(found.layers),
            config=_as_written(found.encoder.config),
            stream=name,
            make=partial(getattr, model.streams[name], "encoder"),
            code=_code(found.encoder.config),
            weights="trained",
        )
        for name, found in _chosen(word, model.plan.streams, stream).items()
    ]


def _chosen(word: str, streams: Mapping[str, StreamPlan], stream: str) -> Mapping[str, StreamPlan]:
    if not stream:
        return streams
    if stream not in streams:
        raise UsageError(f"{word}: no stream '{stream}'; there are {', '.join(streams)}")
    return {stream: streams[stream]}


def _subject(text: str, source: str, config: BlockConfig, info: EncoderInfo, *, stream: str) -> Subject:
    def make() -> nn.Module:
        site = BlockSite(address=text, layers=tuple(range(info.depth + 1)), info=info)
        try:
            encoder = registry.factory(registry.spec("encoders", config.type))(config, site)
        except FusionkitError:
            raise
        except Exception as error:  # a plugin may raise anything; the reader needs its name and the cause
            raise BuildError(f"{text}: encoder failed to build: {type(error).__name__}: {error}") from error
        if not isinstance(encoder, nn.Module):
            raise BuildError(f"{text}: the factory returned a {type(encoder).__name__}, not a module")
        return encoder

    return Subject(
        label=file_label(text),
        source=source,
        info=info,
        kept=info.depth,
        config=_as_written(config),
        stream=stream,
        make=make,
        code=_code(config),
        weights=getattr(config, "weights", None),
    )


def _code(config: BlockConfig) -> str:
    return " ".join(registry.distribution("encoders", config.type))


def _as_written(config: BlockConfig) -> Mapping[str, Any]:
    """A block as a recipe writes it: what differs from the defaults."""
    return {"type": config.type, **config.model_dump(mode="json", exclude_defaults=True)}


def file_label(text: str) -> str:
    """An encoder's or checkpoint's words as a file name; long ones end in a hash of the whole."""
    label = re.sub(r"[^A-Za-z0-9_.=-]+", "-", text.removesuffix(".yaml")).strip("-.")
    if len(label) <= LONGEST_LABEL:
        return label
    return f"{label[: LONGEST_LABEL - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
