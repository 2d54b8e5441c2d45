"""`fusionkit convert`: another project's checkpoint as one of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fusionkit.cli.options import JsonOption, PluginOption, SetOption, load_plugins, open_recipe
from fusionkit.cli.output import emit, emit_json, note, table


def command(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="The recipe to fill: a shipped one that has a conversion table, or with --table any."
        ),
    ],
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A .safetensors or .pt file, or the folder that holds it.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write; must not be there yet.")],
    table_file: Annotated[
        Path | None, typer.Option("--table", metavar="FILE", help="A conversion table of your own, as JSON.")
    ] = None,
    dtype: Annotated[
        Literal["fp32", "bf16"] | None,
        typer.Option("--dtype", help="Number format to write; that of most of the checkpoint if not given."),
    ] = None,
    set: SetOption = None,
    plugin: PluginOption = None,
    json: JsonOption = False,
) -> None:
    """Convert a released checkpoint into a folder that every other verb takes.

    Strict: each tensor is used, or listed as dead with the reason, or it is an error; nothing is left to chance in the
    model either. A report of all tensors is written beside the weights (conversion.json).

    \b
    Examples:
      fusionkit convert come_vl_released downloads/model.pt --out runs/come_vl_released
      fusionkit convert come_vl_released downloads -o runs/released --set language_model.tokenizer=downloads/tokenizer
      fusionkit convert recipes/mine.yaml weights.safetensors --table mine.json -o runs/mine
    """
    load_plugins(plugin)
    import torch

    from fusionkit.model.convert_checkpoint import convert_checkpoint, report
    from fusionkit.model.convert_source import open_tensors
    from fusionkit.model.convert_table import load_table

    loaded = open_recipe(recipe, set)
    rules = load_table(table_file if table_file is not None else recipe.removeprefix("builtin:"))
    tensors = open_tensors(checkpoint, rules.key)
    note(f"{len(tensors):,} tensors in {checkpoint}; filling {loaded.name}")
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, None: None}
    done = convert_checkpoint(loaded, rules, tensors, out, dtype=dtypes[dtype])
    if json:
        emit_json(report(rules, done))
        return
    emit(f"{done.used:,} tensors used, {len(done.dead):,} dead, none left over; written to {out}")
    if done.dead:
        emit()
        table(("dead tensor", "why"), list(_grouped(done.dead).items()))


def _grouped(dead: dict[str, str]) -> dict[str, str]:
    """Dead tensors of one module as one line."""
    counts: dict[tuple[str, str], list[str]] = {}
    for name, why in dead.items():
        counts.setdefault((".".join(name.split(".")[:2]), why), []).append(name)
    return {
        names[0] if len(names) == 1 else f"{module}.* ({len(names)} tensors)": why
        for (module, why), names in counts.items()
    }
