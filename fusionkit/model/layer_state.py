"""What injectors inside the decoder carry through a forward pass, and the hooks that hand it to them.

The state travels as a keyword argument that transformers passes on to every decoder block; hooks on the blocks know
nothing but their number, so that models can be copied, and two calls at once do not meet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from fusionkit.errors import BuildError, UsageError

STATE = "fusion_state"
"""The keyword argument of the decoder's forward."""


@dataclass(frozen=True)
class LayerState:
    """Injectors by address with what each of them has prepared, rows first, and where the hidden states begin."""

    injectors: Mapping[str, Any]
    prepared: Mapping[str, tuple[Tensor, ...]]
    first: int = 0
    reached: set[tuple[int, str]] = field(default_factory=set, compare=False)

    def at(self, rows: int, first: int) -> LayerState:
        """The state for `rows` rows that continue at position `first`: beams and samples repeat each row in place."""
        prepared = {}
        for name, tensors in self.prepared.items():
            repeats, rest = divmod(rows, len(tensors[0]))
            if rest or not repeats:
                raise UsageError(f"{name}: prepared for {len(tensors[0])} rows of text, got {rows}")
            prepared[name] = tensors if repeats == 1 else tuple(x.repeat_interleave(repeats, dim=0) for x in tensors)
        return LayerState(self.injectors, prepared, first)

    def inject(self, layer: int, when: str, hidden_BTE: Tensor) -> Tensor:
        """The hidden states before or after a block, through the injectors that act there, in order."""
        self.reached.add((layer, when))
        for name, injector in self.injectors.items():
            if injector.when == when and layer in injector.layers:
                hidden_BTE = injector(hidden_BTE, self.prepared[name], layer, self.first)
        return hidden_BTE

    def require_reached(self) -> None:
        """Raise BuildError when a decoder did not pass the state on: its pictures would be missing unseen."""
        wanted = {(layer, injector.when) for injector in self.injectors.values() for layer in injector.layers}
        if missed := sorted(wanted - self.reached):
            raise BuildError(
                f"language_model: keyword arguments do not reach its blocks {[layer for layer, _ in missed]}, which "
                f"{', '.join(self.injectors)} need; use a decoder that passes **kwargs on to its layers"
            )


def watch_blocks(language_model: nn.Module, injectors: Iterable[Any]) -> None:
    """Hook the decoder blocks at which the injectors act.

    Raises BuildError when the decoder does not show its blocks.
    """
    places = {(layer, injector.when) for injector in injectors for layer in injector.layers}
    if not places:
        return
    find: Any = getattr(language_model, "get_decoder", None)
    blocks = getattr(find(), "layers", None) if find is not None else None
    if blocks is None:
        raise BuildError("language_model: `get_decoder().layers` is not there, and injectors act at its blocks")
    for layer, when in sorted(places):
        if when == "before":
            blocks[layer - 1].register_forward_pre_hook(partial(_before, layer), with_kwargs=True)
        else:
            blocks[layer - 1].register_forward_hook(partial(_after, layer), with_kwargs=True)


def _before(
    layer: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    state: LayerState | None = kwargs.get(STATE)
    if state is None:
        return None
    if args:
        return (state.inject(layer, "before", args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": state.inject(layer, "before", kwargs["hidden_states"])}


def _after(layer: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    state: LayerState | None = kwargs.get(STATE)
    if state is None:
        return None
    if isinstance(output, tuple):
        return (state.inject(layer, "after", output[0]), *output[1:])
    return state.inject(layer, "after", output)
