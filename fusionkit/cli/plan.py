"""`fusionkit plan`: shapes, tokens, parameters and costs of a recipe. Reached without typer, so it reads its own words."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionkit.cli.opening import open_recipe
from fusionkit.cli.output import emit, emit_json, heading, table
from fusionkit.errors import UsageError

if TYPE_CHECKING:
    from fusionkit.cli.plan_meta import Comparison
    from fusionkit.geometry import Size
    from fusionkit.recipe.plan import Plan
    from fusionkit.recipe.plan_table import Picture

MAX_SIDE = 100_000
"""Pictures beyond this side are refused before their layout is counted."""

DESCRIPTION = """\
Show what a recipe will build: every block's grid, tokens, width, parameters and costs. Nothing is built.

FLOPs and activations are for one crop, forward, at 4 bytes a number; the language model's are for one sequence with
the largest picture. Blocks that do not fit each other are reported with their line and a fix, all at once.
"""
EXAMPLES = """\
examples:
  fusionkit plan tiny
  fusionkit plan recipes/mine.yaml --image 1024x768 --image 640x480
  fusionkit plan recipes/mine.yaml --set cropper.max_crops=6
  fusionkit plan come_vl --meta
  fusionkit plan come_vl --world 64 --memory 64GiB
"""


def main(words: Sequence[str]) -> None:
    """Plan a recipe and print it; raises SystemExit(2) if `--meta` finds a difference."""
    parser = argparse.ArgumentParser(
        "fusionkit plan",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("recipe", metavar="RECIPE", help="a recipe file, or a shipped recipe by name")
    add("--image", action="append", metavar="WxH", help="also count a picture of this size; may be repeated")
    add("--meta", action="store_true", help="build it on the meta device (torch, no weights) and compare")
    add("--world", type=int, metavar="N", help="also plan a training on N processes: memory of each, DDP and FSDP2")
    add("--memory", metavar="SIZE", help="with --world: what one process has, for example 64GiB; says what fits")
    add("--gradient-checkpointing", action="store_true", help="with --world: the decoder's activations computed twice")
    add("--set", action="append", metavar="ADDRESS=VALUE", help="change one value; may be repeated")
    add("--plugin", action="append", type=Path, metavar="FILE", help="load the blocks of a Python file")
    add("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(words)
    sizes = [parse_size(text) for text in options.image or ()]
    if options.world is None and (options.memory is not None or options.gradient_checkpointing):
        raise UsageError("--memory and --gradient-checkpointing go with --world N")
    if options.world is not None and options.world < 1:
        raise UsageError(f"--world {options.world}: expected at least one process")
    memory = None if options.memory is None else parse_bytes(options.memory)
    recipe = open_recipe(options.recipe, options.set, options.plugin)
    comparison = None
    if options.meta:
        from fusionkit.cli.plan_meta import compare

        plan, comparison = compare(recipe)
    else:
        from fusionkit.recipe.plan import plan as plan_recipe

        plan = plan_recipe(recipe)
    distributed = None
    if options.world is not None:
        from fusionkit.recipe.plan_memory import plan_world

        distributed = plan_world(plan, options.world, checkpointing=options.gradient_checkpointing)
    if options.json:
        data = as_json(plan, sizes, comparison)
        if distributed is not None:
            from fusionkit.cli.plan_world import world_dict

            data["world"] = world_dict(distributed, memory)
        emit_json(data)
    else:
        show(plan, sizes, comparison)
        if distributed is not None:
            from fusionkit.cli.plan_world import show_world

            show_world(distributed, memory)
    if comparison is not None and not comparison.equal:
        raise SystemExit(2)


def parse_size(text: str) -> Size:
    """A picture's size from `WIDTHxHEIGHT`."""
    from fusionkit.geometry import Size

    found = re.fullmatch(r"(\d+)[xX×](\d+)", text.strip())
    if not found or not all(1 <= int(side) <= MAX_SIDE for side in found.groups()):
        raise UsageError(f"--image {text}: expected WIDTHxHEIGHT in pixels, for example 1024x768")
    return Size(int(found[1]), int(found[2]))


def parse_bytes(text: str) -> int:
    """A number of bytes from `64GiB` or `80GB`."""
    units = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if not found or found[2].upper() not in units or float(found[1]) == 0:
        raise UsageError(f"--memory {text}: expected a size such as 64GiB or 80GB")
    return int(float(found[1]) * units[found[2].upper()])


def as_json(plan: Plan, sizes: list[Size], comparison: Comparison | None) -> dict[str, Any]:
    """Everything the text shows, as JSON-able values."""
    from fusionkit.recipe.plan_table import picture, picture_dict

    data = plan.to_dict()
    data["pictures"] = [picture_dict(picture(plan, size)) for size in sizes]
    if comparison is not None:
        data["meta"] = {
            "equal": comparison.equal,
            "planned": plan.parameters,
            "built": comparison.built,
            "differences": [
                {"address": address, "planned": planned, "built": built}
                for address, planned, built in comparison.differences
            ],
        }
    return data


def show(plan: Plan, sizes: list[Size], comparison: Comparison | None) -> None:
    """Print the plan as text."""
    from fusionkit.recipe.plan_table import COLUMNS, NUMBERS, parts, picture, rows

    heading(f"{plan.recipe.name}: {plan.recipe.summary}" if plan.recipe.summary else plan.recipe.name)
    emit()
    table(COLUMNS, rows(plan), right=NUMBERS)
    emit("per crop, forward, 4 bytes a number; language model: one sequence with the largest picture")
    emit()
    shares = ", ".join(f"{name} {count:,}" for name, count in parts(plan).items() if count)
    emit(f"parameters    {plan.parameters:,}" + (f" ({shares})" if shares else ""))
    emit(f"visual tokens {plan.visual} per crop, from `{plan.visual_source}`")
    if plan.language_model is not None:
        rows_text = f"{plan.language_model.vocab_size:,} -> {plan.embedding_rows:,} embedding rows"
        emit(f"new tokens    {len(plan.new_tokens):,}; {rows_text}")
    if plan.layouts is not None:
        limit = plan.recipe.sequence_length
        emit()
        found = [picture(plan), *(picture(plan, size) for size in sizes)]
        columns = ("picture", "crops", "visual tokens", "all its tokens", f"left of {limit:,}", "FLOPs")
        table(columns, [_picture_row(each) for each in found], right=frozenset(columns[1:]))
    _show_licences(plan)
    if comparison is not None:
        _show_comparison(plan, comparison)


def _picture_row(found: Picture) -> tuple[str, ...]:
    from fusionkit.recipe.plan_table import scaled

    name = "largest" if found.size is None else str(found.size)
    return (
        name,
        str(found.crops),
        f"{found.visual_tokens:,}",
        f"{found.tokens:,}",
        f"{found.room:,}",
        scaled(found.flops),
    )


def _show_licences(plan: Plan) -> None:
    from fusionkit.recipe.plan_table import licences

    found = [(each.address, each.name, each.licence, each.note) for each in licences(plan)]
    if found:
        emit()
        table(("part", "model", "licence", "note"), found)


def _show_comparison(plan: Plan, comparison: Comparison) -> None:
    emit()
    if comparison.equal:
        emit(f"built on meta: {comparison.built:,} parameters, as planned at each of {len(plan.nodes)} addresses")
        return
    table(
        ("built on meta", "planned", "built"),
        [(address, f"{planned:,}", f"{built:,}") for address, planned, built in comparison.differences],
        right=frozenset({"planned", "built"}),
    )
