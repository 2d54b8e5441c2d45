"""The `transformers` encoder: config, facts and spec. Torch-free."""

from pathlib import Path
from types import MappingProxyType
from typing import Literal, Self

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from fusionkit.blocks.encoders.specs import NamedConfig, named_info
from fusionkit.blocks.encoders.tower_facts import tower_architecture
from fusionkit.blocks.encoders.towers import read_tower, unknown_fields
from fusionkit.errors import ShapeError
from fusionkit.plugin import BlockSpec, EncoderInfo


class TransformersConfig(NamedConfig):
    """A vision tower of the transformers library, named or described."""

    type: Literal["transformers"] = "transformers"
    model: str | None = Field(
        None,
        min_length=1,
        description="Hub id (google/siglip2-base-patch16-224) or folder with config.json; or give `config`.",
    )
    config: dict[str, JsonValue] | None = Field(
        None,
        description="transformers config fields, `model_type` (siglip_vision_model, dinov3_vit, ...) among them; "
        "or give `model`.",
    )
    weights: str | None = Field(
        None,
        min_length=1,
        description="`pretrained`, `random`, or a folder of safetensors. If not given: `pretrained` with `model`, else `random`.",
    )
    revision: str | None = Field(None, min_length=1, description="Branch, tag or commit of the hub id.")

    @field_validator("config")
    @classmethod
    def _readable(cls, config: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
        if config is not None:
            read_tower(config)
            if unknown := unknown_fields(config):
                raise ValueError(f"{', '.join(unknown)}: not a field of model_type {config['model_type']}")
        return config

    @field_validator("weights")
    @classmethod
    def _filled(cls, weights: str | None, info: ValidationInfo) -> str:
        return weights or ("random" if info.data.get("model") is None else "pretrained")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.model is None) == (self.config is None):
            raise ValueError("give exactly one of `model` and `config`")
        if self.config is not None and self.weights == "pretrained":
            raise ValueError("weights: a `config` has no pretrained weights; use `random` or a folder")
        if self.config is not None and self.revision is not None:
            raise ValueError("revision: only a hub id has revisions")
        return self


def describe_transformers(config: TransformersConfig) -> EncoderInfo:
    """Facts of a vision tower, from its config, the built-in table or a local folder; raises ShapeError if it has none."""
    if config.revision is not None and Path(str(config.model)).expanduser().is_dir():
        raise ShapeError(f"{config.model} is a folder here; only a hub id has revisions", field="revision")
    given = None if config.mean is None or config.std is None else (config.mean, config.std)
    architecture = tower_architecture(config.model, config.config, given)
    name = config.model or str((config.config or {}).get("model_type"))
    return named_info(architecture, architecture.levels[0], config, name)


TRANSFORMERS = BlockSpec(
    api=1,
    family="encoders",
    config=TransformersConfig,
    describe=describe_transformers,
    factory="fusionkit.blocks.encoders.transformers_encoder:TransformersEncoder",
    summary="A vision tower of the transformers library: SigLIP, SigLIP 2 (NaFlex too), DINOv3, DINOv2, CLIP, ViT.",
    examples=(
        MappingProxyType(
            {
                "config": {
                    "model_type": "dinov3_vit",
                    "hidden_size": 32,
                    "intermediate_size": 64,
                    "num_hidden_layers": 3,
                    "num_attention_heads": 2,
                    "num_register_tokens": 4,
                    "patch_size": 8,
                },
                "image_size": (32, 48),
            }
        ),
        MappingProxyType(
            {
                "config": {
                    "model_type": "siglip2_vision_model",
                    "hidden_size": 24,
                    "intermediate_size": 40,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "num_patches": 16,
                    "patch_size": 8,
                },
                "image_size": (32, 24),
                "mean": (0.4, 0.5, 0.6),
                "std": (0.3, 0.4, 0.5),
            }
        ),
    ),
)
