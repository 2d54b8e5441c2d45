"""What every injector must do: bring pictures to the decoder, and leave a text without them alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fusionkit.errors import ShapeError
from fusionkit.ops.packing import Packed
from fusionkit.ops.placement import Placement
from fusionkit.ops.roles import parameter_roles
from fusionkit.testing import fakes
from fusionkit.testing.checks.modules import MODULE_CHECKS, require_same
from fusionkit.testing.subjects import CheckFailed, InjectorSubject, LayerInjectorSubject, relative_error, require


def check_text_only_batch(subject: InjectorSubject) -> None:
    """No visual vectors and no marked position: embeddings pass through."""
    arguments = subject.without_pictures(subject.arguments())
    with torch.no_grad():
        out = subject.call(subject.module, arguments)["embeds"]
    require(torch.equal(out, arguments["embeds_BTE"]), "embeddings of a batch without pictures were changed")


def check_shape_is_kept(subject: InjectorSubject) -> None:
    """Embeddings come out in the number and width they came in."""
    arguments = subject.arguments(batch=3)
    with torch.no_grad():
        out = subject.call(subject.module, arguments)["embeds"]
    before = arguments["embeds_BTE"]
    require(out.shape == before.shape, f"embeddings of {tuple(before.shape)} come out as {tuple(out.shape)}")


def check_parts_equal_the_whole(subject: InjectorSubject) -> None:
    """Inside the decoder: a sequence in parts, as a cache has it, gives what it gives as a whole."""
    if not isinstance(subject, LayerInjectorSubject):
        return
    arguments = subject.arguments()
    whole = arguments["embeds_BTE"]
    longer = torch.cat((whole, fakes.random((len(whole), 3, whole.shape[-1]), 7)), dim=1)
    with torch.no_grad():
        expected = subject.through_layers(subject.module, arguments, longer, 0)
        parts = [(0, 3), (3, 4), (4, 9), (9, 12)]
        found = [subject.through_layers(subject.module, arguments, longer[:, a:b], a) for a, b in parts]
    error = relative_error(torch.cat(found, dim=1), expected)
    require(error <= 2e-6, f"in parts the output differs by {error:.1e} of its norm")


def check_samples_stay_apart(subject: InjectorSubject) -> None:
    """Inside the decoder: samples packed into one row see what they see in rows of their own (`Placement.ends_BC`)."""
    if not isinstance(subject, LayerInjectorSubject):
        return
    tokens, length = fakes.tokens(subject.tokens, 2, 1), 9
    mask_BT = torch.zeros(2, length, dtype=torch.bool)
    mask_BT[:, 2 : 2 + subject.tokens.tokens] = True
    index_V = torch.arange(2 * subject.tokens.tokens)
    hidden_BTE = fakes.random((2, length, fakes.WIDTH), 0)
    sample_BT = torch.arange(2).repeat_interleave(length)[None]
    packed = Packed(sample_BT, torch.zeros_like(sample_BT))
    apart = Placement.of(mask_BT, index_V, subject.tokens.tokens)
    together = Placement.of(mask_BT.reshape(1, -1), index_V, subject.tokens.tokens, packed)
    with torch.no_grad():
        expected = subject.through_layers(subject.module, {"tokens": tokens, "placement": apart}, hidden_BTE, 0)
        arguments = {"tokens": tokens, "placement": together}
        found = subject.through_layers(subject.module, arguments, hidden_BTE.reshape(1, -1, fakes.WIDTH), 0)
    error = relative_error(found.reshape(expected.shape), expected)
    require(
        error <= 2e-6, f"two samples in one row differ from those in rows of their own by {error:.1e} of their norm"
    )


def check_wrong_count_is_refused(subject: InjectorSubject) -> None:
    """One visual vector too few or too many raises ShapeError. (Inside the decoder they have been counted before.)"""
    if subject.inside:
        return
    for change, what in ((slice(None, -1), "too few"), (slice(None), "too many")):
        arguments = subject.arguments()
        if what == "too many":
            arguments["visual_VE"] = torch.cat((arguments["visual_VE"], arguments["visual_VE"][:1]))
        arguments["visual_VE"] = arguments["visual_VE"][change]
        _refused(subject, arguments, f"{what} visual vectors")


def check_wrong_width_is_refused(subject: InjectorSubject) -> None:
    """Visual vectors of another width than the embeddings raise ShapeError, in the planner and in the module."""
    arguments = subject.with_vectors(subject.arguments(), lambda x: torch.cat((x, x), dim=-1))
    _refused(subject, arguments, "visual vectors of another width")
    if subject.spec.plan is not None and "placed" in subject.spec.guarantees:
        try:
            subject.spec.plan(subject.config, {"input": subject.tokens}, fakes.WIDTH + 1)
        except ShapeError:
            return
        raise CheckFailed("the planner accepts visual tokens whose width is not the language model's")


def check_parameter_count(subject: InjectorSubject) -> None:
    """The plan counts parameters exactly; without a planner there must be none."""
    planned = subject.plan.params if subject.plan is not None else 0
    found = sum(parameter.numel() for parameter in subject.build("meta").parameters())
    require(found == planned, f"planned {planned} parameters, the module has {found}")


def _raised(k: int, x_VE: Tensor) -> Tensor:
    """Vector k plus 1."""
    return torch.cat((x_VE[:k], x_VE[k : k + 1] + 1, x_VE[k + 1 :]))


def _refused(subject: InjectorSubject, arguments: dict[str, object], what: str) -> None:
    try:
        subject.call(subject.module, arguments)
    except ShapeError:
        return
    except Exception as error:  # any other type than ShapeError is the finding
        raise CheckFailed(f"{what} raise {type(error).__name__}, not ShapeError") from error
    raise CheckFailed(f"{what} are accepted")


def check_placed(subject: InjectorSubject) -> None:
    """Visual vector k shows at the image token it belongs to, and nowhere else; text comes out bit for bit."""
    arguments = subject.arguments()
    with torch.no_grad():
        before = subject.call(subject.module, arguments)["embeds"]
        text = ~subject.image_mask(arguments)
        require(torch.equal(before[text], arguments["embeds_BTE"][text]), "embeddings of text tokens were changed")
        for k, expected in subject.places(arguments).items():
            changed = subject.with_vectors(arguments, partial(_raised, k))
            after = subject.call(subject.module, changed)["embeds"]
            moved = (after != before).any(-1).nonzero().tolist()
            require(moved == expected, f"visual vector {k} shows at {moved}, expected {expected}")


def check_identity_at_zero_gate(subject: InjectorSubject) -> None:
    """With every gate at zero the embeddings come out bit for bit; with open gates they do not."""
    module, before = subject.copy(), subject.arguments()["embeds_BTE"]
    roles = parameter_roles(module)
    require("gate" in roles.values(), "no parameter has the role gate")
    require(not torch.equal(subject.run()["embeds"], before), "open gates change nothing")
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if roles[name] == "gate":
                parameter.zero_()
    require_same(subject.run(module), {"embeds": before}, "embeddings before and after shut gates")


def check_padding_ignored(subject: InjectorSubject) -> None:
    """What invalid visual tokens hold, be it NaN, changes nothing."""
    if not isinstance(subject, LayerInjectorSubject):
        raise CheckFailed("only injectors inside the decoder are told which tokens are valid")
    arguments = subject.arguments()
    valid_BN = torch.ones(arguments["tokens"].x_BND.shape[:2], dtype=torch.bool)
    valid_BN[0, 0] = valid_BN[-1, 1] = False
    outputs = []
    for junk in (0.0, 1e4, torch.nan):
        x_BND = arguments["tokens"].x_BND.masked_fill(~valid_BN[..., None], junk)
        tokens = arguments["tokens"]._replace(x_BND=x_BND, valid_BN=valid_BN)
        with torch.no_grad():
            outputs.append(subject.call(subject.module, {**arguments, "tokens": tokens}))
    for other in outputs[1:]:
        require_same(other, outputs[0], "runs that differ in invalid tokens only")


INJECTOR_GUARANTEES: dict[str, Callable[[InjectorSubject], None]] = {
    "placed": check_placed,
    "identity_at_zero_gate": check_identity_at_zero_gate,
    "padding_ignored": check_padding_ignored,
}

INJECTOR_CHECKS = (
    check_text_only_batch,
    check_shape_is_kept,
    check_parts_equal_the_whole,
    check_samples_stay_apart,
    check_wrong_count_is_refused,
    check_wrong_width_is_refused,
    check_parameter_count,
    *MODULE_CHECKS,
)
