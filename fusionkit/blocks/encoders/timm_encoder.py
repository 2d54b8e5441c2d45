"""`timm`: any timm model whose blocks lie on one grid per stride."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from fusionkit.blocks.encoders.base import LayerEncoder, check_params
from fusionkit.blocks.encoders.specs import TimmConfig
from fusionkit.blocks.encoders.tap import LayerTap
from fusionkit.blocks.encoders.timm_facts import Blocks, find_blocks, prune
from fusionkit.blocks.encoders.timm_rope import keep_embeddings
from fusionkit.errors import BuildError
from fusionkit.hub import cached_file, check_reachable, not_to_be_had
from fusionkit.plugin import BlockSite, EncoderInfo

PRETRAINED, RANDOM = "pretrained", "random"


class TimmEncoder(LayerEncoder):
    """A timm model, pruned after the deepest layer that is read, its layers read by hooks.

    Shapes: x_BCHW -> layers x_BND; class and register tokens are stripped. One call at a time.

    On the meta device no weights are read. Raises BuildError when timm has no such model, its facts differ from the
    planned ones, or its weights cannot be had or do not fit.
    """

    def __init__(self, config: TimmConfig, site: BlockSite) -> None:
        super().__init__(site)
        self.on_meta = torch.get_default_device().type == "meta"
        self.model = _create(config, self.info, random=self.on_meta or config.weights == RANDOM)
        blocks = _blocks_at(self.model, self.info)
        _compare(self.model, blocks, self.info, own_statistics=config.mean is None)
        prune(self.model, blocks, self.kept)
        check_params(self.model, self.info, self.kept, _differs)
        self._tap = LayerTap(self.info.name, self.info.prefix_tokens, self.info.grid.tokens)
        self._tap.attach(blocks.items)
        keep_embeddings(self.model)

    def run(self, x_BCHW: Tensor, wanted: frozenset[int], consume: Callable[[int, Tensor], None]) -> None:
        if self.on_meta and not x_BCHW.is_meta:
            self._compute_buffers()
        with self._tap.open(wanted, consume):
            last = cast(Any, self.model).forward_features(x_BCHW)
            if not self.kept:
                self._tap.offer(0, last)

    def _compute_buffers(self) -> None:
        """Fill the buffers that no checkpoint holds (rotary frequencies), after a build without storage."""
        for module in self.model.modules():
            if hasattr(module, "init_non_persistent_buffers"):
                cast(Any, module).init_non_persistent_buffers()
        self.on_meta = False


# ------------------------------------------------------------------------------------------------------ building
def _create(config: TimmConfig, info: EncoderInfo, random: bool) -> nn.Module:
    """The unpruned timm model for the planned input size, with the weights the config names."""
    facts = timm.get_pretrained_cfg(info.name)
    if facts is None:
        raise BuildError(
            f"timm {timm.__version__} has no model '{info.name}'; "
            f"`python -c \"import timm; print(timm.list_models('*{info.name.split('.')[0][:12]}*'))\"` lists similar ones"
        )
    options: dict[str, Any] = {"img_size": info.input_size} if facts.fixed_input_size else {}
    if random:
        return timm.create_model(info.name, pretrained=False, num_classes=0, **options)
    file = _weights_file(config, facts.hf_hub_id or "", info.name)
    if file is not None:
        # The file's own head is loaded with it: without num_classes=0 timm checks that every tensor fits.
        options["pretrained_cfg_overlay"] = {"file": str(file), "custom_load": False}
    elif config.revision is not None:
        options["pretrained_cfg_overlay"] = {"hf_hub_id": f"{facts.hf_hub_id}@{config.revision}"}
    try:
        return timm.create_model(info.name, pretrained=True, **options)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise not_to_be_had(facts.hf_hub_id or info.name, reason, _WAYS_ON) from error
    except (RuntimeError, ValueError) as error:
        raise BuildError(f"weights {file or facts.hf_hub_id} do not fit timm model '{info.name}': {error}") from error


_WAYS_ON = "give `weights:` the path of its model.safetensors (or the folder that holds it)"


def _weights_file(config: TimmConfig, hub_id: str, name: str) -> Path | None:
    """The .safetensors file to load; None leaves it to timm to download."""
    weights = config.weights
    if weights == PRETRAINED:
        if not hub_id:
            raise BuildError(f"timm knows no pretrained weights of '{name}'; give `weights:` a path, or say random")
        file = cached_file(hub_id, "model.safetensors", config.revision)
        if file is None:
            check_reachable(hub_id, _WAYS_ON)
        return file
    path = Path(weights).expanduser()
    found = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if len(found) != 1 or not found[0].is_file() or found[0].suffix != ".safetensors":
        names = ", ".join(file.name for file in found) or "none"
        raise BuildError(
            f"weights '{weights}': expected one .safetensors file, or a folder with one; found {names}"
            if path.exists()
            else f"weights '{weights}': no such file or folder; expected pretrained, random or a path"
        )
    return found[0]


def _blocks_at(model: nn.Module, info: EncoderInfo) -> Blocks:
    levels = find_blocks(model, info.name)
    for blocks in levels:
        if blocks.stride == info.stride:
            return blocks
    strides = ", ".join(str(blocks.stride[0]) for blocks in levels)
    raise _differs(info, "stride", info.stride[0], strides)


def _compare(model: nn.Module, blocks: Blocks, info: EncoderInfo, own_statistics: bool) -> None:
    """Raise BuildError if the library's model is not what was planned; statistics given in the recipe are not compared."""
    config = cast(Any, model).pretrained_cfg
    actual: dict[str, tuple[object, object]] = {
        "depth": (info.depth, len(blocks.items)),
        "width": (info.width, blocks.width),
        "prefix_tokens": (info.prefix_tokens, int(getattr(model, "num_prefix_tokens", 0))),
    }
    if own_statistics:
        actual |= {"mean": (info.mean, tuple(config["mean"])), "std": (info.std, tuple(config["std"]))}
    for fact, (planned, found) in actual.items():
        if planned != found:
            raise _differs(info, fact, planned, found)


def _differs(info: EncoderInfo, fact: str, planned: object, found: object) -> BuildError:
    return BuildError(
        f"{info.name}: planned {fact} {planned}, timm {timm.__version__} says {found}; "
        f"`python -m fusionkit.testing.architectures {info.name}` prints the facts to give under `info:`"
    )
