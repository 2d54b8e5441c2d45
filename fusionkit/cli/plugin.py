"""`fusionkit plugin`: start a plugin, and check one that is installed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusionkit.cli.options import JsonOption
from fusionkit.cli.output import emit, emit_json, heading, progress
from fusionkit.errors import UsageError

if TYPE_CHECKING:
    from fusionkit.cli.plugin_report import Report

app = typer.Typer(
    name="plugin",
    help="Start a plugin of your own, or check an installed one.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@app.command(no_args_is_help=True)
def new(
    name: Annotated[
        str | None,
        typer.Argument(metavar="VENDOR.NAME", help="How recipes will call it: acme.sam2.", show_default=False),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option("--family", metavar="FAMILY", help="What it is: encoder, mixer, ...", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FOLDER", help="Where to; a folder of its name if not given."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Make the package of this plugin file. Runs the file."),
    ] = None,
    licence: Annotated[str, typer.Option("--licence", help="apache-2.0, mit, bsd-3-clause or none.")] = "apache-2.0",
    author: Annotated[
        str | None, typer.Option("--author", help="Whom the licence names; the vendor if not given.")
    ] = None,
) -> None:
    """Write a complete package for a block: settings, code, conformance test, README and licence.

    It passes its own tests from the start and does something simple; replace that with what you want, and the tests
    say by name which promise is broken. A folder that exists is never written into.

    \b
    Examples:
      fusionkit plugin new acme.sam2 --family encoder
      fusionkit plugin new acme.late_fusion --family connector -o ~/late-fusion --licence mit
      fusionkit plugin new --from my_block.py
    """
    from fusionkit import discovery
    from fusionkit.cli.plugin_package import files, from_template, write

    if source is not None and family is None:
        from fusionkit.cli.plugin_split import from_file

        draft = from_file(source, name)
    elif name is not None and family is not None and source is None:
        draft = from_template(name, discovery.family_name(family.replace(" ", "_")))
    else:
        raise UsageError(
            "give a name and its --family, or --from a plugin file; `fusionkit plugin new --help` has both"
        )
    folder = output or Path(draft.distribution)
    vendor = draft.blocks[0].name.split(".")[0]
    write(folder, files(draft, licence.lower(), author or vendor))
    for block in draft.blocks:
        emit(f"wrote {folder} with {block.family}/{block.name}")
    emit("next:")
    emit(f"  pip install -e {folder}")
    emit(f"  fusionkit plugin check {draft.distribution}")
    emit(f"  pytest {folder}")


@app.command(no_args_is_help=True)
def check(
    distribution: Annotated[
        str, typer.Argument(metavar="DISTRIBUTION", help="An installed distribution.", show_default=False)
    ],
    limit: Annotated[
        float,
        typer.Option("--limit", min=1, metavar="SECONDS", help="Longest time for one block, torch's import aside."),
    ] = 300,
    json: JsonOption = False,
) -> None:
    """Run the conformance kit over every block of a distribution and report what holds and what does not.

    Every block is checked in a process of its own, with a time limit: one that hangs, prints or ends the process on
    import is reported like any other fault. The exit code is 1 if something fails.

    \b
    Examples:
      fusionkit plugin check acme-sam2
      fusionkit plugin check acme-sam2 --limit 60
      fusionkit plugin check fusionkit --json
    """
    from fusionkit.cli.plugin_report import examine

    report = examine(distribution, limit, progress())
    if json:
        emit_json(report)
    else:
        _print(report)
    if not report.is_good:
        raise typer.Exit(1)


def _print(report: Report) -> None:
    heading(f"{report.distribution} {report.version}")
    for block in report.blocks:
        passed = len(block.checks) - len(block.failures)
        verdict = "ok" if block.state == "ok" else f"FAILED ({block.state})"
        emit(f"  {block.address}: {verdict}, {passed} of {len(block.checks)} checks hold, {block.seconds:.1f} s")
        if block.error:
            emit("      " + block.error.replace("\n", "\n      "))
        for finding in block.failures:
            emit(f"      {finding.check}: {finding.error}")
        for remark in block.remarks:
            emit(f"      note: {remark}")
    bad = sum(block.state != "ok" for block in report.blocks)
    emit(f"{len(report.blocks) - bad} of {len(report.blocks)} blocks keep their contract.")
