"""PCA of patch tokens as colours: patches of one colour are alike to the encoder, across pictures too.

Tokens of a layer are scaled to mean 0 and variance 1 each (a LayerNorm without weights: a few channels of a ViT are
hundreds of times larger than the rest and would be all that is seen). The three directions of largest variance are
fitted per layer on a stated sample of the pictures and drawn as red, green and blue: a component at -2 to +2 of its
standard deviations goes from dark to bright. Each direction's sign makes its largest coefficient positive.

Shapes: B pictures, N patch tokens, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionkit.analysis import stream
from fusionkit.analysis.capture import watch
from fusionkit.analysis.outcome import Frame, Outcome, Table
from fusionkit.analysis.overlay import Picture, colours
from fusionkit.analysis.partial import Partial
from fusionkit.analysis.photos import Photo, Reader, batches
from fusionkit.analysis.pictures import encoder_sheets, picture_outcome, representative
from fusionkit.analysis.sheet import Row
from fusionkit.analysis.subjects import Subject

COMPONENTS = 3
REACH = 2.0
"""Standard deviations from the middle to full colour."""


@dataclass(frozen=True, slots=True)
class Basis:
    """The main directions of one layer: mean_D, directions_DC, and the standard deviation along each."""

    mean_D: Tensor
    directions_DC: Tensor
    std_C: Tensor
    explained: tuple[float, ...]

    def colours(self, x_BND: Tensor) -> Tensor:
        """Tokens as three numbers in 0..1: [B, N, 3]."""
        along = (normalised(x_BND).double() - self.mean_D) @ self.directions_DC / self.std_C
        return (0.5 + along / (2 * REACH)).clamp(0, 1)


class Covariance:
    """Mean and covariance of tokens that come batch by batch, in float64."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.sum_D = torch.zeros(width, dtype=torch.float64)
        self.products_DD = torch.zeros(width, width, dtype=torch.float64)

    def add(self, x_BND: Tensor) -> None:
        tokens = normalised(x_BND).double().flatten(0, 1).cpu()
        self.count += len(tokens)
        self.sum_D += tokens.sum(0)
        self.products_DD += tokens.T @ tokens

    def basis(self) -> Basis:
        """The directions of largest variance, first the largest."""
        mean_D = self.sum_D / self.count
        covariance_DD = self.products_DD / self.count - torch.outer(mean_D, mean_D)
        variances, directions = torch.linalg.eigh(covariance_DD)
        variances, directions = variances.flip(0).clamp_(min=0)[:COMPONENTS], directions.flip(1)[:, :COMPONENTS]
        largest = directions.abs().argmax(0)
        directions = directions * directions.gather(0, largest[None]).sign()
        total = float(covariance_DD.trace()) or 1.0
        std_C = variances.sqrt().clamp(min=torch.finfo(torch.float64).tiny)
        return Basis(mean_D, directions, std_C, tuple((variances / total).tolist()))


def normalised(x_BND: Tensor) -> Tensor:
    """Every token at mean 0 and variance 1."""
    return F.layer_norm(x_BND.float(), x_BND.shape[-1:])


def fit_bases(
    encoder: nn.Module, subject: Subject, photos: Sequence[Photo], layers: Sequence[int], frame: Frame
) -> dict[int, Basis]:
    """The basis of each layer over all patch tokens of these pictures; memory does not grow with their number."""
    found = {layer: Covariance(subject.info.width) for layer in layers}
    reader, done = Reader(subject.info), 0
    for group in batches(photos, frame.batch):
        pixels = reader.pixels([photo.open() for photo in group]).to(frame.device)
        watch(encoder, subject.info, pixels, layers, on_tokens=lambda layer, x_BND: found[layer].add(x_BND))
        done += len(group)
        frame.progress(f"pca basis {subject.label}", done, len(photos))
    return {layer: covariance.basis() for layer, covariance in found.items()}


def sample(photos: Sequence[Photo], count: int) -> list[Photo]:
    """At most `count` pictures, evenly through the list."""
    if len(photos) <= count:
        return list(photos)
    return [photos[place * len(photos) // count] for place in range(count)]


def analyse(
    subjects: Sequence[Subject],
    photos: Sequence[Photo],
    frame: Frame,
    *,
    layers: str | None = None,
    fit_on: int = 64,
    show: int = 12,
) -> Outcome:
    """Maps of every picture and encoder, a sheet per picture, and the variance that each component explains."""
    chosen = {subject.label: representative(layers, subject) for subject in subjects}
    fitted_on = sample(photos, fit_on)
    results, tables = {}, []
    for subject in subjects:
        encoder = subject.open(frame.device)
        bases = fit_bases(encoder, subject, fitted_on, chosen[subject.label], frame)
        settings = {"layers": list(chosen[subject.label]), "fitted on": _digest(fitted_on)}
        results[subject.label] = _run(subject, encoder, photos, bases, settings, frame)
        rows: list[dict[str, object]] = [
            {"layer": layer, **{f"component {place}": share for place, share in enumerate(basis.explained, start=1)}}
            for layer, basis in bases.items()
        ]
        tables.append(Table(f"{subject.label}: share of the variance", rows))

    def rows_of(subject: Subject, picture: Picture, maps: Mapping[str, Any]) -> Iterator[Row]:
        grid = subject.info.grid
        tiles = [
            colours(np.reshape(maps[str(layer)], (grid.height, grid.width, -1)) / 255, picture.size)
            for layer in chosen[subject.label]
        ]
        names = ["photo", *(f"layer {layer}" for layer in chosen[subject.label])]
        yield Row(f"{subject.label}: components 1, 2, 3 as red, green, blue", names, [picture, *tiles])

    line = f"components fitted on {len(fitted_on)} of {len(photos)} pictures, per layer"
    return picture_outcome(
        name="pca",
        title="PCA of patch tokens",
        explanation="Patches of one colour are alike to the encoder, also between pictures; colours of different "
        f"layers and encoders have nothing to do with each other ({line}).",
        photos=photos,
        sheets=encoder_sheets(subjects, photos, results, rows_of),
        tables=tables,
        lines=[line],
        frame=frame,
        show=show,
    )


def _run(
    subject: Subject,
    encoder: nn.Module,
    photos: Sequence[Photo],
    bases: Mapping[int, Basis],
    settings: Mapping[str, Any],
    frame: Frame,
) -> Partial:
    def work(encoder: nn.Module, pixels: Tensor) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [{} for _ in range(len(pixels))]

        def on_tokens(layer: int, x_BND: Tensor) -> None:
            levels = (bases[layer].colours(x_BND.cpu()) * 255).round().int()
            for row, level_NC in zip(rows, levels, strict=True):
                row[str(layer)] = level_NC.flatten().tolist()

        watch(encoder, subject.info, pixels, list(bases), on_tokens)
        return rows

    return stream.run("pca", subject, encoder, photos, settings, work, frame)


def _digest(photos: Sequence[Photo]) -> str:
    return hashlib.sha256(repr([(photo.name, photo.bytes) for photo in photos]).encode()).hexdigest()[:16]
