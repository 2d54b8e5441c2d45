"""What OpenCLIP's own configuration files say of a vision tower, read without importing OpenCLIP (it needs torch)."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from fusionkit.plugin import Grid, ShapeError

PREFIX_TOKENS = 1
"""The class token."""

_READ = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "no_ln_pre", "ls_init_value"}
_BEYOND_THE_BLOCKS = {
    "pool_type", "final_ln_after_pool", "output_tokens", "attentional_pool", "attn_pooler_heads", "attn_pooler_queries",
}  # fmt: skip
"""Settings of the pooling that follows the last block, which is never built here."""


@dataclass(frozen=True, slots=True)
class Tower:
    """The shape of a plain ViT tower. Sizes are (height, width) in pixels."""

    name: str
    depth: int
    width: int
    heads: int
    hidden: int
    patch: tuple[int, int]
    image_size: tuple[int, int]
    norm_before: bool
    layer_scale: float | None
    quick_gelu: bool

    def params(self, grid: Grid, deepest: int) -> int:
        """Parameters up to block `deepest`: convolution without bias, class token, positions, blocks."""
        patch_values = 3 * self.patch[0] * self.patch[1]
        positions = (grid.tokens + PREFIX_TOKENS) * self.width
        stem = (patch_values + 1 + 2 * self.norm_before) * self.width + positions
        matrices = 4 * self.width**2 + 2 * self.width * self.hidden
        vectors = 4 * self.width + self.hidden + self.width + 4 * self.width
        scales = 0 if self.layer_scale is None else 2 * self.width
        return stem + deepest * (matrices + vectors + scales)

    def flops(self, deepest: int, grid: Grid) -> int:
        """Matrix products and convolutions, 2 per multiply-add, for one crop."""
        tokens = grid.tokens + PREFIX_TOKENS
        stem = 2 * 3 * self.patch[0] * self.patch[1] * self.width * grid.tokens
        per_token = 2 * (4 * self.width**2 + 2 * self.width * self.hidden)
        return stem + deepest * (per_token * tokens + 4 * self.width * tokens**2)


@cache
def tower(name: str) -> Tower:
    """The tower of an OpenCLIP model; raises ShapeError for names it does not know and towers that are no plain ViT."""
    folder = _folder()
    file = folder / f"{name}.json"
    if not file.is_file():
        near = get_close_matches(name, [path.stem for path in folder.glob("*.json")], n=3)
        raise ShapeError(
            f"OpenCLIP has no model '{name}'",
            field="model",
            hint=f"did you mean {' or '.join(near)}?" if near else "`open_clip.list_models()` lists them",
        )
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    vision: dict[str, Any] = config["vision_cfg"]
    if isinstance(vision.get("layers"), list) or "timm_model_name" in vision or "hf_model_name" in vision:
        raise ShapeError(
            f"the vision tower of '{name}' is not OpenCLIP's own ViT",
            field="model",
            hint="for towers of timm, fusionkit's `timm` encoder reads them",
        )
    if unknown := sorted(set(vision) - _READ - _BEYOND_THE_BLOCKS):
        raise ShapeError(f"the vision tower of '{name}' has settings this plugin does not know: {', '.join(unknown)}")
    width = vision["width"]
    return Tower(
        name=name,
        depth=vision["layers"],
        width=width,
        heads=width // vision.get("head_width", 64),
        hidden=int(width * vision.get("mlp_ratio", 4.0)),
        patch=_pair(vision["patch_size"]),
        image_size=_pair(vision["image_size"]),
        norm_before=not vision.get("no_ln_pre", False),
        layer_scale=vision.get("ls_init_value"),
        quick_gelu=config.get("quick_gelu", False),
    )


def _folder() -> Path:
    found = importlib.util.find_spec("open_clip")
    if found is None or not found.submodule_search_locations:
        raise ShapeError("OpenCLIP is not installed", field="model", hint="pip install open_clip_torch")
    return Path(found.submodule_search_locations[0]) / "model_configs"


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
