"""`fusionkit data check` and `fusionkit data sample`: reports, contact sheets, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from command_line import exit_code
from PIL import Image

from fusionkit.blocks.datasets.specs import SyntheticScenesConfig
from fusionkit.blocks.datasets.synthetic_scenes import SyntheticScenes
from fusionkit.cli import data as verb
from fusionkit.data.check import Finding, check
from fusionkit.data.contact_sheet import COLOURS, contact_sheet
from fusionkit.data.read import read_jsonl
from fusionkit.data.write import write_samples
from fusionkit.errors import DataError
from fusionkit.geometry import Box, Point, Size
from fusionkit.sample import Provenance, Sample, Turn


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Five good rows of synthetic scenes."""
    scenes = SyntheticScenes(SyntheticScenesConfig(samples=5))
    return write_samples([scenes[index] for index in range(5)], tmp_path)


def add(path: Path, *rows: Any) -> None:
    with path.open("a") as file:
        file.writelines((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def asking(answer: str, **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": answer}]} | more


# ------------------------------------------------------------------------------------------------------ the report
def test_a_good_file(written: Path) -> None:
    report = check(written)
    samples = read_jsonl(written)
    assert (report.rows, report.usable, report.broken, report.outside) == (5, 5, [], [])
    assert sum(report.turns.values()) == 30
    assert report.boxes == sum(len(turn.boxes) for sample in samples for turn in sample.turns) == report.turns["box"]
    assert report.points == report.turns["point"] > 0
    assert (report.smallest, report.largest) == (Size(48, 48), Size(48, 48))
    assert report.chosen == [0, 1, 2, 3, 4]


def test_everything_wrong_is_found_in_one_go(written: Path) -> None:
    folder = written.parent
    Image.new("RGB", (30, 20)).save(folder / "small.png")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:3000])
    add(
        written,
        asking("<box>", image="small.png", boxes=[[-2, 0, 10, 10]]),
        "{broken",
        "",
        asking("yes"),
        asking("<box>", image="gone.png", boxes=[[0, 0, 1, 1]]),
        asking("yes", image="cut.png"),
        asking("<box>", image="small.png", boxes=[[40, 0, 50, 10]]),
    )
    report = check(written)
    assert (report.rows, report.usable, report.without_picture) == (11, 7, 1)
    assert [finding.line for finding in report.broken] == [7, 10, 11, 12]
    assert report.broken[0].message.startswith("not valid JSON at column 2")
    assert report.broken[1].message == f"{folder / 'gone.png'}: no such picture; check the path"
    assert "damaged or truncated" in report.broken[2].message
    assert report.broken[3].message == "boxes[0] [40, 0, 50, 10] lies outside the picture of 30x20 pixels"
    assert report.outside == [Finding(6, "box [-2, 0, 10, 10] reaches 2 px outside the 30x20 picture")]
    assert (report.smallest, report.largest) == (Size(30, 20), Size(48, 48))
    assert report.turns["free"] == 1


def test_chosen_rows_are_spread_over_the_file(written: Path) -> None:
    assert check(written, shown=2).chosen == [0, 2]


def test_rows_are_watched(written: Path) -> None:
    seen: list[int] = []
    check(written, watch=lambda rows: (seen.append(row) or row for row in rows))  # type: ignore[func-returns-value]
    assert seen == [0, 1, 2, 3, 4]


def test_a_file_that_is_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nope\.jsonl: no such file"):
        check(tmp_path / "nope.jsonl")


# -------------------------------------------------------------------------------------------------- contact sheets
def plain(*turns: Turn, size: tuple[int, int] = (120, 60)) -> Sample:
    return Sample(lambda: Image.new("RGB", size, "white"), Size(*size), turns, Provenance("test", 1))


def test_boxes_and_points_are_drawn_where_they_are() -> None:
    sample = plain(Turn("a", (Box(30, 15, 90, 45),), "box"), Turn("b", (Point(60, 30),), "point"))
    page = np.asarray(contact_sheet([sample])).astype(int)
    colours = [tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in COLOURS[:2]]
    # The picture is 240 px wide (scale 2) and stands 14 px from the corner; its caption is below 14 + 120 px.
    box, point = (np.argwhere((page[:134] == colour).all(2)) - 14 for colour in colours)
    assert (box.min(0).tolist(), box.max(0).tolist()) == ([30, 60], [89, 179])
    assert np.abs(point.mean(0) - [60, 120]).max() <= 1


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_pages_hold_every_sample(count: int) -> None:
    samples = [plain(Turn("q" * 300, ("a",)), size=size) for size in [(20, 10), (900, 1400), (3, 900)] * 3][:count]
    page = contact_sheet(samples)
    assert page.width == min(4, count) * 254 + 14
    assert page.height > 14 * (1 + -(-count // 4))


def test_a_page_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="no sample with a picture to draw"):
        contact_sheet([])
    with pytest.raises(DataError, match="test:1: no picture to draw"):
        contact_sheet([Sample(None, None, (), Provenance("test", 1))])


# ------------------------------------------------------------------------------------------------ the command line
def test_check_prints_counts_and_writes_the_sheet(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = written.parent / "sheet.png"
    assert exit_code("data", "check", str(written), "-o", str(sheet)) == 0
    out, err = capsys.readouterr()
    assert f"{written}: 5 rows, 5 usable, 0 broken" in out
    assert "pictures   48x48 pixels" in out
    assert f"wrote {sheet} with 5 rows" in err
    with Image.open(sheet) as page:
        assert page.width == 4 * 254 + 14


def test_check_ends_with_2_when_rows_are_broken(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(written, *["{"] * 25)
    assert exit_code("data", "check", str(written)) == 2
    out, err = capsys.readouterr()
    assert "  line 6: not valid JSON" in out
    assert "  and 5 more; --json lists all" in out
    assert f"error: {written}: 25 of 30 rows cannot be used; mend or remove them" in err
    assert "Traceback" not in err


def test_check_as_json(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(written, "{")
    assert exit_code("data", "check", str(written), "--json") == 2
    report = json.loads(capsys.readouterr().out)
    assert (report["rows"], report["usable"], report["largest"]) == (6, 5, {"width": 48, "height": 48})
    assert [finding["line"] for finding in report["broken"]] == [6]
    assert set(report["turns"]) <= {"box", "point", "count", "describe", "free"}
    assert sum(report["turns"].values()) >= 5


def test_check_without_a_drawable_row_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(tmp_path / "d.jsonl", asking("yes"))
    assert exit_code("data", "check", str(tmp_path / "d.jsonl"), "-o", str(tmp_path / "sheet.png")) == 0
    assert "sheet.png is not written: no usable row has a picture" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sheet.xyz", "sheet.xyz: expected a name that ends in .png"),
        ("missing/sheet.png", "sheet.png: cannot be written: No such file or directory"),
    ],
)
def test_sheets_that_cannot_be_written(written: Path, name: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("data", "check", str(written), "-o", str(written.parent / name)) == 2
    assert text in capsys.readouterr().err


def test_check_of_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("data", "check", str(tmp_path / "no.jsonl")) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe with two evaluations, of which only the data matter here."""
    evaluate = (
        SimpleNamespace(name="seen", data=SyntheticScenesConfig(samples=3)),
        SimpleNamespace(name=None, data=SyntheticScenesConfig(samples=9, seed=5)),
    )
    monkeypatch.setattr(verb, "open_recipe", lambda *arguments: SimpleNamespace(evaluate=evaluate))


@pytest.mark.usefixtures("recipe")
def test_sample_writes_pictures_and_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("data", "sample", "any", "-n", "2", "-o", str(tmp_path / "a")) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == tmp_path / "a" / "questions.jsonl"
    assert [len(sample.turns) for sample in read_jsonl(path)] == [6, 6]
    assert check(path).broken == []
    assert (
        exit_code("data", "sample", "any", "-n", "2", "--evaluation", "synthetic_scenes", "-o", str(tmp_path / "b"))
        == 0
    )
    assert (tmp_path / "b" / "000.png").read_bytes() != (tmp_path / "a" / "000.png").read_bytes()


@pytest.mark.usefixtures("recipe")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-n", "4"], "the data has 3 samples; asked for 0 to 3"),
        (["--evaluation", "other"], "no evaluation 'other' in the recipe; it has seen, synthetic_scenes"),
    ],
)
def test_sample_says_what_there_is(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("data", "sample", "any", "-o", str(tmp_path), *words) == 2
    assert f"error: {message}" in capsys.readouterr().err


def test_sample_of_a_recipe_without_evaluations(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verb, "open_recipe", lambda *arguments: SimpleNamespace(evaluate=()))
    assert exit_code("data", "sample", "any") == 2
    assert "the recipe has no `evaluate` section to take samples from" in capsys.readouterr().err


def test_help_teaches_by_example(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("check", "sample"):
        assert exit_code("data", name, "--help") == 0
        assert f"fusionkit data {name}" in capsys.readouterr().out
