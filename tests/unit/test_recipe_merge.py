"""Laying recipes over each other: merge rules, `extends`, `requires`, `--set`, and where values come from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recipe_blocks import TEXT, fake_blocks

from fusionkit.errors import Problem, RecipeError
from fusionkit.recipe import load_recipe
from fusionkit.recipe.load import read_tree
from fusionkit.recipe.merge import merge
from fusionkit.recipe.overrides import override
from fusionkit.recipe.tree import Leaf, Origin, Table, locate, plain
from fusionkit.recipe.yaml_subset import parse_yaml


@pytest.fixture(autouse=True)
def _blocks() -> Iterator[None]:
    with fake_blocks():
        yield


def merged(base: str, *over: str) -> Table:
    problems: list[Problem] = []
    tree = merge(None, parse_yaml(base, "base"), problems)
    for text in over:
        tree = merge(tree, parse_yaml(text, "over"), problems)
    if problems:
        raise RecipeError(problems)
    return tree


def result(base: str, *over: str) -> Any:
    return plain(merged(base, *over))


# -------------------------------------------------------------------------------------------------------- rules
def test_mappings_merge_and_lists_and_scalars_replace() -> None:
    assert result("a: {b: 1, c: [1, 2], d: {e: 1}}", "a: {b: 2, c: [3], d: {f: 2}}") == {
        "a": {"b": 2, "c": [3], "d": {"e": 1, "f": 2}}
    }


def test_neither_source_is_changed() -> None:
    base, over = parse_yaml("a: {b: {c: 1}}", "base"), parse_yaml("a: {b: {c: 2}}", "over")
    merge(base, over, [])
    assert (plain(base), plain(over)) == ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}})


def test_a_block_of_the_same_type_merges() -> None:
    assert result("x: {type: a, p: 1, q: 2}", "x: {type: a, p: 3}") == {"x": {"type": "a", "p": 3, "q": 2}}
    assert result("x: {type: a, p: 1}", "x: {p: 3}") == {"x": {"type": "a", "p": 3}}


def test_a_block_whose_type_changes_is_replaced_whole_in_its_place() -> None:
    found = result("fusion: {x: {type: a, p: 1}, y: {type: b}}", "fusion: {x: {type: c, q: 2}}")
    assert found == {"fusion": {"x": {"type": "c", "q": 2}, "y": {"type": "b"}}}
    assert list(found["fusion"]) == ["x", "y"]


def test_a_mapping_replaces_a_scalar_and_the_other_way_round() -> None:
    assert result("x: 1", "x: {like: a}") == {"x": {"like": "a"}}
    assert result("x: {like: a}", "x: 1") == {"x": 1}


def test_null_removes_a_key() -> None:
    assert result("a: {b: 1, c: 2}", "a: {b: null}") == {"a": {"c": 2}}


def test_null_for_what_is_not_there_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"over:1:5: a\.bb: nothing to remove.*did you mean 'bbb'\?"):
        merged("a: {bbb: 1}", "a: {bb: null}")


def test_null_in_new_material_is_a_value() -> None:
    assert result("a: {b: null}") == {"a": {"b": None}}
    assert result("a: {}", "c: {d: null}") == {"a": {}, "c": {"d": None}}


def test_null_in_a_block_is_kept_for_the_block_to_judge() -> None:
    tree = merged("x: {type: a, p: 1}", "x: {p: null, q: null}")
    assert locate(tree, "x.p") == Leaf(None, Origin("over", 1, 5), unset=True)
    assert locate(tree, "x.q") == Leaf(None, Origin("over", 1, 14), unset=True)


def test_a_new_step_goes_last() -> None:
    assert list(result("fusion: {a: {type: t}, b: {type: t}}", "fusion: {c: {type: t}}")["fusion"]) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("over", "order"),
    [
        ("{c: {type: t, before: a}}", "cab"),
        ("{c: {type: t, before: b}}", "acb"),
        ("{b: {before: a}}", "ba"),
        ("{c: {type: t, before: b}, d: {type: t, before: c}}", "adcb"),
        ("{a: null, c: {type: t, before: b}}", "cb"),
    ],
)
@pytest.mark.parametrize("place", ["fusion", "injectors", "streams.s.steps", "train.stages"])
def test_before_places_a_step(place: str, over: str, order: str) -> None:
    def wrapped(text: str) -> str:
        keys = place.split(".")
        return (
            "".join(f"{key}: " if not n else f"{{{key}: " for n, key in enumerate(keys)) + text + "}" * (len(keys) - 1)
        )

    found = result(wrapped("{a: {type: t}, b: {type: t}}"), wrapped(over))
    for key in place.split("."):
        found = found[key]
    assert "".join(found) == order
    assert not any("before" in step for step in found.values())


@pytest.mark.parametrize("before", ["x", "c", "1", "[a]"])
def test_before_must_name_another_step(before: str) -> None:
    with pytest.raises(RecipeError, match=r"over:1:\d+: fusion\.c\.before: must name another entry"):
        merged("fusion: {a: {type: t}}", f"fusion: {{c: {{type: t, before: {before}}}}}")


def test_before_is_an_ordinary_key_elsewhere() -> None:
    assert result("cropper: {type: a}", "cropper: {before: x}") == {"cropper": {"type": "a", "before": "x"}}


def test_every_value_keeps_the_source_it_was_written_in() -> None:
    tree = override(merged("a: {b: 1, c: 1, d: 1}", "\na: {b: 2}"), ["a.c=3"])
    assert {key: str(locate(tree, f"a.{key}").origin) for key in "bcd"} == {
        "b": "over:2:5",
        "c": "--set a.c=3",
        "d": "base:1:17",
    }


# ------------------------------------------------------------------------------------------------------ extends
def write(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def test_a_recipe_extends_a_file_beside_it_and_each_value_knows_its_file(tmp_path: Path) -> None:
    write(tmp_path, base=TEXT, child="extends: base.yaml\nname: child\nfusion:\n  join: {heads: 8}\n")
    recipe = load_recipe(tmp_path / "child.yaml")
    assert recipe.name == "child"
    assert recipe.fusion["join"].model_dump()["heads"] == 8
    assert str(recipe.where("fusion.join.heads")) == f"{tmp_path}/child.yaml:4:10"
    assert str(recipe.where("fusion.join.inputs.1")) == f"{tmp_path}/base.yaml:18:46"
    assert "extends" not in recipe.canonical()


def test_extends_goes_on_through_five_recipes_and_no_more(tmp_path: Path) -> None:
    write(tmp_path, r0=TEXT, **{f"r{n}": f"extends: r{n - 1}.yaml\nsummary: '{n}'\n" for n in range(1, 7)})
    assert load_recipe(tmp_path / "r5.yaml").summary == "5"
    with pytest.raises(RecipeError, match=r"r1\.yaml:1:1: extends: extends through more than 5 recipes"):
        load_recipe(tmp_path / "r6.yaml")


def test_a_circle_of_recipes_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, a="extends: b.yaml\n", b="extends: sub/../a.yaml\n", c="extends: d.yaml\n", d="extends: ./c.yaml\n")
    write(tmp_path, self="extends: self.yaml\n")
    with pytest.raises(RecipeError, match=r"d\.yaml:1:1: extends: goes round in a circle: .*c\.yaml is extended"):
        load_recipe(tmp_path / "c.yaml")
    with pytest.raises(RecipeError, match="goes round in a circle"):
        load_recipe(tmp_path / "self.yaml")


def test_a_recipe_in_a_subfolder_extends_from_its_own_folder(tmp_path: Path) -> None:
    write(tmp_path, sub__base=TEXT, sub__mid="extends: base.yaml\n", top="extends: sub/mid.yaml\nname: top\n")
    assert load_recipe(tmp_path / "top.yaml").name == "top"


def test_a_dict_extends_shipped_recipes_only() -> None:
    assert plain(read_tree({"extends": "builtin:come_vl", "name": "mine"}))["name"] == "mine"
    with pytest.raises(RecipeError, match=r"<dict>: extends: a dict has no folder"):
        load_recipe({"extends": "base.yaml"})


def test_a_shipped_recipe_that_extends_another_is_named_as_shipped() -> None:
    tree = read_tree("builtin:come_vl_small")
    assert locate(tree, "streams.semantic.encoder.model").origin.source == "builtin:come_vl_small"
    assert locate(tree, "streams.semantic.encoder.type").origin.source == "builtin:come_vl"


def test_a_distribution_brings_recipes_without_being_imported(site: Any) -> None:
    site.install(
        "acme-kit",
        entry_points={"fusionkit.recipes": {"acme-kit": "acme_kit.recipes"}},
        modules={
            "acme_kit/__init__.py": "raise RuntimeError('imported')",
            "acme_kit/recipes/__init__.py": "",
            "acme_kit/recipes/pair.yaml": TEXT,
        },
    )
    assert load_recipe("acme-kit:pair").name == "pair"
    assert load_recipe({"extends": "acme_kit:pair", "name": "mine"}).name == "mine"
    with pytest.raises(RecipeError, match=r"<dict>: extends: no recipe acme-kit:pare \(did you mean acme-kit:pair\?\)"):
        load_recipe({"extends": "acme-kit:pare"})
    with pytest.raises(
        RecipeError, match=r"no installed distribution 'acme-kid' brings recipes \(there are .*acme-kit"
    ):
        load_recipe("acme-kid:pair")
    with pytest.raises(RecipeError, match=r"no recipe builtin:pair \(did you mean acme-kit:pair\?\)"):
        load_recipe("builtin:pair")


def test_a_blocked_distribution_brings_no_recipes(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install(
        "acme-kit",
        entry_points={"fusionkit.recipes": {"acme-kit": "acme_kit.recipes"}},
        modules={"acme_kit/__init__.py": "", "acme_kit/recipes/__init__.py": "", "acme_kit/recipes/pair.yaml": TEXT},
    )
    monkeypatch.setenv("FUSIONKIT_BLOCK", "acme-kit")
    with pytest.raises(RecipeError, match=r"the recipes of acme-kit 1\.0 cannot be used: left out by FUSIONKIT_BLOCK"):
        load_recipe("acme-kit:pair")


@pytest.mark.parametrize(
    ("extends", "said"),
    [
        ("../outside.yaml", "leads out of the recipe's folder"),
        ("/etc/passwd.yaml", "leads out of the recipe's folder"),
        ("sub/../../outside.yaml", "leads out of the recipe's folder"),
        ("link.yaml", "leads out of the recipe's folder"),
        ("round.yaml", "leads out of the recipe's folder|Too many levels of symbolic links"),  # by Python 3.13
        ("..\\\\outside.yaml", "leads out of the recipe's folder"),
        ("https://example.org/base.yaml", "is no recipe"),
        ("file:///etc/passwd", "is no recipe"),
        ("builtin:../come_vl", "is no recipe"),
        ("os.path:join.yaml", "is no recipe"),
        ("secrets.env", r"does not end with \.yaml or \.yml or \.json"),
        ("~/base.yaml", "no such file"),
        ("$HOME/base.yaml", "no such file"),
        ("bse.yaml", r"no such file \(did you mean 'base\.yaml'\?\)"),
    ],
)
def test_extends_stays_in_the_folder(tmp_path: Path, extends: str, said: str) -> None:
    folder = tmp_path / "inside"
    write(folder, base=TEXT, r=f'extends: "{extends}"\n')
    write(tmp_path, outside=TEXT)
    (folder / "sub").mkdir()
    (folder / "link.yaml").symlink_to(tmp_path / "outside.yaml")
    (folder / "round.yaml").symlink_to(folder / "round.yaml")
    (folder / "secrets.env").write_text("PASSWORD=1")
    with pytest.raises(RecipeError, match=said) as caught:
        load_recipe(folder / "r.yaml")
    assert str(caught.value).startswith(f"{folder}/r.yaml:1:1: extends: ")


def test_a_link_that_stays_in_the_folder_is_followed(tmp_path: Path) -> None:
    write(tmp_path, base=TEXT, r="extends: alias.yaml\n")
    (tmp_path / "alias.yaml").symlink_to(tmp_path / "base.yaml")
    assert load_recipe(tmp_path / "r.yaml").name == "pair"


@pytest.mark.parametrize("value", ["[a.yaml]", "{a: 1}", "1", "null", "true"])
def test_extends_is_one_name(tmp_path: Path, value: str) -> None:
    write(tmp_path, r=f"extends: {value}\n")
    with pytest.raises(RecipeError, match=r"r\.yaml:1:1: extends: must be one recipe"):
        load_recipe(tmp_path / "r.yaml")


def test_a_file_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, base=TEXT, r="extends: base.yaml\n")
    open_file = Path.open

    def refuse(path: Path, *arguments: Any) -> Any:
        if path.name == "base.yaml":
            raise PermissionError(13, "Permission denied")
        return open_file(path, *arguments)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(RecipeError, match=r"r\.yaml:1:1: extends: .*cannot be read: Permission denied"):
        load_recipe(tmp_path / "r.yaml")


# ----------------------------------------------------------------------------------------------------- requires
def test_what_is_required_and_installed_is_fine(tmp_path: Path) -> None:
    write(tmp_path, r=TEXT + 'requires: ["fusionkit>=0.1", pydantic]\n')
    assert load_recipe(tmp_path / "r.yaml").requires == ("fusionkit>=0.1", "pydantic")


@pytest.mark.parametrize(
    ("requirement", "said"),
    [
        ("acme-sam2>=1.2", 'acme-sam2>=1.2 is not installed (pip install "acme-sam2>=1.2")'),
        ("fusionkit>=99", "fusionkit>=99 is needed, "),
        ("not a requirement", "'not a requirement' is not a requirement (for example acme-sam2>=1.2)"),
        ("acme @ https://example.org/acme.whl", "only a distribution and its versions are allowed (write acme)"),
        ("acme[extra]", "only a distribution and its versions are allowed (write acme)"),
        ("acme; python_version > '3'", "only a distribution and its versions are allowed (write acme)"),
    ],
)
def test_what_is_required_and_missing_is_said_with_the_command(tmp_path: Path, requirement: str, said: str) -> None:
    write(tmp_path, r=TEXT + f'requires: [fusionkit, "{requirement}"]\n')
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "r.yaml")
    [problem] = caught.value.problems
    assert problem.address == "requires.1"
    assert (problem.line, problem.column) == (32, 23)
    assert said in str(problem)


# -------------------------------------------------------------------------------------------------------- --set
def changed(*changes: str, text: str = TEXT) -> Any:
    return plain(override(parse_yaml(text, "r.yaml"), changes))


def test_set_changes_and_adds_values_of_every_kind() -> None:
    found = changed(
        "fusion.join.heads=8",
        "train.seed=3",
        "streams.spatial.steps.mix.width=16",
        "fusion.join.inputs=[spatial, semantic]",
        "train.schedule={type: linear, warmup_steps: 5}",
        "name='8'",
        "summary=off = x",
    )
    assert found["fusion"]["join"] == {"type": "acme.join", "inputs": ["spatial", "semantic"], "heads": 8}
    assert found["train"]["seed"] == 3
    assert found["streams"]["spatial"]["steps"]["mix"]["width"] == 16
    assert found["train"]["schedule"] == {"type": "linear", "warmup_steps": 5}
    assert (found["name"], found["summary"]) == ("8", "off = x")


def test_set_replaces_a_block_whose_type_it_changes() -> None:
    assert changed("fusion.join.type=acme.sum")["fusion"]["join"] == {"type": "acme.sum"}
    assert changed("train.optimizer.type=muon")["train"]["optimizer"] == {"type": "muon"}


def test_set_reaches_into_lists_and_keeps_the_rest() -> None:
    found = changed("train.data.1.weight=0.5", "streams.semantic.select.layers.0=7", "evaluate.0.metric=acme.other")
    assert found["train"]["data"] == [{"type": "acme.data", "weight": 0.8}, {"type": "acme.data", "weight": 0.5}]
    assert found["streams"]["semantic"]["select"]["layers"] == [7, 2]
    assert found["evaluate"] == [{"metric": "acme.other", "data": {"type": "acme.data"}}]
    assert changed("train.data.0.type=acme.rows")["train"]["data"][0] == {"type": "acme.rows"}


def test_set_takes_addresses_as_keys_of_learning_rates() -> None:
    rates = changed("train.learning_rates.streams.semantic.encoder=2e-5", "train.learning_rates.fusion.join=1")["train"]
    assert rates["learning_rates"] == {"fusion": 1e-4, "streams.semantic.encoder": 2e-5, "fusion.join": 1}


def test_set_removes_with_null_and_places_with_before() -> None:
    assert "train" not in changed("train=null")
    found = changed("streams.semantic.steps.new={type: acme.widen, hidden: 1, before: widen}")
    assert list(found["streams"]["semantic"]["steps"]) == ["mix", "new", "widen"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train.seed", "--set train.seed: is not ADDRESS=VALUE (for example train.seed=1)"),
        ("=1", "--set =1: is not ADDRESS=VALUE (for example train.seed=1)"),
        ("train..seed=1", "--set train..seed=1: is not ADDRESS=VALUE (for example train.seed=1)"),
        ("train.seed=", "--set train.seed=: has no value (write null to remove it, '' for no text)"),
        ("train.seed=010", "--set train.seed=010: 010 starts with a zero"),
        ("train.seed=[1", "--set train.seed=[1: expected ',' or ']'"),
        ("train.seed=&x 1", "--set train.seed=&x 1: anchors (&x) are not allowed"),
        ("train.data.2.weight=1", "--set train.data.2.weight=1: train.data.2: must be an item of the list, 0 to 1"),
        ("train.data.first=1", "--set train.data.first=1: train.data.first: must be an item of the list, 0 to 1"),
        ("trian=null", "--set trian=null: trian: nothing to remove: there is no 'trian' below (did you mean 'train'?)"),
    ],
)
def test_a_change_that_cannot_be_made_is_refused(change: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        changed(change)
    assert str(caught.value).startswith(said)


# ------------------------------------------------------------------------------- null in blocks, once validated
def test_null_sets_a_field_that_takes_null_and_else_brings_back_the_default(tmp_path: Path) -> None:
    write(tmp_path, base=TEXT, r="extends: base.yaml\nfusion:\n  join: {rope: null, heads: null}\n")
    join = load_recipe(tmp_path / "r.yaml", set=["streams.spatial.encoder.depth=null"])
    assert join.fusion["join"].model_dump()["rope"] is None, "the block takes null"
    assert join.fusion["join"].model_dump()["heads"] == 4, "the block's default"
    assert join.streams["spatial"].encoder.model_dump()["depth"] == 2


def test_null_for_a_field_without_default_says_that_it_is_missing(tmp_path: Path) -> None:
    write(tmp_path, r=TEXT)
    with pytest.raises(RecipeError, match=r"streams\.semantic\.steps\.widen\.hidden: missing"):
        load_recipe(tmp_path / "r.yaml", set=["streams.semantic.steps.widen.hidden=null"])
