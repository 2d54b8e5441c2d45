"""Linear layers of bitsandbytes whose state dict is that of a plain linear layer. Needs bitsandbytes.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from bitsandbytes import functional
from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit
from torch import Tensor, nn


class _PlainState:
    """Saves the dequantised weight, and quantises the weight it loads."""

    in_features: int
    out_features: int
    bias: nn.Parameter | None

    def fill(self, weight_OI: Tensor) -> None:
        raise NotImplementedError

    def plain_weight(self) -> Tensor:
        """The weight [O, I] as the numbers it stands for."""
        raise NotImplementedError

    @classmethod
    def _of(cls, layer: nn.Linear, **options: Any) -> Self:
        made: Any = cls(  # type: ignore[call-arg]
            layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta", **options
        )
        made.bias = layer.bias
        made.fill(layer.weight.detach())
        return made  # type: ignore[no-any-return]

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.plain_weight()
        if self.bias is not None:
            destination[f"{prefix}bias"] = self.bias.detach()

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.out_features, self.in_features)}
        if self.bias is not None:
            shapes["bias"] = (self.out_features,)
        for name, shape in shapes.items():
            value = state_dict.get(prefix + name)
            if value is None:
                missing_keys.append(prefix + name)
            elif tuple(value.shape) != shape:
                error_msgs.append(f"{prefix}{name}: expected shape {shape}, got {tuple(value.shape)}")
            elif name == "weight":
                old = self.plain_weight()
                self.fill(value.to(device=old.device, dtype=old.dtype))
            elif self.bias is not None:
                with torch.no_grad():
                    self.bias.copy_(value)


class FourBitLinear(_PlainState, Linear4bit):  # type: ignore[misc]
    """NF4 weights in blocks of 64 with quantised scales, as QLoRA has them."""

    @classmethod
    def of(cls, layer: nn.Linear) -> Self:
        made = cls._of(layer, quant_type="nf4", compress_statistics=True)
        # bitsandbytes would repack weights on processors with bf16 units, and stop at widths that 32 does not divide.
        made.support_avx512bf16_for_cpu = False
        return made

    def fill(self, weight_OI: Tensor) -> None:
        packed = Params4bit(weight_OI, requires_grad=False, compress_statistics=True, quant_type="nf4", module=self)
        self.weight = packed.to(weight_OI.device)

    def plain_weight(self) -> Tensor:
        plain: Tensor = functional.dequantize_4bit(self.weight.data, self.weight.quant_state)
        return plain


class EightBitLinear(_PlainState, Linear8bitLt):  # type: ignore[misc]
    """Int8 weights with a scale per output; outlying activations are computed in full precision (LLM.int8)."""

    @classmethod
    def of(cls, layer: nn.Linear) -> Self:
        return cls._of(layer, has_fp16_weights=False, threshold=6.0)

    def fill(self, weight_OI: Tensor) -> None:
        self.plain_dtype = weight_OI.dtype
        self.state.CB = self.state.SCB = None
        self.weight = Int8Params(weight_OI, requires_grad=False, has_fp16_weights=False).to(weight_OI.device)

    def plain_weight(self) -> Tensor:
        scale_O = self.state.SCB if self.weight.SCB is None else self.weight.SCB
        plain: Tensor = (self.weight.data * (scale_O[:, None] / 127)).to(self.plain_dtype)
        return plain


LAYERS: Mapping[str, Any] = {"4bit": FourBitLinear, "8bit": EightBitLinear}
