"""Configs and specs of the metrics. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fusionkit.plugin import API_VERSION, BlockConfig, BlockSpec


class BoxAccuracyConfig(BlockConfig):
    """Share of boxes found: IoU at or above the threshold."""

    type: Literal["box_accuracy"] = "box_accuracy"
    threshold: float = Field(0.5, gt=0, le=1, description="Least IoU that counts as found (>=).")


class MeanIouConfig(BlockConfig):
    """Mean IoU of predicted and true boxes."""

    type: Literal["mean_iou"] = "mean_iou"


class PointAccuracyConfig(BlockConfig):
    """Share of points hit."""

    type: Literal["point_accuracy"] = "point_accuracy"
    within: Literal["fraction", "pixels", "box"] = Field(
        "fraction",
        description="fraction: at most `tolerance` of the picture's larger side from the true point; pixels: at most "
        "`tolerance` pixels; box: inside the box of the object that the true point lies in.",
    )
    tolerance: float = Field(
        0.05, gt=0, description="Largest distance that counts as a hit; not used with `within: box`."
    )


class CountAccuracyConfig(BlockConfig):
    """Share of counts that are exactly right."""

    type: Literal["count_accuracy"] = "count_accuracy"


class ExactMatchConfig(BlockConfig):
    """Share of text answers that are word for word right."""

    type: Literal["exact_match"] = "exact_match"


BOX_ACCURACY = BlockSpec(
    api=API_VERSION,
    family="metrics",
    config=BoxAccuracyConfig,
    factory="fusionkit.blocks.metrics.boxes:BoxAccuracy",
    summary="Share of boxes with IoU at or above a threshold; an answer without a box is 0.",
    examples=({}, {"threshold": 0.75}),
)

MEAN_IOU = BlockSpec(
    api=API_VERSION,
    family="metrics",
    config=MeanIouConfig,
    factory="fusionkit.blocks.metrics.boxes:MeanIou",
    summary="Mean IoU of boxes; an answer without a box is 0.",
)

POINT_ACCURACY = BlockSpec(
    api=API_VERSION,
    family="metrics",
    config=PointAccuracyConfig,
    factory="fusionkit.blocks.metrics.points:PointAccuracy",
    summary="Share of points close to the truth, or inside the object's box.",
    examples=({}, {"within": "pixels", "tolerance": 5.0}, {"within": "box"}),
)

COUNT_ACCURACY = BlockSpec(
    api=API_VERSION,
    family="metrics",
    config=CountAccuracyConfig,
    factory="fusionkit.blocks.metrics.text:CountAccuracy",
    summary="Share of counts exactly right; `none` is 0, an answer without a number is wrong.",
)

EXACT_MATCH = BlockSpec(
    api=API_VERSION,
    family="metrics",
    config=ExactMatchConfig,
    factory="fusionkit.blocks.metrics.text:ExactMatch",
    summary="Share of text answers equal to the truth, letter case and spaces aside.",
)
