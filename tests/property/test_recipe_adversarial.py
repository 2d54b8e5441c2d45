"""Recipes made to do harm: refused with a place, in bounded time and memory, and nothing is ever run or imported.

Time is bounded through counts: how much is read, how many values are made, how often the registry is asked.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_blocks import TEXT, fake_blocks

from fusionkit import registry
from fusionkit.errors import RecipeError, RecipeSyntaxError, RecipeValidationError
from fusionkit.recipe import load_recipe
from fusionkit.recipe.export import to_yaml
from fusionkit.recipe.mapping_source import from_mapping
from fusionkit.recipe.overrides import override
from fusionkit.recipe.section import MAX_FAILED_LOOKUPS
from fusionkit.recipe.source import MAX_BYTES, decode
from fusionkit.recipe.tree import plain
from fusionkit.recipe.yaml_subset import parse_yaml


@pytest.fixture(autouse=True)
def _blocks() -> Iterator[None]:
    with fake_blocks():
        yield


def refused(data: bytes, tmp_path: Path) -> RecipeError:
    """The error that a file of these bytes gives; every problem has a line or a byte offset."""
    path = tmp_path / "r.yaml"
    path.write_bytes(data)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    _check_places(caught.value)
    return caught.value


# ------------------------------------------------------------------------------------------------- constructors
TAGS = [
    "!!python/object/apply:os.system [echo]",
    "!!python/name:os.system",
    "!!python/module:subprocess",
    "!!python/object/new:tuple [[1]]",
    "!!python/tuple [1]",
    "!!binary aGk=",
    "!!set {a}",
    "!!omap [a: 1]",
    "!!timestamp 2024-01-01",
    "!include /etc/passwd",
    "!ENV ${HOME}",
    "! plain",
    "!<tag:yaml.org,2002:str> x",
]


@pytest.mark.parametrize("value", TAGS)
def test_tags_are_refused_wherever_they_stand(value: str, tmp_path: Path) -> None:
    for text in (f"schema: 1\nname: {value}\n", f"schema: 1\nstreams:\n  - {value}\n", f"a: 1\n? {value}\n: 1\n"):
        error = refused(text.encode(), tmp_path)
        assert isinstance(error, RecipeSyntaxError)
        assert any("tags" in problem.message for problem in error.problems)


def test_aliases_cannot_blow_up(tmp_path: Path) -> None:
    levels = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
    error = refused(f"a0: &a0 x\n{levels}".encode(), tmp_path)
    assert len(error.problems) == 30 + 29 * 9


def test_a_value_that_holds_itself_is_refused(tmp_path: Path) -> None:
    assert len(refused(b"a: &a {b: *a}\n", tmp_path).problems) == 2


@pytest.mark.parametrize("text", ["<<: {a: 1}", "a: 1\n<<: [{b: 1}, {c: 1}]", "a: {<<: {b: 1}}"])
def test_merge_keys_are_refused(text: str, tmp_path: Path) -> None:
    assert "merge keys" in str(refused(text.encode(), tmp_path))


@pytest.mark.parametrize(
    "text", ["{a: 1, a: 1}", "a: 1\n'a': 2", 'a: 1\n"\\x61": 2', "a: {b: {c: 1, c: 2}}", "a: 1\n? a\n: 2"]
)
def test_duplicate_keys_are_refused_however_they_are_written(text: str, tmp_path: Path) -> None:
    assert "again; the first is on line 1" in str(refused(text.encode(), tmp_path))


# ------------------------------------------------------------------------------------------------ depth and size
@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 500_000,
        "a: " + "{b: " * 200_000,
        "- " * 400_000,
        "? " * 400_000,
        "a: " + "[" * 300_000 + "]" * 300_000,
        "\n".join(" " * n + "a:" for n in range(1000)),
        "a: [" + "[[[[[[[[]]]]]]]]," * 60_000 + "]",
        "a: " + "!x " * 300_000,
        "a: " + "&x " * 300_000,
    ],
    ids=["lists", "mappings", "items", "keys", "closed", "indentation", "wide", "tags", "anchors"],
)
def test_deep_and_wide_texts_stop_early(text: str, tmp_path: Path) -> None:
    error = refused(text.encode()[:MAX_BYTES], tmp_path)
    assert len(error.problems) <= 20_001


def test_huge_scalars_and_keys_are_cut_in_messages(tmp_path: Path) -> None:
    for text in (
        "name: [" + "x" * 900_000,
        "name: " + "9" * 900_000,
        "'" + "k" * 900_000 + "': 1",
        "&" + "a" * 900_000 + " x: 1",
    ):
        assert len(str(refused(text.encode(), tmp_path))) < 2000


class _Endless(io.RawIOBase):
    """A file without end that counts what is read of it."""

    def __init__(self) -> None:
        self.given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        buffer[:] = b"#" * len(buffer)
        self.given += len(buffer)
        return len(buffer)


def test_an_endless_file_is_read_to_the_limit_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = _Endless()
    monkeypatch.setattr(Path, "open", lambda path, mode: io.BufferedReader(endless))
    with pytest.raises(RecipeSyntaxError, match=r"byte 1048576: larger than 1048576 bytes"):
        load_recipe(tmp_path / "endless.yaml")
    assert MAX_BYTES < endless.given <= MAX_BYTES + io.DEFAULT_BUFFER_SIZE


def test_a_sparse_file_of_many_gigabytes_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(2**36)
    with pytest.raises(RecipeSyntaxError, match="larger than"):
        load_recipe(path)


# ------------------------------------------------------------------------------------------------------- bytes
@pytest.mark.parametrize(
    ("data", "byte"),
    [
        (b"\xff", 0),
        (b"name: \xc3(", 6),
        (b"name: \xed\xa0\x80", 6),
        (b"name: \xf4\x90\x80\x80", 6),
        (b"name: \xc0\x80", 6),
        ("name: x".encode("utf-16"), 0),
        ("name: x".encode("utf-32"), 0),
        (b"schema: 1\nname: caf\xe9\n", 19),
    ],
)
def test_invalid_utf_8_is_refused_with_its_offset(data: bytes, byte: int, tmp_path: Path) -> None:
    [problem] = refused(data, tmp_path).problems
    assert problem.byte == byte


@pytest.mark.parametrize(
    "character", ["\0", "\x01", "\x08", "\x0b", "\x1b", "\x7f", "\x85", "\x9f", "\u2028", "\u2029", "\ufeff"]
)
def test_control_characters_are_refused_with_their_place(character: str, tmp_path: Path) -> None:
    [problem] = refused(f"schema: 1\nname: ab{character}c\n".encode(), tmp_path).problems
    assert (problem.line, problem.column) == (2, 9)


@pytest.mark.parametrize("escape", ["\\0", "\\x01", "\\e", "\\ud800", "\\L", "\\uFEFF"])
def test_escapes_cannot_bring_them_in(escape: str, tmp_path: Path) -> None:
    refused(f'schema: 1\nname: "a{escape}b"\n'.encode(), tmp_path)


# ----------------------------------------------------------------------------------------------------- numbers
@pytest.mark.parametrize(
    "number",
    [
        "9" * 5000,
        "1e999",
        "-1e999",
        "1e-",
        "0x" + "f" * 100,
        ".inf",
        "-.inf",
        ".nan",
        "9" * 19,
        "010",
        "0" * 30,
        "1e" + "9" * 30,
    ],
)
def test_giant_and_doubtful_numbers_do_not_pass_as_numbers(number: str, tmp_path: Path) -> None:
    refused(TEXT.replace("hidden: 8", f"hidden: {number}").encode(), tmp_path)


# ------------------------------------------------------------------------------------------------- block types
@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "subprocess.run",
        "torch.nn.Linear",
        "builtins.eval",
        "fusionkit.registry:spec",
        "acme.join:Join",
        "../acme.join",
        "acme.join\n",
        "ACME.JOIN",
        "acme.join ",
        "__import__",
        "acme_blocks_that_do_not_exist:Block",
        "{message}",
        "%s",
        "",
    ],
)
def test_import_paths_are_no_block_names_and_import_nothing(name: str, tmp_path: Path) -> None:
    modules = set(sys.modules)
    text = TEXT.replace("type: acme.join", f"type: {json.dumps(name)}")
    error = refused(text.encode(), tmp_path)
    assert isinstance(error, RecipeValidationError)
    assert [problem.address for problem in error.problems] == ["fusion.join.type"]
    assert not {module.partition(".")[0] for module in set(sys.modules) - modules} - {"fusionkit"}


def test_loading_a_recipe_never_imports_a_factory(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(TEXT)
    assert load_recipe(path).name == "pair"
    assert "acme_blocks_that_do_not_exist" not in sys.modules


def test_many_unknown_blocks_do_not_search_the_metadata_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    find = registry.step_spec

    def counted(name: str) -> Any:
        asked.append(name)
        return find(name)

    monkeypatch.setattr(registry, "step_spec", counted)
    steps = "".join(f"  s{n}: {{type: acme.unknown{n}}}\n" for n in range(500)) + "  s: {type: acme.unknown0}\n"
    error = refused(TEXT.replace("fusion:\n", f"fusion:\n{steps}", 1).encode(), tmp_path)
    assert len(error.problems) == 501
    assert sum(name.startswith("acme.unknown") for name in asked) == MAX_FAILED_LOOKUPS


def test_thousands_of_unknown_keys_are_all_reported(tmp_path: Path) -> None:
    keys = "".join(f"nmae_of_something_long_{n}: 1\n" for n in range(4000))
    assert len(refused((TEXT + keys).encode(), tmp_path).problems) == 4000


def test_braces_and_percent_signs_in_values_are_only_text(tmp_path: Path) -> None:
    error = refused(TEXT.replace("hidden: 8", "hidden: '{0.__class__} %s {message}'").encode(), tmp_path)
    assert "got '{0.__class__} %s {message}'" in str(error)


# --------------------------------------------------------------------------------------------------- properties
def _check_places(error: RecipeError) -> None:
    """Every problem has a line or a byte offset."""
    for problem in error.problems:
        assert problem.line > 0 or problem.byte is not None, str(problem)


MANY = 8 * settings().max_examples

yaml_like = st.text(alphabet="ab:-[]{}#&*!|>'\"%@`, \n\t?0123456789.e+~<=\\xé\0", max_size=80)


@given(yaml_like)
@settings(max_examples=MANY)
def test_any_text_parses_or_is_refused_with_places(text: str) -> None:
    try:
        tree = parse_yaml(decode(text.encode(), "r.yaml"), "r.yaml")
    except RecipeSyntaxError as error:
        _check_places(error)
        return
    json.dumps(plain(tree), allow_nan=False)


@given(st.binary(max_size=60))
@settings(max_examples=MANY)
def test_any_bytes_decode_or_are_refused_with_an_offset(data: bytes) -> None:
    try:
        text = decode(data, "r.yaml")
    except RecipeSyntaxError as error:
        _check_places(error)
        return
    assert text.encode() == data.removeprefix(b"\xef\xbb\xbf")


words = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters="\ufeff\ufffe\uffff"), max_size=12
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63) + 1, 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    words,
    st.sampled_from(["010", "off", "1e-4", "null", "~", "<<", "2024-01-01", "0x1f", ".inf", "=", "- a", "a: b", "#"]),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=8
)
documents = st.dictionaries(words, values, max_size=4)


@given(documents)
@settings(max_examples=MANY)
def test_what_is_written_as_yaml_reads_back_equal(document: dict[str, Any]) -> None:
    again = plain(parse_yaml(to_yaml(document), "r.yaml"))
    assert again == document
    assert json.dumps(again) == json.dumps(document), "1 stays 1 and 1.0 stays 1.0"


@given(documents)
@settings(max_examples=MANY)
def test_a_mapping_and_its_json_text_are_the_same_source(document: dict[str, Any]) -> None:
    from_text = plain(parse_yaml(json.dumps(document, ensure_ascii=False), "r.yaml"))
    assert json.dumps(from_text) == json.dumps(plain(from_mapping(document, "<dict>")))


@given(documents)
@settings(max_examples=MANY)
def test_any_document_is_a_recipe_or_a_recipe_error(document: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        load_recipe(document)


addresses = st.lists(
    st.sampled_from(["streams", "fusion", "join", "train", "data", "0", "1", "learning_rates", "type", "null", "x.y"]),
    min_size=1,
    max_size=6,
)


@given(addresses.map(".".join), values)
@settings(max_examples=MANY)
def test_any_change_is_made_or_refused(address: str, value: Any) -> None:
    with fake_blocks():
        try:
            tree = override(parse_yaml(TEXT, "r.yaml"), [f"{address}={json.dumps(value)}"])
            load_recipe(plain(tree))
        except RecipeError:
            return
