"""`fusionkit sweep`: budgets are checked before anything is trained, runs are kept, differences are paired by seed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import fusionkit
from fusionkit.errors import UsageError
from fusionkit.sweep.budget import plan_variants
from fusionkit.sweep.grid import load_grid, shipped
from fusionkit.sweep.student import estimate, quantile

FEW = (
    "train.stages.encoders.steps=1",
    "train.stages.answers.steps=1",
    "train.global_batch_size=2",
    "train.turns_per_sample=2",
)
GRID = """\
name: mixers
recipe: nothing.yaml
seeds: [0, 1]
reference: base
match: {parameters: 0.2, visual_tokens: 0}
metrics: [count_accuracy]
pictures: 4
variants:
  base: {}
  free: {changes: ["streams.semantic.steps.mix={type: linear_sum}"]}
"""


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text(GRID, encoding="utf-8")
    return path


def test_every_run_is_made_once_and_differences_are_paired(fusionkit, small: Path, grid: Path, tmp_path: Path) -> None:
    words = ("sweep", small, "--grid", grid, "-o", tmp_path / "out", "--json", *(w for c in FEW for w in ("--set", c)))
    first = fusionkit(*words)
    assert first.code == 0, first.err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(run["variant"], run["seed"]) for run in results["runs"]] == [
        ("base", 0), ("free", 0), ("base", 1), ("free", 1)
    ]  # fmt: skip
    scores = {(run["variant"], run["seed"]): run["scores"]["count_accuracy"] for run in results["runs"]}
    paired = estimate([scores["free", seed] - scores["base", seed] for seed in (0, 1)])
    assert results["differences"] == [{"difference": "free - base", "count_accuracy": str(paired)}]
    assert json.loads(first.out)["table"] == results["table"]
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.json") if path.stem != "results"}
    assert len(made) == 4
    next(iter(made)).unlink()  # a run that was not finished is scored again, the others are not touched
    assert fusionkit(*words).code == 0
    assert sum(path.stat().st_mtime_ns != before for path, before in made.items()) == 1
    again = fusionkit(*words, "--set", "train.max_grad_norm=0.5")
    assert again.code == 2
    assert "was made with other settings" in again.err


def test_the_very_same_runs_of_another_sweep_are_taken_over(
    fusionkit, small: Path, grid: Path, tmp_path: Path, monkeypatch
) -> None:
    changes = [word for change in FEW for word in ("--set", change)]
    assert fusionkit("sweep", small, "--grid", grid, "-o", tmp_path / "out", "--seeds", "1", *changes).code == 0
    other = tmp_path / "other.yaml"
    other.write_text(GRID.replace("free:", "loose:"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "figure6").mkdir()  # a folder of that name does not hide the shipped sweep
    assert fusionkit("sweep", "--grid", "figure6", "--plan").code == 0
    words = ("sweep", small, "--grid", other, "-o", tmp_path / "new", "--seeds", "1", "--reuse", tmp_path / "out")
    again = fusionkit(*words, *changes)
    assert again.code == 0, again.err
    made = json.loads((tmp_path / "new" / "results.json").read_text())["runs"]
    assert [(run["variant"], run["taken_from"]) for run in made] == [("base", "out/base-0"), ("loose", "out/free-0")]
    assert not [path for path in (tmp_path / "new").iterdir() if path.is_dir()]  # nothing was trained
    nothing = fusionkit(*words[:-1], tmp_path / "figure6", *changes)
    assert nothing.code == 2
    assert "no runs of a sweep here" in nothing.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": "llama"}', "{folder}: no runs of a sweep here"),
        ("[1]", "{folder}: no runs of a sweep here"),
        ('{"variant": "base", "sett', "{folder}/base-0.json: this run cannot be read (Unterminated string"),
    ],
)
def test_folders_of_something_else_are_told(
    fusionkit, small: Path, grid: Path, tmp_path: Path, text: str, message: str
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "base-0.json").write_text(text, encoding="utf-8")
    said = fusionkit("sweep", small, "--grid", grid, "-o", tmp_path / "new", "--reuse", folder)
    assert (said.code, said.out) == (2, "")
    assert message.format(folder=folder) in said.err
    assert not (tmp_path / "new").exists()


def test_a_damaged_run_of_its_own_is_told(fusionkit, small: Path, grid: Path, tmp_path: Path) -> None:
    (tmp_path / "base-0.json").write_text('{"variant"', encoding="utf-8")
    said = fusionkit("sweep", small, "--grid", grid, "-o", tmp_path)
    assert said.code == 2
    assert "base-0.json: this run cannot be read" in said.err
    assert "remove it, and it is made again" in said.err


def test_the_shipped_figure_runs_at_the_size_of_a_test(fusionkit, tmp_path: Path) -> None:
    changes = (w for c in FEW for w in ("--set", c))
    done = fusionkit("sweep", "--grid", "figure6", "-o", tmp_path, "--seeds", "1", "-n", "4", "--json", *changes)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [row["variant"] for row in found["table"]] == ["rope_ol", *(n for n in load_grid("figure6").variants if n != "rope_ol")]  # fmt: skip
    assert {row["visual tokens"] for row in found["table"]} == {36}
    assert [row["difference"] for row in found["differences"]][:2] == ["rope - base", "rope_ol - rope"]
    assert (tmp_path / "table.tex").read_text().startswith(r"\begin{tabular}")


@pytest.mark.parametrize("name", shipped())
def test_shipped_sweeps_keep_their_budgets(name: str) -> None:
    grid = load_grid(name)
    planned = plan_variants(grid, grid.recipe)
    assert next(variant.name for variant in planned) == grid.reference
    assert len({variant.visual_tokens for variant in planned}) == 1


def test_the_papers_layer_ranges_are_those_of_the_guide() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    found = re.findall(
        r"^\| SigLIP (\d+)-(\d+) \+ DINO (\d+)-(\d+) \| (\d+)-(\d+) \| (\d+)-(\d+) \|", guide, re.MULTILINE
    )
    rows = [tuple(map(int, row)) for row in found]
    expected = {f"siglip_{a}_{b}_dino_{c}_{d}": (range(e, f + 1), range(g, h + 1)) for a, b, c, d, e, f, g, h in rows}
    grid = load_grid("table4_paper")
    ranges = {}
    for name, variant in grid.variants.items():
        plan = fusionkit.plan(fusionkit.load_recipe(grid.recipe, set=tuple(variant.changes)))
        ranges[name] = tuple(plan.streams[stream].layers for stream in ("semantic", "spatial"))
    assert ranges == {name: tuple(map(tuple, each)) for name, each in expected.items()}


def test_a_variant_over_its_budget_is_an_error_and_can_be_adjusted(grid: Path, small: Path) -> None:
    def sweep(variant: str) -> list[int]:
        grid.write_text(GRID + f"  other: {variant}\n", encoding="utf-8")
        return [variant.parameters for variant in plan_variants(load_grid(str(grid)), str(small))]

    big = "{changes: [fusion.project.hidden=4096]}"
    with pytest.raises(UsageError, match=r"variant 'other' has [\d,]+ parameters, the reference [\d,]+: \+"):
        sweep(big)
    assert sweep("{changes: [fusion.project.hidden=4096], exempt: it is the question}")[2] > 0
    base, _, adjusted = sweep("{changes: [fusion.align=null, streams.spatial=null, 'train.stages.encoders.trainable=[streams.semantic]'], adjust: fusion.project.hidden}")  # fmt: skip
    assert abs(adjusted - base) < 100


def test_training_tokens_are_matched_by_steps(grid: Path, small: Path) -> None:
    text = GRID.replace("match: {parameters: 0.2, visual_tokens: 0}", "match: {training_tokens: true}")
    grid.write_text(text + "  fine: {changes: [fusion.pool=null]}\n", encoding="utf-8")
    planned = {variant.name: variant for variant in plan_variants(load_grid(str(grid)), str(small), ("train.stages.answers.steps=40",))}  # fmt: skip
    assert planned["fine"].visual_tokens == 4 * planned["base"].visual_tokens
    assert "train.stages.answers.steps=10" in planned["fine"].changes


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("reference: base", "reference: none", "no variant is called 'none'"),
        ("seeds: [0, 1]", "seeds: [1, 1]", "seeds are repeated"),
        ("pictures: 4", "picture: 4", "picture: Extra inputs are not permitted"),
        ("pictures: 4", "contrasts: [[base, what]]", "no variant is called 'what'"),
    ],
)
def test_a_wrong_grid_is_told(grid: Path, old: str, new: str, message: str) -> None:
    grid.write_text(GRID.replace(old, new), encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        load_grid(str(grid))


def test_what_is_missing_is_told(fusionkit, small: Path, grid: Path) -> None:
    assert f"give --grid SWEEP.yaml, or a shipped sweep: {', '.join(shipped())}" in fusionkit("sweep", small).err
    assert "no such file; shipped sweeps:" in fusionkit("sweep", "--grid", "nowhere").err
    assert "give -o FOLDER" in fusionkit("sweep", small, "--grid", grid).err


def test_intervals_are_students() -> None:
    assert str(estimate([0.5])) == "0.500"
    assert estimate([1.0, 2.0, 3.0]).half == pytest.approx(4.303 / 3**0.5)
    assert quantile(1) > quantile(20) > quantile(21) > quantile(1000)
    assert quantile(30) == pytest.approx(2.0423, abs=1e-3)
