"""`fusionkit diff`: what differs between two recipes, in blocks and in what they build."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fusionkit.cli.options import JsonOption, PluginOption, SetOption, load_plugins, open_recipe
from fusionkit.cli.output import emit, emit_json, note, table

if TYPE_CHECKING:
    from fusionkit.recipe.diff import Difference, Figures


def command(
    before: Annotated[str, typer.Argument(metavar="A", help="A recipe file, or a shipped recipe by name.")],
    after: Annotated[str, typer.Argument(metavar="B", help="The recipe to compare with it.")],
    json: JsonOption = False,
    set: SetOption = None,
    plugin: PluginOption = None,
) -> None:
    """Compare two recipes by meaning: blocks and options, then shapes, parameters and FLOPs.

    Comments, order of keys, defaults written out or left out make no difference. `--set` changes B only, so that one
    recipe can be compared with itself changed.

    \b
    Examples:
      fusionkit diff come_vl come_vl_small
      fusionkit diff tiny tiny --set fusion.align.heads=2
      fusionkit diff recipes/mine.yaml come_vl --json
    """
    from fusionkit.recipe.diff import diff

    load_plugins(plugin)
    found = diff(open_recipe(before), open_recipe(after, set))
    if json:
        emit_json(found.to_dict())
    else:
        _print(found)


def _print(found: Difference) -> None:
    if found.equal:
        emit("the same")
        return
    table(
        ("ADDRESS", "", "A", "B"),
        [(each.address, str(each.kind), each.before_text, each.after_text) for each in found.changes],
    )
    if found.unplanned:
        note(f"shapes and costs are left out: {found.unplanned}")
        return
    if found.nodes:
        emit()
        rows = [
            (each.address, _pair(each.before, each.after, "output"), *_numbers(each.before, each.after))
            for each in found.nodes
        ]
        table(("BLOCK", "OUTPUT", "PARAMETERS", "GFLOPS"), rows)
    emit()
    rows = [(name, f"{a:,}", f"{b:,}", _ratio(a, b)) for name, (a, b) in (found.totals or {}).items()]
    table(("TOTAL", "A", "B", "B / A"), rows, right={"A", "B", "B / A"})


def _numbers(before: Figures | None, after: Figures | None) -> tuple[str, str]:
    counts = [f"{each.params:,}" if each is not None else "-" for each in (before, after)]
    costs = [f"{each.flops / 1e9:,.2f}" if each is not None else "-" for each in (before, after)]
    return _arrow(*counts), _arrow(*costs)


def _pair(before: Figures | None, after: Figures | None, field: str) -> str:
    return _arrow(*(str(getattr(each, field)) if each is not None else "-" for each in (before, after)))


def _arrow(before: str, after: str) -> str:
    return before if before == after else f"{before} -> {after}"


def _ratio(before: int, after: int) -> str:
    return f"{after / before:.3f}" if before else "-"
