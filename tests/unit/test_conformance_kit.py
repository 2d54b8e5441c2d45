"""The kit finds what it is there to find: one deliberate fault at a time."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from torch import nn

from fusionkit import registry
from fusionkit.testing import Check, CheckFailed, checks_for, collect_checks, parametrize_with_checks
from fusionkit.testing.checks.guarantees import check_streaming
from fusionkit.testing.subjects import StepSubject

SPEC = '''
from typing import Literal
from pydantic import Field
from fusionkit.plugin import BlockPlan, BlockSpec, StepConfig


class KitProbeConfig(StepConfig):
    """A residual adapter that can be told to do one thing wrong."""

    type: Literal["test.kit_probe"] = "test.kit_probe"
    fault: str = Field("none", description="What to do wrong.")


def plan(config, inputs, target):
    tokens = inputs["input"]
    width = tokens.width
    fault = config.fault
    main = tokens.with_width(width + 1) if fault == "width" else tokens
    params = width * width + width + 1 + (fault == "miscounted")
    flops = 2 * tokens.tokens * width * width * (2 if fault == "flops" else 1)
    return BlockPlan.of(main, params=params, flops=flops, reads=[tokens])


PROBE = BlockSpec(
    api=1,
    family="adapters",
    config=KitProbeConfig,
    plan=plan,
    factory="kit_probe_module:KitProbe",
    summary="A residual adapter.",
    guarantees=frozenset({"token_count", "grid", "permutation_equivariant", "padding_ignored", "identity_at_zero_gate"}),
)
'''

MODULE = """
import torch
from torch import nn
from fusionkit.errors import ShapeError


class KitProbe(nn.Module):
    def __init__(self, config, site):
        super().__init__()
        self.fault = fault = config.fault
        width = site.tokens().width
        self.address = "" if fault == "nameless" else site.address
        self.width = width
        self.linear = nn.Linear(width, width)
        self.gate = nn.Parameter(torch.zeros(1))
        self.parameter_roles = {"gate": "door" if fault == "role" else "gate"}
        if fault == "garbage":
            self.register_buffer("table", torch.ones(width), persistent=False)
        if fault == "unsaved":
            self.scale = torch.randn(()).item()

    def forward(self, tokens):
        fault, x = self.fault, tokens.x_BND
        if x.shape[-1] != self.width:
            raise ShapeError(f"{self.address}: wrong width")
        y = self.linear(x)
        if fault == "garbage":
            y = y * self.table
        if fault == "unsaved":
            y = y * self.scale
        if fault == "in_place":
            x.mul_(1.5)
        if fault == "random":
            y = nn.functional.dropout(y, 0.5)
        if fault == "mixes":
            y = y + y.mean(0, keepdim=True)
        if fault == "detached":
            y = y.detach()
        if fault == "graph_break":
            y = y * 2 if y.sum() > 0 else y
        if fault == "order":
            y = y.flip(1)
            x = x.flip(1)
        if fault == "neighbours":
            y = y + x.roll(1, 1)
        if fault == "ungated":
            x = x + 1e-6
        if fault == "double":
            x = x.float() if x.dtype == torch.bfloat16 else x
        if fault == "rounded":
            y = y.bfloat16().float() if y.dtype == torch.float32 else y
        return tokens.with_x(x + torch.tanh(self.gate).to(y.dtype) * y)
"""


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "kit_probe.py").write_text(SPEC)
    (folder / "kit_probe_module.py").write_text(MODULE)
    sys.path.append(str(folder))
    (spec,) = registry.load_plugin_file(folder / "kit_probe.py")
    yield spec
    sys.path.remove(str(folder))
    del registry._files["adapters", "test.kit_probe"]


def failing(spec, fault: str) -> set[str]:
    found = set()
    for check in checks_for(spec, [{"fault": fault}]):
        try:
            check()
        except Exception:  # a fault may also show as an error of the block itself
            found.add(check.id.partition("]-")[2])
    return found


def test_a_good_block_passes(probe):
    assert failing(probe, "none") == set()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("width", {"plan_equals_forward", "plan_equals_meta_forward"}),
        ("miscounted", {"parameter_count"}),
        ("flops", {"flops"}),
        ("nameless", {"wrong_width_is_refused"}),
        ("role", {"parameter_roles"}),
        ("garbage", {"builds_without_storage"}),
        ("unsaved", {"safetensors_round_trip"}),
        ("in_place", {"leaves_inputs_alone"}),
        ("random", {"repeatable"}),
        ("mixes", {"crops_do_not_mix"}),
        ("detached", {"gradients_reach_everything", "gradients_match_differences"}),
        ("graph_break", {"compiles_for_training", "compiles_for_inference"}),
        ("order", {"token_count"}),
        ("neighbours", {"permutation_equivariant", "padding_ignored"}),
        ("ungated", {"identity_at_zero_gate"}),
        ("double", {"bf16"}),
        ("rounded", {"float32_is_close_to_float64"}),
    ],
)
def test_a_fault_is_found(probe, fault, expected):
    if fault == "role":
        # Nothing else can be looked at while roles are wrong: they say which parameters are gates.
        checks = [check for check in checks_for(probe, [{"fault": fault}]) if check.id.endswith("parameter_roles")]
        with pytest.raises(CheckFailed, match="'gate: door' must name one of"):
            checks[0]()
        return
    assert expected <= failing(probe, fault)


class OneLayerAtATime(nn.Module):
    """A mixer whose `begin` does not take a number of layers."""

    def __init__(self, mixer):
        super().__init__()
        self.mixer = mixer
        self.forward, self.accumulate, self.finish = mixer.forward, mixer.accumulate, mixer.finish

    def begin(self):
        return self.mixer.begin()


def test_streaming_takes_how_many_layers_to_add_at_a_time():
    subject = StepSubject(registry.spec("mixers", "softmax_sum"), {})
    check_streaming(subject)
    subject.module = OneLayerAtATime(subject.module)
    with pytest.raises(CheckFailed, match=r"begin\(\) must take how many layers to add at a time"):
        check_streaming(subject)


def test_ids_say_block_example_and_check(probe):
    ids = [check.id for check in checks_for(probe, [{}, {"fault": "none"}])]
    assert "adapters/test.kit_probe[1]-parameter_count" in ids
    assert len(set(ids)) == len(ids)


def test_unclaimed_guarantees_are_not_checked():
    ids = {check.id.partition("]-")[2] for check in checks_for(registry.spec("adapters", "sincos_position"))}
    assert "permutation_equivariant" not in ids
    assert {"token_count", "grid", "padding_ignored"} <= ids


def marks(decorator) -> dict[str, tuple[Check, list[str]]]:
    return {
        parameter.id: (parameter.values[0], [mark.name for mark in parameter.marks])
        for parameter in decorator.mark.args[1]
    }


def test_known_failures_are_strict_and_must_exist():
    decorator = parametrize_with_checks(
        "fusionkit",
        families=["selectors"],
        known_failures={
            "selectors/all[0]-layers_are_sorted_and_there": "a reason",
            "selectors/all[7]-nothing": "stale",
        },
    )
    found = marks(decorator)
    xfail = next(p for p in decorator.mark.args[1] if p.id == "selectors/all[0]-layers_are_sorted_and_there").marks[0]
    assert xfail.kwargs == {"reason": "a reason", "strict": True, "raises": CheckFailed}
    with pytest.raises(CheckFailed, match=re.escape("known failure selectors/all[7]-nothing: there is no such check")):
        found["selectors/all[7]-nothing"][0]()


def test_a_distribution_without_blocks_is_a_failure():
    ((_, (check, _)),) = marks(parametrize_with_checks("no-such-distribution")).items()
    with pytest.raises(CheckFailed, match="no blocks to check"):
        check()


def test_examples_for_a_block_that_is_not_there():
    with pytest.raises(ValueError, match="selectors/nothing: no such block among those checked"):
        list(collect_checks("fusionkit", ["selectors"], {"selectors/nothing": [{}]}))


def test_a_block_that_does_not_load_is_one_failing_check(site):
    site.install("acme-broken", entry_points={"fusionkit.selectors": {"acme.broken": "acme_broken_module:SPEC"}})
    (check,) = collect_checks("Acme_Broken", ["selectors"])
    assert check.id == "selectors/acme.broken-loads"
    with pytest.raises(Exception, match="acme_broken_module"):
        check()


def test_every_family_has_checks():
    from fusionkit.plugin import FAMILIES, GUARANTEES
    from fusionkit.testing.collect import _MODULES

    assert set(_MODULES) == set(FAMILIES)
    from fusionkit.testing.checks.box_tokenizers import BOX_TOKENIZER_GUARANTEES
    from fusionkit.testing.checks.guarantees import STEP_GUARANTEES
    from fusionkit.testing.checks.injectors import INJECTOR_GUARANTEES

    assert set(GUARANTEES) == set(STEP_GUARANTEES) | set(BOX_TOKENIZER_GUARANTEES) | set(INJECTOR_GUARANTEES)


def test_the_kit_is_documented_in_the_package():
    import fusionkit.testing

    assert "parametrize_with_checks" in (fusionkit.testing.__doc__ or "")
    assert Path(fusionkit.testing.__file__).parent.joinpath("strategies.py").exists()
