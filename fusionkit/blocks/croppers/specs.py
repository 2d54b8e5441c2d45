"""Configs and specs of the croppers. Torch-free."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from fusionkit.plugin import API_VERSION, BlockConfig, BlockSpec

Resample = Literal["bilinear", "bicubic"]


class SamplingConfig(BlockConfig):
    """How pixels are sampled; shared by the croppers."""

    resample: Resample = Field("bicubic", description="Interpolation kernel.")
    antialias: bool = Field(
        True, description="Widen the kernel when a picture shrinks; off only to match released pixels."
    )

    @model_validator(mode="after")
    def _bicubic_is_antialiased(self) -> Self:
        if self.resample == "bicubic" and not self.antialias:
            raise ValueError("bicubic without antialias is not offered; use resample: bilinear, or antialias: true")
        return self


class ResizeConfig(SamplingConfig):
    """One crop: the whole picture, stretched to each stream's input size."""

    type: Literal["resize"] = "resize"
    size: PositiveInt | None = Field(
        None,
        description="Stretch the picture to this square first, so that every stream samples the same canvas; "
        "without it each stream samples the picture itself.",
    )


class LetterboxConfig(SamplingConfig):
    """One crop: the whole picture in the middle of a black square, its aspect ratio kept."""

    type: Literal["letterbox"] = "letterbox"
    size: PositiveInt | None = Field(
        None,
        description="Side of the square, of whose pixels the picture takes whole ones; the smallest stream's input if not given.",
    )


class OverlapTilesConfig(SamplingConfig):
    """Overlapping square tiles in as many rows and columns as suit the picture, and a view of the whole."""

    type: Literal["overlap_tiles"] = "overlap_tiles"
    size: PositiveInt = Field(384, description="Side of a tile on the canvas, pixels.")
    patch: PositiveInt = Field(16, description="Unit of `margin_patches`, pixels.")
    max_crops: Annotated[int, Field(ge=1, le=256)] = Field(
        12, description="Most tiles; the global view is not counted."
    )
    margin_patches: tuple[NonNegativeInt, NonNegativeInt] = Field(
        (4, 4), description="Patches at a tile's [left and top, right and bottom] that its neighbours also see."
    )
    global_view: bool = Field(True, description="Put the whole picture, stretched to one tile, before the tiles.")
    fit: Literal["stretch", "letterbox"] = Field(
        "stretch", description="Fill the canvas, or keep the aspect ratio and pad with black."
    )
    resample_from: Literal["image", "crop"] = Field(
        "image",
        description="What streams of another input size than `size` are resampled from: the picture itself, or the "
        "crop at `size` (bilinear), as the released CoME-VL does, which adds no detail and loses some.",
    )

    @model_validator(mode="after")
    def _tiles_have_a_middle(self) -> Self:
        if self.size % self.patch:
            raise ValueError(f"size {self.size} is not a multiple of patch {self.patch}")
        if sum(self.margin_patches) * self.patch >= self.size:
            raise ValueError(
                f"margins of {sum(self.margin_patches)} patches leave nothing of a tile of {self.size // self.patch} patches"
            )
        if self.resample_from == "crop" and self.fit == "letterbox":
            raise ValueError("resample_from crop would smear padding into the picture; use it with fit: stretch")
        return self


RESIZE = BlockSpec(
    api=API_VERSION,
    family="croppers",
    config=ResizeConfig,
    factory="fusionkit.blocks.croppers.resize:Resize",
    summary="The whole picture as one crop, stretched to each stream's input size.",
    examples=({}, {"size": 48}, {"resample": "bilinear"}),
)

LETTERBOX = BlockSpec(
    api=API_VERSION,
    family="croppers",
    config=LetterboxConfig,
    factory="fusionkit.blocks.croppers.letterbox:Letterbox",
    summary="The whole picture as one crop, its aspect ratio kept, in the middle of a black square.",
    examples=({}, {"size": 48}, {"resample": "bilinear", "antialias": False}),
)

OVERLAP_TILES = BlockSpec(
    api=API_VERSION,
    family="croppers",
    config=OverlapTilesConfig,
    factory="fusionkit.blocks.croppers.overlap_tiles:OverlapTiles",
    summary="Overlapping tiles and a global view; overlap is seen by the encoders and dropped from the tokens.",
    paper="arXiv 2409.17146",
    examples=(
        {"size": 384, "max_crops": 12, "margin_patches": [4, 4], "global_view": True},
        {"size": 48, "patch": 4, "max_crops": 4, "margin_patches": [2, 2], "global_view": False},
        {"size": 48, "patch": 4, "max_crops": 4, "margin_patches": [2, 2], "fit": "letterbox"},
        {"size": 48, "patch": 4, "max_crops": 4, "margin_patches": [2, 2], "resample_from": "crop"},
    ),
)
