"""Parameter groups: who learns how, what never decays, and a table that accounts for every parameter."""

from __future__ import annotations

import pytest
import torch
from model_recipe import recipe
from torch import nn

import fusionkit
from fusionkit.errors import UsageError
from fusionkit.model.modeling import FusionVLM
from fusionkit.recipe.train_schema import AdamW, Muon
from fusionkit.train.addresses import set_trainable
from fusionkit.train.groups import assign, audit

RATES = {
    "streams": 1e-4,
    "streams.semantic.encoder": 1e-5,
    "fusion": 1e-3,
    "fusion.align.gate": 1e-2,
    "language_model": 2e-5,
}


@pytest.fixture
def model() -> FusionVLM:
    torch.manual_seed(0)
    return fusionkit.build(recipe())


def heads() -> nn.Module:
    return nn.ModuleDict({"what": nn.Linear(16, 3)})


def test_rates_go_by_the_longest_address_and_heads_learn_at_the_highest(model: FusionVLM) -> None:
    by_name = {item.name: item for item in assign(model, heads(), AdamW(), RATES)}
    assert by_name["streams.semantic.steps.mix.logits"].learning_rate == 1e-4
    assert all(i.learning_rate == 1e-5 for n, i in by_name.items() if n.startswith("streams.semantic.encoder"))
    assert by_name["fusion.align.gate"].learning_rate == 1e-2
    assert by_name["fusion.project.layers.0.weight"].learning_rate == 1e-3
    assert by_name["objectives.what.weight"].learning_rate == 1e-2
    assert len(by_name) == len(list(model.parameters())) + 2


@pytest.mark.parametrize("optimizer", [AdamW(weight_decay=0.3), Muon(weight_decay=0.3)], ids=["adamw", "muon"])
def test_only_weights_of_maps_and_convolutions_decay(model: FusionVLM, optimizer: AdamW | Muon) -> None:
    for item in assign(model, heads(), optimizer, RATES):
        decays = item.role in ("matrix", "conv", "head")
        assert item.weight_decay == (0.3 if decays else 0.0), item.name
        if item.parameter.ndim < 2:
            assert item.weight_decay == 0.0, item.name
    never = ("skew", "align.gate", "logits", "norm", "bias", "embed_tokens.weight", "embed_tokens.shift")
    spared = {i.name for i in assign(model, heads(), optimizer, RATES) if i.weight_decay == 0.0}
    for word in never:
        found = [name for name, _ in model.named_parameters() if word in name]
        assert found, f"no parameter is called {word}, so this test checks nothing"
        assert spared.issuperset(found), word


def test_muon_takes_matrices_and_nothing_else(model: FusionVLM) -> None:
    assigned = assign(model, heads(), Muon(learning_rate=0.05), RATES)
    muon = [item for item in assigned if item.rule == "muon"]
    assert muon
    assert all(item.parameter.ndim == 2 and item.role == "matrix" and item.learning_rate == 0.05 for item in muon)
    names = {item.name for item in muon}
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in names
    assert not any("skew" in name or "embed" in name or "logits" in name for name in names)


def test_a_trainable_parameter_without_a_rate_is_an_error_with_a_line_to_paste(model: FusionVLM) -> None:
    with pytest.raises(UsageError) as caught:
        assign(model, heads(), AdamW(), {"streams": 1e-4, "language_model": 1e-5})
    assert "trainable parameters lie in no address: fusion.align" in str(caught.value)
    assert "(add `fusion: 1e-4`)" in str(caught.value)


def test_a_rate_for_nothing_and_a_stage_that_trains_nothing_are_errors(model: FusionVLM) -> None:
    with pytest.raises(UsageError, match=r"train\.learning_rates: no parameter lies in streams\.other"):
        assign(model, heads(), AdamW(), {**RATES, "streams.other": 1e-4})
    with pytest.raises(UsageError, match="nothing is trainable"):
        assign(model.requires_grad_(False), nn.ModuleDict(), AdamW(), RATES)


def test_the_audit_accounts_for_every_parameter_once(model: FusionVLM) -> None:
    set_trainable(model, ["fusion", "streams.semantic.steps"], "test")
    assigned = assign(model, heads(), Muon(), RATES)
    rows = audit(model, assigned)
    own = [row for row in rows if not row.address.startswith("objectives")]
    assert sum(row.parameters for row in own) == model.plan.parameters
    learning = sum(row.parameters for row in own if row.trainable)
    assert learning == sum(p.numel() for p in model.parameters() if p.requires_grad)
    by_address = {(row.address, row.rule, row.weight_decay) for row in rows if row.trainable}
    assert ("streams.semantic.steps.mix", "adamw", 0.0) in by_address
    assert ("fusion.project", "muon", 0.01) in by_address
    assert ("objectives.what", "muon", 0.01) in by_address
    frozen = {row.address for row in rows if not row.trainable}
    assert {"streams.semantic.encoder", "streams.spatial.encoder", "language_model"} <= frozen
    assert [row.address for row in rows] == sorted(row.address for row in rows)
