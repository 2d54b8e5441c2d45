"""What a recipe is, once it is known to be well formed: frozen values that know where they were written.

Block fields hold the validated config of the block's own class.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, PrivateAttr

from fusionkit.errors import Problem
from fusionkit.plugin import BlockConfig, BlockSpec
from fusionkit.recipe.names import Name
from fusionkit.recipe.section import STEP, BlockOf, Section
from fusionkit.recipe.train_schema import Evaluate, Train
from fusionkit.recipe.tree import Origin, Table, locate

Encoder = Annotated[BlockConfig, BlockOf("encoders")]
Selector = Annotated[BlockConfig, BlockOf("selectors")]
Step = Annotated[BlockConfig, BlockOf(STEP)]
Injector = Annotated[BlockConfig, BlockOf("injectors")]
LanguageModel = Annotated[BlockConfig, BlockOf("language_models")]
BoxTokenizer = Annotated[BlockConfig, BlockOf("box_tokenizers")]
Cropper = Annotated[BlockConfig, BlockOf("croppers")]


class Stream(Section):
    """One encoder, the layers read from it, and the steps that make tokens of them."""

    encoder: Encoder = Field(description="What sees the crop.")
    select: Selector = Field(description="Which of the encoder's layers are read, for example {type: last}.")
    steps: dict[Name, Step] = Field(default_factory=dict, description="Mixers, adapters and poolers, in order.")


@dataclass(frozen=True, slots=True)
class PlacedBlock:
    """A block of a recipe and its address; `family` is `step` for all step families."""

    address: str
    family: str
    config: BlockConfig

    def spec(self) -> BlockSpec:
        return BlockOf(self.family).spec(self.config.type)


class Recipe(Section):
    """A multi-encoder vision-language model as data: what it is, how it learns, how it is scored."""

    schema_version: Literal[1] = Field(alias="schema", description="Version of this format: `schema: 1`.")
    name: str = Field(
        pattern=r"^[a-z][a-z0-9_]*$", description="Name of the recipe, in lower-case letters, digits and underscores."
    )
    summary: str = Field("", description="One line for lists and model cards.")
    requires: tuple[str, ...] = Field((), description="Distributions it needs, for example `acme-sam2>=1.2`.")
    sequence_length: PositiveInt = Field(2048, description="Most tokens of picture and text together.")
    cropper: Cropper | None = Field(None, description="How a picture becomes crops and tokens in the text.")
    streams: dict[Name, Stream] = Field(min_length=1, description="Encoders with their steps, by name.")
    fusion: dict[Name, Step] = Field(default_factory=dict, description="Steps on the streams' outputs, in order.")
    injectors: dict[Name, Injector] = Field(
        default_factory=dict, description="How the fused tokens enter the language model, in order."
    )
    language_model: LanguageModel | None = Field(None, description="The decoder that answers.")
    box_tokenizer: BoxTokenizer | None = Field(None, description="How boxes and points are written in the text.")
    train: Train | None = Field(None, description="How it learns.")
    evaluate: tuple[Evaluate, ...] = Field((), description="How it is scored.")

    _tree: Table = PrivateAttr(default_factory=Table)

    def canonical(self) -> dict[str, Any]:
        """The recipe as JSON-able values with every default filled in; `load_recipe` takes it back unchanged."""
        return self.model_dump(mode="json", by_alias=True)

    def where(self, address: str) -> Origin:
        """Where the value at `address` was written; for a default, where the mapping that lacks it was."""
        return locate(self._tree, address).origin

    def problem(self, address: str, message: str, hint: str = "") -> Problem:
        """A problem with the value at `address`, pointing at the line it was written on."""
        origin = self.where(address)
        return Problem(origin.source, origin.line, origin.column, address, message, hint)

    def blocks(self) -> Iterator[PlacedBlock]:
        """Every block of the recipe with its address, in the order written."""
        for name, stream in self.streams.items():
            yield PlacedBlock(f"streams.{name}.encoder", "encoders", stream.encoder)
            yield PlacedBlock(f"streams.{name}.select", "selectors", stream.select)
            yield from _named(f"streams.{name}.steps", STEP, stream.steps)
        yield from _named("fusion", STEP, self.fusion)
        yield from _named("injectors", "injectors", self.injectors)
        for address, family, block in (
            ("cropper", "croppers", self.cropper),
            ("language_model", "language_models", self.language_model),
            ("box_tokenizer", "box_tokenizers", self.box_tokenizer),
        ):
            if block is not None:
                yield PlacedBlock(address, family, block)
        if self.train is not None:
            yield from _numbered("train.data", "datasets", self.train.data)
            for name, stage in self.train.stages.items():
                yield from _named(f"train.stages.{name}.objectives", "objectives", stage.objectives)
                yield from _numbered(f"train.stages.{name}.data", "datasets", stage.data or ())
        for index, scores in enumerate(self.evaluate):
            yield from _numbered(f"evaluate.{index}.metrics", "metrics", scores.metrics)
            yield PlacedBlock(f"evaluate.{index}.data", "datasets", scores.data)

    def __eq__(self, other: object) -> bool:
        """Equal when they mean the same, wherever they were written."""
        return self.canonical() == other.canonical() if isinstance(other, Recipe) else NotImplemented

    def __hash__(self) -> int:
        return hash(json.dumps(self.canonical()))


def _named(address: str, family: str, blocks: Mapping[str, BlockConfig]) -> Iterator[PlacedBlock]:
    return (PlacedBlock(f"{address}.{name}", family, block) for name, block in blocks.items())


def _numbered(address: str, family: str, blocks: Sequence[BlockConfig]) -> Iterator[PlacedBlock]:
    return (PlacedBlock(f"{address}.{index}", family, block) for index, block in enumerate(blocks))
