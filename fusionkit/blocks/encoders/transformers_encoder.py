"""`transformers`: a vision tower of the transformers library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from fusionkit.blocks.encoders.base import LayerEncoder, check_params
from fusionkit.blocks.encoders.tap import LayerTap
from fusionkit.blocks.encoders.tower_facts import tower_config
from fusionkit.blocks.encoders.tower_parts import CLASSES, find_blocks, prune, transient_buffers
from fusionkit.blocks.encoders.tower_weights import PRETRAINED, RANDOM, check_statistics, load_folder, load_hub
from fusionkit.blocks.encoders.towers import Tower, read_tower
from fusionkit.blocks.encoders.transformers_specs import TransformersConfig
from fusionkit.errors import BuildError
from fusionkit.plugin import BlockSite, EncoderInfo


class TransformersEncoder(LayerEncoder):
    """A vision tower, pruned after the deepest layer that is read, its layers read by hooks.

    Shapes: x_BCHW -> layers x_BND; class and register tokens are stripped. One call at a time.

    At another input size than its own the library interpolates the stored positions, in every call, as it always
    does (timm resizes them once, with another filter). On the meta device no weights are read. Raises BuildError when
    the weights cannot be had or do not fit, or the library's model is not the planned one.
    """

    def __init__(self, config: TransformersConfig, site: BlockSite) -> None:
        super().__init__(site)
        self.on_meta = torch.get_default_device().type == "meta"
        self.tower = read_tower(tower_config(config.model, config.config), where=self.info.name)
        self.model = _create(config, self.info, self.tower, random=self.on_meta or config.weights == RANDOM)
        _compare(find_blocks(self.model, self.tower), self.info)
        prune(self.model, self.tower, self.kept)
        check_params(self.model, self.info, self.kept, _differs)
        self._transient = transient_buffers(self.model) if self.on_meta else {}
        self._tap = LayerTap(self.info.name, self.info.prefix_tokens, self.info.grid.tokens)
        self._tap.attach(find_blocks(self.model, self.tower))

    def run(self, x_BCHW: Tensor, wanted: frozenset[int], consume: Callable[[int, Tensor], None]) -> None:
        if self.on_meta and not x_BCHW.is_meta:
            self._fill_buffers()
        with self._tap.open(wanted, consume):
            last = self.model(**self._arguments(x_BCHW)).last_hidden_state
            if not self.kept:
                self._tap.offer(0, last)

    def _arguments(self, x_BCHW: Tensor) -> dict[str, Any]:
        """What the tower's forward is called with."""
        model_type = self.tower.model_type
        if model_type == "siglip2_vision_model":
            return _patches(x_BCHW, self.tower.patch)
        if model_type.startswith("dino"):
            return {"pixel_values": x_BCHW}
        return {"pixel_values": x_BCHW, "interpolate_pos_encoding": tuple(x_BCHW.shape[2:]) != self.tower.native_size}

    def _fill_buffers(self) -> None:
        """Fill the buffers that no checkpoint holds (rotary frequencies, position numbers), after a build without storage."""
        for name, value in self._transient.items():
            buffer = self.model.get_buffer(name)
            buffer.copy_(value.to(buffer))
        self.on_meta = False


def _patches(x_BCHW: Tensor, patch: int) -> dict[str, Any]:
    """Pixels as NaFlex towers read them: rows of patches, each (row, column, channel), and the grid they stand on."""
    grid = (x_BCHW.shape[2] // patch, x_BCHW.shape[3] // patch)
    x_BChpwp = x_BCHW.unflatten(3, (grid[1], patch)).unflatten(2, (grid[0], patch))
    x_BNP = x_BChpwp.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    # On the CPU whatever the pixels are on: the library reads the numbers.
    shapes = torch.tensor([grid] * len(x_BCHW), device="cpu")
    return {"pixel_values": x_BNP, "pixel_attention_mask": None, "spatial_shapes": shapes}


# ------------------------------------------------------------------------------------------------------ building
_WITHOUT_AUGMENTATION = {
    "dinov3_vit": {"pos_embed_shift": None, "pos_embed_jitter": None, "pos_embed_rescale": None},
}
"""DINOv3 was pretrained with random positions; here a frozen encoder gives the same in training as in use."""


def _create(config: TransformersConfig, info: EncoderInfo, tower: Tower, random: bool) -> PreTrainedModel:
    """The unpruned tower with the weights the config names."""
    factory = getattr(transformers, CLASSES[tower.model_type])
    described = factory.config_class(**tower.fields, **_WITHOUT_AUGMENTATION.get(tower.model_type, {}))
    if random:
        return cast(PreTrainedModel, factory(described).to(torch.get_default_dtype()))
    source = str(config.model) if config.weights == PRETRAINED else str(config.weights)
    folder = Path(source).expanduser()
    if not folder.is_dir() and config.weights != PRETRAINED:
        raise BuildError(f"weights '{source}': no such folder; expected pretrained, random or a folder of safetensors")
    if config.mean is None:
        check_statistics(source, config.revision, info)
    if folder.is_dir():
        return load_folder(factory, folder, described, info)
    return load_hub(factory, source, described, info, config.revision)


def _compare(blocks: nn.ModuleList, info: EncoderInfo) -> None:
    if len(blocks) != info.depth:
        raise _differs(info, "depth", info.depth, len(blocks))


def _differs(info: EncoderInfo, fact: str, planned: object, found: object) -> BuildError:
    return BuildError(
        f"{info.name}: planned {fact} {planned}, transformers {transformers.__version__} says {found}; "
        "report the model's config, or use another version of transformers"
    )
