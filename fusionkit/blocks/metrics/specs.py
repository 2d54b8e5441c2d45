"""Configs and specs of the metrics. Torch-free."""

from typing import Literal, Self

from pydantic import Field, model_validator

from fusionkit.plugin import API_VERSION, BlockConfig, BlockSpec

Read = Literal["all", "first"]
_READ = "Which boxes of an answer are read: all, or only the first, as the released code does."


class BoxAccuracyConfig(BlockConfig):
    """Share of boxes found: IoU at or above the threshold."""

    type: Literal["box_accuracy"] = "box_accuracy"
    threshold: float = Field(0.5, gt=0, le=1, description="Least IoU that counts as found.")
    border: Literal["found", "missed"] = Field(
        "found",
        description="What an IoU of exactly the threshold is; the released evaluator of expressions has it missed.",
    )
    boxes: Read = Field("all", description=_READ)


class MeanIouConfig(BlockConfig):
    """Mean IoU of predicted and true boxes."""

    type: Literal["mean_iou"] = "mean_iou"
    boxes: Read = Field("all", description=_READ)
    without_box: float = Field(
        0.0, ge=0, le=1, description="What an answer without a box scores; the released code gives it 0.5."
    )


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
    matching: Literal["nearest", "optimal"] = Field(
        "nearest", description="nearest: closest pairs first; optimal: the least total distance."
    )
    denominator: Literal["larger", "truth", "answer"] = Field(
        "larger", description="Hits are divided by the larger number of points, by the true ones, or by the answer's."
    )
    frame: int | None = Field(
        None,
        ge=1,
        description="With `within: pixels`: count pixels as if the picture's larger side had this many; "
        "pixels of the original picture if not given.",
    )

    @model_validator(mode="after")
    def _frame_needs_pixels(self) -> Self:
        if self.frame is not None and self.within != "pixels":
            raise ValueError("frame: only `within: pixels` counts pixels")
        return self


class CountAccuracyConfig(BlockConfig):
    """Share of counts that are right, or nearly."""

    type: Literal["count_accuracy"] = "count_accuracy"
    within: int = Field(0, ge=0, description="Largest difference that still counts; 0 is exact, 1 is `close`.")
    average: Literal["answers", "counts"] = Field(
        "answers",
        description="answers: every question counts the same; counts: every true number does, the mean over numbers.",
    )


class ExactMatchConfig(BlockConfig):
    """Share of text answers that are word for word right."""

    type: Literal["exact_match"] = "exact_match"


class PointingConfig(BlockConfig):
    """Precision, recall and F1 of points after optimal matching."""

    type: Literal["pointing"] = "pointing"
    within: Literal["pixels", "box", "mask"] = Field(
        "pixels",
        description="pixels: at most `tolerance` pixels of the original picture from the true point; box: inside the "
        "smallest annotated object around it; mask: inside its own object's mask, as PixMo is scored.",
    )
    tolerance: float = Field(5.0, gt=0, description="With `within: pixels`: largest distance that counts as a hit.")


class CaptionF1Config(BlockConfig):
    """F1 of the statements that a description makes (F1-cap)."""

    type: Literal["caption_f1"] = "caption_f1"
    words: float = Field(
        0.75,
        gt=0,
        le=1,
        description="Share of a statement's words that a text must have for the statement to follow from it.",
    )


_SEPARATOR = Field("", description="What stands between several true answers in a turn's text; none: there is one.")


class AnswerMatchConfig(BlockConfig):
    """Share of answers equal to one of several true ones."""

    type: Literal["answer_match"] = "answer_match"
    separator: str = _SEPARATOR
    ignore: Literal["exact", "case", "punctuation"] = Field(
        "case", description="Differences that do not count: none but spaces, letter case, or case and punctuation."
    )


class RelaxedCorrectnessConfig(BlockConfig):
    """Share of answers that are nearly the true number, or the true text (charts)."""

    type: Literal["relaxed_correctness"] = "relaxed_correctness"
    separator: str = _SEPARATOR
    tolerance: float = Field(0.05, ge=0, le=1, description="Largest difference, as a share of the true number.")
    numbers: Literal["read", "released"] = Field(
        "read",
        description="read: `1,000`, `$5` and `0.0` are numbers; released: as the released code, where the first two "
        "are text and a true 0 is compared as text.",
    )


class AnlsConfig(BlockConfig):
    """Average normalised Levenshtein similarity (documents)."""

    type: Literal["anls"] = "anls"
    separator: str = _SEPARATOR
    threshold: float = Field(0.5, ge=0, lt=1, description="A similarity up to this counts as 0.")


class VqaScoreConfig(BlockConfig):
    """Agreement with several people's answers, as in the VQA challenge."""

    type: Literal["vqa_score"] = "vqa_score"
    separator: str = Field("|", description="What stands between the true answers in a turn's text.")


BOX_ACCURACY = BlockSpec(
    api=API_VERSION,
    family="metrics",
    config=BoxAccuracyConfig,
    factory="fusionkit.blocks.metrics.boxes:BoxAccuracy",
    summary="Share of boxes with IoU at or above a threshold; an answer without a box is 0.",
    examples=({}, {"threshold": 0.75}, {"boxes": "first", "border": "missed"}),
)

MEAN_IOU = BlockSpec(
    api=API_VERSION,
    family="metrics",
    config=MeanIouConfig,
    factory="fusionkit.blocks.metrics.boxes:MeanIou",
    summary="Mean IoU of boxes; an answer without a box is 0.",
    examples=({}, {"boxes": "first", "without_box": 0.5}),
)

POINT_ACCURACY = BlockSpec(
    api=API_VERSION,
    family="metrics",
    config=PointAccuracyConfig,
    factory="fusionkit.blocks.metrics.points:PointAccuracy",
    summary="Share of points close to the truth, or inside the object's box.",
    examples=(
        {},
        {"within": "pixels", "tolerance": 3.0},
        {"within": "pixels", "tolerance": 5.0, "matching": "optimal", "denominator": "truth", "frame": 336},
        {"within": "box"},
    ),
)

COUNT_ACCURACY = BlockSpec(
    api=API_VERSION,
    family="metrics",
    config=CountAccuracyConfig,
    factory="fusionkit.blocks.metrics.text:CountAccuracy",
    summary="Share of counts exactly right, or within 1; `none` is 0, an answer without a number is wrong.",
    examples=({}, {"within": 1}, {"average": "counts"}),
)

EXACT_MATCH = BlockSpec(
    api=API_VERSION,
    family="metrics",
    config=ExactMatchConfig,
    factory="fusionkit.blocks.metrics.text:ExactMatch",
    summary="Share of text answers equal to the truth, letter case and spaces aside.",
)

POINTING = BlockSpec(
    api=API_VERSION,
    family="metrics",
    config=PointingConfig,
    factory="fusionkit.blocks.metrics.pointing:Pointing",
    summary="Precision, recall and F1 of points by optimal matching, within pixels or inside objects or masks.",
    examples=({}, {"tolerance": 3.0}, {"within": "box"}),
)

CAPTION_F1 = BlockSpec(
    api=API_VERSION,
    family="metrics",
    config=CaptionF1Config,
    factory="fusionkit.blocks.metrics.captions:CaptionF1",
    summary="F1-cap: precision, recall and F1 of a description's statements, by a judge that compares words.",
    examples=({}, {"words": 1.0}),
)

ANSWER_MATCH = BlockSpec(
    api=API_VERSION,
    family="metrics",
    config=AnswerMatchConfig,
    factory="fusionkit.blocks.metrics.answers:AnswerMatch",
    summary="Share of answers equal to one of the true ones; case and punctuation by choice.",
    examples=({}, {"ignore": "punctuation"}, {"separator": "|"}),
)

RELAXED_CORRECTNESS = BlockSpec(
    api=API_VERSION,
    family="metrics",
    config=RelaxedCorrectnessConfig,
    factory="fusionkit.blocks.metrics.answers:RelaxedCorrectness",
    summary="Share of answers within 5 % of the true number, or the same text.",
    examples=({}, {"numbers": "released"}),
)

ANLS = BlockSpec(
    api=API_VERSION,
    family="metrics",
    config=AnlsConfig,
    factory="fusionkit.blocks.metrics.answers:Anls",
    summary="1 - edit distance / longer length, 0 up to one half; the best over the true answers.",
    examples=({},),
)

VQA_SCORE = BlockSpec(
    api=API_VERSION,
    family="metrics",
    config=VqaScoreConfig,
    factory="fusionkit.blocks.metrics.answers:VqaScore",
    summary="min(equal true answers / 3, 1) after the VQA challenge's normalisation.",
    examples=({"separator": ""}, {}),
)
