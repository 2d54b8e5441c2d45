"""Vision towers of the transformers library, read from their config without the library. Torch-free.

The mapping is a transformers config: the usual field names, `model_type` first; of a two-tower model (CLIP, SigLIP) its
`vision_config` is read. Parameters the encoder never uses (mask tokens, final norm, head) are not counted: building
removes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from types import MappingProxyType
from typing import Any

from fusionkit.blocks.encoders.counts import Architecture, Level

_SIZES = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "patch_size": 16,
}
_SIGLIP = {**_SIZES, "intermediate_size": 3072, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_DINOV2 = {
    **_SIZES,
    "patch_size": 14,
    "image_size": 224,
    "mlp_ratio": 4,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
    "layerscale_value": 1.0,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}

DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "siglip_vision_model": {**_SIGLIP, "image_size": 224},
        "siglip2_vision_model": {**_SIGLIP, "num_patches": 256},
        "clip_vision_model": {
            **_SIZES,
            "patch_size": 32,
            "image_size": 224,
            "intermediate_size": 3072,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
        "dinov2": _DINOV2,
        "dinov2_with_registers": {**_DINOV2, "patch_size": 16, "num_register_tokens": 4},
        "dinov3_vit": {
            "hidden_size": 384,
            "intermediate_size": 1536,
            "num_hidden_layers": 12,
            "num_attention_heads": 6,
            "patch_size": 16,
            "image_size": 224,
            "num_register_tokens": 0,
            "query_bias": True,
            "key_bias": False,
            "value_bias": True,
            "proj_bias": True,
            "mlp_bias": True,
            "use_gated_mlp": False,
            "layerscale_value": 1.0,
            "rope_theta": 100.0,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
        },
        "vit": {
            **_SIZES,
            "image_size": 224,
            "intermediate_size": 3072,
            "qkv_bias": True,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
        },
    }
)
"""What transformers takes for a field that is not given (a test compares), and so the fields a recipe may give."""

_WITHOUT_EFFECT = frozenset({"model_type", "num_channels", "initializer_range", "attention_dropout"})
_TOWER_OF = {"siglip": "siglip_vision_model", "siglip2": "siglip2_vision_model", "clip": "clip_vision_model"}


@dataclass(frozen=True, slots=True)
class Tower:
    """The shape of a vision transformer whose blocks lie on one grid; `grid` is the one its positions are made for."""

    model_type: str
    fields: Mapping[str, Any]
    width: int
    depth: int
    heads: int
    hidden: int
    patch: int
    grid: tuple[int, int]
    prefix_tokens: int

    @property
    def native_size(self) -> tuple[int, int]:
        """Height and width in pixels of a picture that fills `grid`."""
        return self.grid[0] * self.patch, self.grid[1] * self.patch

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width it was trained for, as its config states them."""
        side = self.fields.get("image_size")
        return (side, side) if side is not None else self.native_size

    def level(self) -> Level:
        """Depth and costs; positions are stored for `grid` and resized at run time, so they count as part of the stem."""
        weights = 3 * self.patch**2 * self.width
        attention = 4 * self.width**2
        mlp = self._gates * self.width * self.hidden
        return Level(
            stem_params=weights + self._stem_vectors() * self.width,
            position_params=0,
            block_params=attention + self._attention_biases() + mlp + self._mlp_biases() + self._block_vectors(),
            stem_flops=2 * weights,
            block_flops=2 * (attention + mlp),
            attention_flops=4 * self.width,
            depth=self.depth,
            width=self.width,
            stride=(self.patch, self.patch),
            heads=self.heads,
            mlp=self.hidden,
        )

    @property
    def _gates(self) -> int:
        """Matrices of the MLP: two, or three where one half gates the other."""
        return 3 if self.fields.get("use_swiglu_ffn") or self.fields.get("use_gated_mlp") else 2

    def _stem_vectors(self) -> int:
        """Vectors of the token width before block 1: patch bias, class and register tokens, positions, pre-norm."""
        positions = 0 if self.model_type == "dinov3_vit" else self.grid[0] * self.grid[1]
        class_position = int(self.model_type in ("clip_vision_model", "dinov2", "dinov2_with_registers", "vit"))
        bias, norm = (0, 2) if self.model_type == "clip_vision_model" else (1, 0)
        return bias + self.prefix_tokens + positions + class_position + norm

    def _attention_biases(self) -> int:
        given = self.fields
        if self.model_type == "dinov3_vit":
            return self.width * sum(bool(given[name]) for name in ("query_bias", "key_bias", "value_bias", "proj_bias"))
        return self.width * (4 if given.get("qkv_bias", True) else 1)

    def _mlp_biases(self) -> int:
        return ((self._gates - 1) * self.hidden + self.width) * int(self.fields.get("mlp_bias", True))

    def _block_vectors(self) -> int:
        """Two norms, and two layer scales where there are any."""
        return self.width * (4 + (2 if self.model_type.startswith("dino") else 0))


def read_tower(config: Mapping[str, Any], where: str = "config") -> Tower:
    """The tower a config stands for.

    Raises ValueError, naming the field, when the model type is not one of `DEFAULTS` or a size is missing or wrong.
    """
    config, where = _vision_part(config, where)
    model_type = str(config.get("model_type"))
    if model_type not in DEFAULTS:
        raise ValueError(f"{where}.model_type: expected one of {', '.join(DEFAULTS)}, got {model_type}")
    fields = {**DEFAULTS[model_type], **{name: value for name, value in config.items() if name in DEFAULTS[model_type]}}
    if config.get("num_channels", 3) != 3:
        raise ValueError(f"{where}.num_channels: expected 3, got {config['num_channels']!r}")
    for name in ("patch_size", "image_size"):
        if name in fields:
            fields[name] = _side(fields[name], f"{where}.{name}")
    width, depth, heads, patch = (
        _whole(fields[name], f"{where}.{name}")
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size")
    )
    if width % heads:
        raise ValueError(f"{where}.num_attention_heads: {heads} does not divide hidden_size {width}")
    return Tower(
        model_type=model_type,
        fields=fields,
        width=width,
        depth=depth,
        heads=heads,
        hidden=_hidden(fields, where),
        patch=patch,
        grid=_native_grid(fields, patch, where),
        prefix_tokens=_prefix_tokens(model_type, fields, where),
    )


def unknown_fields(config: Mapping[str, Any]) -> list[str]:
    """Fields of a recipe's `config` that are not taken for its model type."""
    known = DEFAULTS.get(str(config.get("model_type")), config)
    return sorted(set(config) - set(known) - _WITHOUT_EFFECT)


def read_statistics(preprocessor: Mapping[str, Any], where: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) per channel for pixels in 0..1, from the fields of a preprocessor_config.json.

    Raises ValueError when they are not there, or the model is not fed pixels divided by 255.
    """
    if not preprocessor.get("do_rescale", True) or abs(preprocessor.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-3:
        raise ValueError(f"{where}: expected pixels divided by 255, got another rescale_factor")
    if not preprocessor.get("do_normalize", True):
        return (0.0,) * 3, (1.0,) * 3
    found = []
    for name in ("image_mean", "image_std"):
        values = preprocessor.get(name)
        if not isinstance(values, list | tuple) or len(values) != 3:
            raise ValueError(f"{where}.{name}: expected three numbers, got {values!r}")
        found.append(tuple(float(value) for value in values))
    return found[0], found[1]


def architecture(
    tower: Tower, statistics: tuple[tuple[float, ...], tuple[float, ...]], licence: str, hub_id: str = ""
) -> Architecture:
    """The facts of a tower in the form all named encoders have."""
    mean, std = statistics
    return Architecture(
        hub_id=hub_id,
        licence=licence,
        input_size=tower.input_size,
        fixed_size=False,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        prefix_tokens=tower.prefix_tokens,
        levels=(tower.level(),),
    )


def _vision_part(config: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], str]:
    """The config of the vision tower, which is all of it or, in a two-tower model, a part."""
    part = config.get("vision_config")
    tower = _TOWER_OF.get(str(config.get("model_type")))
    if tower is None or not isinstance(part, Mapping):
        return config, where
    return {"model_type": tower, **part}, f"{where}.vision_config"


def _prefix_tokens(model_type: str, fields: Mapping[str, Any], where: str) -> int:
    """Class token and registers, as the model's own config has them."""
    if model_type.startswith("siglip"):
        return 0
    registers = fields.get("num_register_tokens", 0)
    if isinstance(registers, bool) or not isinstance(registers, int) or registers < 0:
        raise ValueError(f"{where}.num_register_tokens: expected a whole number, got {registers!r}")
    return 1 + registers


def _native_grid(fields: Mapping[str, Any], patch: int, where: str) -> tuple[int, int]:
    if "num_patches" not in fields:
        side = fields["image_size"] // patch
        if side < 1:
            raise ValueError(f"{where}.image_size: {fields['image_size']} is less than one patch of {patch}")
        return side, side
    patches = _whole(fields["num_patches"], f"{where}.num_patches")
    if isqrt(patches) ** 2 != patches:
        raise ValueError(f"{where}.num_patches: expected a square number, got {patches}")
    return isqrt(patches), isqrt(patches)


def _hidden(fields: Mapping[str, Any], where: str) -> int:
    """Inner width of the MLP."""
    if "mlp_ratio" not in fields:
        return _whole(fields["intermediate_size"], f"{where}.intermediate_size")
    hidden = int(fields["hidden_size"] * fields["mlp_ratio"])
    # Two thirds when gated, rounded up to a multiple of 8.
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if fields["use_swiglu_ffn"] else hidden


def _side(value: Any, where: str) -> int:
    """A size given as one side, or as both if they are equal."""
    if isinstance(value, list | tuple) and len(set(value)) == 1:
        value = value[0]
    return _whole(value, where)


def _whole(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{where}: expected a whole number of at least 1, got {value!r}")
    return value
