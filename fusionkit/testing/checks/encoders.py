"""What every encoder must do: one numbering of layers, patch tokens only, nothing built that is not read."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fusionkit.errors import ShapeError
from fusionkit.testing.checks.coverage import check_padding_is_ignored
from fusionkit.testing.checks.modules import (
    MODULE_CHECKS,
    check_bf16,
    check_gradients_match_differences,
    require_bf16_within,
    require_same,
)
from fusionkit.testing.flops import count_flops
from fusionkit.testing.subjects import CheckFailed, EncoderSubject, relative_error, require


def check_layers_have_the_described_shape(subject: EncoderSubject) -> None:
    """Every layer is [B, N, D]: the described grid, the described width, no prefix tokens."""
    info = subject.info
    for device in ("cpu", "meta"):
        module = subject.build(device)
        pixels = subject.arguments(batch=2)["x_BCHW"].to(device)
        with torch.no_grad():
            found = subject.call(module, {"x_BCHW": pixels})
        for name, x_BND in found.items():
            shape = (2, info.grid.tokens, info.width)
            require(tuple(x_BND.shape) == shape, f"{name} on {device}: expected {shape}, got {tuple(x_BND.shape)}")


def check_tap_equals_list(subject: EncoderSubject) -> None:
    """tap() hands out the same layers as forward_layers(), each once, in rising order."""
    seen: dict[int, Tensor] = {}

    def consume(layer: int, x_BND: Tensor) -> None:
        require(layer not in seen, f"tap() hands out layer {layer} twice")
        require(not seen or layer > max(seen), f"tap() hands out layer {layer} after {max(seen, default=0)}")
        seen[layer] = x_BND

    with torch.no_grad():
        subject.module.tap(subject.arguments()["x_BCHW"], subject.layers, consume)  # type: ignore[operator]
    require(tuple(seen) == subject.layers, f"tap() was asked for layers {subject.layers}, handed out {tuple(seen)}")
    require_same({f"layer {layer}": x for layer, x in seen.items()}, subject.run(), "tap() and forward_layers()")


def check_any_subset_of_layers(subject: EncoderSubject) -> None:
    """A layer is the same whatever other layers are asked for."""
    everything = subject.run()
    for layer in subject.layers:
        with torch.no_grad():
            (alone,) = subject.module.forward_layers(subject.arguments()["x_BCHW"], (layer,))  # type: ignore[operator]
        require_same({"layer": alone}, {"layer": everything[f"layer {layer}"]}, f"layer {layer} alone and among others")


def check_pruned_to_the_deepest_layer(subject: EncoderSubject) -> None:
    """Nothing beyond the deepest layer is built: parameters are the described ones, exactly, at every depth."""
    for deepest in range(subject.info.depth + 1):
        found = sum(p.numel() for p in subject.at((deepest,)).build("meta").parameters())
        planned = subject.info.params((deepest,))
        require(found == planned, f"pruned after layer {deepest}: described {planned} parameters, built {found}")


def check_pruning_changes_nothing(subject: EncoderSubject) -> None:
    """A layer of the pruned encoder is that of the whole one with the same weights."""
    middle = subject.info.depth // 2
    pruned = subject.at((middle,))
    module = pruned.build()
    state = subject.module.state_dict()
    module.load_state_dict({name: state[name] for name in module.state_dict()})
    require_same(
        pruned.run(module), {f"layer {middle}": subject.run()[f"layer {middle}"]}, f"layer {middle} pruned and whole"
    )


def check_flops(subject: EncoderSubject) -> None:
    """The described FLOPs are those of one crop, within 1 %, at every layer checked."""
    for layer in subject.layers:
        pruned = subject.at((layer,))
        module = pruned.build().requires_grad_(
            False
        )  # torch's counter fails on views of parameters that want gradients
        found = count_flops(partial(pruned.call, module, pruned.arguments(batch=1)))
        planned = subject.info.flops((layer,))
        require(abs(found - planned) <= 0.01 * planned, f"layer {layer}: described {planned} FLOPs, counted {found}")


def check_tokens_are_row_major(subject: EncoderSubject) -> None:
    """A change inside one patch shows most at that patch's token of the lowest layer, or at one beside it.

    (Beside it, because strided convolutions look at patches from their corner.)
    """
    info = subject.info
    grid, (down, right) = info.grid, info.stride
    row, column = grid.height // 3, 2 * grid.width // 3
    changed = subject.arguments(batch=1)
    changed["x_BCHW"][:, :, row * down : (row + 1) * down, column * right : (column + 1) * right] += 5
    lowest = f"layer {subject.layers[0]}"
    with torch.no_grad():
        before = subject.call(subject.module, subject.arguments(batch=1))[lowest]
        after = subject.call(subject.module, changed)[lowest]
    found = divmod(int((after - before).norm(dim=-1)[0].argmax()), grid.width)
    near = max(abs(found[0] - row), abs(found[1] - column)) <= 1
    require(near, f"a change in patch ({row}, {column}) of {grid} shows most at the token of patch {found}")


def check_bf16_is_close(subject: EncoderSubject) -> None:
    """In bfloat16 it is finite and close to float32 with the same (rounded) numbers, many blocks deep."""
    require_bf16_within(subject, BF16_TOLERANCE)


def check_crops_do_not_mix(subject: EncoderSubject) -> None:
    """A crop's layers do not depend on what else is in the batch."""
    pixels = subject.arguments(batch=3)["x_BCHW"]
    with torch.no_grad():
        together = subject.call(subject.module, {"x_BCHW": pixels})
        alone = subject.call(subject.module, {"x_BCHW": pixels[1:2]})
    for name, value in together.items():
        error = relative_error(value[1:2], alone[name])
        require(error <= 2e-6, f"{name} of a crop changes by {error:.1e} with other crops beside it")


def check_layers_outside_are_refused(subject: EncoderSubject) -> None:
    """Asking for a layer that was pruned away or never existed raises ShapeError."""
    shallow = subject.at((0,))
    module = shallow.build()
    for layer in (subject.info.depth, subject.info.depth + 1, -1):
        try:
            module.forward_layers(subject.arguments()["x_BCHW"], (layer,))  # type: ignore[operator]
        except ShapeError:
            continue
        except Exception as error:  # any other type than ShapeError is the finding
            raise CheckFailed(f"layer {layer} of layer 0 only raises {type(error).__name__}, not ShapeError") from error
        if layer != 0:
            raise CheckFailed(f"an encoder built for layer 0 hands out layer {layer}")


def check_description(subject: EncoderSubject) -> None:
    """The described facts are usable: grid, statistics, licence, counts that grow with depth."""
    info = subject.info
    require(info.depth >= 1 and info.width >= 1, f"depth {info.depth} and width {info.width} must be at least 1")
    require(all(value > 0 for value in info.std), f"std must be positive, got {info.std}")
    require(bool(info.licence.strip()), "licence is empty; say 'unknown' if it is")
    if strides := info.layer_strides:
        require(len(strides) == info.depth + 1, f"{len(strides)} layer_strides for layers 0..{info.depth}")
        require(all(min(pair) >= 1 for pair in strides), f"layer_strides must be positive, got {strides}")
    claimed = "padding_ignored" in subject.spec.guarantees
    require(claimed or not info.reads_coverage, "with reads_coverage, claim `padding_ignored` in the spec's guarantees")
    params = [info.params((layer,)) for layer in range(info.depth + 1)]
    flops = [info.flops((layer,)) for layer in range(info.depth + 1)]
    require(params == sorted(params) and flops == sorted(flops), "deeper layers must not cost less")


ENCODER_GUARANTEES = {"padding_ignored": check_padding_is_ignored}

BF16_TOLERANCE = 2e-2
_REPLACED = (check_bf16, check_gradients_match_differences)  # the latter would take minutes

ENCODER_CHECKS = (
    check_description,
    check_layers_have_the_described_shape,
    check_tap_equals_list,
    check_any_subset_of_layers,
    check_pruned_to_the_deepest_layer,
    check_pruning_changes_nothing,
    check_flops,
    check_tokens_are_row_major,
    check_crops_do_not_mix,
    check_layers_outside_are_refused,
    check_bf16_is_close,
    *(check for check in MODULE_CHECKS if check not in _REPLACED),
)
