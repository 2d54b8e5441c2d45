"""Reading layers of a library's model by hooks on its blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from fusionkit.errors import ShapeError

Consume = Callable[[int, Tensor], None]


class LayerTap:
    """Where the hooks of one encoder hand their layers to, while it runs.

    `tokens` is how many patch tokens are left without the declared prefix; another number raises ShapeError.
    """

    def __init__(self, name: str, prefix_tokens: int, tokens: int) -> None:
        self.name = name
        self.prefix_tokens = prefix_tokens
        self.tokens = tokens
        self.wanted: frozenset[int] = frozenset()
        self.consume: Consume | None = None

    def attach(self, blocks: Iterable[nn.Module]) -> None:
        """Hook the input of the first block and the output of each.

        Set once: torch.compile traces hooks that are there, not hooks that come and go.
        """
        for layer, block in enumerate(blocks, start=1):
            if layer == 1:
                block.register_forward_pre_hook(partial(_offer_input, self), with_kwargs=True)
            block.register_forward_hook(partial(_offer_output, self, layer))

    @contextmanager
    def open(self, wanted: frozenset[int], consume: Consume) -> Iterator[None]:
        """Hand the wanted layers to `consume` within the block; nothing is kept after it, however it ends."""
        self.wanted, self.consume = wanted, consume
        try:
            yield
        finally:
            self.consume = None

    def offer(self, layer: int, x: Tensor) -> None:
        """Pass a layer on if it is wanted, as x_BND without prefix; grids of channels are flattened row-major."""
        if self.consume is None or layer not in self.wanted:
            return
        x_BND = x.flatten(2).transpose(1, 2) if x.ndim == 4 else x[:, self.prefix_tokens :]
        if x_BND.shape[1] != self.tokens:
            raise ShapeError(
                f"{self.name}: layer {layer} has {x_BND.shape[1] + self.prefix_tokens} tokens, planned are "
                f"{self.prefix_tokens} prefix tokens and {self.tokens} patches"
            )
        self.consume(layer, x_BND)


def _offer_output(tap: LayerTap, layer: int, block: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    tap.offer(layer, output[0] if isinstance(output, tuple) else output)


def _offer_input(tap: LayerTap, block: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
    tap.offer(0, inputs[0] if inputs else named["hidden_states"])
