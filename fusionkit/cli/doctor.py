"""`fusionkit doctor`: is everything here as it should be?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fusionkit.cli.options import JsonOption, PluginOption
from fusionkit.cli.output import emit, emit_json, heading, progress, table

if TYPE_CHECKING:
    from fusionkit.cli.doctor_checks import Report


def command(
    limit: Annotated[
        int,
        typer.Option(
            "--limit", min=1, metavar="SECONDS", help="Longest time for one distribution, torch's import included."
        ),
    ] = 300,
    plugin: PluginOption = None,
    json: JsonOption = False,
) -> None:
    """Check Python, torch, devices and attention backends, and load every installed block.

    Each distribution is loaded in a process of its own, so that a broken one is only reported; one that hangs is given
    up after a time limit. The exit code is 1 if anything is broken.

    \b
    Examples:
      fusionkit doctor
      fusionkit doctor --limit 60
      fusionkit doctor --plugin ./my_block.py
      fusionkit doctor --json
    """
    from fusionkit.cli.doctor_checks import examine

    report = examine(plugin or (), progress(), limit)
    if json:
        emit_json(report)
    else:
        _print(report)
    if not report.is_healthy:
        raise typer.Exit(1)


def _print(report: Report) -> None:
    heading(f"fusionkit {report.fusionkit}")
    _print_environment(report)
    emit()
    table(
        ("BLOCK", "DISTRIBUTION", "VERSION", "STATE", "SECONDS"),
        [
            (check.address, check.distribution, check.version, check.state, _seconds(check.seconds))
            for check in report.checks
        ],
        right={"SECONDS"},
    )
    faults = [check for check in report.checks if check.state != "ok"]
    if faults or report.troubles:
        emit()
        heading("Faults")
    for check in faults:
        emit(f"  {check.address} of {f'{check.distribution} {check.version}'.strip()}: {check.state}")
        emit(f"      {check.error}")
        if check.frame:
            emit(f"      at {check.frame}")
    for trouble in report.troubles:
        emit(f"  {trouble.distribution}: {trouble.message}")
    emit()
    loaded = sum(check.state == "ok" for check in report.checks)
    emit(f"{loaded} of {len(report.checks)} blocks load." + ("" if report.is_healthy else " Something is broken."))


def _print_environment(report: Report) -> None:
    seen = report.environment
    emit(f"  Python     {report.python} ({report.executable})")
    emit(f"  system     {report.platform}")
    emit(f"  packages   {', '.join(f'{name} {version}' for name, version in report.packages.items())}")
    if seen["torch"] is None:
        emit(f"  torch      {seen['error']}")
        return
    emit(f"  torch      {seen['torch']}, {seen['threads']} threads, imported in {seen['seconds']:.1f} s")
    emit(f"  CUDA       {', '.join(seen['cuda']) or 'none: ' + seen['no_cuda']}")
    emit(f"  MPS        {'yes' if seen['mps'] else 'none'}")
    for number, (backend, reason) in enumerate(seen["attention"].items()):
        emit(f"  {'' if number else 'attention':<10} {backend}: {reason or 'yes'}")


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
