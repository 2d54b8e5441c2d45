"""Configs and specs of the objectives. Torch-free."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, field_validator

from fusionkit.plugin import API_VERSION, BlockConfig, BlockSpec, InputName


class ObjectiveConfig(BlockConfig):
    """A loss and its weight in the sum."""

    weight: PositiveFloat = Field(1.0, description="Factor of this loss in the sum.")


class AnswerTokensConfig(ObjectiveConfig):
    """Cross-entropy of the next token, on answers only."""

    type: Literal["answer_tokens"] = "answer_tokens"
    soft_labels: NonNegativeFloat = Field(
        0.0,
        description="Spread of a coordinate's label over neighbouring bins, standard deviation in bins; 0 for none.",
    )


class _PatchConfig(ObjectiveConfig):
    """A head on a stream's tokens, trained on the objects of a sample and thrown away afterwards."""

    stream: InputName = Field(description="The stream whose tokens are read.")
    least_cover: float = Field(
        0.3, gt=0, le=1, description="Share of a cell that an object must cover for the cell to be about it."
    )


class PatchLabelsConfig(_PatchConfig):
    """Which labels does the object under each token have?"""

    type: Literal["patch_labels"] = "patch_labels"
    labels: dict[str, tuple[str, ...]] = Field(
        min_length=1, description="Label names and their values, as the dataset's objects carry them."
    )


class PatchBoxesConfig(_PatchConfig):
    """Where are the edges of the object under each token?"""

    type: Literal["patch_boxes"] = "patch_boxes"


class OrthogonalityPenaltyConfig(ObjectiveConfig):
    """Draws the free matrices of a mixer towards orthogonal ones."""

    type: Literal["orthogonality_penalty"] = "orthogonality_penalty"
    mixer: InputName = Field(description="Stream and step of the mixer, for example `semantic.mix`.")

    @field_validator("mixer")
    @classmethod
    def _names_a_step(cls, mixer: str) -> str:
        if "." not in mixer:
            raise ValueError(f"name the stream and its step, for example {mixer}.mix")
        return mixer


ANSWER_TOKENS = BlockSpec(
    api=API_VERSION,
    family="objectives",
    config=AnswerTokensConfig,
    factory="fusionkit.blocks.objectives.answer_tokens:AnswerTokens",
    summary="Cross-entropy of the answer's tokens; coordinates may be soft labels.",
    examples=({}, {"soft_labels": 1.0}),
)

PATCH_LABELS = BlockSpec(
    api=API_VERSION,
    family="objectives",
    config=PatchLabelsConfig,
    factory="fusionkit.blocks.objectives.patch_labels:PatchLabels",
    summary="Teaches a stream what stands where: objectness and labels per token.",
    examples=({"stream": "semantic", "labels": {"colour": ["red", "blue"]}},),
)

PATCH_BOXES = BlockSpec(
    api=API_VERSION,
    family="objectives",
    config=PatchBoxesConfig,
    factory="fusionkit.blocks.objectives.patch_boxes:PatchBoxes",
    summary="Teaches a stream where edges are: objectness and box offsets per token.",
    examples=({"stream": "spatial"},),
)

ORTHOGONALITY_PENALTY = BlockSpec(
    api=API_VERSION,
    family="objectives",
    config=OrthogonalityPenaltyConfig,
    factory="fusionkit.blocks.objectives.orthogonality_penalty:OrthogonalityPenalty",
    summary="Soft orthogonality for mixers with free matrices (linear_sum).",
    paper="arXiv 2604.03231 speaks of regularisation; its equations constrain (`orthogonal`), this one regularises",
    equation="R = mean_l |W_lᵀ W_l - I|²_F / d  (W_l W_lᵀ where W_l narrows)",
    examples=({"mixer": "semantic.mix"}, {"mixer": "semantic.mix", "weight": 0.1}),
)
