"""Locks: what a recipe means, kept and compared; the environment reported; changes by hand found out."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recipe_blocks import TEXT, fake_blocks

from fusionkit.errors import LockMismatchError
from fusionkit.recipe import Recipe, load_recipe
from fusionkit.recipe.lock import check_lock, lock, unlock
from fusionkit.recipe.tree import plain
from fusionkit.recipe.yaml_subset import parse_yaml


@pytest.fixture(autouse=True)
def _blocks() -> Iterator[None]:
    with fake_blocks():
        yield


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    path = tmp_path / "r.yaml"
    path.write_text(TEXT)
    return load_recipe(path)


def changed(recipe: Recipe, *changes: str) -> Recipe:
    return load_recipe(recipe.canonical(), set=changes)


def through_sorted_json(locked: dict[str, Any]) -> dict[str, Any]:
    """What comes back from software that sorts keys, as transformers does in config.json."""
    again: dict[str, Any] = json.loads(json.dumps(locked, sort_keys=True))
    return again


def test_a_lock_gives_the_recipe_back_in_order_even_when_keys_were_sorted(recipe: Recipe) -> None:
    again = load_recipe(unlock(through_sorted_json(lock(recipe))))
    assert again == recipe
    assert list(again.streams["semantic"].steps) == ["mix", "widen"]
    assert list(again.streams) == ["semantic", "spatial"]
    assert check_lock(through_sorted_json(lock(recipe)), recipe) == ()


def test_the_order_of_steps_is_part_of_the_model(recipe: Recipe) -> None:
    turned = changed(recipe, "streams.semantic.steps.widen={before: mix}")
    assert list(turned.streams["semantic"].steps) == ["widen", "mix"]
    assert lock(turned)["model"]["hash"] != lock(recipe)["model"]["hash"]
    with pytest.raises(LockMismatchError, match=r"steps: \[widen, mix\] here, \[mix, widen\] in the lock"):
        check_lock(lock(recipe), turned)


def test_what_does_not_change_the_model_does_not_change_its_hash(recipe: Recipe) -> None:
    other = changed(recipe, "name=other", "summary=new", "train.seed=7", "evaluate=[]", "requires=[pydantic]")
    assert lock(other)["model"] == lock(recipe)["model"]
    assert lock(other)["run"] != lock(recipe)["run"]
    assert check_lock(lock(recipe), other) == ()


def test_a_default_written_out_makes_no_difference(recipe: Recipe) -> None:
    assert lock(changed(recipe, "fusion.join.heads=4"))["model"] == lock(recipe)["model"]


def test_a_mismatch_names_the_differences_with_their_lines(recipe: Recipe, tmp_path: Path) -> None:
    other = changed(
        recipe, "fusion.join.heads=8", "streams.spatial.steps=null", "language_model=null", "sequence_length=64"
    )
    with pytest.raises(LockMismatchError) as caught:
        check_lock(lock(other), recipe)
    assert str(caught.value).replace(f"{tmp_path}/", "").splitlines() == [
        "r.yaml:1:1: sequence_length: 2048 here, 64 in the lock",
        "r.yaml:14:7: streams.spatial.steps.mix: acme.mix here, not in the lock",
        "r.yaml:18:3: fusion.join.heads: 4 here, 8 in the lock",
        "r.yaml:21:1: language_model: acme.speak here, not in the lock",
    ]


def test_a_replaced_block_is_one_difference(recipe: Recipe) -> None:
    other = changed(recipe, "streams.semantic.steps.mix={type: acme.widen, hidden: 3}")
    with pytest.raises(LockMismatchError) as caught:
        check_lock(lock(other), recipe)
    assert [problem.message for problem in caught.value.problems] == ["acme.mix here, acme.widen in the lock"]


def test_only_the_first_differences_are_named(recipe: Recipe) -> None:
    text = {f"n{index}": {"type": "acme.widen", "hidden": 1} for index in range(13)}
    other = changed(recipe, f"fusion={json.dumps(text | recipe.canonical()['fusion'])}")
    with pytest.raises(LockMismatchError) as caught:
        check_lock(lock(recipe), other)
    assert len(caught.value.problems) == 10
    assert str(caught.value).count("(and 3 more differences)") == 1


def test_a_lock_changed_by_hand_is_found_out(recipe: Recipe) -> None:
    locked = lock(recipe)
    locked["model"]["recipe"]["sequence_length"] = 1
    with pytest.raises(LockMismatchError, match="lock: was changed after it was made"):
        check_lock(locked, recipe)


@pytest.mark.parametrize(
    "broken",
    [{}, {"lock": 1}, {"lock": 1, "model": 3}, {"lock": 1, "model": {"hash": "x", "recipe": {}}, "run": {"recipe": 1}}],
)
def test_what_is_no_lock_is_said_to_be_none(broken: dict[str, Any], recipe: Recipe) -> None:
    with pytest.raises(LockMismatchError, match=r"lock: is not a lock of format 1 \(make one with `fusionkit lock`\)"):
        check_lock(broken, recipe)


def test_a_lock_of_a_later_format_is_refused(recipe: Recipe) -> None:
    with pytest.raises(LockMismatchError, match=r"is a lock of format 2, this fusionkit reads 1 \(upgrade fusionkit\)"):
        unlock(lock(recipe) | {"lock": 2})


def test_an_option_that_a_block_gained_since_is_no_difference(recipe: Recipe) -> None:
    locked = lock(recipe)
    older = json.loads(json.dumps(locked))
    [[_, join]] = older["model"]["recipe"]["fusion"]
    del join["heads"]
    text = json.dumps(older["model"]["recipe"], sort_keys=True, separators=(",", ":"))
    older["model"]["hash"] = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    assert check_lock(older, recipe) == ()


def test_a_lock_with_a_block_that_is_gone_still_names_the_difference(recipe: Recipe) -> None:
    locked = json.loads(json.dumps(lock(recipe)).replace('"acme.join"', '"acme.gone"'))
    text = json.dumps(locked["model"]["recipe"], sort_keys=True, separators=(",", ":"))
    locked["model"]["hash"] = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    with pytest.raises(LockMismatchError, match=r"fusion\.join: acme\.join here, acme\.gone in the lock"):
        check_lock(locked, recipe)


def test_the_environment_names_every_block_with_distribution_and_file_hashes() -> None:
    recipe = load_recipe("builtin:come_vl", set=["train=null"])
    environment = lock(recipe)["environment"]
    assert set(environment) == {"python", "platform", "distributions", "blocks"}
    mix = environment["blocks"]["streams.semantic.steps.mix"]
    assert mix["block"] == "mixers/orthogonal"
    assert mix["distribution"] == "fusionkit"
    assert set(mix["files"]) == {"fusionkit.blocks.mixers.specs", "fusionkit.blocks.mixers.orthogonal"}
    for module, written in mix["files"].items():
        file = Path(sys.modules["fusionkit"].__path__[0]).joinpath(*module.split(".")[1:]).with_suffix(".py")
        assert written == f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    assert set(environment["blocks"]) == {each.address for each in recipe.blocks()}


def test_another_environment_is_reported_and_no_error(recipe: Recipe) -> None:
    locked = lock(recipe)
    locked["environment"]["distributions"]["torch"] = "1.0"
    locked["environment"]["blocks"]["fusion.join"]["files"]["recipe_blocks"] = "sha256:0"
    reported = check_lock(locked, recipe)
    assert [line.split(":")[0] for line in reported] == [
        "distributions.torch",
        "blocks.fusion.join.files.recipe_blocks",
    ]
    assert reported[0].startswith("distributions.torch: 1.0 then, ")


def test_local_data_files_are_hashed_into_the_run(recipe: Recipe, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    found = lock(changed(recipe, f"train.data.0.path={rows}"))
    assert found["run"]["data"] == {str(rows): f"sha256:{hashlib.sha256(rows.read_bytes()).hexdigest()}"}
    assert plain(parse_yaml(json.dumps(found), "lock"))["run"]["data"], "a lock is in the YAML subset too"
