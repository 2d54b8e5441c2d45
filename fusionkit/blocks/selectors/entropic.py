"""A selector that follows measured entropies instead of layer numbers."""

from __future__ import annotations

from collections.abc import Sequence

from fusionkit.blocks.selectors.specs import EntropyConfig
from fusionkit.plugin import BlockSite, EncoderInfo, ShapeError


class EntropyLayers:
    """Layers of high or of low entropy, by the saved report.

    threshold: entropy >= t (high) or <= t (low). top_k: the k highest or lowest, of equal ones the deeper. knee: like
    threshold, with t the entropy at the knee of the curve over the layers: the point farthest from the straight line
    between its ends.
    """

    def __init__(self, config: EntropyConfig, site: BlockSite) -> None:
        self.config = config

    def layers(self, info: EncoderInfo) -> tuple[int, ...]:
        config, report = self.config, self.config.report
        if report.depth != info.depth:
            raise ShapeError(
                f"the report is of an encoder with {report.depth} blocks ({report.encoder or 'not named'}), this one "
                f"has {info.depth}",
                field="report",
                hint="measure this encoder",
            )
        sign = 1 if config.direction == "high" else -1
        height = {entry.layer: sign * entry.entropy for entry in report.layers}
        if config.top_k is not None:
            if config.top_k > len(height):
                raise ShapeError(
                    f"cannot select {config.top_k} layers of the {len(height)} in the report",
                    field="top_k",
                    hint=f"use at most {len(height)}",
                )
            best = sorted(height, key=lambda layer: (height[layer], layer), reverse=True)
            return tuple(sorted(best[: config.top_k]))
        if config.threshold is not None:
            limit = sign * config.threshold
        else:
            limit = sign * knee([(entry.layer, entry.entropy) for entry in report.layers])
        chosen = tuple(layer for layer, value in height.items() if value >= limit)
        if not chosen:
            values = sorted(entry.entropy for entry in report.layers)
            raise ShapeError(
                f"no layer passes: entropies are {values[0]:.4g} to {values[-1]:.4g}, {config.direction} than "
                f"{config.threshold:.4g} is wanted",
                field="threshold",
                hint="choose a value between them, or top_k",
            )
        return chosen


def knee(curve: Sequence[tuple[int, float]]) -> float:
    """The value at the point of a curve that is farthest from the line through its ends, the first of equals.

    Both axes are scaled to 0..1. Raises ShapeError for curves without one: fewer than three points, or a straight line.
    """
    (x0, y0), (x1, y1) = curve[0], curve[-1]
    span = max(y for _, y in curve) - min(y for _, y in curve)
    if len(curve) >= 3 and span > 0:
        off = [abs((y - y0) - (y1 - y0) * (x - x0) / (x1 - x0)) / span for x, y in curve]
        if max(off) > 1e-6:
            return curve[off.index(max(off))][1]
    raise ShapeError(
        f"the entropies of {len(curve)} layers have no knee", field="knee", hint="use threshold or top_k instead"
    )
