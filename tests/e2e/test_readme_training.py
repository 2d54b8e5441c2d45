"""README's four commands from a recipe to its report, in their order and one after another's results; only smaller."""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest

import fusionkit as library
from fusionkit.cli.opening import recipe_source
from fusionkit.sweep.grid import load_grid

README = Path(__file__).parents[2] / "README.md"
BATCH = ("train.global_batch_size=2", "train.turns_per_sample=1", "train.log_every=1")


def commands() -> list[list[str]]:
    """The first block of commands of the section on training."""
    section = README.read_text(encoding="utf-8").partition("## Train, score and ask\n")[2].partition("\n## ")[0]
    found = re.search(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert found, "the section has no block of commands"
    return [shlex.split(line, comments=True) for line in found[1].splitlines()]


def one_step(recipe: str) -> list[str]:
    """Changes that leave one step of every stage."""
    train = library.load_recipe(recipe_source(recipe)).train
    assert train is not None
    changes = (*BATCH, *(f"train.stages.{name}.steps=1" for name in train.stages))
    return [word for change in changes for word in ("--set", change)]


def after(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def smaller(words: list[str]) -> list[str]:
    """A command as it is written, followed by documented options that make it small."""
    verb = words[1]
    if verb == "train":
        return [*words[1:], *one_step(words[2])]
    if verb == "evaluate":
        return [*words[1:], "-n", "2"]
    assert verb == "sweep", f"no test knows how to make it smaller: {shlex.join(words)}"
    grid = load_grid(after(words, "--grid"))
    return [*words[1:], "-n", "2", "--seeds", "1", *one_step(grid.recipe)]


class Table(HTMLParser):
    """The texts of all cells of a page's tables."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.inside = tag in ("td", "th")
        if self.inside:
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.cells[-1] += data


def cells_of(page: Path) -> list[str]:
    table = Table()
    table.feed(page.read_text(encoding="utf-8"))
    return [cell.strip() for cell in table.cells]


@pytest.mark.timeout(600)
def test_four_commands_from_recipe_to_report(fusionkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = commands()
    assert [words[:2] for words in lines] == [
        ["fusionkit", verb] for verb in ("train", "evaluate", "evaluate", "sweep")
    ]
    for words in lines:
        done = fusionkit(*smaller(words))
        assert done.code == 0, f"{shlex.join(words)}\n{done.err}"
    trained, scored, without, swept = lines

    logged = [json.loads(line) for line in (Path(after(trained, "-o")) / "log.jsonl").read_text().splitlines()]
    assert all(math.isfinite(row["loss"]) for row in logged)
    assert scored[2] == without[2] == after(trained, "-o")

    for words in (scored, without):
        folder = Path(after(words, "-o"))
        with (folder / "scores.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        numbers = [(float(row["value"]), float(row["low"]), float(row["high"])) for row in rows if row["value"]]
        assert numbers
        assert all(low <= value <= high for value, low, high in numbers)
        cells = cells_of(folder / "report.html")
        assert {row["metric"] for row in rows} <= set(cells)
        assert all(f"{value:.3f}" in cells for value, _, _ in numbers)
    dropped = after(without, "--drop")
    key = ("data", "questions", "metric")
    whole = {tuple(row.get(each) for each in key): row for row in rows if not row["without"]}
    changed = [row for row in rows if row["without"] == dropped and row["change"]]
    assert changed
    for row in changed:
        difference = float(row["value"]) - float(whole[tuple(row.get(each) for each in key)]["value"])
        assert float(row["change"]) == pytest.approx(difference)

    results = json.loads((Path(after(swept, "-o")) / "results.json").read_text())
    with (Path(after(swept, "-o")) / "table.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    grid = load_grid(after(swept, "--grid"))
    assert {row["variant"] for row in table} == set(grid.variants)
    for row in table:
        (run,) = [run for run in results["runs"] if run["variant"] == row["variant"]]
        for metric in grid.metrics:
            assert float(row[metric]) == pytest.approx(run["scores"][metric], abs=5e-4)
