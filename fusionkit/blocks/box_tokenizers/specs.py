"""Configs and specs of the box tokenizers. Torch-free."""

from typing import Literal, Self

from pydantic import Field, model_validator

from fusionkit.plugin import API_VERSION, BlockConfig, BlockSpec


class CoordinateBinsConfig(BlockConfig):
    """Boxes and points as coordinate tokens: `<BOX><COORD_x0><COORD_y0><COORD_x1><COORD_y1><END_BOX>`."""

    type: Literal["coordinate_bins"] = "coordinate_bins"
    bins: int = Field(
        1000, ge=2, le=65536, description="Number of coordinate tokens, 0 at one edge and bins - 1 at the other."
    )


class PixelTextConfig(BlockConfig):
    """Boxes and points as whole pixels in text, as the released CoME-VL code writes them."""

    type: Literal["pixel_text"] = "pixel_text"
    tags: bool = Field(True, description="Write boxes between <box> and </box>; false: bare brackets.")


class MolmoPointsConfig(BlockConfig):
    """Points in percent with one decimal, as Molmo and PixMo write them."""

    type: Literal["molmo_points"] = "molmo_points"
    pairs: Literal["points", "boxes"] = Field(
        "points", description="What a tag of two points means when nothing marks it as a box: two points, or a box."
    )


class Qwen25VlConfig(BlockConfig):
    """JSON in pixels of the picture as Qwen2.5-VL's processor resizes it."""

    type: Literal["qwen2_5_vl"] = "qwen2_5_vl"
    factor: int = Field(28, ge=1, le=1024, description="Both sides of the resized picture are multiples of this.")
    min_pixels: int = Field(3136, ge=1, description="Least area of the resized picture.")
    max_pixels: int = Field(1003520, ge=1, description="Largest area of the resized picture.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is more than max_pixels {self.max_pixels}")
        return self


class Norm1000Config(BlockConfig):
    """JSON in thousandths of the picture's sides, as Qwen3-VL and others write it."""

    type: Literal["norm1000"] = "norm1000"


class PaliGemmaConfig(BlockConfig):
    """PaliGemma's location tokens: y x y x in 1024 steps, the label behind."""

    type: Literal["paligemma"] = "paligemma"


class QwenVlConfig(BlockConfig):
    """Qwen-VL's boxes: numbers 0 to 999 in text between box tags."""

    type: Literal["qwen_vl"] = "qwen_vl"


class InternVlConfig(BlockConfig):
    """InternVL's boxes: thousandths in nested brackets between box tags."""

    type: Literal["internvl"] = "internvl"


class Florence2Config(BlockConfig):
    """Florence-2's location tokens: 1000 cells a side, decoded at the cell's centre."""

    type: Literal["florence2"] = "florence2"


class Kosmos2Config(BlockConfig):
    """Kosmos-2's patch indices: two cells of a coarse grid per box."""

    type: Literal["kosmos2"] = "kosmos2"
    patches: int = Field(32, ge=1, le=99, description="Cells of the grid along each side.")


class Pix2SeqConfig(BlockConfig):
    """Pix2Seq's quantised coordinates: y x y x, the label behind."""

    type: Literal["pix2seq"] = "pix2seq"
    bins: int = Field(1000, ge=2, le=65536, description="Number of coordinate tokens.")


class ShikraConfig(BlockConfig):
    """Shikra's boxes: shares of the square that the picture is padded to, three decimals."""

    type: Literal["shikra"] = "shikra"
    padded: bool = Field(True, description="Take shares of the padded square; false: of the picture's own sides.")


COORDINATE_BINS = BlockSpec(
    api=API_VERSION,
    family="box_tokenizers",
    config=CoordinateBinsConfig,
    factory="fusionkit.blocks.box_tokenizers.coordinate_bins:CoordinateBins",
    summary="One token per coordinate, in equal bins of the picture's side; exact integer arithmetic.",
    guarantees=frozenset({"box_round_trip"}),
    paper="arXiv 2604.03231",
    equation="Eq. 10-13",
    examples=({"bins": 1000}, {"bins": 100}, {"bins": 2}),
)

PIXEL_TEXT = BlockSpec(
    api=API_VERSION,
    family="box_tokenizers",
    config=PixelTextConfig,
    factory="fusionkit.blocks.box_tokenizers.pixel_text:PixelText",
    summary="Whole pixels of the picture in text, as in the released code; half a pixel of error.",
    guarantees=frozenset({"box_round_trip"}),
    examples=({}, {"tags": False}),
)

MOLMO_POINTS = BlockSpec(
    api=API_VERSION,
    family="box_tokenizers",
    config=MolmoPointsConfig,
    factory="fusionkit.blocks.box_tokenizers.molmo_points:MolmoPoints",
    summary="Percent with one decimal in <point> tags, sorted, as Molmo and PixMo write them.",
    guarantees=frozenset({"box_round_trip"}),
    examples=({}, {"pairs": "boxes"}),
)

QWEN2_5_VL = BlockSpec(
    api=API_VERSION,
    family="box_tokenizers",
    config=Qwen25VlConfig,
    factory="fusionkit.blocks.box_tokenizers.qwen2_5_vl:Qwen25Vl",
    summary="JSON in pixels of the picture as Qwen2.5-VL resizes it.",
    guarantees=frozenset({"box_round_trip"}),
    examples=({}, {"factor": 32, "min_pixels": 4096, "max_pixels": 262144}),
)

NORM1000 = BlockSpec(
    api=API_VERSION,
    family="box_tokenizers",
    config=Norm1000Config,
    factory="fusionkit.blocks.box_tokenizers.norm1000:Norm1000",
    summary="JSON in thousandths of the picture's sides, as Qwen3-VL and others write it.",
    guarantees=frozenset({"box_round_trip"}),
    examples=({},),
)

PALIGEMMA = BlockSpec(
    api=API_VERSION,
    family="box_tokenizers",
    config=PaliGemmaConfig,
    factory="fusionkit.blocks.box_tokenizers.paligemma:PaliGemma",
    summary="Location tokens y x y x in 1024 steps, the label behind.",
    guarantees=frozenset({"box_round_trip"}),
    examples=({},),
)

QWEN_VL = BlockSpec(
    api=API_VERSION,
    family="box_tokenizers",
    config=QwenVlConfig,
    factory="fusionkit.blocks.box_tokenizers.qwen_vl:QwenVl",
    summary="Numbers 0 to 999 in text between box tags, the label before.",
    guarantees=frozenset({"box_round_trip"}),
    examples=({},),
)

INTERNVL = BlockSpec(
    api=API_VERSION,
    family="box_tokenizers",
    config=InternVlConfig,
    factory="fusionkit.blocks.box_tokenizers.internvl:InternVl",
    summary="Thousandths in nested brackets between box tags, the label before.",
    guarantees=frozenset({"box_round_trip"}),
    examples=({},),
)

FLORENCE2 = BlockSpec(
    api=API_VERSION,
    family="box_tokenizers",
    config=Florence2Config,
    factory="fusionkit.blocks.box_tokenizers.florence2:Florence2",
    summary="Location tokens x y x y of 1000 cells a side, decoded at their centres.",
    guarantees=frozenset({"box_round_trip"}),
    examples=({},),
)

KOSMOS2 = BlockSpec(
    api=API_VERSION,
    family="box_tokenizers",
    config=Kosmos2Config,
    factory="fusionkit.blocks.box_tokenizers.kosmos2:Kosmos2",
    summary="Two patch indices of a 32 by 32 grid per box; one cell of error.",
    guarantees=frozenset({"box_round_trip"}),
    examples=({}, {"patches": 8}),
)

PIX2SEQ = BlockSpec(
    api=API_VERSION,
    family="box_tokenizers",
    config=Pix2SeqConfig,
    factory="fusionkit.blocks.box_tokenizers.pix2seq:Pix2Seq",
    summary="Coordinate tokens y x y x in a chosen number of bins, the label behind.",
    guarantees=frozenset({"box_round_trip"}),
    examples=({}, {"bins": 2000}, {"bins": 2}),
)

SHIKRA = BlockSpec(
    api=API_VERSION,
    family="box_tokenizers",
    config=ShikraConfig,
    factory="fusionkit.blocks.box_tokenizers.shikra:Shikra",
    summary="Shares of the padded square with three decimals in brackets.",
    guarantees=frozenset({"box_round_trip"}),
    examples=({}, {"padded": False}),
)
