"""What a block author imports: the config base class, the spec, the plan and the facts about models.

A block is a `BlockSpec` named by an entry point in the group `fusionkit.<family>`. The spec is torch-free: it
holds a pydantic config class, a pure-Python planner and the dotted name of a factory. Only `build` imports the
factory. Shapes: B batch of crops, N tokens, L layers, D width, E language-model width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

from fusionkit.errors import BoxDecodeError, BuildError, DataError, PluginApiError, PluginLoadError, ShapeError
from fusionkit.facts import IMAGE_TOKEN, EncoderInfo, LanguageModelInfo, Parsed, TokenLayout
from fusionkit.geometry import FULL, Box, Frame, Grid, LayerStackSpec, Mask, Point, Size, TokenSpec

if TYPE_CHECKING:
    from fusionkit.ops.tokens import Tokens
    from fusionkit.sample import ENDLESS, Prediction, Provenance, Sample, SceneObject, Segment, Turn

__all__ = [
    "ACCEPTED_API_VERSIONS",
    "API_VERSION",
    "ENDLESS",
    "FAMILIES",
    "FULL",
    "GUARANTEES",
    "IMAGE_TOKEN",
    "STEP_FAMILIES",
    "BlockConfig",
    "BlockPlan",
    "BlockSite",
    "BlockSpec",
    "Box",
    "BoxDecodeError",
    "BuildError",
    "DataError",
    "DatasetConfig",
    "EncoderInfo",
    "Family",
    "Frame",
    "Grid",
    "InputName",
    "LanguageModelInfo",
    "LayerInjectorConfig",
    "LayerStackSpec",
    "Like",
    "Mask",
    "Parsed",
    "Point",
    "Prediction",
    "Provenance",
    "Sample",
    "SceneObject",
    "Segment",
    "ShapeError",
    "Size",
    "StepConfig",
    "TokenLayout",
    "TokenSpec",
    "Tokens",
    "Turn",
    "Width",
    "input_fields",
    "input_names",
    "resolve_width",
]


_HOMES = {"Tokens": "fusionkit.ops.tokens"} | dict.fromkeys(
    ("ENDLESS", "Prediction", "Provenance", "Sample", "SceneObject", "Segment", "Turn"), "fusionkit.sample"
)
"""Imported when asked for: tokens hold tensors, and whoever only plans does without them, and without samples."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


API_VERSION = 1
"""The plugin API this fusionkit speaks."""

ACCEPTED_API_VERSIONS = (1,)
"""The current and the previous version; version 1 has no predecessor."""


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of block: its entry-point group is `fusionkit.<name>`."""

    name: str
    singular: str
    contract: str
    step: bool = False

    @property
    def group(self) -> str:
        return f"fusionkit.{self.name}"


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.name: family
        for family in (
            Family("encoders", "encoder", "picture -> list of x_BND (crops, tokens, width), one per selected layer"),
            Family("selectors", "selector", "encoder facts -> which layers to read"),
            Family(
                "mixers", "mixer", "list of x_BND (crops, tokens, width) -> one x_BND; count and order kept", step=True
            ),
            Family("adapters", "adapter", "tokens -> tokens on the same grid", step=True),
            Family("poolers", "pooler", "tokens -> fewer tokens on the planned grid", step=True),
            Family("connectors", "connector", "several named inputs -> tokens", step=True),
            Family("injectors", "injector", "fused tokens -> language model"),
            Family("language_models", "language model", "a decoder, pretrained or from a config"),
            Family("objectives", "objective", "outputs and batch -> named losses"),
            Family("box_tokenizers", "box tokenizer", "boxes and points <-> text"),
            Family("croppers", "cropper", "picture -> crops, and the one token-count function"),
            Family("datasets", "dataset", "samples with provenance"),
            Family("metrics", "metric", "predictions and truth -> named scores"),
        )
    }
)
STEP_FAMILIES: tuple[str, ...] = tuple(name for name, family in FAMILIES.items() if family.step)

GUARANTEES: Mapping[str, str] = MappingProxyType(
    {
        "token_count": "as many tokens come out as go in, in the same order",
        "grid": "the output grid is the input grid",
        "permutation_equivariant": "permuting the tokens permutes the output",
        "orthogonal": "every map Q has QᵀQ = I (or QQᵀ = I when it narrows)",
        "simplex_weights": "layer weights are positive and sum to 1",
        "identity_at_zero_gate": "a gate at zero returns the query unchanged, exactly",
        "shift_invariant": "attention logits depend on relative position only",
        "padding_ignored": "tokens marked invalid change nothing",
        "foldable": "fold() gives the same output from precomputed weights",
        "streaming": "begin(chunk)/accumulate/finish equals forward without holding the layers",
        "placed": "visual vector k changes the k-th <image> position and nothing else",
        "box_round_trip": "decode(encode(box)) is within the stated error",
    }
)
"""What a block may claim; the conformance kit has one check for each."""


# --------------------------------------------------------------------------------------------- configuration
class BlockConfig(BaseModel):
    """Base of every block's config: strict, frozen, unknown keys refused. `type` holds the block's name."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", validate_default=True, protected_namespaces=(), defer_build=True
    )

    type: str


class _Reference:
    """Marks a config field as the name of a stream or an earlier step (see `InputName`)."""


InputName = Annotated[str, _Reference(), Field(pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)?$")]
"""A config field of this type (or a tuple of it) is read as an input: `semantic`, `align` or `align.extra`."""


class StepConfig(BlockConfig):
    """A step with one input: the previous step, unless `input` names another."""

    input: InputName | None = Field(None, description="Stream or earlier step to read; the previous step if not given.")


class LayerInjectorConfig(StepConfig):
    """An injector that acts inside the decoder, at some of its blocks, beside the one that writes the embeddings.

    Its module has `layers` and `when` as here, `prepare(tokens, placement) -> tuple of tensors, rows first` and
    `forward(hidden_BTE, state, layer, first) -> hidden_BTE`. It may read other tokens than stand in the text; its
    planner gets those under `input` and the ones in the text under `visual`. A row may hold several samples: a crop is
    seen from `placement.starts_BC` to `placement.ends_BC`.
    """

    layers: tuple[PositiveInt, ...] = Field(
        min_length=1, description="Blocks of the decoder, by number from 1 to its depth, in rising order."
    )
    when: Literal["before", "after"] = Field("before", description="Act on what goes into a block, or comes out of it.")

    @field_validator("layers")
    @classmethod
    def _rising(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if any(low >= high for low, high in pairwise(layers)):
            raise ValueError(f"must rise, each block once, got {list(layers)}; use {sorted(set(layers))}")
        return layers


class DatasetConfig(BlockConfig):
    """A dataset, and its share of a mixture."""

    weight: float = Field(1.0, gt=0, description="Share of this dataset in a mixture, relative to the others.")

    def data_folders(self) -> tuple[str, ...]:
        """Folders whose files are the data: a hash of each goes into the lock, as of files that a field names."""
        return tuple(
            value for name in ("path", "root", "folder") if isinstance(value := getattr(self, name, None), str)
        )


class Like(BaseModel):
    """A width taken from the output of a stream."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    like: str = Field(description="Stream whose output width to take, or `language_model`.")


Width = PositiveInt | Like
"""An output width: a number, or `{like: STREAM}`."""


def resolve_width(width: int | Like | None, target: int | None, default: int) -> int:
    """The output width of a block: its own number, else what the plan asks for, else `default`.

    The planner passes as `target` the width that `{like: ...}` stands for, or the language model's width for
    the last step before it.
    """
    if isinstance(width, int):
        return width
    return target if target is not None else default


def input_fields(config: type[BlockConfig]) -> tuple[str, ...]:
    """The fields of a step's config that name what it reads: those of type `InputName`, or a tuple of it."""
    return tuple(
        name for name, info in config.model_fields.items() if _mentions_reference(info.annotation, info.metadata)
    )


def input_names(config: BlockConfig) -> dict[str, str]:
    """What a step reads: argument name -> source name, from the fields of type `InputName`.

    A scalar field is passed under the field's own name; a tuple field passes each source under the source's
    name (a dot becomes an underscore).
    """
    found: dict[str, str] = {}
    for name in input_fields(type(config)):
        value = getattr(config, name)
        if isinstance(value, str):
            found[name] = value
        elif isinstance(value, Sequence):
            found.update({source.replace(".", "_"): source for source in value})
    return found


def _mentions_reference(annotation: Any, metadata: Sequence[Any] = ()) -> bool:
    if any(isinstance(item, _Reference) for item in (*metadata, *getattr(annotation, "__metadata__", ()))):
        return True
    return any(_mentions_reference(part) for part in get_args(annotation))


# ------------------------------------------------------------------------------------------- plans and sites
@dataclass(frozen=True, slots=True)
class BlockPlan:
    """What a block will produce and cost, before any weight exists.

    `outputs` always has `main`. Costs are for one crop, forward only: `flops` counts matrix products and
    convolutions at 2 per multiply-add; `min_bytes` is every tensor read or written once and `activation_bytes`
    the output, both at 4 bytes per number.
    """

    outputs: Mapping[str, TokenSpec]
    params: int = 0
    flops: int = 0
    min_bytes: int = 0
    activation_bytes: int = 0

    @property
    def main(self) -> TokenSpec:
        return self.outputs["main"]

    @classmethod
    def of(
        cls,
        main: TokenSpec,
        *,
        params: int = 0,
        flops: int = 0,
        reads: Sequence[TokenSpec | LayerStackSpec] = (),
        extra: Mapping[str, TokenSpec] | None = None,
    ) -> BlockPlan:
        """A plan whose byte counts follow from what is read, the parameters and the outputs."""
        outputs = {"main": main, **(extra or {})}
        read = sum(
            spec.depth * spec.tokens.tokens * spec.width
            if isinstance(spec, LayerStackSpec)
            else spec.tokens * spec.width
            for spec in reads
        )
        written = sum(spec.tokens * spec.width for spec in outputs.values())
        return cls(MappingProxyType(outputs), params, flops, 4 * (read + params + written), 4 * written)


@dataclass(frozen=True, slots=True)
class BlockSite:
    """Where a block stands in a plan: what its factory is told besides its config.

    Factories are called as `factory(config, site)`. `inputs` are the shapes it reads (`input` for a step with one
    input); `plan` what it promised; `layers` and `info` are set for encoders; `rows` for language models;
    `coordinate_ids` (token ids of the coordinate tokens in rising order) for objectives.
    """

    address: str = ""
    inputs: Mapping[str, TokenSpec | LayerStackSpec] = field(default_factory=dict)
    plan: BlockPlan | None = None
    layers: tuple[int, ...] = ()
    info: EncoderInfo | LanguageModelInfo | None = None
    rows: int = 0
    coordinate_ids: tuple[int, ...] = ()

    @property
    def input(self) -> TokenSpec | LayerStackSpec:
        return self.inputs["input"]

    def tokens(self, name: str = "input") -> TokenSpec:
        """The planned tokens of one input; raises ShapeError if it is a stack of layers."""
        spec = self.inputs[name]
        if isinstance(spec, LayerStackSpec):
            raise ShapeError(f"{self.address or 'block'}: input '{name}' is {spec}; expected tokens")
        return spec

    @property
    def output(self) -> TokenSpec:
        if self.plan is None:
            raise ShapeError(f"{self.address or 'block'}: no plan to read the output shape from")
        return self.plan.main


Planner = Callable[[Any, Mapping[str, TokenSpec | LayerStackSpec], int | None], BlockPlan]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSpec:
    """All that fusionkit knows of a block before building it. Torch-free.

    Steps give `plan(config, inputs, target_width) -> BlockPlan`; a planner that cannot serve its inputs raises
    `ShapeError(message, field=..., hint=...)`. Encoders and language models give `describe(config) -> info`.
    `factory` is `package.module:Name`, called as `Name(config, site)`. `examples` are configs without `type`
    (the first is shown by `fusionkit show`; the conformance kit runs them all).
    """

    api: int
    family: str
    config: type[BlockConfig]
    factory: str
    summary: str
    plan: Planner | None = None
    describe: Callable[[Any], EncoderInfo | LanguageModelInfo] | None = None
    guarantees: frozenset[str] = frozenset()
    paper: str = ""
    equation: str = ""
    examples: tuple[Mapping[str, Any], ...] = (MappingProxyType({}),)

    def __post_init__(self) -> None:
        if self.api not in ACCEPTED_API_VERSIONS:
            accepted = " or ".join(str(version) for version in ACCEPTED_API_VERSIONS)
            verb = "upgrade fusionkit" if self.api > API_VERSION else "upgrade the plugin"
            raise PluginApiError(f"block made for plugin API {self.api}; this fusionkit accepts {accepted} ({verb})")
        if self.family not in FAMILIES:
            raise PluginLoadError(f"unknown family '{self.family}'; expected one of {', '.join(FAMILIES)}")
        if unknown := sorted(self.guarantees - set(GUARANTEES)):
            raise PluginLoadError(f"unknown guarantees {unknown}; expected some of {', '.join(GUARANTEES)}")
        default = self.config.model_fields["type"].default
        if not isinstance(default, str):
            raise PluginLoadError(
                f"{self.config.__name__}.type needs a default, for example Literal['acme.x'] = 'acme.x'"
            )
        if FAMILIES[self.family].step and self.plan is None:
            raise PluginLoadError(f"{self.family}/{default}: a step needs a planner")
        if self.family in ("encoders", "language_models") and self.describe is None:
            raise PluginLoadError(f"{self.family}/{default}: needs describe(config)")

    @property
    def name(self) -> str:
        return str(self.config.model_fields["type"].default)

    @property
    def address(self) -> str:
        """`family/name`."""
        return f"{self.family}/{self.name}"
