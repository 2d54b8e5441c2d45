"""Attention rollout: where the attention of a layer, and of all layers up to it, comes from.

With A_l the attention of block l ([T, T], rows look, columns are looked at), heads fused by mean, max or min:

    A_l <- A_l with its lowest `discard` share of links set to 0, those from and to the class token kept
    M_l = (A_l + I) / 2, rows scaled to sum 1          attention of layer l, with the residual path
    R_l = M_l M_{l-1} ... M_1                          rolled out (Abnar and Zuidema, arXiv 2005.00928)

A map is the query's row of M_l (the layer alone) or R_l (cumulative), at the patch columns. Appendix C of the paper
fuses by mean, discards with a fixed ratio it does not give, and reads the class token's row. The class token is the
first prefix token. An encoder without one is read by the mean over all patch rows, or from a chosen point.

Shapes: H heads, T = prefix + N tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fusionkit.analysis import stream
from fusionkit.analysis.capture import Scores, watch
from fusionkit.analysis.outcome import Frame, Outcome, Table
from fusionkit.analysis.overlay import SHARE, Picture, heat, outline
from fusionkit.analysis.partial import Partial
from fusionkit.analysis.photos import Photo
from fusionkit.analysis.pictures import encoder_sheets, picture_outcome, representative
from fusionkit.analysis.running import Running
from fusionkit.analysis.sheet import Row
from fusionkit.analysis.subjects import Subject
from fusionkit.errors import UsageError
from fusionkit.plugin import EncoderInfo

Fusion = Literal["mean", "max", "min"]
DIGITS = 7


@dataclass(frozen=True, slots=True)
class Query:
    """Whose attention is shown: the class token (`class`), all patches (`mean`), or the patch at a `point` in 0..1."""

    rule: Literal["class", "mean", "point"]
    point: tuple[float, float] = (0.5, 0.5)

    def row(self, links_TT: Tensor, info: EncoderInfo) -> Tensor:
        """The query's row at the patch columns: [N]."""
        prefix = info.prefix_tokens
        if self.rule == "class":
            return links_TT[0, prefix:]
        if self.rule == "mean":
            return links_TT[prefix:, prefix:].mean(0)
        grid, (x, y) = info.grid, self.point
        column = min(int(x * grid.width), grid.width - 1)
        row = min(int(y * grid.height), grid.height - 1)
        return links_TT[prefix + row * grid.width + column, prefix:]

    @property
    def words(self) -> str:
        return {"class": "class token", "mean": "mean over patches"}.get(
            self.rule, f"patch at x {self.point[0]:g}, y {self.point[1]:g}"
        )


def parse_query(text: str | None, info: EncoderInfo) -> Query:
    """`class`, `mean` or `X,Y` in 0..1; by default the class token if there is one, else the mean over patches.

    Raises UsageError for a class token that is not there, or anything else.
    """
    if text is None:
        return Query("class" if info.prefix_tokens else "mean")
    if text == "mean":
        return Query("mean")
    if text == "class":
        if not info.prefix_tokens:
            raise UsageError(f"--query class: {info.name} has no class token; use mean, or a point such as 0.5,0.5")
        return Query("class")
    if text == "pool":
        raise UsageError("--query pool: encoders are built without their pooling head; use mean, class or a point")
    numbers = re.fullmatch(r"(0?\.\d+|[01](?:\.0*)?),(0?\.\d+|[01](?:\.0*)?)", text)
    if not numbers:
        raise UsageError(f"--query {text}: expected class, mean, or a point X,Y in 0..1 such as 0.5,0.25")
    return Query("point", (float(numbers[1]), float(numbers[2])))


def links(weights_HTT: Tensor, fusion: Fusion = "mean", discard: float = 0.0, class_token: bool = True) -> Tensor:
    """M_l of one block: [T, T], rows sum to 1."""
    fused_TT = getattr(torch, {"mean": "mean", "max": "amax", "min": "amin"}[fusion])(weights_HTT.float(), dim=0)
    if discard > 0:
        count = int(discard * fused_TT.numel())
        lowest = fused_TT.flatten().topk(count, largest=False).indices
        kept_TT = torch.ones_like(fused_TT, dtype=torch.bool).view(-1).index_fill(0, lowest, False).view_as(fused_TT)
        if class_token:
            kept_TT[0] = kept_TT[:, 0] = True
        fused_TT = fused_TT * kept_TT
    linked_TT: Tensor = (fused_TT + torch.eye(len(fused_TT), device=fused_TT.device)) / 2
    return linked_TT / linked_TT.sum(-1, keepdim=True)


def rollout_maps(
    encoder: nn.Module,
    info: EncoderInfo,
    x_BCHW: Tensor,
    layers: Sequence[int],
    query: Query,
    fusion: Fusion = "mean",
    discard: float = 0.0,
) -> list[dict[str, dict[str, Tensor]]]:
    """For each picture: `layer` and `cumulative` -> layer number as text -> map [N].

    Raises UsageError when a block on the way has no attention that can be seen.
    """
    found: list[dict[str, dict[str, Tensor]]] = [{"layer": {}, "cumulative": {}} for _ in range(len(x_BCHW))]
    rolled: list[Tensor | None] = [None] * len(x_BCHW)

    def on_attention(layer: int, scores: Scores) -> None:
        for picture, maps in enumerate(found):
            own_TT = links(scores.weights(picture), fusion, discard, class_token=info.prefix_tokens > 0)
            before_TT = rolled[picture]
            rolled_TT = own_TT if before_TT is None else own_TT @ before_TT
            rolled[picture] = rolled_TT
            if layer in layers:
                maps["layer"][str(layer)] = query.row(own_TT, info)
                maps["cumulative"][str(layer)] = query.row(rolled_TT, info)

    missing = watch(encoder, info, x_BCHW, range(1, max(layers) + 1), on_attention=on_attention)
    if missing:
        layer, reason = min(missing.items())
        raise UsageError(
            f"{info.name}: no rollout, layer {layer}: {reason}; `analyze pca` and `analyze entropy` work for any encoder"
        )
    return found


def analyse(
    subjects: Sequence[Subject],
    photos: Sequence[Photo],
    frame: Frame,
    *,
    layers: str | None = None,
    query: str | None = None,
    fusion: Fusion = "mean",
    discard: float = 0.9,
    show: int = 12,
) -> Outcome:
    """Maps of every picture and encoder, a sheet per picture, and how concentrated each layer is."""
    queries = {subject.label: parse_query(query, subject.info) for subject in subjects}
    chosen = {subject.label: representative(layers, subject, first=1) for subject in subjects}
    results = {}
    for subject in subjects:
        settings = {
            "layers": list(chosen[subject.label]),
            "query": queries[subject.label].words,
            "fusion": fusion,
            "discard": discard,
        }
        results[subject.label] = _run(
            subject, photos, frame, chosen[subject.label], queries[subject.label], fusion, discard, settings
        )
    tables = [
        _table(subject, results[subject.label], photos, chosen[subject.label], queries[subject.label])
        for subject in subjects
    ]
    lines = [
        f"{subject.label}: query {queries[subject.label].words}, heads by {fusion}, lowest {discard:.0%} of links discarded"
        for subject in subjects
    ]

    def rows_of(subject: Subject, picture: Picture, maps: Mapping[str, Any]) -> Iterator[Row]:
        shape = (subject.info.grid.height, subject.info.grid.width)
        names = ["photo", *(f"layer {layer}" for layer in chosen[subject.label])]
        for kind, what, paint in (
            ("layer", "attention of the layer", heat),
            ("cumulative", "rolled out from layer 1", heat),
            ("layer", f"strongest {SHARE:.0%} of the layer", outline),
        ):
            tiles = [paint(picture, np.reshape(maps[kind][str(layer)], shape)) for layer in chosen[subject.label]]
            yield Row(f"{subject.label}: {what}", names, [picture, *tiles])

    return picture_outcome(
        name="rollout",
        title="Attention rollout",
        explanation="Bright: looked at. Of each layer alone, of all layers up to it, and the strongest "
        f"{SHARE:.0%} of each layer outlined. " + ". ".join(lines) + ".",
        photos=photos,
        sheets=encoder_sheets(subjects, photos, results, rows_of),
        tables=tables,
        lines=lines,
        frame=frame,
        show=show,
    )


def _run(
    subject: Subject,
    photos: Sequence[Photo],
    frame: Frame,
    layers: Sequence[int],
    query: Query,
    fusion: Fusion,
    discard: float,
    settings: Mapping[str, Any],
) -> Partial:
    def work(encoder: nn.Module, pixels: Tensor) -> list[dict[str, Any]]:
        maps = rollout_maps(encoder, subject.info, pixels, layers, query, fusion, discard)
        return [
            {
                kind: {layer: [round(value, DIGITS) for value in values.tolist()] for layer, values in by_layer.items()}
                for kind, by_layer in picture.items()
            }
            for picture in maps
        ]

    return stream.run("rollout", subject, subject.open(frame.device), photos, settings, work, frame)


def _table(subject: Subject, partial: Partial, photos: Sequence[Photo], layers: Sequence[int], query: Query) -> Table:
    """How concentrated the maps are: entropy over log N, and the share of the map in its strongest 30 % of patches."""
    found = {(kind, layer): (Running(), Running()) for kind in ("layer", "cumulative") for layer in layers}
    for maps in partial.values(photos):
        for (kind, layer), (spread, top) in found.items():
            values = np.asarray(maps[kind][str(layer)], np.float64)
            shares = values / values.sum()
            spread.add(float(-(shares * np.log(np.maximum(shares, 1e-300))).sum() / (log(shares.size) or 1.0)))
            count = max(1, round(SHARE * shares.size))
            top.add(float(np.sort(shares)[-count:].sum()))
    rows: list[dict[str, object]] = []
    for layer in layers:
        row: dict[str, object] = {"layer": layer}
        for kind in ("layer", "cumulative"):
            spread, top = found[kind, layer]
            row |= {f"{kind}: entropy / log N": spread.mean, f"{kind}: in strongest {SHARE:.0%}": top.mean}
        rows.append(row)
    return Table(f"{subject.label}, query {query.words}", rows)
