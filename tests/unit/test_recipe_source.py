"""Reading a recipe's text: scalars, the YAML subset with its places and limits, files, Python mappings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from fusionkit.errors import RecipeError, RecipeSyntaxError
from fusionkit.recipe import load_recipe, yaml_subset
from fusionkit.recipe.mapping_source import from_mapping
from fusionkit.recipe.scalars import resolve
from fusionkit.recipe.source import MAX_BYTES, MAX_DEPTH, MAX_NODES, decode
from fusionkit.recipe.tree import Leaf, Origin, Table, locate, plain
from fusionkit.recipe.yaml_subset import parse_yaml


@pytest.fixture(params=["c", "python"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of PyYAML's parsers."""
    if request.param == "c" and not hasattr(yaml, "CSafeLoader"):
        pytest.skip("PyYAML was built without its C parser")
    monkeypatch.setattr(yaml_subset, "LOADER", yaml.CSafeLoader if request.param == "c" else yaml.SafeLoader)


# ------------------------------------------------------------------------------------------------------ scalars
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("Null", None),
        ("nULL", "nULL"),
        ("true", True),
        ("FALSE", False),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("0", 0),
        ("-0", 0),
        ("+12", 12),
        ("0x1F", 31),
        ("0o17", 15),
        ("0b11", "0b11"),
        ("1_000", "1_000"),
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("5.", 5.0),
        ("0.5", 0.5),
        (".", "."),
        ("-", "-"),
        ("+", "+"),
        ("1e", "1e"),
        ("1.2.3", "1.2.3"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("9223372036854775807", 2**63 - 1),
        ("\u0661\u0662", "\u0661\u0662"),
        ("-\u0661", "-\u0661"),
    ],
)
def test_a_plain_scalar_has_the_value_yaml_1_2_gives_it(text: str, value: object) -> None:
    found = resolve(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text", ["010", "-007", "00.5", "01e3", ".inf", "-.Inf", ".nan", "1e999", "9223372036854775808", "1" * 41]
)
def test_a_scalar_that_misleads_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"number|starts with a zero|64 bits"):
        resolve(text)


# ------------------------------------------------------------------------------------------------------- places
@pytest.mark.usefixtures("parser")
def test_every_value_knows_its_line_and_column() -> None:
    text = "a: 1\nb:\n  - x\n  - {c: é, d: [2, 3]}\n'e.f':\n  g: |\n    text\n"
    tree = parse_yaml(text, "r.yaml")
    places = {
        address: locate(tree, address).origin for address in ("a", "b", "b.0", "b.1", "b.1.c", "b.1.d", "b.1.d.1")
    }
    assert places == {
        "a": Origin("r.yaml", 1, 1),
        "b": Origin("r.yaml", 2, 1),
        "b.0": Origin("r.yaml", 3, 5),
        "b.1": Origin("r.yaml", 4, 5),
        "b.1.c": Origin("r.yaml", 4, 6),
        "b.1.d": Origin("r.yaml", 4, 12),
        "b.1.d.1": Origin("r.yaml", 4, 19),
    }
    assert locate(tree, "e.f.g").origin == Origin("r.yaml", 6, 3), "keys with dots are found"
    assert locate(tree, "b.1.nothing.here").origin == Origin("r.yaml", 4, 5), "else the deepest place on the way"
    assert plain(tree) == {"a": 1, "b": ["x", {"c": "é", "d": [2, 3]}], "e.f": {"g": "text\n"}}


@pytest.mark.usefixtures("parser")
def test_order_and_quoting_are_kept() -> None:
    tree = parse_yaml('z: \'1\'\ny: "off"\nx: "010"\n', "r.yaml")
    assert list(plain(tree).items()) == [("z", "1"), ("y", "off"), ("x", "010")]


@pytest.mark.usefixtures("parser")
def test_what_is_not_in_the_subset_is_collected_in_one_error() -> None:
    text = "a: &x 1\nb: *x\nc: !!str d\n<<: {e: 1}\na: 2\n1: f\n? [g]\n: h\ni: 010\n"
    with pytest.raises(RecipeSyntaxError) as caught:
        parse_yaml(text, "r.yaml")
    assert [(problem.line, problem.message.split()[0]) for problem in caught.value.problems] == [
        (1, "anchors"),
        (2, "aliases"),
        (3, "tags"),
        (4, "merge"),
        (5, "key"),
        (6, "key"),
        (7, "a"),
        (9, "010"),
    ]


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize(
    "text", ["a: 1\n", "---\na: 1\n", "a: 1\n...\n", "\ufeffa: 1", "# only a comment\na: 1", '{"a": 1}']
)
def test_one_document_is_read(text: str) -> None:
    assert plain(parse_yaml(decode(text.encode(), "r.yaml"), "r.yaml")) == {"a": 1}


# ------------------------------------------------------------------------------------------------------- limits
def _nested(depth: int) -> str:
    return "a: " + "[" * (depth - 1) + "]" * (depth - 1)


@pytest.mark.usefixtures("parser")
def test_depth_is_limited() -> None:
    parse_yaml(_nested(MAX_DEPTH), "r.yaml")
    with pytest.raises(RecipeSyntaxError, match=f"r.yaml:1:{3 + MAX_DEPTH}: nested deeper than 32 levels"):
        parse_yaml(_nested(MAX_DEPTH + 1), "r.yaml")


def test_the_number_of_values_is_limited() -> None:
    # The mapping is a value too.
    parse_yaml("".join(f"k{n}: 1\n" for n in range(MAX_NODES - 1)), "r.yaml")
    with pytest.raises(RecipeSyntaxError, match=r"r\.yaml:10000:8: more than 10000 values"):
        parse_yaml("".join(f"k{n}: 1\n" for n in range(MAX_NODES)), "r.yaml")


def test_size_is_limited_to_a_mebibyte() -> None:
    text = b"a: '" + b"x" * (MAX_BYTES - 5) + b"'"
    assert len(text) == MAX_BYTES
    assert decode(text, "r.yaml")
    with pytest.raises(RecipeSyntaxError) as caught:
        decode(text + b"\n", "r.yaml")
    assert caught.value.problems[0].byte == MAX_BYTES


# -------------------------------------------------------------------------------------------------------- files
def test_a_file_that_cannot_be_read_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name, said in {"missing.yaml": "no such file", "folder": "is a folder", "x" * 300: "cannot be read"}.items():
        with pytest.raises(RecipeError, match=said):
            load_recipe(tmp_path / name)


def test_text_passed_in_place_of_a_path_is_explained() -> None:
    for text in ("schema: 1\nname: x\n", "", "a\0b"):
        with pytest.raises(RecipeError, match="is no path"):
            load_recipe(text)


def test_a_missing_shipped_recipe_has_a_near_miss() -> None:
    with pytest.raises(RecipeError, match=r"did you mean builtin:come_vl\?"):
        load_recipe("builtin:come_vel")
    with pytest.raises(RecipeError, match=r"did you mean builtin:come_vl\?"):
        load_recipe("come_vl.yml")


# ----------------------------------------------------------------------------------------------------- mappings
def test_a_mapping_is_a_source_too() -> None:
    given = {"a": 1, "b": (True, None, 1.5), "c": {"d": "off"}}
    tree = from_mapping(given, "<dict>")
    assert plain(tree) == {"a": 1, "b": [True, None, 1.5], "c": {"d": "off"}}
    assert locate(tree, "c.d") == Leaf("off", Origin("<dict>"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"a": {1: 2}}, "<dict>: a: key 1 is not a string"),
        ({"a": [0, {2}]}, "<dict>: a.1: must be a string, number, boolean, None, list or dict, got set"),
        ({"a": math.nan}, "<dict>: a: nan is no number a recipe can hold"),
        ({"a": 2**63}, "<dict>: a: a number that does not fit in 64 bits"),
        ({"a": "x\0"}, "<dict>: a: text holds the control character U+0000 (remove it)"),
        ({"a": Path("x")}, "<dict>: a: must be a string, number, boolean, None, list or dict, got PosixPath"),
    ],
)
def test_a_mapping_holds_json_values_only(given: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeSyntaxError) as caught:
        from_mapping(given, "<dict>")
    assert str(caught.value) == said


def test_a_mapping_that_holds_itself_ends_at_the_depth_limit() -> None:
    circle: dict[str, Any] = {}
    circle["a"] = circle
    with pytest.raises(RecipeSyntaxError, match="nested deeper than 32 levels"):
        from_mapping(circle, "<dict>")


def test_a_wide_mapping_ends_at_the_value_limit() -> None:
    shared: list[Any] = [0] * 100
    for _ in range(8):
        shared = [shared] * 100
    with pytest.raises(RecipeSyntaxError, match="more than 10000 values"):
        from_mapping({"a": shared}, "<dict>")


def test_an_empty_text_is_no_recipe() -> None:
    for text in ("", "# nothing\n", "---\n", "null"):
        with pytest.raises(RecipeSyntaxError, match="it is empty"):
            parse_yaml(text, "r.yaml")
    assert isinstance(parse_yaml("{}", "r.yaml"), Table)
