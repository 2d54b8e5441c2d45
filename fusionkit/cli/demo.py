"""`fusionkit demo`: the main job end to end, by the commands a person would type."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from fusionkit.cli.output import emit, heading
from fusionkit.errors import UsageError


def command(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for the run, the pictures and the page.")
    ] = Path("demo"),
    recipe: Annotated[str, typer.Option("--recipe", help="The recipe to train.")] = "tiny_demo",
) -> None:
    """List, plan, train, evaluate and ask: what fusionkit does, in about five minutes on two cores, offline.

    \b
    Example:
      fusionkit demo -o demo
    """
    run, questions = output / "run", output / "questions"
    started = time.monotonic()
    for title, arguments in (
        ("The blocks", ["list"]),
        ("The plan: every shape and cost before any weight exists", ["plan", recipe]),
        ("Training from scratch", ["train", recipe, "-o", str(run), "--overwrite"]),
        (
            "Scores on pictures, wordings and combinations it has never seen",
            ["evaluate", str(run), "-n", "128", "-o", str(output / "scores")],
        ),
        ("Unseen pictures", ["data", "sample", recipe, "-n", "6", "-o", str(questions)]),
        ("Asking the model you just trained", _ask(str(run), questions, output / "answers_yours")),
        (
            "Asking the shipped checkpoint, trained longer",
            _ask("checkpoint:tiny", questions, output / "answers_shipped"),
        ),
    ):
        _step(title, arguments)
    heading(f"Done in {time.monotonic() - started:.0f} s. Open these:")
    for name in (
        "answers_yours/index.html",
        "answers_shipped/index.html",
        "scores/report.html",
        "answers_yours/000.png",
    ):
        emit(f"  {output / name}")
    heading("Try next:")
    emit(f'  fusionkit ask {run} {questions / "000.png"} "{_first_question(questions)}" -o out.png')
    emit("  fusionkit plan come_vl --image 1024x768")
    emit(f"  fusionkit train tiny_demo --data {questions / 'questions.jsonl'} -o runs/mine")


def _first_question(questions: Path) -> str:
    """A question that the first picture answers: it is about something that is in it."""
    from fusionkit.data.read import read_jsonl
    from fusionkit.data.write import FILE

    return read_jsonl(questions / FILE)[0].turns[0].question


def _ask(checkpoint: str, questions: Path, output: Path) -> list[str]:
    return ["ask", checkpoint, "--questions", str(questions / "questions.jsonl"), "-o", str(output)]


def _step(title: str, arguments: list[str]) -> None:
    """Run one command as a person would, showing it first; a failure ends the demo with its own message."""
    emit()
    heading(title)
    emit(f"$ fusionkit {' '.join(arguments)}")
    sys.stdout.flush()
    done = subprocess.run([sys.executable, "-m", "fusionkit", *arguments], check=False)
    if done.returncode:
        raise UsageError(f"the demo stopped: `fusionkit {' '.join(arguments)}` ended with code {done.returncode}")
