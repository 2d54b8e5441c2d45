"""Configs and specs of the datasets. Torch-free."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from fusionkit.plugin import API_VERSION, BlockSpec, DatasetConfig

Kind = Literal["box", "point", "count", "describe"]
Share = Annotated[float, Field(ge=0, le=1)]
ObjectCount = Annotated[int, Field(ge=1, le=12)]
RefcocoSplit = Literal["train", "val", "test", "testA", "testB"]
PixmoPart = Literal["ask", "cap", "cap_qa", "count", "docs", "points", "points_eval"]


class SyntheticScenesConfig(DatasetConfig):
    """Coloured shapes on a busy background, with questions whose answers are known exactly."""

    type: Literal["synthetic_scenes"] = "synthetic_scenes"
    seed: NonNegativeInt = Field(0, description="Samples are a function of (seed, index); another seed is unseen data.")
    samples: PositiveInt | None = Field(None, description="How many samples there are; without it they do not end.")
    pictures: PositiveInt | None = Field(
        None, description="How many pictures there are; later samples ask other questions about the same ones."
    )
    size: Annotated[int, Field(ge=24, le=1024)] = Field(48, description="Side of the square picture, pixels.")
    objects: ObjectCount | tuple[ObjectCount, ObjectCount] = Field(
        4, description="Objects per picture, or [least, most]."
    )
    object_size: tuple[Share, Share] = Field(
        (0.17, 0.37), description="Smallest and largest side of an object, as a share of the picture's side."
    )
    overlap: Share = Field(0.0, description="Most of an object's box that later objects may cover (occlusion).")
    textures: Share = Field(
        0.0, description="Share of objects filled with stripes, dots or checks instead of plain colour."
    )
    clutter: Annotated[int, Field(ge=0, le=64)] = Field(0, description="Grey strokes behind the objects.")
    noise: Share = Field(0.03, description="Standard deviation of the pixel noise, as a share of full scale.")
    photographs: str | None = Field(None, description="Folder of pictures to use as backgrounds.")
    turns: PositiveInt = Field(6, le=32, description="Questions per picture.")
    kinds: dict[Kind, NonNegativeFloat] = Field(
        {"box": 3.0, "point": 2.0, "count": 2.0, "describe": 0.0},
        description="Relative weights of the kinds of question; a kind not named is not asked.",
    )
    single_attribute: Share = Field(
        0.5, description="Share of box and point questions that name one attribute only, where one is enough."
    )
    combinations: Literal["training", "held_out", "all"] = Field(
        "training",
        description="training: never shows a held-out pair of colour and shape; held_out: asks only about held-out pairs; "
        "all: any pair.",
    )
    phrasings: Literal["training", "held_out", "all"] = Field("training", description="Which wordings questions use.")

    def data_folders(self) -> tuple[str, ...]:
        return () if self.photographs is None else (self.photographs,)

    @model_validator(mode="after")
    def _ranges_rise(self) -> Self:
        for name in ("objects", "object_size"):
            value = getattr(self, name)
            if isinstance(value, tuple) and value[0] > value[1]:
                raise ValueError(f"{name} must be [least, most], got {list(value)}")
        if self.object_size[0] * self.size < 6:
            raise ValueError(
                f"object_size {self.object_size[0]} of {self.size} px is under 6 px, too small to tell shapes"
            )
        if self.object_size[1] > 0.6:
            raise ValueError(f"object_size must stay under 0.6 of the picture, got {self.object_size[1]}")
        number = self.objects if isinstance(self.objects, int) else self.objects[1]
        if number * self.object_size[0] ** 2 * (1 - self.overlap) > 0.6:
            raise ValueError(
                f"{number} objects of at least {self.object_size[0]} of the side do not fit; lower one of them"
            )
        if not any(self.kinds.values()):
            raise ValueError("kinds needs at least one weight above 0")
        if self.combinations == "held_out" and not (self.kinds.get("box") or self.kinds.get("point")):
            raise ValueError("combinations: held_out asks box and point questions only; give one of them a weight")
        return self


class JsonlConfig(DatasetConfig):
    """Your own data: one JSON object per line with `image`, `conversations` and optional `boxes` and `points`."""

    type: Literal["jsonl"] = "jsonl"
    path: str = Field(min_length=1, description="The .jsonl file; pictures are relative to its folder.")
    fetch: bool = Field(
        False,
        description="An `image` may be an http(s) address: fetched once into the folder `images` beside the file.",
    )


class LlavaConfig(DatasetConfig):
    """Conversations in LLaVA's format: a JSON list, or one object per line, and a folder of pictures."""

    type: Literal["llava"] = "llava"
    path: str = Field(min_length=1, description="The .json or .jsonl file.")
    images: str | None = Field(None, description="Folder of the pictures; that of the file if not given.")

    def data_folders(self) -> tuple[str, ...]:
        return () if self.images is None else (self.images,)


Column = Annotated[str, Field(min_length=1)]


class Columns(BaseModel):
    """Which column holds what; `objects.bbox` is the part `bbox` of a column of parts. What is not named is not read."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", defer_build=True)

    image: Column | None = Field(None, description="A picture, a list of them, or file names; boxes are in the first.")
    question: Column | None = Field(None, description="A question, or a list of them.")
    answer: Column | None = Field(
        None, description="Text, a whole number or a class; a list of as many where `question` is a list."
    )
    conversations: Column | None = Field(
        None,
        description="Messages in turn (from/value, role/content or user/assistant), instead of question and answer.",
    )
    boxes: Column | None = Field(None, description="One box or a list of boxes, four numbers each.")
    points: Column | None = Field(None, description="One point or a list of points, two numbers each.")


class HuggingFaceConfig(DatasetConfig):
    """Anything the library `datasets` reads, a folder or an id of the hub, by naming its columns."""

    type: Literal["hugging_face"] = "hugging_face"
    path: str = Field(
        min_length=1,
        description="A folder (parquet, json, csv, pictures, or saved with save_to_disk), a file of rows, or a hub id.",
    )
    name: str | None = Field(None, min_length=1, description="Which of its configurations, where there are several.")
    split: str | None = Field(
        None, min_length=1, description="The split, or a part of it as train[:1000]; the only one if not given."
    )
    revision: str | None = Field(None, min_length=1, description="Branch, tag or commit of a hub id.")
    columns: Columns = Field(description="Which column holds what.")
    ask: str | None = Field(
        None,
        min_length=1,
        description="The question where no column holds it; {caption} stands for what the column `caption` holds.",
    )
    box_format: Literal["xyxy", "xywh"] = Field("xyxy", description="Corners, or the first corner, width and height.")
    units: Literal["pixels", "shares"] = Field(
        "pixels", description="Of boxes and points: pixels of the picture, or shares of its width and height."
    )

    @model_validator(mode="after")
    def _says_what_is_asked_and_answered(self) -> Self:
        columns = self.columns
        ways = [columns.conversations is not None, columns.question is not None, self.ask is not None]
        if sum(ways) != 1:
            raise ValueError("give exactly one of columns.question, columns.conversations and `ask`")
        if columns.conversations is not None and columns.answer is not None:
            raise ValueError("columns.conversations has the answers too; leave columns.answer out")
        if columns.conversations is None and not (columns.answer or columns.boxes or columns.points):
            raise ValueError("give columns.answer, or columns.boxes or columns.points where those are the answer")
        if (columns.boxes or columns.points) and columns.image is None:
            raise ValueError("boxes and points need columns.image, the picture they are in")
        return self


class RefcocoConfig(DatasetConfig):
    """Referring expressions (RefCOCO, RefCOCO+, RefCOCOg) from local files."""

    type: Literal["refcoco"] = "refcoco"
    root: str = Field(
        "data/refcoco", min_length=1, description="Folder with refs(unc).p or refs.json, instances.json and images/."
    )
    refs: str | None = Field(
        None, min_length=1, description="The file of expressions in `root`, where there is more than one."
    )
    boxes: Literal["instances", "xywh", "xyxy"] = Field(
        "instances", description="Boxes and names from instances.json, or each row's own `bbox`, in that form."
    )
    images: str = Field("images", min_length=1, description="Folder of the pictures, in `root` or a whole path.")
    split: RefcocoSplit | None = Field(None, description="The one split to read.")
    splits: tuple[RefcocoSplit, ...] | None = Field(None, min_length=1, description="Several splits to read.")

    def data_folders(self) -> tuple[str, ...]:
        return (self.root, self.images) if Path(self.images).is_absolute() else (self.root,)

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Self:
        if (self.split is None) == (self.splits is None):
            raise ValueError("give either `split: train` or `splits: [val, testA, testB]`")
        if self.splits is not None and len(set(self.splits)) != len(self.splits):
            raise ValueError(f"splits are repeated: {list(self.splits)}")
        return self

    @property
    def wanted(self) -> tuple[str, ...]:
        """The splits to read."""
        return self.splits if self.splits is not None else (str(self.split),)


class PixmoConfig(DatasetConfig):
    """PixMo (captions, points, counts, questions) from local files."""

    type: Literal["pixmo"] = "pixmo"
    root: str = Field(
        "data/pixmo",
        min_length=1,
        description="Folder with PART.jsonl, PART.parquet or PART/*.parquet for each part, and images/.",
    )
    parts: tuple[PixmoPart, ...] = Field(("cap", "points", "count"), min_length=1, description="Which parts to read.")
    split: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_]+$", description="Of a folder PART/, read the files SPLIT-*.parquet only."
    )
    fetch: bool = Field(False, description="Fetch pictures that are not there from `image_url`, once, into images/.")
    leave_out_missing: bool = Field(
        False, description="Leave out rows whose picture cannot be had, instead of failing when they are read."
    )

    @model_validator(mode="after")
    def _parts_once(self) -> Self:
        if len(set(self.parts)) != len(self.parts):
            raise ValueError(f"parts are repeated: {list(self.parts)}")
        return self


class CocoBoxesConfig(DatasetConfig):
    """Boxes in the COCO format, asked for by category."""

    type: Literal["coco_boxes"] = "coco_boxes"
    annotations: str = Field(
        "data/coco/instances.json", min_length=1, description="The COCO file: images, annotations, categories."
    )
    images: str = Field("images", min_length=1, description="Folder of the pictures, beside the file or a whole path.")
    categories: tuple[str, ...] | None = Field(None, min_length=1, description="Ask for these only; all if not given.")
    fetch: bool = Field(False, description="Fetch pictures that are not there from their `coco_url`, once.")

    def data_folders(self) -> tuple[str, ...]:
        return (str(Path(self.annotations).parent / self.images),)


SYNTHETIC_SCENES = BlockSpec(
    api=API_VERSION,
    family="datasets",
    config=SyntheticScenesConfig,
    factory="fusionkit.blocks.datasets.synthetic_scenes:SyntheticScenes",
    summary="Procedural scenes of coloured shapes with exact boxes, points, counts and descriptions.",
    examples=(
        {"samples": 64},
        {"samples": 16, "objects": [2, 6], "overlap": 0.3, "textures": 0.5, "clutter": 6, "phrasings": "all"},
        {"samples": 16, "combinations": "held_out", "phrasings": "held_out", "seed": 7},
    ),
)

JSONL = BlockSpec(
    api=API_VERSION,
    family="datasets",
    config=JsonlConfig,
    factory="fusionkit.blocks.datasets.jsonl:JsonlDataset",
    summary="Your own pictures and conversations, with boxes and points in pixels.",
    examples=({"path": "data/mine.jsonl"},),
)

LLAVA = BlockSpec(
    api=API_VERSION,
    family="datasets",
    config=LlavaConfig,
    factory="fusionkit.blocks.datasets.llava:Llava",
    summary="Conversations in LLaVA's format, with one picture, several or none.",
    paper="arXiv 2304.08485",
    examples=({"path": "data/llava.json", "images": "data/images"},),
)

HUGGING_FACE = BlockSpec(
    api=API_VERSION,
    family="datasets",
    config=HuggingFaceConfig,
    factory="fusionkit.blocks.datasets.hugging_face:HuggingFace",
    summary="Any folder or hub id that the library datasets reads, by naming its columns.",
    examples=(
        {
            "path": "data/vqa",
            "split": "train",
            "columns": {"image": "image", "question": "question", "answer": "answer"},
        },
        {"path": "data/phrases", "ask": "Locate {phrase}.", "columns": {"image": "image", "boxes": "objects.bbox"}},
    ),
)

REFCOCO = BlockSpec(
    api=API_VERSION,
    family="datasets",
    config=RefcocoConfig,
    factory="fusionkit.blocks.datasets.refcoco:Refcoco",
    summary="RefCOCO, RefCOCO+ or RefCOCOg from local files: the released pickle, JSON or parquet.",
    paper="arXiv 1608.00272",
    examples=({"split": "train"}, {"splits": ["val", "testA", "testB"]}),
)

PIXMO = BlockSpec(
    api=API_VERSION,
    family="datasets",
    config=PixmoConfig,
    factory="fusionkit.blocks.datasets.pixmo:Pixmo",
    summary="PixMo captions, points, counts, questions and documents from local JSONL or parquet files.",
    paper="arXiv 2409.17146",
    examples=({}, {"parts": ["points"]}),
)

COCO_BOXES = BlockSpec(
    api=API_VERSION,
    family="datasets",
    config=CocoBoxesConfig,
    factory="fusionkit.blocks.datasets.coco_boxes:CocoBoxes",
    summary="Boxes of a COCO file, asked for by category.",
    paper="arXiv 1405.0312",
    examples=({}, {"categories": ["cat"]}),
)
