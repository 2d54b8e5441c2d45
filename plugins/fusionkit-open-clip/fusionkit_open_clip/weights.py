"""From a tag or a file to the tensors of a pruned tower."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import load_state_dict
from open_clip.transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from fusionkit.plugin import BuildError
from fusionkit_open_clip.architecture import Tower
from fusionkit_open_clip.spec import VitConfig

PREFIX = "visual."
POSITIONS = "positional_embedding"
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.")
_AFTER_THE_BLOCKS = ("ln_post.", "proj", "attn_pool")


def load_tower(visual: VisionTransformer, config: VitConfig, shape: Tower) -> None:
    """Fill the tower from the weights its config names; raises BuildError."""
    path = _file(config, shape)
    tensors = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in load_state_dict(str(path)).items()
        if name.startswith(PREFIX) and _is_kept(name.removeprefix(PREFIX), len(visual.transformer.resblocks))
    }
    if POSITIONS not in tensors:
        raise BuildError(f"{path} holds no OpenCLIP vision tower: no tensor '{PREFIX}{POSITIONS}'")
    tensors[POSITIONS] = _resized(tensors[POSITIONS], shape, visual.grid_size)
    try:
        visual.load_state_dict(tensors)
    except RuntimeError as error:
        raise BuildError(f"{path} does not fit the vision tower of {shape.name}: {error}") from error


def _is_kept(name: str, depth: int) -> bool:
    block = _BLOCK.match(name)
    return int(block[1]) < depth if block else not name.startswith(_AFTER_THE_BLOCKS)


def _file(config: VitConfig, shape: Tower) -> Path:
    """The checkpoint; a tag's is downloaded by OpenCLIP on first use."""
    path = Path(config.weights).expanduser()
    if path.is_file():
        return path
    known: dict[str, Any] = open_clip.get_pretrained_cfg(shape.name, config.weights)
    if not known:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(shape.name)) or "none"
        raise BuildError(
            f"weights '{config.weights}' are neither a file nor a tag of {shape.name}; its tags are {tags}, "
            "or say random to train from scratch"
        )
    for fact, ours, theirs in (
        ("mean", config.mean, tuple(known["mean"])),
        ("std", config.std, tuple(known["std"])),
    ):
        if ours != theirs:
            raise BuildError(
                f"{shape.name} {config.weights} wants {fact}: {list(theirs)}, the recipe says {list(ours)}"
            )
    if known.get("quick_gelu", False) != shape.quick_gelu:
        right = f"{shape.name}-quickgelu" if known.get("quick_gelu") else shape.name.removesuffix("-quickgelu")
        raise BuildError(f"{config.weights} was trained with the other GELU; use `model: {right}`")
    try:
        return Path(open_clip.download_pretrained(known))
    except (OSError, RuntimeError) as error:
        raise BuildError(
            f"weights '{config.weights}' of {shape.name} cannot be had: {str(error).splitlines()[0]}; "
            "give `weights:` the path of a checkpoint you have, or say random"
        ) from error


def _resized(positions: Tensor, shape: Tower, grid: tuple[int, int]) -> Tensor:
    """Positions for another grid than they were trained on: bicubic and antialiased, as OpenCLIP does it."""
    rows, columns = (side // patch for side, patch in zip(shape.image_size, shape.patch, strict=True))
    if len(positions) - 1 != rows * columns:
        raise BuildError(f"the checkpoint has {len(positions) - 1} positions, {shape.name} has {rows}x{columns}")
    if grid == (rows, columns):
        return positions
    table_1DHW = positions[1:].reshape(1, rows, columns, -1).permute(0, 3, 1, 2).float()
    resized = F.interpolate(table_1DHW, size=grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([positions[:1], resized.flatten(2)[0].T.to(positions)])
