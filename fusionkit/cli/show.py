"""`fusionkit show`: one block or one recipe, explained."""

from __future__ import annotations

import shutil
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusionkit.cli.options import JsonOption, PluginOption, load_plugins
from fusionkit.cli.output import emit, emit_json, heading
from fusionkit.errors import UnknownBlockError, UsageError

if TYPE_CHECKING:
    from fusionkit.discovery import RecipeEntry
    from fusionkit.plugin import BlockSpec

NameArg = Annotated[
    str, typer.Argument(metavar="NAME", help="A block, `mixer/orthogonal` or `orthogonal`, or a recipe, `tiny`.")
]


def command(name: NameArg, plugin: PluginOption = None, json: JsonOption = False) -> None:
    """Explain one block: what it computes, what it promises, its options, and how a recipe uses it.

    Of a recipe: what it is for, and its file.

    \b
    Examples:
      fusionkit show mixer/orthogonal
      fusionkit show orthogonal --json
      fusionkit show tiny
      fusionkit show encoder/my.encoder --plugin ./my_encoder.py
    """
    load_plugins(plugin)
    found = _find(name)
    if isinstance(found, tuple):
        _show_block(*found, json)
    else:
        _show_recipe(found, json)


def _find(name: str) -> tuple[str, str] | RecipeEntry:
    """What a name means: (family, block name), or a recipe. Raises UsageError when it means several things."""
    from fusionkit import discovery, registry
    from fusionkit.plugin import FAMILIES

    family, slash, block = name.partition("/")
    if slash:
        return discovery.family_name(family), block
    scanned = registry.scan()
    named = [each for each in discovery.recipes(scanned) if name in (each.name, each.address)]
    # One that cannot be used (a folder that claims to be ours) is shown only when there is no other.
    recipes = [each for each in named if each.state == "ok"] or named
    claimed = {entry.family for entry in scanned.blocks if entry.name == name}
    blocks = [each for each in FAMILIES if each in claimed or name in registry.names(each)]
    if len(recipes) + len(blocks) > 1:
        choices = [f"{each[:-1]}/{name}" for each in blocks] + [each.address for each in recipes]
        raise UsageError(f"'{name}' is the name of several: {', '.join(choices)}; say which")
    if recipes:
        return recipes[0]
    if blocks:
        return blocks[0], name
    raise UnknownBlockError(_unknown(name))


def _unknown(name: str) -> str:
    from difflib import get_close_matches

    from fusionkit import discovery, registry
    from fusionkit.plugin import FAMILIES

    known = {block: f"{family[:-1]}/{block}" for family in FAMILIES for block in registry.names(family)}
    known |= {each.name: each.address for each in discovery.recipes(registry.scan())}
    near = get_close_matches(name, known, n=3)
    guess = f"; did you mean {' or '.join(known[each] for each in near)}?" if near else ""
    return f"no block or recipe called '{name}' is installed{guess} (`fusionkit list` shows all)"


# ------------------------------------------------------------------------------------------------- blocks
def _show_block(family: str, name: str, json: bool) -> None:
    from fusionkit import registry

    spec = registry.spec(family, name)
    owner = registry.distribution(family, name)
    if json:
        emit_json(_block_data(spec, owner))
    else:
        _print_block(spec, owner)


def _block_data(spec: BlockSpec, owner: tuple[str, str]) -> dict[str, Any]:
    from fusionkit.cli.config_fields import option_texts
    from fusionkit.cli.fragments import example_fragment, python_fragment
    from fusionkit.plugin import FAMILIES, GUARANTEES

    return {
        "family": spec.family,
        "name": spec.name,
        "summary": spec.summary,
        "contract": FAMILIES[spec.family].contract,
        "equation": spec.equation,
        "paper": spec.paper,
        "guarantees": {each: GUARANTEES[each] for each in sorted(spec.guarantees)},
        "options": option_texts(spec.config),
        "schema": spec.config.model_json_schema(),
        "examples": spec.examples,
        "recipe": example_fragment(spec),
        "python": python_fragment(spec),
        "factory": spec.factory,
        "distribution": owner[0],
        "version": owner[1],
    }


def _print_block(spec: BlockSpec, owner: tuple[str, str]) -> None:
    from fusionkit.cli.config_fields import option_texts
    from fusionkit.cli.fragments import example_fragment, python_fragment
    from fusionkit.plugin import FAMILIES, GUARANTEES

    heading(f"{spec.family[:-1]}/{spec.name}")
    _paragraph(spec.summary)
    emit()
    _pair("From", " ".join(owner))
    _pair("Contract", FAMILIES[spec.family].contract)
    _pair("Equation", spec.equation)
    _pair("Paper", spec.paper)
    _pair("Code", spec.factory)
    if spec.guarantees:
        _section("Guarantees")
        longest = max(len(each) for each in spec.guarantees)
        for each in sorted(spec.guarantees):
            emit(f"  {each:<{longest}}  {GUARANTEES[each]}")
    _section("Options")
    for option in option_texts(spec.config):
        emit(f"  {option.name}: {option.kind}" + (" (required)" if option.default is None else f" = {option.default}"))
        _paragraph(option.description, "      ")
    if len(spec.config.model_fields) == 1:
        emit("  none")
    _section("In a recipe")
    emit(textwrap.indent(example_fragment(spec), "  "))
    if call := python_fragment(spec):
        _section("In Python")
        emit(textwrap.indent(call, "  "))


# ------------------------------------------------------------------------------------------------ recipes
def _show_recipe(entry: RecipeEntry, json: bool) -> None:
    if entry.state != "ok":
        raise UsageError(f"{entry.address} of {entry.distribution} {entry.version}: {entry.state}: {entry.reason}")
    text = entry.path.read_text(encoding="utf-8")
    summary = _summary(text, entry.address)
    if json:
        emit_json({"address": entry.address, "path": entry.path, "summary": summary, "text": text})
        return
    heading(entry.address)
    _paragraph(summary)
    emit()
    _pair("From", f"{entry.distribution} {entry.version}")
    _pair("File", str(entry.path))
    _pair("Plan it", f"fusionkit plan {entry.address}")
    _pair("In full", f"fusionkit export {entry.address}")
    emit()
    emit(text.rstrip())


def _summary(text: str, name: str) -> str:
    """The recipe's own line about itself, read without checking the rest: what is broken can still be looked at."""
    from fusionkit.recipe.tree import Leaf
    from fusionkit.recipe.yaml_subset import parse_yaml

    leaf = parse_yaml(text, name).entries.get("summary")
    return str(leaf.value) if isinstance(leaf, Leaf) else ""


# --------------------------------------------------------------------------------------------------- text
def _section(title: str) -> None:
    emit()
    heading(title)


def _pair(label: str, text: str) -> None:
    if text:
        _paragraph(text, " " * 10, f"{label:<10}")


def _paragraph(text: str, indent: str = "", first: str | None = None) -> None:
    """Wrapped text; lines that are long because they hold a formula or a path are left whole."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    for number, line in enumerate(text.splitlines()):
        lead = first if first is not None and number == 0 else indent
        emit(
            textwrap.fill(
                line,
                width,
                initial_indent=lead,
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
