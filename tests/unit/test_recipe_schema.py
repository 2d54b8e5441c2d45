"""What a recipe is once it is read: typed, frozen, complete, and the same again from its canonical form."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from recipe_blocks import TEXT, Join, Loss, Mix, Score, fake_blocks
from recipe_schema_check import Schema

import fusionkit
from fusionkit import discovery
from fusionkit.errors import RecipeValidationError
from fusionkit.plugin import Like
from fusionkit.recipe import Recipe, load_recipe
from fusionkit.recipe.export import json_schema, to_yaml
from fusionkit.recipe.names import MODULE_ATTRIBUTES, RESERVED, fault_of
from fusionkit.recipe.train_schema import AdamW, Cosine, FlatThenLinear, Muon
from fusionkit.recipe.tree import plain
from fusionkit.recipe.yaml_subset import parse_yaml

SHIPPED = sorted(entry.address for entry in discovery.recipes() if entry.prefix == "builtin")


@pytest.fixture
def given() -> Iterator[dict[str, Any]]:
    """The recipe of made-up blocks as a dict, with its blocks known."""
    with fake_blocks():
        yield plain(parse_yaml(TEXT, "r.yaml"))


def test_blocks_are_instances_of_their_own_config_class(given: dict[str, Any]) -> None:
    recipe = load_recipe(given)
    assert isinstance(recipe, Recipe)
    mix = recipe.streams["spatial"].steps["mix"]
    assert isinstance(mix, Mix)
    assert mix.width == Like(like="semantic")
    assert isinstance(recipe.fusion["join"], Join)
    assert isinstance(recipe.evaluate[0].metrics[0], Score)
    assert list(recipe.streams) == ["semantic", "spatial"]
    assert list(recipe.streams["semantic"].steps) == ["mix", "widen"]


def test_defaults_are_filled(given: dict[str, Any]) -> None:
    del given["train"]["optimizer"]
    train = load_recipe(given).train
    assert train is not None
    assert (train.seed, train.precision, train.max_grad_norm) == (0, "fp32", 1.0)
    assert (train.optimizer, train.schedule) == (AdamW(), Cosine())
    assert isinstance(train.stages["joint"].objectives["answers"], Loss)
    assert train.stages["joint"].steps is None


def test_train_takes_muon_and_every_schedule(given: dict[str, Any]) -> None:
    given["train"]["optimizer"] = {"type": "muon", "learning_rate": 0.01, "betas": [0.8, 0.9]}
    given["train"]["schedule"] = {"type": "flat_then_linear", "warmup_steps": 60, "flat_fraction": 0.6}
    given["train"]["stages"]["warm"] = {
        "trainable": ["streams"],
        "steps": 10,
        "objectives": {"boxes": {"type": "answer_tokens", "weight": 2}},
        "learning_rates": {"streams": 1},
        "optimizer": {"type": "adamw"},
        "schedule": {"type": "constant"},
        "data": [{"type": "acme.data"}],
        "global_batch_size": 2,
        "turns_per_sample": 3,
    }
    train = load_recipe(given).train
    assert train is not None
    assert train.optimizer == Muon(learning_rate=0.01, betas=(0.8, 0.9))
    assert train.schedule == FlatThenLinear(warmup_steps=60, flat_fraction=0.6)
    assert train.stages["warm"].optimizer == AdamW()
    assert train.stages["joint"].optimizer is None
    assert list(train.stages) == ["joint", "warm"]


@pytest.mark.parametrize(
    "metrics",
    [
        {"metric": "acme.score"},
        {"metric": {"type": "acme.score"}},
        {"metrics": ["acme.score"]},
        {"metrics": [{"type": "acme.score"}]},
        {"metrics": "acme.score"},
    ],
)
def test_a_metric_is_written_in_any_of_five_ways(given: dict[str, Any], metrics: dict[str, Any]) -> None:
    given["evaluate"] = [{**metrics, "data": {"type": "acme.data"}}]
    assert load_recipe(given).evaluate[0].metrics == (Score(),)


def test_the_canonical_form_is_complete_and_comes_back_equal(given: dict[str, Any]) -> None:
    recipe = load_recipe(given)
    canonical = recipe.canonical()
    assert canonical == json.loads(json.dumps(canonical)), "JSON and nothing else"
    assert canonical["fusion"]["join"] == {
        "type": "acme.join",
        "inputs": ["semantic", "spatial"],
        "rope": {"longest": 2.0},
        "heads": 4,
    }
    assert canonical["schema"] == 1
    again = load_recipe(canonical)
    assert again == recipe
    assert hash(again) == hash(recipe)
    assert again.canonical() == canonical
    assert load_recipe(given, set=["fusion.join.heads=8"]) != recipe


def test_a_recipe_is_frozen(given: dict[str, Any]) -> None:
    recipe = load_recipe(given)
    with pytest.raises(ValidationError):
        recipe.name = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        recipe.streams["semantic"].encoder.depth = 3  # type: ignore[attr-defined]


def test_where_finds_values_defaults_and_keys_with_dots(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(TEXT)
    with fake_blocks():
        recipe = load_recipe(path)
    assert str(recipe.where("streams.spatial.steps.mix.width")) == f"{path}:16:9"
    assert str(recipe.where("streams.spatial.steps.mix.share")) == f"{path}:14:7", "a default: its block"
    assert str(recipe.where("train.learning_rates.streams.semantic.encoder")) == f"{path}:23:34"
    assert str(recipe.where("train.data.1.weight")) == f"{path}:29:25"
    assert str(recipe.where("nothing")) == f"{path}:1:1"
    assert str(recipe.problem("fusion.join.heads", "too many", "fewer")) == (
        f"{path}:18:3: fusion.join.heads: too many (fewer)"
    )


def test_blocks_names_every_block_once_in_order(given: dict[str, Any]) -> None:
    placed = list(load_recipe(given).blocks())
    assert [each.address for each in placed] == [
        "streams.semantic.encoder",
        "streams.semantic.select",
        "streams.semantic.steps.mix",
        "streams.semantic.steps.widen",
        "streams.spatial.encoder",
        "streams.spatial.select",
        "streams.spatial.steps.mix",
        "fusion.join",
        "injectors.visual",
        "language_model",
        "train.data.0",
        "train.data.1",
        "train.stages.joint.objectives.answers",
        "evaluate.0.metrics.0",
        "evaluate.0.data",
    ]
    assert [each.spec().address for each in placed][:3] == [
        "encoders/acme.see",
        "selectors/acme.pick",
        "mixers/acme.mix",
    ]


# -------------------------------------------------------------------------------------------------------- names
def test_the_list_of_module_attributes_covers_torch() -> None:
    modules = (torch.nn.Module(), torch.nn.ModuleDict(), torch.nn.ModuleList())
    public = {name for module in modules for name in dir(module) if re.fullmatch("[a-z][a-z0-9_]*", name)}
    assert public <= MODULE_ATTRIBUTES


@pytest.mark.parametrize(
    "name", ["forward", "train", "type", *sorted(RESERVED), "Mix", "mix-1", "1mix", "_mix", "class", ""]
)
@pytest.mark.parametrize("place", ["streams", "streams.semantic.steps", "fusion", "injectors", "train.stages"])
def test_names_that_clash_or_are_no_identifiers_are_refused(given: dict[str, Any], place: str, name: str) -> None:
    table = given
    for key in place.split("."):
        table = table[key]
    table[name] = deepcopy(next(iter(table.values())))
    with pytest.raises(RecipeValidationError) as caught:
        load_recipe(given)
    [problem] = caught.value.problems
    assert problem.address == f"{place}.{name}"
    assert problem.message == fault_of(name)


def test_good_names_are_taken() -> None:
    assert not [name for name in ("mix", "align_2", "v", "semantic") if fault_of(name)]


# ------------------------------------------------------------------------------------------------------ shipped
@pytest.mark.parametrize("address", SHIPPED)
def test_shipped_recipes_validate_and_come_back_from_their_canonical_form_and_yaml(address: str) -> None:
    recipe = load_recipe(address)
    assert address == f"builtin:{recipe.name}"
    assert recipe.summary
    assert load_recipe(recipe.canonical()) == recipe
    assert plain(parse_yaml(to_yaml(recipe.canonical()), "r.yaml")) == recipe.canonical()


def test_the_flagship_and_its_controls_are_shipped() -> None:
    wanted = (
        "come_vl",
        "come_vl_pooled_first",
        "come_vl_small",
        "molmo",
        "molmo_siglip2",
        "comm_channel",
        "comm_token",
    )
    assert {f"builtin:{name}" for name in wanted} <= set(SHIPPED)


def test_the_public_api_has_load_recipe() -> None:
    assert fusionkit.load_recipe is load_recipe


# --------------------------------------------------------------------------------------------------------- YAML
def test_yaml_text_reads_back_what_other_yaml_tools_misread() -> None:
    words = ["off", "yes", "1e-4", "010", "0x1f", "null", "~", "", ".inf", "2024-01-01", "1:30", "1_000", "- x", "#x"]
    words += ["a: b", "é", "line\nbreak", "\ttab", "<<", "=", "x" * 300, "*a", "&a", "!x", "{", "[", "'", '"', " x "]
    given: Mapping[str, Any] = {"a": words, "b": [1e22, 1e-5, -0.0, 5, True, None], "010": {"on": {}}, "c": [[], {}]}
    assert plain(parse_yaml(to_yaml(given), "r.yaml")) == given


# -------------------------------------------------------------------------------------------------- JSON schema
def test_the_json_schema_takes_right_recipes_and_refuses_wrong_ones(given: dict[str, Any]) -> None:
    found, faults = json_schema()
    assert not faults
    schema = Schema(found)
    assert schema.takes(given)
    for change in (
        lambda r: r.pop("name"),
        lambda r: r.update(nmae=1),
        lambda r: r["streams"]["semantic"]["encoder"].update(type="acme.unknown"),
        lambda r: r["streams"]["semantic"]["encoder"].update(deep=1),
        lambda r: r["streams"]["semantic"]["encoder"].pop("type"),
        lambda r: r["fusion"]["join"].update(heads="8"),
        lambda r: r["train"]["optimizer"].update(type="sgd"),
        lambda r: r["evaluate"][0].pop("metric"),
    ):
        wrong = deepcopy(given)
        change(wrong)
        assert not schema.takes(wrong)


def test_the_json_schema_lets_a_recipe_that_extends_leave_things_out() -> None:
    schema = Schema(json_schema()[0])
    assert schema.takes({"extends": "builtin:come_vl", "fusion": {"align": {"heads": 8}, "pool": None}})
    assert not schema.takes({"extends": "builtin:come_vl", "fushion": {}})


@pytest.mark.parametrize("address", SHIPPED)
def test_the_json_schema_takes_shipped_recipes(address: str) -> None:
    assert Schema(json_schema()[0]).takes(load_recipe(address).canonical())


def test_a_broken_plugin_is_left_out_of_the_json_schema_and_named(site: Any) -> None:
    site.install(
        "acme-broken",
        entry_points={"fusionkit.mixers": {"acme.broken": "acme_broken:MIX"}},
        modules={"acme_broken.py": "raise RuntimeError('no')"},
    )
    schema, faults = json_schema()
    assert len(faults) == 1
    assert faults[0].startswith("mixers/acme.broken of acme-broken 1.0 does not load")
    assert "mixers.acme.broken" not in schema["$defs"]
