"""What every injector must do: put each visual vector where it belongs and leave the text alone."""

from __future__ import annotations

import torch

from fusionkit.errors import ShapeError
from fusionkit.testing import fakes
from fusionkit.testing.checks.modules import MODULE_CHECKS
from fusionkit.testing.subjects import CheckFailed, InjectorSubject, require


def check_text_is_left_alone(subject: InjectorSubject) -> None:
    """Embeddings where the mask is False come out bit for bit, and their number does not change."""
    arguments = subject.arguments()
    with torch.no_grad():
        out = subject.call(subject.module, arguments)["embeds"]
    before, text = arguments["embeds_BTE"], ~arguments["mask_BT"]
    require(out.shape == before.shape, f"embeddings of {tuple(before.shape)} come out as {tuple(out.shape)}")
    require(torch.equal(out[text], before[text]), "embeddings of text tokens were changed")


def check_vectors_in_row_major_order(subject: InjectorSubject) -> None:
    """Visual vector k goes to the k-th True position, row after row, and to no other."""
    arguments = subject.arguments()
    places = arguments["mask_BT"].nonzero().tolist()
    with torch.no_grad():
        before = subject.call(subject.module, arguments)["embeds"]
        for k, (row, column) in enumerate(places):
            visual = arguments["visual_VE"].clone()
            visual[k] += 1
            after = subject.call(subject.module, {**arguments, "visual_VE": visual})["embeds"]
            moved = (after != before).any(-1).nonzero().tolist()
            require(moved == [[row, column]], f"visual vector {k} shows at {moved}, expected [{row}, {column}]")


def check_text_only_batch(subject: InjectorSubject) -> None:
    """No visual vectors and no marked position: embeddings pass through."""
    arguments = subject.arguments()
    arguments["mask_BT"] = torch.zeros_like(arguments["mask_BT"])
    arguments["visual_VE"] = arguments["visual_VE"][:0]
    with torch.no_grad():
        out = subject.call(subject.module, arguments)["embeds"]
    require(torch.equal(out, arguments["embeds_BTE"]), "embeddings of a batch without pictures were changed")


def check_wrong_count_is_refused(subject: InjectorSubject) -> None:
    """One visual vector too few or too many raises ShapeError."""
    for change, what in ((slice(None, -1), "too few"), (slice(None), "too many")):
        arguments = subject.arguments()
        if what == "too many":
            arguments["visual_VE"] = torch.cat((arguments["visual_VE"], arguments["visual_VE"][:1]))
        arguments["visual_VE"] = arguments["visual_VE"][change]
        _refused(subject, arguments, f"{what} visual vectors")


def check_wrong_width_is_refused(subject: InjectorSubject) -> None:
    """Visual vectors of another width than the embeddings raise ShapeError, in the planner and in the module."""
    arguments = subject.arguments()
    arguments["visual_VE"] = torch.cat((arguments["visual_VE"], arguments["visual_VE"]), dim=-1)
    _refused(subject, arguments, "visual vectors of another width")
    if subject.spec.plan is not None:
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


def _refused(subject: InjectorSubject, arguments: dict[str, object], what: str) -> None:
    try:
        subject.call(subject.module, arguments)
    except ShapeError:
        return
    except Exception as error:
        raise CheckFailed(f"{what} raise {type(error).__name__}, not ShapeError") from error
    raise CheckFailed(f"{what} are accepted")


INJECTOR_CHECKS = (
    check_text_is_left_alone,
    check_vectors_in_row_major_order,
    check_text_only_batch,
    check_wrong_count_is_refused,
    check_wrong_width_is_refused,
    check_parameter_count,
    *MODULE_CHECKS,
)
