"""`fusionkit show`: a block's promises and options, a recipe's file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import Field, PositiveInt

from fusionkit import discovery, registry
from fusionkit.cli.config_fields import option_texts
from fusionkit.cli.fragments import example_fragment, python_fragment
from fusionkit.cli.main import run
from fusionkit.plugin import GUARANTEES, STEP_FAMILIES, StepConfig, Width

BUILT_IN = [entry for entry in discovery.scan().blocks if entry.distribution == discovery.OWNER]


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        run(["show", *words])
    assert ended.value.code == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        run(["show", *words])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_a_block_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "mixer/orthogonal")
    assert text.startswith("mixer/orthogonal\n")
    assert "Equation  V = " in text
    assert "arXiv 2604.03231" in text
    assert f"  orthogonal               {GUARANTEES['orthogonal']}" in text
    assert "  share: layer | encoder = layer\n      One map per layer" in text
    assert "In a recipe\n  streams:\n    semantic:\n      steps:\n        mix: {type: orthogonal}\n" in text
    assert text.endswith('  module = create("mixers/orthogonal", shape)\n')


STEPS = [entry for entry in BUILT_IN if entry.family in STEP_FAMILIES]


@pytest.mark.parametrize("entry", STEPS, ids=lambda entry: entry.name)
def test_the_call_in_python_makes_the_block(entry: discovery.Entry) -> None:
    text = python_fragment(registry.spec(entry.family, entry.name))
    found: dict[str, Any] = {}
    exec(text, found)
    assert type(found["module"]).__module__ == registry.spec(entry.family, entry.name).factory.partition(":")[0]


def test_what_cannot_be_called_alone_has_no_call() -> None:
    assert python_fragment(registry.spec("croppers", "resize")) == ""


@pytest.mark.parametrize("name", ["orthogonal", "mixers/orthogonal", "mixer/orthogonal"])
def test_a_block_goes_by_name_or_address(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert shown(capsys, name).startswith("mixer/orthogonal\n")


def test_a_block_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(shown(capsys, "orthogonal", "--json"))
    assert data["family"] == "mixers"
    assert data["distribution"] == "fusionkit"
    assert {"name": "map", "kind": "cayley | exp", "default": "cayley"}.items() <= data["options"][4].items()
    assert data["schema"]["properties"]["share"]["enum"] == ["layer", "encoder"]
    assert set(data["guarantees"]) <= set(GUARANTEES)


def test_a_recipe_is_shown_with_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "come_vl")
    assert text.startswith("builtin:come_vl\n")
    assert "fusionkit plan builtin:come_vl" in text
    assert "\nschema: 1\n" in text


def test_a_plugin_file_can_be_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_files", {})
    path = tmp_path / "my_shown_block.py"
    path.write_text(
        "from typing import Literal\n"
        "from fusionkit.plugin import BlockSpec, StepConfig\n"
        "class Config(StepConfig):\n"
        "    type: Literal['my.shown'] = 'my.shown'\n"
        "SPEC = BlockSpec(api=1, family='adapters', config=Config, plan=len, factory='m:X', summary='Mine.')\n"
    )
    text = shown(capsys, "my.shown", "--plugin", str(path))
    assert text.startswith("adapter/my.shown\nMine.\n")
    assert str(path) in text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "orthgonal",
            "no block or recipe called 'orthgonal' is installed; did you mean mixer/orthogonal or "
            "mixer/orthogonal_two_stage or objective/orthogonality_penalty? (`fusionkit list` shows all)",
        ),
        ("zzzzzz", "no block or recipe called 'zzzzzz' is installed (`fusionkit list` shows all)"),
        ("mixr/orthogonal", "unknown family 'mixr'; did you mean 'mixer'? expected one of encoders, "),
        ("mixer/linear", "no mixer called 'linear' is installed; did you mean 'linear_sum'?"),
    ],
)
def test_an_unknown_name_gets_a_guess(capsys: pytest.CaptureFixture[str], name: str, message: str) -> None:
    assert refused(capsys, name).startswith(f"error: {message}")


def test_a_name_that_means_several_things_asks_which(site: Any, capsys: pytest.CaptureFixture[str]) -> None:
    site.install("acme", entry_points={"fusionkit.datasets": {"acme.x": "m:X"}, "fusionkit.metrics": {"acme.x": "m:Y"}})
    assert refused(capsys, "acme.x") == (
        "error: 'acme.x' is the name of several: dataset/acme.x, metric/acme.x; say which\n"
    )


def test_a_name_that_cannot_be_used_says_why(site: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("acme-a", "acme-b"):
        site.install(name, entry_points={"fusionkit.mixers": {"acme.x": "m:X"}})
    assert refused(capsys, "acme.x").startswith("error: mixers/acme.x of acme-a 1.0: also claimed by ")


@pytest.mark.parametrize("entry", BUILT_IN, ids=lambda entry: entry.address)
def test_every_example_is_a_recipe_fragment_with_a_valid_config(entry: discovery.Entry) -> None:
    spec = registry.spec(entry.family, entry.name)
    assert spec.examples
    for example in spec.examples:
        spec.config.model_validate_json(json.dumps({"type": spec.name, **example}, default=dict))
    assert spec.name in types_in(yaml.safe_load(example_fragment(spec)))


def types_in(value: Any) -> set[str]:
    if isinstance(value, dict):
        return {value["type"]} if "type" in value else types_in(list(value.values()))
    return {name for item in value for name in types_in(item)}


def test_options_read_as_recipes_write_them() -> None:
    class Config(StepConfig):
        type: Literal["my.x"] = "my.x"
        window: tuple[PositiveInt, PositiveInt] = Field(description="Rows and columns.")
        width: Width | None = Field(None, description="Width.")
        rate: Annotated[float, Field(ge=0, lt=1)] = Field(0.5, description="Rate.")
        names: tuple[str, ...] = Field((), description="Names.")
        table: dict[str, bool] = Field(default_factory=dict, description="Table.")
        empty: str = Field("", description="Empty.")

    texts = {option.name: (option.kind, option.default) for option in option_texts(Config)}
    assert texts == {
        "input": ("text | null", "null"),
        "window": ("[integer > 0, integer > 0]", None),
        "width": ("integer > 0 | {like: text} | null", "null"),
        "rate": ("number >= 0 and < 1", "0.5"),
        "names": ("[text, ...]", "[]"),
        "table": ("{text: true | false}", "{}"),
        "empty": ("text", '""'),
    }
