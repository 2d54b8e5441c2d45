"""A decoder whose linear layers are held in 4 or 8 bits, by bitsandbytes.

In a state dict such a layer has the weight of a plain one, dequantised: checkpoints of quantised and plain decoders
have the same names, shapes and files, and each loads into the other.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

from torch import Tensor, nn

from fusionkit.errors import BuildError

Bits = Literal["4bit", "8bit"]


def require_bitsandbytes(bits: Bits) -> None:
    """Raise BuildError when the package that holds layers in few bits is not installed."""
    if find_spec("bitsandbytes") is None:
        raise BuildError(
            f"quantize: {bits} needs the package bitsandbytes, which is not installed "
            "(run: pip install 'fusionkit[quantized]', or leave `quantize` out)"
        )


def quantize_decoder(model: nn.Module, bits: Bits) -> None:
    """Hold the linear layers of a decoder's blocks in few bits, in place, one after the other.

    The output head stays as it is: it may be tied to the embeddings, and its rows for new tokens are trained.
    Quantised weights are frozen. Layers on meta are left alone.

    Raises BuildError when bitsandbytes is not installed.
    """
    require_bitsandbytes(bits)
    from fusionkit.blocks.language_models.quantized_layers import LAYERS

    head = model.get_output_embeddings()  # type: ignore[operator]
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and layer is not head and not layer.weight.is_meta:
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, LAYERS[bits].of(layer))
    # PEFT asks for this before it gives a layer a low-rank update.
    setattr(model, f"is_loaded_in_{bits}", True)


def plain_weight(layer: nn.Module) -> Tensor | None:
    """The weight of a quantised layer as the numbers it stands for; None for any other layer."""
    read: Any = getattr(layer, "plain_weight", None)
    return None if read is None else read()
