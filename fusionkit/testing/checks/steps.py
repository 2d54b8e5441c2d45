"""What every step must do: be what its plan says, on any batch, and refuse what it was not built for."""

from __future__ import annotations

from functools import partial

import torch

from fusionkit.errors import ShapeError
from fusionkit.geometry import LayerStackSpec
from fusionkit.testing import fakes
from fusionkit.testing.checks.guarantees import STEP_GUARANTEES
from fusionkit.testing.checks.modules import MODULE_CHECKS
from fusionkit.testing.flops import count_flops
from fusionkit.testing.subjects import CheckFailed, StepSubject, relative_error, replace_tensors, require


def check_plan_equals_forward(subject: StepSubject) -> None:
    """Grid, copies, tokens and width of every output are the planned ones, on the CPU."""
    _compare_with_plan(subject, "cpu")


def check_plan_equals_meta_forward(subject: StepSubject) -> None:
    """The same on the meta device."""
    _compare_with_plan(subject, "meta")


def _compare_with_plan(subject: StepSubject, device: str) -> None:
    module = subject.build(device)
    arguments = replace_tensors(subject.arguments(batch=3), lambda x: x.to(device))
    with torch.no_grad():
        outputs = subject.outputs(module, arguments)
    require("main" in outputs, f"no output called main, only {', '.join(outputs)}")
    require(set(outputs) == set(subject.plan.outputs), f"planned {set(subject.plan.outputs)}, got {set(outputs)}")
    for name, planned in subject.plan.outputs.items():
        found = outputs[name]
        require(found.spec == planned, f"output '{name}': planned {planned} ({planned.frame}), got {found.spec}")
        shape = (3, planned.tokens, planned.width)
        require(tuple(found.x_BND.shape) == shape, f"output '{name}': planned {shape}, got {tuple(found.x_BND.shape)}")
        require(found.x_BND.device.type == device, f"output '{name}' is on {found.x_BND.device}, not {device}")


def check_parameter_count(subject: StepSubject) -> None:
    """The plan counts parameters exactly."""
    found = sum(parameter.numel() for parameter in subject.build("meta").parameters())
    require(found == subject.plan.params, f"planned {subject.plan.params} parameters, the module has {found}")


def check_flops(subject: StepSubject) -> None:
    """The plan's FLOPs are those of one crop's matrix products at inference, within 1 %."""
    # Frozen: torch's counter fails on views of parameters that want gradients.
    module, arguments = subject.copy().requires_grad_(False), subject.arguments(batch=1)
    call = partial(subject.call, module, arguments)
    with torch.no_grad():
        call()  # what is computed once (folds, tables) is no cost per crop
    found, planned = count_flops(call), subject.plan.flops
    require(abs(found - planned) <= 0.01 * planned, f"planned {planned} FLOPs per crop, counted {found}")


def check_byte_counts(subject: StepSubject) -> None:
    """Planned bytes cover at least the outputs and the parameters once."""
    plan = subject.plan
    written = 4 * sum(spec.tokens * spec.width for spec in plan.outputs.values())
    require(plan.activation_bytes >= written, f"activation_bytes {plan.activation_bytes} < outputs of {written}")
    require(plan.min_bytes >= written + 4 * plan.params, f"min_bytes {plan.min_bytes} < outputs and parameters")


def check_crops_do_not_mix(subject: StepSubject) -> None:
    """A crop's output does not depend on what else is in the batch."""
    arguments = subject.arguments(batch=3)
    alone = replace_tensors(arguments, lambda x: x[1:2])
    with torch.no_grad():
        together, single = subject.call(subject.module, arguments), subject.call(subject.module, alone)
    for name, value in together.items():
        error = relative_error(value[1:2], single[name])
        require(error <= 2e-6, f"output '{name}' of a crop changes by {error:.1e} with other crops beside it")


def check_empty_batch(subject: StepSubject) -> None:
    """No crops in, no crops out: a batch of texts without pictures is legal."""
    for name, value in subject.run(batch=0).items():
        planned = subject.plan.outputs[name]
        require(tuple(value.shape) == (0, planned.tokens, planned.width), f"output '{name}' is {tuple(value.shape)}")


def check_wrong_width_is_refused(subject: StepSubject) -> None:
    """Tokens of another width raise ShapeError that names the address, if the block depends on width at all."""
    if not list(subject.module.parameters()):
        return
    for name in subject.inputs:
        arguments = subject.arguments()
        spec = subject.inputs[name]
        wider = (
            LayerStackSpec(spec.layers, spec.grid, spec.width + 4)
            if isinstance(spec, LayerStackSpec)
            else spec.with_width(spec.width + 4)
        )
        arguments[name] = fakes.like(wider)
        try:
            subject.call(subject.module, arguments)
        except ShapeError as error:
            where = subject.site.address
            require(where in str(error), f"the error for a wrong width does not name the address {where}: {error}")
            continue
        except Exception as error:  # any other type than ShapeError is the finding
            raise CheckFailed(f"a wrong width of '{name}' raises {type(error).__name__}, not ShapeError") from error
        # Blocks whose parameters do not depend on this input's width (a weighted sum) may take any.


STEP_CHECKS = (
    check_plan_equals_forward,
    check_plan_equals_meta_forward,
    check_parameter_count,
    check_flops,
    check_byte_counts,
    check_crops_do_not_mix,
    check_empty_batch,
    check_wrong_width_is_refused,
    *MODULE_CHECKS,
)

__all__ = ["STEP_CHECKS", "STEP_GUARANTEES"]
